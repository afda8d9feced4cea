// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The header before each packet (VIRTIO 1.3, section 5.1.6), and what was agreed of it.

use std::ops::RangeInclusive;

use virtio_bindings::virtio_net::*;
use virtio_device_core::Features;

/// Length of the header.
pub(crate) const HEADER: usize = 12;
/// Longest frame: what an IP packet can be, and an Ethernet header with a VLAN tag before it.
pub(crate) const MAX_FRAME: usize = 65_535 + 14 + 4;
/// Lengths of a frame, from addresses and type alone on.
const FRAMES: RangeInclusive<u64> = 14..=MAX_FRAME as u64;

/// A header as it is in memory.
pub(crate) type Header = [u8; HEADER];

/// Flags of packets to the host, and of those to the driver: "the sum is to be made", "it is right".
pub(crate) const TO_HOST: u8 = byte(VIRTIO_NET_HDR_F_NEEDS_CSUM);
pub(crate) const TO_DRIVER: u8 = TO_HOST | byte(VIRTIO_NET_HDR_F_DATA_VALID);

/// The header of a packet as whoever gets it may see it: no flags but `known` ones, nothing that leads
/// out of the frame, and 0 in all fields without a meaning. `None` if it asks for more than the
/// offloads `agreed` on, which have the names of packets to the host, or if a frame has no such length.
#[inline]
pub(crate) fn clean(
    header: Header,
    frame: u64,
    known: u8,
    agreed: impl FnOnce() -> Features,
) -> Option<Header> {
    if !FRAMES.contains(&frame) {
        return None;
    }
    let [flags, kind, h0, h1, g0, g1, s0, s1, o0, o1, ..] = header;
    // Fast path: a packet that asks for nothing.
    if flags & known == 0 && kind == 0 {
        return Some([0; HEADER]);
    }
    let word = |low, high| u64::from(u16::from_le_bytes([low, high]));
    let agreed = agreed();
    let sums = agreed.has(VIRTIO_NET_F_CSUM);
    let mut clean = [0; HEADER];
    if flags & TO_HOST != 0 {
        if !sums || word(s0, s1) + word(o0, o1) + 2 > frame {
            return None;
        }
        clean = [TO_HOST, 0, 0, 0, 0, 0, s0, s1, o0, o1, 0, 0];
    }
    if kind != 0 {
        let whole = flags & TO_HOST != 0 && word(g0, g1) != 0 && word(h0, h1) <= frame;
        if !whole || !allows(agreed, kind.into()) {
            return None;
        }
        clean[1..6].copy_from_slice(&[kind, h0, h1, g0, g1]);
    }
    if sums {
        clean[0] |= flags & known & !TO_HOST;
    }
    Some(clean)
}

/// Whether segments of a kind were agreed on; only TCP has news of congestion.
const fn allows(agreed: Features, kind: u32) -> bool {
    let (feature, is_tcp) = match kind & !VIRTIO_NET_HDR_GSO_ECN {
        VIRTIO_NET_HDR_GSO_TCPV4 => (VIRTIO_NET_F_HOST_TSO4, true),
        VIRTIO_NET_HDR_GSO_TCPV6 => (VIRTIO_NET_F_HOST_TSO6, true),
        VIRTIO_NET_HDR_GSO_UDP => (VIRTIO_NET_F_HOST_UFO, false),
        VIRTIO_NET_HDR_GSO_UDP_L4 => (VIRTIO_NET_F_HOST_USO, false),
        _ => return false,
    };
    let congestion = kind & VIRTIO_NET_HDR_GSO_ECN != 0;
    agreed.has(feature) && (!congestion || is_tcp && agreed.has(VIRTIO_NET_F_HOST_ECN))
}

/// A flag, of which there are eight.
#[expect(clippy::cast_possible_truncation, reason = "they are single bits")]
const fn byte(flag: u32) -> u8 {
    flag as u8
}

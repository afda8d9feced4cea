// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The header before each packet (VIRTIO 1.3, section 5.1.6), and what was agreed of it.

use std::ops::RangeInclusive;

use virtio_bindings::virtio_net as net;
use virtio_device_core::Features;

/// Length of the header.
pub(crate) const HEADER: usize = 12;
/// Longest frame: what an IP packet can be, and an Ethernet header with a VLAN tag before it.
pub(crate) const MAX_FRAME: usize = 65_535 + 14 + 4;
/// Lengths of a frame, from addresses and type alone on.
pub(crate) const FRAMES: RangeInclusive<usize> = 14..=MAX_FRAME;

/// A header as it is in memory.
pub(crate) type Header = [u8; HEADER];

/// Flags of packets to the host, and of those to the driver: "the sum is to be made", "it is right".
pub(crate) const TO_HOST: u8 = byte(net::VIRTIO_NET_HDR_F_NEEDS_CSUM);
pub(crate) const TO_DRIVER: u8 = TO_HOST | byte(net::VIRTIO_NET_HDR_F_DATA_VALID);

/// The kinds of segments, and the features that each needs; only TCP has news of congestion.
const SEGMENTS: [(u32, &[u32]); 6] = [
    (net::VIRTIO_NET_HDR_GSO_UDP, &[net::VIRTIO_NET_F_HOST_UFO]),
    (
        net::VIRTIO_NET_HDR_GSO_UDP_L4,
        &[net::VIRTIO_NET_F_HOST_USO],
    ),
    (
        net::VIRTIO_NET_HDR_GSO_TCPV4,
        &[net::VIRTIO_NET_F_HOST_TSO4],
    ),
    (
        net::VIRTIO_NET_HDR_GSO_TCPV6,
        &[net::VIRTIO_NET_F_HOST_TSO6],
    ),
    (
        net::VIRTIO_NET_HDR_GSO_TCPV4 | net::VIRTIO_NET_HDR_GSO_ECN,
        &[net::VIRTIO_NET_F_HOST_TSO4, net::VIRTIO_NET_F_HOST_ECN],
    ),
    (
        net::VIRTIO_NET_HDR_GSO_TCPV6 | net::VIRTIO_NET_HDR_GSO_ECN,
        &[net::VIRTIO_NET_F_HOST_TSO6, net::VIRTIO_NET_F_HOST_ECN],
    ),
];

/// The header of a packet as whoever gets it may see it: no flags but `known` ones, nothing that leads
/// out of the frame, and 0 in all fields without a meaning. `None` if it asks for more than the
/// offloads `agreed` on, which have the names of packets to the host.
#[inline]
pub(crate) fn clean(header: Header, frame: usize, agreed: Features, known: u8) -> Option<Header> {
    let [flags, kind, h0, h1, g0, g1, s0, s1, o0, o1, ..] = header;
    // Fast path: a packet that asks for nothing.
    if flags & known == 0 && kind == 0 {
        return Some([0; HEADER]);
    }
    let word = |low, high| usize::from(u16::from_le_bytes([low, high]));
    let sums = agreed.has(net::VIRTIO_NET_F_CSUM);
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

fn allows(agreed: Features, kind: u32) -> bool {
    let segments = SEGMENTS.iter().find(|(it, _)| *it == kind);
    segments.is_some_and(|(_, needed)| needed.iter().all(|feature| agreed.has(*feature)))
}

/// A flag, of which there are eight.
#[expect(clippy::cast_possible_truncation, reason = "they are single bits")]
const fn byte(flag: u32) -> u8 {
    flag as u8
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The header before each packet (VIRTIO 1.3, section 5.1.6), and what was agreed of it.

use virtio_bindings::virtio_net as net;
use virtio_device_core::Features;

/// Length of the header.
pub(crate) const HEADER: usize = 12;
/// Shortest frame: addresses and type.
pub(crate) const MIN_FRAME: usize = 14;
/// Longest frame: what an IP packet can be, and an Ethernet header with a VLAN tag before it.
pub(crate) const MAX_FRAME: usize = 65_535 + MIN_FRAME + 4;

/// What packets of one direction may ask of whoever gets them: the numbers of the features.
struct Terms {
    csum: u32,
    tcp4: u32,
    tcp6: u32,
    ecn: u32,
    fragments: u32,
    datagrams: [u32; 2],
}

const TO_HOST: Terms = Terms {
    csum: net::VIRTIO_NET_F_CSUM,
    tcp4: net::VIRTIO_NET_F_HOST_TSO4,
    tcp6: net::VIRTIO_NET_F_HOST_TSO6,
    ecn: net::VIRTIO_NET_F_HOST_ECN,
    fragments: net::VIRTIO_NET_F_HOST_UFO,
    datagrams: [net::VIRTIO_NET_F_HOST_USO; 2],
};

const TO_GUEST: Terms = Terms {
    csum: net::VIRTIO_NET_F_GUEST_CSUM,
    tcp4: net::VIRTIO_NET_F_GUEST_TSO4,
    tcp6: net::VIRTIO_NET_F_GUEST_TSO6,
    ecn: net::VIRTIO_NET_F_GUEST_ECN,
    fragments: net::VIRTIO_NET_F_GUEST_UFO,
    datagrams: [net::VIRTIO_NET_F_GUEST_USO4, net::VIRTIO_NET_F_GUEST_USO6],
};

/// The header of a packet from the driver as the host may see it: only what was agreed on, nothing
/// that leads out of the frame, and 0 in all fields without a meaning. `None` if it asks for more.
pub(crate) fn to_host(
    header: [u8; HEADER],
    frame: usize,
    agreed: Features,
) -> Option<[u8; HEADER]> {
    clean(header, frame, agreed, &TO_HOST)
}

/// The header of a packet from the host as the driver may see it.
pub(crate) fn to_guest(
    header: [u8; HEADER],
    frame: usize,
    agreed: Features,
) -> Option<[u8; HEADER]> {
    let valid = byte(net::VIRTIO_NET_HDR_F_DATA_VALID);
    let is_valid = header[0] & valid != 0 && agreed.has(net::VIRTIO_NET_F_GUEST_CSUM);
    let mut clean = clean(header, frame, agreed, &TO_GUEST)?;
    if is_valid {
        clean[0] |= valid;
    }
    Some(clean)
}

#[inline]
fn clean(
    header: [u8; HEADER],
    frame: usize,
    agreed: Features,
    terms: &Terms,
) -> Option<[u8; HEADER]> {
    // Fast path: a packet that asks for nothing.
    let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, ..] = header;
    let mut clean = [0; HEADER];
    let needs_csum = byte(net::VIRTIO_NET_HDR_F_NEEDS_CSUM);
    let has_csum = flags & needs_csum != 0;
    if has_csum {
        let start = usize::from(u16::from_le_bytes([s0, s1]));
        let offset = usize::from(u16::from_le_bytes([o0, o1]));
        if !agreed.has(terms.csum) || start + offset + 2 > frame {
            return None;
        }
        clean = [needs_csum, 0, 0, 0, 0, 0, s0, s1, o0, o1, 0, 0];
    }
    if u32::from(gso_type) == net::VIRTIO_NET_HDR_GSO_NONE {
        return Some(clean);
    }
    let hdr_len = usize::from(u16::from_le_bytes([h0, h1]));
    let segments = u16::from_le_bytes([g0, g1]) != 0 && hdr_len <= frame;
    if !has_csum || !segments || !has_gso(gso_type, agreed, terms) {
        return None;
    }
    clean[1..6].copy_from_slice(&[gso_type, h0, h1, g0, g1]);
    Some(clean)
}

fn has_gso(gso_type: u8, agreed: Features, terms: &Terms) -> bool {
    let ecn = u32::from(gso_type) & net::VIRTIO_NET_HDR_GSO_ECN;
    let allowed = match u32::from(gso_type) - ecn {
        net::VIRTIO_NET_HDR_GSO_TCPV4 => agreed.has(terms.tcp4),
        net::VIRTIO_NET_HDR_GSO_TCPV6 => agreed.has(terms.tcp6),
        net::VIRTIO_NET_HDR_GSO_UDP => ecn == 0 && agreed.has(terms.fragments),
        net::VIRTIO_NET_HDR_GSO_UDP_L4 => {
            let [v4, v6] = terms.datagrams;
            ecn == 0 && (agreed.has(v4) || agreed.has(v6))
        }
        _ => false,
    };
    allowed && (ecn == 0 || agreed.has(terms.ecn))
}

/// A constant of the header's first two bytes.
#[expect(clippy::cast_possible_truncation, reason = "they are single bits")]
const fn byte(constant: u32) -> u8 {
    constant as u8
}

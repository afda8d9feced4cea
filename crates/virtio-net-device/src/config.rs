// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Features (VIRTIO 1.3, section 5.1.3).

use libc::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_UFO, TUN_F_USO4, TUN_F_USO6};
use virtio_bindings::virtio_net::*;
use virtio_device_core::Features;

/// Descriptors of each queue.
pub(crate) const QUEUE_SIZE: u16 = 256;

/// What a packet may need of whoever gets it: the feature that allows it towards the driver, the one
/// that allows it towards the host, and what a tap calls it.
const OFFLOADS: [(u32, u32, u32); 7] = [
    (VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_CSUM, TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO4, TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_TSO6, TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_HOST_ECN, TUN_F_TSO_ECN),
    (VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_UFO, TUN_F_UFO),
    (VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_HOST_USO, TUN_F_USO4),
    (VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_USO, TUN_F_USO6),
];

/// What the device can do whatever its back end is.
pub(crate) const FEATURES: Features = Features::of(&[
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA,
    VIRTIO_NET_F_CTRL_VLAN,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_F_GUEST_ANNOUNCE,
]);

/// What packets to the driver may need.
pub(crate) fn guest_offloads() -> Features {
    Features::of(&OFFLOADS.map(|(guest, ..)| guest))
}

/// What packets from the driver may need.
pub(crate) fn host_offloads() -> Features {
    Features::of(&OFFLOADS.map(|(_, host, _)| host))
}

/// Offloads of packets to the driver, by the names that they have in the other direction.
pub(crate) fn as_sent(offloads: Features) -> Features {
    let some = OFFLOADS.iter().filter(|(guest, ..)| offloads.has(*guest));
    some.fold(Features::NONE, |all, (_, host, _)| {
        all | Features::of(&[*host])
    })
}

/// Offloads of packets to the driver, as a tap has them.
pub(crate) fn as_tap(offloads: Features) -> u32 {
    let some = OFFLOADS.iter().filter(|(guest, ..)| offloads.has(*guest));
    some.fold(0, |all, (_, _, tap)| all | tap)
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Features and configuration space (VIRTIO 1.3, sections 5.1.3 and 5.1.4).

use std::mem::offset_of;

use virtio_bindings::virtio_net as net;
use virtio_device_core::Features;

use crate::settings::Mac;

/// Descriptors of each queue.
pub(crate) const QUEUE_SIZE: u16 = 256;

/// What packets to the driver may need.
pub(crate) const GUEST_OFFLOADS: Features = Features::of(&[
    net::VIRTIO_NET_F_GUEST_CSUM,
    net::VIRTIO_NET_F_GUEST_TSO4,
    net::VIRTIO_NET_F_GUEST_TSO6,
    net::VIRTIO_NET_F_GUEST_ECN,
    net::VIRTIO_NET_F_GUEST_UFO,
    net::VIRTIO_NET_F_GUEST_USO4,
    net::VIRTIO_NET_F_GUEST_USO6,
]);

/// What packets from the driver may need.
pub(crate) const HOST_OFFLOADS: Features = Features::of(&[
    net::VIRTIO_NET_F_CSUM,
    net::VIRTIO_NET_F_HOST_TSO4,
    net::VIRTIO_NET_F_HOST_TSO6,
    net::VIRTIO_NET_F_HOST_ECN,
    net::VIRTIO_NET_F_HOST_UFO,
    net::VIRTIO_NET_F_HOST_USO,
]);

/// What the device can do whatever its back end is.
pub(crate) const FEATURES: Features = Features::of(&[
    net::VIRTIO_NET_F_MAC,
    net::VIRTIO_NET_F_STATUS,
    net::VIRTIO_NET_F_MRG_RXBUF,
    net::VIRTIO_NET_F_CTRL_VQ,
    net::VIRTIO_NET_F_CTRL_RX,
    net::VIRTIO_NET_F_CTRL_RX_EXTRA,
    net::VIRTIO_NET_F_CTRL_VLAN,
    net::VIRTIO_NET_F_CTRL_MAC_ADDR,
    net::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    net::VIRTIO_NET_F_GUEST_ANNOUNCE,
]);

/// Bytes of the configuration space: up to the speed.
pub(crate) const LEN: usize = offset_of!(net::virtio_net_config, speed);

/// What the configuration space tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    pub(crate) mac: Mac,
    pub(crate) status: u16,
    pub(crate) pairs: u16,
    pub(crate) mtu: u16,
}

impl Config {
    /// The space as the driver reads it.
    pub(crate) fn bytes(self) -> [u8; LEN] {
        let mut space = [0; LEN];
        let mut put = |at: usize, bytes: &[u8]| {
            let field = space.get_mut(at..at + bytes.len());
            field.unwrap_or_default().copy_from_slice(bytes);
        };
        put(offset_of!(net::virtio_net_config, mac), &self.mac);
        for (at, field) in [
            (offset_of!(net::virtio_net_config, status), self.status),
            (
                offset_of!(net::virtio_net_config, max_virtqueue_pairs),
                self.pairs,
            ),
            (offset_of!(net::virtio_net_config, mtu), self.mtu),
        ] {
            put(at, &field.to_le_bytes());
        }
        space
    }
}

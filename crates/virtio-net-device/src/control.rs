// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Commands of the control queue (VIRTIO 1.3, section 5.1.6.5): what one asks for, and what it
//! changes. Without I/O.

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net as net;
use virtio_device_core::transport::Negotiation;
use virtio_device_core::{ChainStream, Features};
use vm_memory::GuestMemory;

use crate::config::GUEST_OFFLOADS;
use crate::settings::{GROUP, MAX_MACS, Mac, Settings, Table};

/// Number of VLANs.
const VLANS: u16 = 4096;

/// What a driver may ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) agreed: Features,
    /// Pairs of queues that there are.
    pub(crate) pairs: u16,
}

/// A command that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Mode(u32, bool),
    Macs { unicast: Table, multicast: Table },
    Mac(Mac),
    Vlan(u16, bool),
    Announced,
    Pairs(u16),
    Offloads(u64),
}

impl Command {
    /// Reads a command; `None` if it is one that the driver has no right to, or is none at all.
    pub(crate) fn parse<M: GuestMemory>(
        reader: &mut ChainStream<'_, M, false>,
        terms: Terms,
    ) -> Option<Self> {
        let [class, command] = reader.read_array().ok()?.map(u32::from);
        let has = |feature| terms.agreed.has(feature).then_some(());
        let parsed = match (class, command) {
            (net::VIRTIO_NET_CTRL_RX, mode @ 0..=net::VIRTIO_NET_CTRL_RX_NOBCAST) => {
                let extra = mode > net::VIRTIO_NET_CTRL_RX_ALLMULTI;
                has(net::VIRTIO_NET_F_CTRL_RX)?;
                has(if extra {
                    net::VIRTIO_NET_F_CTRL_RX_EXTRA
                } else {
                    net::VIRTIO_NET_F_CTRL_RX
                })?;
                match reader.read_array().ok()? {
                    [on @ 0..=1] => Self::Mode(mode, on == 1),
                    _ => return None,
                }
            }
            (net::VIRTIO_NET_CTRL_MAC, net::VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
                has(net::VIRTIO_NET_F_CTRL_RX)?;
                Self::Macs {
                    unicast: table(reader)?,
                    multicast: table(reader)?,
                }
            }
            (net::VIRTIO_NET_CTRL_MAC, net::VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
                has(net::VIRTIO_NET_F_CTRL_MAC_ADDR)?;
                let mac: Mac = reader.read_array().ok()?;
                (mac[0] & GROUP == 0).then_some(Self::Mac(mac))?
            }
            (
                net::VIRTIO_NET_CTRL_VLAN,
                net::VIRTIO_NET_CTRL_VLAN_ADD | net::VIRTIO_NET_CTRL_VLAN_DEL,
            ) => {
                has(net::VIRTIO_NET_F_CTRL_VLAN)?;
                let id = u16::from_le_bytes(reader.read_array().ok()?);
                let on = command == net::VIRTIO_NET_CTRL_VLAN_ADD;
                (id < VLANS).then_some(Self::Vlan(id, on))?
            }
            (net::VIRTIO_NET_CTRL_ANNOUNCE, net::VIRTIO_NET_CTRL_ANNOUNCE_ACK) => {
                has(net::VIRTIO_NET_F_GUEST_ANNOUNCE)?;
                Self::Announced
            }
            (net::VIRTIO_NET_CTRL_MQ, net::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                has(net::VIRTIO_NET_F_MQ)?;
                let pairs = u16::from_le_bytes(reader.read_array().ok()?);
                let valid = (1..=terms.pairs).contains(&pairs);
                valid.then_some(Self::Pairs(pairs))?
            }
            (net::VIRTIO_NET_CTRL_GUEST_OFFLOADS, net::VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
                has(net::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)?;
                let offloads = u64::from_le_bytes(reader.read_array().ok()?);
                let wanted = Features::from(offloads);
                let valid = (wanted - (terms.agreed & GUEST_OFFLOADS)).is_empty();
                // Offloads depend on each other as the features do that they are called after.
                let whole = Negotiation::new(VIRTIO_ID_NET, wanted).offered();
                (valid && (wanted - whole).is_empty()).then_some(Self::Offloads(offloads))?
            }
            _ => return None,
        };
        // Whatever comes after a command is none.
        (reader.remaining() == 0).then_some(parsed)
    }

    /// What the settings are with this.
    pub(crate) fn apply(self, settings: &mut Settings) {
        match self {
            Self::Mode(mode, on) => settings.set_mode(mode, on),
            Self::Macs { unicast, multicast } => {
                (settings.unicast, settings.multicast) = (unicast, multicast);
            }
            Self::Mac(mac) => settings.mac = mac,
            Self::Vlan(id, on) => settings.set_vlan(id, on),
            Self::Announced => {}
            Self::Pairs(pairs) => settings.pairs = pairs,
            Self::Offloads(offloads) => settings.offloads = Some(offloads),
        }
    }
}

/// One of the two tables of addresses. However many there are, no more are read than are kept.
fn table<M: GuestMemory>(reader: &mut ChainStream<'_, M, false>) -> Option<Table> {
    let count = u64::from(u32::from_le_bytes(reader.read_array().ok()?));
    let len = 6 * count;
    if len > reader.remaining() {
        return None;
    }
    match usize::try_from(count) {
        Ok(0) => Some(Table::Empty),
        Ok(count @ 1..=MAX_MACS) => {
            let macs = (0..count).map(|_| reader.read_array());
            macs.collect::<Result<_, _>>().ok().map(Table::These)
        }
        _ => {
            reader.skip(len);
            Some(Table::All)
        }
    }
}

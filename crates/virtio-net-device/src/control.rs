// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Commands of the control queue (VIRTIO 1.3, section 5.1.6.5): what each changes of the settings.
//! Without I/O.

use virtio_bindings::virtio_net::*;
use virtio_device_core::{ChainStream, Features};
use vm_memory::GuestMemory;

use crate::settings::{GROUP, MAX_MACS, Mac, Settings, allowed};

/// Makes the change that a command asks for, and returns the command's class. `None` if the driver has no
/// right to it, or it makes no sense: the settings are not to be used then.
pub(crate) fn obey<M: GuestMemory>(
    settings: &mut Settings,
    command: &mut ChainStream<'_, M, false>,
    most_pairs: u16,
) -> Option<u32> {
    let [class, number] = command.read_array().ok()?.map(u32::from);
    let mut valid = true;
    let needed = match (class, number) {
        (VIRTIO_NET_CTRL_RX, mode @ VIRTIO_NET_CTRL_RX_PROMISC..=VIRTIO_NET_CTRL_RX_NOBCAST) => {
            let [on] = command.read_array().ok()?;
            valid = on <= 1;
            settings.set_mode(mode, on == 1);
            match mode {
                VIRTIO_NET_CTRL_RX_PROMISC | VIRTIO_NET_CTRL_RX_ALLMULTI => VIRTIO_NET_F_CTRL_RX,
                _ => VIRTIO_NET_F_CTRL_RX_EXTRA,
            }
        }
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
            for macs in &mut settings.macs {
                set_table(macs, command)?;
            }
            VIRTIO_NET_F_CTRL_RX
        }
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
            settings.mac = command.read_array().ok()?;
            valid = settings.mac[0] & GROUP == 0;
            VIRTIO_NET_F_CTRL_MAC_ADDR
        }
        (VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD | VIRTIO_NET_CTRL_VLAN_DEL) => {
            let id = u16::from_le_bytes(command.read_array().ok()?);
            valid = settings.set_vlan(id, number == VIRTIO_NET_CTRL_VLAN_ADD);
            VIRTIO_NET_F_CTRL_VLAN
        }
        (VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK) => VIRTIO_NET_F_GUEST_ANNOUNCE,
        (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
            settings.pairs = u16::from_le_bytes(command.read_array().ok()?);
            valid = (1..=most_pairs).contains(&settings.pairs);
            VIRTIO_NET_F_MQ
        }
        (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
            let wanted = Features::from(u64::from_le_bytes(command.read_array().ok()?));
            valid = wanted == allowed(wanted, settings.agreed);
            settings.offloads = wanted;
            VIRTIO_NET_F_CTRL_GUEST_OFFLOADS
        }
        _ => return None,
    };
    // Whatever comes after a command is none.
    (valid && settings.agreed.has(needed) && command.remaining() == 0).then_some(class)
}

/// Reads one of the two tables of addresses; nothing of one that is too long.
fn set_table<M: GuestMemory>(
    macs: &mut Option<Vec<Mac>>,
    command: &mut ChainStream<'_, M, false>,
) -> Option<()> {
    let count = u32::from_le_bytes(command.read_array().ok()?);
    let len = 6 * u64::from(count);
    if len > command.remaining() {
        return None;
    }
    *macs = None;
    if count as usize > MAX_MACS {
        command.skip(len);
    } else {
        let all = (0..count).map(|_| command.read_array());
        *macs = Some(all.collect::<Result<_, _>>().ok()?);
    }
    Some(())
}

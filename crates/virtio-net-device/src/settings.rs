// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the driver has set by its control queue, which packets it wants to get by that, and how both
//! are saved.

use virtio_bindings::virtio_net as net;
use virtio_device_core::{DeviceFault, DeviceState, Features};

/// A MAC address.
pub type Mac = [u8; 6];

/// Most addresses of a table that are looked at; with more, all addresses of its kind pass.
pub(crate) const MAX_MACS: usize = 64;
/// The bit of an address that stands for several stations.
pub(crate) const GROUP: u8 = 1;
/// The first bytes of a frame that decide who gets it: addresses, type, VLAN tag.
pub(crate) const START: usize = 18;

/// Version of the saved state, and the length of what comes before its tables: the address, modes,
/// pairs (16 bits), whether the offloads were set, the offloads (64 bits).
const VERSION: u32 = 1;
const FIXED: usize = 18;
const VLAN_WORDS: usize = 64;
const VLAN_BYTES: usize = 8 * VLAN_WORDS;

/// Addresses of one kind that pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Table {
    /// None.
    #[default]
    Empty,
    /// These.
    These(Vec<Mac>),
    /// All, because there were too many.
    All,
}

/// What the driver has set. A clone is made for each change, so that a worker that looks at packets
/// needs no lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) mac: Mac,
    /// A bit for each command of `VIRTIO_NET_CTRL_RX` that is on.
    modes: u8,
    pub(crate) pairs: u16,
    /// What packets to the driver may need, once it was set; what was negotiated before.
    pub(crate) offloads: Option<u64>,
    pub(crate) unicast: Table,
    pub(crate) multicast: Table,
    vlans: [u64; VLAN_WORDS],
}

impl Settings {
    /// What holds until the driver says something else: everything passes, by one pair of queues.
    pub(crate) const fn new(mac: Mac) -> Self {
        Self {
            mac,
            modes: 1 << net::VIRTIO_NET_CTRL_RX_PROMISC,
            pairs: 1,
            offloads: None,
            unicast: Table::Empty,
            multicast: Table::Empty,
            vlans: [0; VLAN_WORDS],
        }
    }

    pub(crate) const fn set_mode(&mut self, command: u32, on: bool) {
        match on {
            true => self.modes |= 1 << command,
            false => self.modes &= !(1 << command),
        }
    }

    pub(crate) fn set_vlan(&mut self, id: u16, on: bool) {
        if let Some(word) = self.vlans.get_mut(usize::from(id / 64)) {
            match on {
                true => *word |= 1 << (id % 64),
                false => *word &= !(1 << (id % 64)),
            }
        }
    }

    /// Whether a frame that begins like this is for the driver.
    #[inline]
    pub(crate) fn passes(&self, start: &[u8; START], agreed: Features) -> bool {
        if !agreed.has(net::VIRTIO_NET_F_CTRL_RX) || self.has(net::VIRTIO_NET_CTRL_RX_PROMISC) {
            return true;
        }
        let [d0, d1, d2, d3, d4, d5, _, _, _, _, _, _, t0, t1, v0, v1, ..] = *start;
        let to = [d0, d1, d2, d3, d4, d5];
        if agreed.has(net::VIRTIO_NET_F_CTRL_VLAN) && [t0, t1] == [0x81, 0] {
            let id = usize::from(u16::from_be_bytes([v0, v1]) & 0xfff);
            if self
                .vlans
                .get(id / 64)
                .is_none_or(|w| w & 1 << (id % 64) == 0)
            {
                return false;
            }
        }
        let (none, all, table) = match d0 & GROUP {
            0 => (
                net::VIRTIO_NET_CTRL_RX_NOUNI,
                net::VIRTIO_NET_CTRL_RX_ALLUNI,
                &self.unicast,
            ),
            _ if to == [0xff; 6] => return !self.has(net::VIRTIO_NET_CTRL_RX_NOBCAST),
            _ => (
                net::VIRTIO_NET_CTRL_RX_NOMULTI,
                net::VIRTIO_NET_CTRL_RX_ALLMULTI,
                &self.multicast,
            ),
        };
        let listed = match table {
            Table::Empty => false,
            Table::These(macs) => macs.contains(&to),
            Table::All => true,
        };
        !self.has(none) && (self.has(all) || to == self.mac || listed)
    }

    const fn has(&self, command: u32) -> bool {
        self.modes & 1 << command != 0
    }

    pub(crate) fn save(&self) -> DeviceState {
        let mut data = Vec::with_capacity(FIXED + VLAN_BYTES + 2 * (1 + 6 * MAX_MACS));
        data.extend(self.mac);
        data.push(self.modes);
        data.extend(self.pairs.to_le_bytes());
        data.push(self.offloads.is_some().into());
        data.extend(self.offloads.unwrap_or(0).to_le_bytes());
        data.extend(self.vlans.iter().flat_map(|word| word.to_le_bytes()));
        for table in [&self.unicast, &self.multicast] {
            match table {
                Table::Empty => data.push(0),
                Table::All => data.push(u8::MAX),
                Table::These(macs) => {
                    data.push(u8::try_from(macs.len()).unwrap_or(u8::MAX));
                    data.extend(macs.as_flattened());
                }
            }
        }
        DeviceState::new(VERSION, data).unwrap_or_default()
    }

    /// What was saved, for a device with this many pairs of queues.
    pub(crate) fn restore(state: &DeviceState, most: u16) -> Result<Self, DeviceFault> {
        const SHORT: DeviceFault = DeviceFault::State("its length");
        let wrong = DeviceFault::State;
        let data = state.data(VERSION)?;
        let (fixed, rest) = data.split_first_chunk::<FIXED>().ok_or(SHORT)?;
        let (vlans, mut rest) = rest.split_first_chunk::<VLAN_BYTES>().ok_or(SHORT)?;
        let [mac @ .., modes, p0, p1, set, o0, o1, o2, o3, o4, o5, o6, o7] = *fixed;
        let offloads = u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7]);
        let mut settings = Self::new(mac);
        settings.modes = modes;
        settings.pairs = u16::from_le_bytes([p0, p1]);
        settings.offloads = (set == 1).then_some(offloads);
        if mac[0] & GROUP != 0 || modes >> 6 != 0 {
            return Err(wrong("its address or modes"));
        }
        if settings.pairs == 0 || settings.pairs > most {
            return Err(wrong("its number of queues"));
        }
        if set > 1 || (set == 0 && offloads != 0) {
            return Err(wrong("its offloads"));
        }
        for (word, bytes) in settings.vlans.iter_mut().zip(vlans.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
        for table in [&mut settings.unicast, &mut settings.multicast] {
            let (count, macs) = rest.split_first().ok_or(SHORT)?;
            let len = match count {
                0 | &u8::MAX => 0,
                count => 6 * usize::from(*count),
            };
            let (macs, later) = macs.split_at_checked(len).ok_or(SHORT)?;
            *table = match usize::from(*count) {
                0 => Table::Empty,
                0xff => Table::All,
                1..=MAX_MACS => {
                    let macs = macs.chunks_exact(6);
                    Table::These(macs.filter_map(|mac| mac.try_into().ok()).collect())
                }
                _ => return Err(wrong("its tables")),
            };
            rest = later;
        }
        match rest {
            [] => Ok(settings),
            _ => Err(SHORT),
        }
    }
}

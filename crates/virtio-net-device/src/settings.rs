// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the driver has set by its control queue, which packets it wants to get by that, and how both
//! are saved.

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::*;
use virtio_device_core::transport::Negotiation;
use virtio_device_core::{DeviceFault, DeviceState, Features};

use crate::config::guest_offloads;

/// A MAC address.
pub type Mac = [u8; 6];

/// Most addresses of a table that are looked at; with more, all addresses of its kind pass.
pub(crate) const MAX_MACS: usize = 64;
/// The bit of an address that stands for several stations.
pub(crate) const GROUP: u8 = 1;
/// The first bytes of a frame that decide who gets it: addresses, type, VLAN tag.
pub(crate) const START: usize = 18;

/// Version of the saved state.
const VERSION: u32 = 1;
/// What is saved instead of the length of a table that was too long.
const TOO_LONG: u8 = u8::MAX;

/// What the driver has set. A clone is made for each change, so that a worker that looks at packets
/// needs no lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) mac: Mac,
    /// A bit for each mode that is on, by the number of its command.
    modes: u8,
    pub(crate) pairs: u16,
    /// What packets to the driver may need.
    pub(crate) offloads: Features,
    /// The tables of single stations and of groups, unless they were too long.
    pub(crate) macs: [Option<Vec<Mac>>; 2],
    /// A bit for each VLAN that passes.
    vlans: [u8; 512],
    /// The features by which the driver may set all that.
    pub(crate) agreed: Features,
}

impl Settings {
    /// What holds until the driver says something else: everything passes, by one pair of queues.
    pub(crate) fn new(mac: Mac) -> Self {
        Self {
            mac,
            modes: 1 << VIRTIO_NET_CTRL_RX_PROMISC,
            pairs: 1,
            offloads: Features::from(u64::MAX),
            macs: [Some(Vec::new()), Some(Vec::new())],
            vlans: [0; 512],
            agreed: Features::NONE,
        }
    }

    pub(crate) const fn set_mode(&mut self, mode: u32, on: bool) {
        self.modes = self.modes & !(1 << mode) | (on as u8) << mode;
    }

    /// Has a VLAN pass; says whether there is such a thing.
    pub(crate) fn set_vlan(&mut self, id: u16, on: bool) -> bool {
        let byte = self.vlans.get_mut(usize::from(id / 8));
        let set = byte.map(|byte| *byte = *byte & !(1 << (id % 8)) | u8::from(on) << (id % 8));
        set.is_some()
    }

    /// As much of this as a driver may ask for that has `agreed` on these features: a saved state is
    /// not to be trusted.
    pub(crate) fn within(mut self, agreed: Features) -> Self {
        if !agreed.has(VIRTIO_NET_F_MQ) {
            self.pairs = 1;
        }
        self.offloads = allowed(self.offloads, agreed);
        self.agreed = agreed;
        self
    }

    /// Whether any frames do not pass.
    #[inline]
    pub(crate) const fn filters(&self) -> bool {
        self.agreed.has(VIRTIO_NET_F_CTRL_RX) && !self.has(VIRTIO_NET_CTRL_RX_PROMISC)
    }

    /// Whether a frame that begins like this is for the driver, if it filters any.
    pub(crate) fn passes(&self, start: [u8; START]) -> bool {
        let [to @ .., _, _, _, _, _, _, t0, t1, v0, v1, _, _] = start;
        if self.agreed.has(VIRTIO_NET_F_CTRL_VLAN) && [t0, t1] == [0x81, 0] {
            let id = usize::from(u16::from_be_bytes([v0, v1]) & 0xfff);
            let byte = self.vlans.get(id / 8).copied().unwrap_or(0);
            if byte & 1 << (id % 8) == 0 {
                return false;
            }
        }
        let [single, groups] = &self.macs;
        let (none, all, table) = match to {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => {
                return !self.has(VIRTIO_NET_CTRL_RX_NOBCAST);
            }
            [first, ..] if first & GROUP == 0 => {
                (VIRTIO_NET_CTRL_RX_NOUNI, VIRTIO_NET_CTRL_RX_ALLUNI, single)
            }
            _ => (
                VIRTIO_NET_CTRL_RX_NOMULTI,
                VIRTIO_NET_CTRL_RX_ALLMULTI,
                groups,
            ),
        };
        let listed = table.as_ref().is_none_or(|macs| macs.contains(&to));
        !self.has(none) && (self.has(all) || to == self.mac || listed)
    }

    const fn has(&self, mode: u32) -> bool {
        self.modes & 1 << mode != 0
    }

    pub(crate) fn save(&self) -> DeviceState {
        let mut data = self.mac.to_vec();
        data.push(self.modes);
        data.extend(self.pairs.to_le_bytes());
        data.extend(self.offloads.low().to_le_bytes());
        data.extend(self.vlans);
        for macs in &self.macs {
            let count = macs.as_ref().map(|macs| u8::try_from(macs.len()));
            data.push(count.and_then(Result::ok).unwrap_or(TOO_LONG));
            data.extend(macs.iter().flatten().flatten());
        }
        DeviceState::new(VERSION, data).unwrap_or_default()
    }

    /// What was saved, for a device with this many pairs of queues.
    pub(crate) fn restore(state: &DeviceState, most: u16) -> Result<Self, DeviceFault> {
        let wrong = DeviceFault::State;
        let rest = &mut state.data(VERSION)?;
        let mut settings = Self::new(take(rest)?);
        [settings.modes] = take(rest)?;
        settings.pairs = u16::from_le_bytes(take(rest)?);
        settings.offloads = Features::from(u64::from_le_bytes(take(rest)?));
        settings.vlans = take(rest)?;
        for macs in &mut settings.macs {
            *macs = match take(rest)? {
                [TOO_LONG] => None,
                [count] if usize::from(count) <= MAX_MACS => {
                    Some((0..count).map(|_| take(rest)).collect::<Result<_, _>>()?)
                }
                _ => return Err(wrong("its tables")),
            };
        }
        match settings {
            _ if !rest.is_empty() => Err(wrong("its length")),
            _ if settings.modes >> (VIRTIO_NET_CTRL_RX_NOBCAST + 1) != 0 => Err(wrong("its modes")),
            _ if settings.mac[0] & GROUP != 0 => Err(wrong("its address")),
            _ if !(1..=most).contains(&settings.pairs) => Err(wrong("its number of queues")),
            settings => Ok(settings),
        }
    }
}

/// Those of the `wanted` offloads that were `agreed` on and do not lack what they need: they depend on
/// each other as the features do that they are called after.
pub(crate) fn allowed(wanted: Features, agreed: Features) -> Features {
    let offloads = wanted & agreed & guest_offloads();
    Negotiation::new(VIRTIO_ID_NET, offloads).offered() & offloads
}

/// Takes the next bytes of a state.
fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], DeviceFault> {
    let (now, later) = rest
        .split_first_chunk()
        .ok_or(DeviceFault::State("its length"))?;
    *rest = later;
    Ok(*now)
}

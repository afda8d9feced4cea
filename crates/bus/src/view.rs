// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Access to the devices: the path that every exit of a vCPU takes.

use std::fmt;
use std::sync::Arc;

use crate::io::{Io, Outcome};
use crate::map::Map;
use crate::presence::Presence;
use crate::region::address_of;
use crate::shared::Shared;
use crate::sync::Ordering;
use crate::{AccessError, Address, BusDeviceSync};

/// One vCPU's view of the bus for memory-mapped I/O.
pub type MmioView = BusView<u64>;

/// One vCPU's view of the bus for port I/O.
pub type PioView = BusView<u16>;

/// One vCPU's view of a bus.
///
/// A view always acts on the bus as it is now, but remembers what it saw last: as long as the bus
/// does not change, an access takes no lock and writes nothing that another thread uses. Each vCPU
/// thread makes its own, with [`Bus::view`](crate::Bus::view).
pub struct BusView<K: Address> {
    shared: Arc<Shared<K>>,
    lookup: Lookup<K>,
}

impl<K: Address> BusView<K> {
    pub(crate) fn new(shared: Arc<Shared<K>>) -> Self {
        let lookup = Lookup::new(&shared);
        Self { shared, lookup }
    }

    /// Reads `data.len()` bytes, which must be 1, 2, 4 or 8, from the device at `addr`.
    ///
    /// Whatever happens, nothing of the former contents of `data` stays: the bus overwrites them
    /// with its fill value first, and again if the device returns an error.
    ///
    /// # Errors
    ///
    /// In this order: [`AccessError::Width`] for any other length; [`AccessError::CrossesEnd`]
    /// beyond the end of the address space; [`AccessError::Unclaimed`] if `addr` is in no region;
    /// [`AccessError::CrossesEnd`] beyond the end of the region; [`AccessError::Width`] or
    /// [`AccessError::Misaligned`] by the rules of the region; what the device returns. If the
    /// handler panics, [`AccessError::Panicked`], now and for each later access.
    #[inline]
    pub fn read(&mut self, addr: K, data: &mut [u8]) -> Result<(), AccessError> {
        self.lookup.access(&self.shared, addr, Io::Read(data))
    }

    /// Writes `data`, which must be 1, 2, 4 or 8 bytes, to the device at `addr`.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    #[inline]
    pub fn write(&mut self, addr: K, data: &[u8]) -> Result<(), AccessError> {
        self.lookup.access(&self.shared, addr, Io::Write(data))
    }

    /// Lets go of devices that have been removed since the last access.
    ///
    /// Never needed for a right answer: each access does this first. A vCPU that rests for long
    /// may call it, so that a removed device is dropped early.
    pub fn refresh(&mut self) {
        self.lookup.refresh(&self.shared);
    }
}

impl<K: Address> Drop for BusView<K> {
    fn drop(&mut self) {
        self.shared.unregister(&self.lookup.presence);
    }
}

impl<K: Address> fmt::Debug for BusView<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BusView").finish_non_exhaustive()
    }
}

/// A map, and a region of it that is accessed again and again.
pub(crate) struct Lookup<K> {
    /// Where that region begins.
    base: u64,
    /// How long it is; 0 if there is none.
    size: u64,
    /// Its device.
    device: Arc<dyn BusDeviceSync>,
    presence: Arc<Presence>,
    generation: u64,
    map: Arc<Map<K>>,
    /// The region of the last access that went the long way.
    index: usize,
    /// A guess for each address: the region that was found near to it before, or any other.
    hints: Vec<u32>,
}

impl<K: Address> Lookup<K> {
    pub(crate) fn new(shared: &Shared<K>) -> Self {
        let (map, generation, presence) = shared.register();
        Self {
            base: 0,
            size: 0,
            device: Arc::clone(&shared.failed),
            presence,
            generation,
            hints: map.hints(),
            map,
            index: usize::MAX,
        }
    }

    /// An access from the outside. The short way is for the region that is accessed most.
    #[inline(always)]
    pub(crate) fn access(&mut self, shared: &Shared<K>, addr: K, mut io: Io<'_>) -> Outcome {
        let offset = addr.into().wrapping_sub(self.base);
        let room = self.size.checked_sub(io.width() as u64);
        if room.is_some_and(|room| offset <= room) && io.prepare(shared.fill) {
            if let Some(outcome) = self.visit(shared, &*self.device, offset, &mut io) {
                return outcome;
            }
        }
        // Passed on in parts, which stay in registers.
        match io {
            Io::Read(data) => self.read_any(shared, addr, data),
            Io::Write(data) => self.write_any(shared, addr, data),
        }
    }

    #[inline(never)]
    fn read_any(&mut self, shared: &Shared<K>, addr: K, data: &mut [u8]) -> Outcome {
        self.access_any(shared, addr, Io::Read(data))
    }

    #[inline(never)]
    fn write_any(&mut self, shared: &Shared<K>, addr: K, data: &[u8]) -> Outcome {
        self.access_any(shared, addr, Io::Write(data))
    }

    /// The long way, for all accesses.
    #[inline(always)]
    fn access_any(&mut self, shared: &Shared<K>, addr: K, mut io: Io<'_>) -> Outcome {
        let is_width = io.prepare(shared.fill);
        loop {
            self.refresh(shared);
            let found = self.find(addr);
            let entry = found.and_then(|index| self.map.get(index));
            let route = match entry {
                _ if !is_width => Err(AccessError::Width),
                _ if addr.checked_add(io.width() as u64 - 1).is_none() => {
                    Err(AccessError::CrossesEnd)
                }
                Some(entry) => entry.route(addr, io.width()).map(|offset| (entry, offset)),
                None => Err(AccessError::Unclaimed),
            };
            let outcome = match route {
                Err(refused) => Err(refused),
                Ok((entry, offset)) => {
                    self.presence.set_device(address_of(&*entry.device));
                    let outcome = self.visit(shared, &*entry.device, offset, &mut io);
                    self.presence.set_device(address_of(&*self.device));
                    let Some(outcome) = outcome else {
                        continue;
                    };
                    outcome
                }
            };
            shared.report(entry, addr, &io, outcome);
            self.remember(shared, found);
            return outcome;
        }
    }

    /// Calls a device; `None` if the map has become out of date.
    #[inline(always)]
    fn visit(
        &self,
        shared: &Shared<K>,
        device: &dyn BusDeviceSync,
        offset: u64,
        io: &mut Io<'_>,
    ) -> Option<Outcome> {
        let is_current = self.presence.enter(shared, self.generation);
        let called = is_current.then(|| io.call(device, offset));
        self.presence.leave();
        match called? {
            Some(Ok(())) => Some(Ok(())),
            failed => Some(shared.after_failure(address_of(device), failed, io.buffer())),
        }
    }

    /// Finds the region of an address: the one that was found near it before, or by searching.
    #[inline]
    fn find(&mut self, addr: K) -> Option<usize> {
        let near = usize::try_from(addr.into() >> K::NEAR).unwrap_or(0);
        let place = near & self.hints.len().wrapping_sub(1);
        // No hints, no regions.
        let hint = self.hints.get_mut(place)?;
        let hinted = usize::try_from(*hint).unwrap_or(usize::MAX);
        let entry = self.map.get(hinted);
        if entry.is_some_and(|entry| entry.info.range().contains(addr)) {
            return Some(hinted);
        }
        let index = self.map.find(addr)?;
        *hint = u32::try_from(index).unwrap_or(0);
        Some(index)
    }

    /// Takes the short way from now on to a region that was found twice in a row.
    ///
    /// Not sooner, because that writes to the reference count of the device.
    #[inline]
    fn remember(&mut self, shared: &Shared<K>, found: Option<usize>) {
        let Some(index) = found else {
            return;
        };
        if index != self.index {
            self.index = index;
        } else if let Some(entry) = self.map.get(index) {
            if entry.is_plain && shared.observer.is_none() {
                self.device = Arc::clone(&entry.device);
                self.presence.set_device(address_of(&*self.device));
                self.base = entry.info.range().first().into();
                self.size = entry.info.range().size();
            }
        }
    }

    /// Fetches the current map unless this is the current one.
    #[inline]
    pub(crate) fn refresh(&mut self, shared: &Shared<K>) {
        if shared.generation.0.load(Ordering::Acquire) != self.generation {
            self.fetch(shared);
        }
    }

    #[cold]
    fn fetch(&mut self, shared: &Shared<K>) {
        (self.base, self.size, self.index) = (0, 0, usize::MAX);
        self.device = Arc::clone(&shared.failed);
        (self.map, self.generation) = shared.current();
        self.presence.set_generation(self.generation);
        self.hints = self.map.hints();
    }
}

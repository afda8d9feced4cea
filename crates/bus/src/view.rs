// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Access to the devices: the path that every exit of a vCPU takes.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::access::{Io, Outcome};
use crate::device::Device;
use crate::map::Map;
use crate::shared::{Presence, Shared};
use crate::sync::Ordering;
use crate::{AccessError, Address, BusDeviceSync, RegionId, Widths};

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

impl<K: Address> fmt::Debug for BusView<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

/// How many guesses a view keeps where regions are.
const HINTS: usize = 1024;

/// A map, and the region of it that is accessed again and again.
pub(crate) struct Lookup<K> {
    hit: Option<Hit>,
    generation: u64,
    presence: Arc<Presence>,
    map: Arc<Map<K>>,
    /// For each page of addresses, or for several: the index of a region that was found there.
    hints: Vec<usize>,
    /// The region of the last access that went the long way.
    last: Option<RegionId>,
}

/// What the short way needs to know about a region.
struct Hit {
    base: u64,
    size: u64,
    device: Device,
}

impl<K: Address> Lookup<K> {
    pub(crate) fn new(shared: &Shared<K>) -> Self {
        let presence = shared.register();
        let (map, generation) = shared.current();
        Self {
            hit: None,
            generation,
            presence,
            map,
            hints: vec![0; HINTS],
            last: None,
        }
    }

    /// An access from the outside. The short way is for the region that is accessed most.
    #[inline(always)]
    pub(crate) fn access(&mut self, shared: &Shared<K>, addr: K, mut io: Io<'_>) -> Outcome {
        if let Some(hit) = &self.hit {
            let offset = addr.into().wrapping_sub(hit.base);
            let room = hit.size.checked_sub(io.width() as u64);
            if room.is_some_and(|room| offset <= room) && Widths::ANY.contains(io.width()) {
                io.fill(shared.fill);
                if let Some(outcome) = self.visit(shared, &*hit.device, offset, &mut io) {
                    return outcome;
                }
            }
        }
        self.access_any(shared, addr, io)
    }

    /// The long way, for all accesses.
    #[inline(never)]
    fn access_any(&mut self, shared: &Shared<K>, addr: K, mut io: Io<'_>) -> Outcome {
        let width = io.width();
        io.fill(shared.fill);
        loop {
            self.refresh(shared);
            let page = usize::try_from(addr.into() >> 12).unwrap_or(0);
            let hint = self.hints.get_mut(page % HINTS);
            let region = hint.and_then(|hint| self.map.find(addr, hint));
            let route = match region {
                _ if !Widths::ANY.contains(width) => Err(AccessError::Width),
                _ if addr.checked_add(width as u64 - 1).is_none() => Err(AccessError::CrossesEnd),
                Some(region) => region.route(addr, width).map(|offset| (region, offset)),
                None => Err(AccessError::Unclaimed),
            };
            let outcome = match route {
                Err(refused) => Err(refused),
                Ok((region, offset)) => {
                    let device = &region.meta.device;
                    self.presence.set_device(device);
                    let Some(outcome) = self.visit(shared, &**device, offset, &mut io) else {
                        continue;
                    };
                    // The short way is for a region that was found twice in a row. Not sooner,
                    // because taking it writes to the reference count of the device.
                    if self.last != Some(region.id()) {
                        self.last = Some(region.id());
                    } else if region.is_plain() && shared.observer.is_none() {
                        self.hit = Some(Hit {
                            base: region.range.first().into(),
                            size: region.range.size(),
                            device: Arc::clone(device),
                        });
                    }
                    // The short way relies on this.
                    if let Some(hit) = &self.hit {
                        self.presence.set_device(&hit.device);
                    }
                    outcome
                }
            };
            shared.report(&io.seen(addr, region, outcome));
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
        self.presence.enter();
        shared.barrier_of_view();
        let is_current = shared.generation.0.load(Ordering::Acquire) == self.generation;
        // Costs nothing as long as nobody panics. What the handler may have left half-done is not
        // used: the buffer is filled anew, and the device is given up.
        let called = is_current.then(|| catch_unwind(AssertUnwindSafe(|| io.call(device, offset))));
        self.presence.leave();
        let outcome = match called? {
            Ok(Ok(())) => return Some(Ok(())),
            Ok(refused) => refused,
            Err(payload) => shared.give_up(device.address(), payload),
        };
        io.fill(shared.fill);
        Some(outcome)
    }

    /// Fetches the current map unless this is the current one.
    pub(crate) fn refresh(&mut self, shared: &Shared<K>) {
        if shared.generation.0.load(Ordering::Acquire) != self.generation {
            self.hit = None;
            (self.map, self.generation) = shared.current();
        }
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Access to the devices: the path that every exit of a vCPU takes.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::bus::Shared;
use crate::map::Map;
use crate::region::{Entry, address_of};
use crate::sync::{AtomicU64, AtomicUsize, Ordering, Padded, thread_token};
use crate::{Access, AccessError, Address, BusDeviceSync, Direction};

/// How many hints a view has at most; 16 KiB.
const MAX_HINTS: usize = 4096;

/// One vCPU's view of the bus for memory-mapped I/O.
pub type MmioView = BusView<u64>;

/// One vCPU's view of the bus for port I/O.
pub type PioView = BusView<u16>;

/// One vCPU's view of a bus.
///
/// A view always acts on the bus as it is now, but remembers what it saw last: as long as the bus
/// does not change, an access takes no lock, and writes nothing that another thread writes. Each
/// vCPU thread makes its own, with [`Bus::view`](crate::Bus::view).
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

/// Where a view is, for those who wait until it is not in a certain device.
pub(crate) type Presence = Padded<Place>;

pub(crate) struct Place {
    /// The thread that is in the device or about to call it, or 0.
    thread: AtomicUsize,
    /// The address of the device, while there is a thread.
    device: AtomicUsize,
    /// Of the map that the view looks things up in.
    generation: AtomicU64,
}

impl Presence {
    pub(crate) fn new(generation: u64) -> Self {
        Padded(Place {
            thread: AtomicUsize::new(0),
            device: AtomicUsize::new(0),
            generation: AtomicU64::new(generation),
        })
    }

    /// Whether an access that found `device` before `generation` may be inside of it.
    pub(crate) fn may_be_inside(&self, device: usize, generation: u64) -> bool {
        // In this order. A thread that is seen here has stored its device before; a device or
        // generation of a later access is seen only after the earlier access has ended.
        self.0.thread.load(Ordering::Acquire) != 0
            && self.0.device.load(Ordering::Acquire) == device
            && self.0.generation.load(Ordering::Acquire) < generation
    }

    /// The device that `thread` is inside of, if that is the calling thread.
    pub(crate) fn device_of(&self, thread: usize) -> Option<usize> {
        let inside = self.0.thread.load(Ordering::Relaxed) == thread;
        inside.then(|| self.0.device.load(Ordering::Relaxed))
    }

    /// Says that this thread is going to call the device, and whether it may.
    #[inline(always)]
    fn enter<K>(&self, shared: &Shared<K>, generation: u64) -> bool {
        // Release: whoever sees this view in its next access has seen all of the one before.
        self.0.thread.store(thread_token(), Ordering::Release);
        shared.barrier.light();
        shared.generation.0.load(Ordering::Acquire) == generation
    }

    #[inline(always)]
    fn leave(&self) {
        self.0.thread.store(0, Ordering::Release);
    }
}

/// The data of an access.
pub(crate) enum Io<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

impl Io<'_> {
    #[inline(always)]
    fn width(&self) -> usize {
        match self {
            Self::Read(data) => data.len(),
            Self::Write(data) => data.len(),
        }
    }

    fn direction(&self) -> Direction {
        match self {
            Self::Read(_) => Direction::Read,
            Self::Write(_) => Direction::Write,
        }
    }

    /// Whether the width is one that a bus carries; if so, overwrites what a reader would see.
    #[inline(always)]
    fn prepare(&mut self, fill: u8) -> bool {
        let Self::Read(data) = self else {
            return matches!(self.width(), 1 | 2 | 4 | 8);
        };
        // Of known length, so that each of these is a single store.
        match data.len() {
            1 => fill_chunk::<1>(data, fill),
            2 => fill_chunk::<2>(data, fill),
            4 => fill_chunk::<4>(data, fill),
            8 => fill_chunk::<8>(data, fill),
            _ => false,
        }
    }

    pub(crate) fn fill(&mut self, fill: u8) {
        if let Self::Read(data) = self {
            data.fill(fill);
        }
    }

    /// Calls the device; `None` if it panicked.
    #[inline(always)]
    fn call(&mut self, device: &dyn BusDeviceSync, offset: u64) -> Option<Result<(), AccessError>> {
        // Nothing that the handler may have left half-done is used again: the buffer is filled
        // anew and the device is given up.
        let called = catch_unwind(AssertUnwindSafe(|| match self {
            Self::Read(data) => device.read(offset, data),
            Self::Write(data) => device.write(offset, data),
        }));
        match called {
            Ok(outcome) => Some(outcome),
            Err(payload) => {
                // Dropping it could panic again. This happens once for each device.
                std::mem::forget(payload);
                None
            }
        }
    }
}

#[inline(always)]
fn fill_chunk<const N: usize>(data: &mut [u8], fill: u8) -> bool {
    data.first_chunk_mut()
        .map(|chunk| *chunk = [fill; N])
        .is_some()
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
        let hints = hints_for(&map);
        Self {
            base: 0,
            size: 0,
            device: Arc::clone(&shared.failed),
            presence,
            generation,
            map,
            index: usize::MAX,
            hints,
        }
    }

    /// An access from the outside. The short way is for the region that is accessed most.
    #[inline(always)]
    pub(crate) fn access(
        &mut self,
        shared: &Shared<K>,
        addr: K,
        mut io: Io<'_>,
    ) -> Result<(), AccessError> {
        let offset = addr.into().wrapping_sub(self.base);
        let end = offset.checked_add(io.width() as u64);
        if end.is_some_and(|end| end <= self.size) && io.prepare(shared.fill) {
            if let Some(outcome) = self.visit(shared, &*self.device, offset, &mut io) {
                return outcome;
            }
        }
        match io {
            Io::Read(data) => self.read_any(shared, addr, data),
            Io::Write(data) => self.write_any(shared, addr, data),
        }
    }

    #[inline(never)]
    fn read_any(
        &mut self,
        shared: &Shared<K>,
        addr: K,
        data: &mut [u8],
    ) -> Result<(), AccessError> {
        self.access_any(shared, addr, Io::Read(data))
    }

    #[inline(never)]
    fn write_any(&mut self, shared: &Shared<K>, addr: K, data: &[u8]) -> Result<(), AccessError> {
        self.access_any(shared, addr, Io::Write(data))
    }

    /// The long way, for all accesses.
    #[inline(always)]
    fn access_any(
        &mut self,
        shared: &Shared<K>,
        addr: K,
        mut io: Io<'_>,
    ) -> Result<(), AccessError> {
        let is_width = io.prepare(shared.fill);
        if !is_width {
            io.fill(shared.fill);
        }
        loop {
            self.refresh(shared);
            let found = self.find(addr);
            let entry = found.and_then(|index| self.map.get(index));
            let route = match entry {
                _ if !is_width => Err(AccessError::Width),
                None if !fits(addr, &io) => Err(AccessError::CrossesEnd),
                None => Err(AccessError::Unclaimed),
                Some(entry) => entry.route(addr, io.width()),
            };
            let outcome = match (entry, route) {
                (Some(entry), Ok(offset)) => {
                    self.presence
                        .0
                        .device
                        .store(address_of(&*entry.device), Ordering::Release);
                    let outcome = self.visit(shared, &*entry.device, offset, &mut io);
                    self.presence
                        .0
                        .device
                        .store(address_of(&*self.device), Ordering::Release);
                    outcome
                }
                (_, refused) => Some(refused.map(|_| ())),
            };
            let Some(outcome) = outcome else {
                continue;
            };
            report(shared, entry, addr, &io, outcome);
            self.remember(shared, found);
            return outcome;
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
        if self
            .map
            .get(hinted)
            .is_some_and(|entry| entry.range.contains(addr))
        {
            return Some(hinted);
        }
        let index = self.map.find(addr.into())?;
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
            if entry.is_plain() && shared.observer.is_none() {
                self.device = Arc::clone(&entry.device);
                self.presence
                    .0
                    .device
                    .store(address_of(&*self.device), Ordering::Release);
                self.base = entry.range.first().into();
                self.size = entry.range.size();
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
        (self.map, self.generation) = shared.current();
        self.presence
            .0
            .generation
            .store(self.generation, Ordering::Release);
        (self.base, self.size, self.index) = (0, 0, usize::MAX);
        self.hints = hints_for(&self.map);
        self.device = Arc::clone(&shared.failed);
    }

    /// Calls a device; `None` if the map has become out of date.
    #[inline(always)]
    fn visit(
        &self,
        shared: &Shared<K>,
        device: &dyn BusDeviceSync,
        offset: u64,
        io: &mut Io<'_>,
    ) -> Option<Result<(), AccessError>> {
        let outcome = if self.presence.enter(shared, self.generation) {
            Some(io.call(device, offset))
        } else {
            None
        };
        self.presence.leave();
        match outcome? {
            Some(Ok(())) => Some(Ok(())),
            failed => {
                let buffer = match io {
                    Io::Read(data) => &mut **data,
                    Io::Write(_) => &mut [],
                };
                Some(Err(after_failure(
                    shared,
                    address_of(device),
                    failed,
                    buffer,
                )))
            }
        }
    }
}

/// Room for guesses, a power of two: enough for each region to have its own, within reason.
fn hints_for<K: Address>(map: &Map<K>) -> Vec<u32> {
    match map.entries().len() {
        0 => Vec::new(),
        regions => vec![0; (2 * regions.min(MAX_HINTS / 2)).next_power_of_two()],
    }
}

/// Whether an access ends inside of the address space.
fn fits<K: Address>(addr: K, io: &Io<'_>) -> bool {
    addr.checked_add(io.width() as u64 - 1).is_some()
}

#[cold]
fn after_failure<K: Address>(
    shared: &Shared<K>,
    device: usize,
    failed: Option<Result<(), AccessError>>,
    buffer: &mut [u8],
) -> AccessError {
    buffer.fill(shared.fill);
    match failed {
        Some(Err(error)) => error,
        _ => {
            shared.give_up(device);
            AccessError::Panicked
        }
    }
}

/// Counts and shows an access.
#[inline]
pub(crate) fn report<K: Address>(
    shared: &Shared<K>,
    entry: Option<&Arc<Entry<K>>>,
    addr: K,
    io: &Io<'_>,
    outcome: Result<(), AccessError>,
) {
    if let Some(entry) = entry.filter(|entry| !entry.is_plain()) {
        entry.count(io.direction(), outcome);
    }
    if let Some(observer) = &shared.observer {
        observer.0(&Access {
            addr,
            width: io.width(),
            direction: io.direction(),
            region: entry.map(|entry| entry.info()).as_ref(),
            outcome,
        });
    }
}

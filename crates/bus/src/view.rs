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
    /// The address of the device that the view calls or is about to call, or 0.
    inside: AtomicUsize,
    /// The thread that uses the view.
    thread: AtomicUsize,
    /// Of the map that the view looks things up in.
    generation: AtomicU64,
}

impl Presence {
    pub(crate) fn new(generation: u64) -> Self {
        Padded(Place {
            inside: AtomicUsize::new(0),
            thread: AtomicUsize::new(0),
            generation: AtomicU64::new(generation),
        })
    }

    /// Whether an access that found `device` before `generation` may be inside of it.
    pub(crate) fn may_be_inside(&self, device: usize, generation: u64) -> bool {
        self.0.inside.load(Ordering::Acquire) == device
            && self.0.generation.load(Ordering::Acquire) < generation
    }

    /// The device that `thread` is inside of, if that is the calling thread.
    pub(crate) fn device_of(&self, thread: usize) -> Option<usize> {
        let device = self.0.inside.load(Ordering::Acquire);
        (device != 0 && self.0.thread.load(Ordering::Relaxed) == thread).then_some(device)
    }

    /// Says that the view is going to call `device`, and whether it may.
    #[inline(always)]
    fn enter<K>(&self, shared: &Shared<K>, device: usize, generation: u64) -> bool {
        self.0.thread.store(thread_token(), Ordering::Relaxed);
        // Release: whoever sees this view in its next access has seen all of the one before.
        self.0.inside.store(device, Ordering::Release);
        shared.barrier.light();
        shared.generation.0.load(Ordering::Acquire) == generation
    }

    #[inline(always)]
    fn leave(&self) {
        self.0.inside.store(0, Ordering::Release);
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

/// A map, and where in it the last access went.
pub(crate) struct Lookup<K> {
    map: Arc<Map<K>>,
    generation: u64,
    /// The last region found.
    index: usize,
    /// The base of that region.
    base: u64,
    /// Its size; 0 if there is more to do for it than the short way does.
    size: u64,
    presence: Arc<Presence>,
}

impl<K: Address> Lookup<K> {
    pub(crate) fn new(shared: &Shared<K>) -> Self {
        let (map, generation, presence) = shared.register();
        Self {
            map,
            generation,
            index: 0,
            base: 0,
            size: 0,
            presence,
        }
    }

    /// An access from the outside. The short way is for the region of the last one.
    #[inline]
    pub(crate) fn access(
        &mut self,
        shared: &Shared<K>,
        addr: K,
        mut io: Io<'_>,
    ) -> Result<(), AccessError> {
        let offset = addr.into().wrapping_sub(self.base);
        let end = offset.checked_add(io.width() as u64);
        if end.is_some_and(|end| end <= self.size) && io.prepare(shared.fill) {
            if let Some(entry) = self.map.get(self.index) {
                if let Some(outcome) = self.visit(shared, entry, offset, &mut io) {
                    return outcome;
                }
            }
        }
        self.access_any(shared, addr, io)
    }

    /// The long way, for all accesses.
    #[inline(never)]
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
            let found = self.find(addr, shared.observer.is_none());
            let entry = found.and_then(|index| self.map.get(index));
            let route = match entry {
                _ if !is_width => Err(AccessError::Width),
                None if !fits(addr, &io) => Err(AccessError::CrossesEnd),
                None => Err(AccessError::Unclaimed),
                Some(entry) => entry.route(addr, io.width()),
            };
            let outcome = match (entry, route) {
                (Some(entry), Ok(offset)) => self.visit(shared, entry, offset, &mut io),
                (_, refused) => Some(refused.map(|_| ())),
            };
            if let Some(outcome) = outcome {
                if self.size == 0 {
                    report(shared, entry, addr, &io, outcome);
                }
                return outcome;
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
        (self.index, self.base, self.size) = (0, 0, 0);
        self.presence
            .0
            .generation
            .store(self.generation, Ordering::Release);
    }

    /// Finds the region of an address and remembers it for the next access.
    #[inline]
    fn find(&mut self, addr: K, unobserved: bool) -> Option<usize> {
        let remembered = self
            .map
            .get(self.index)
            .filter(|entry| entry.range.contains(addr));
        if remembered.is_none() {
            self.size = 0;
            self.index = self.map.find(addr.into())?;
        }
        let entry = self.map.get(self.index)?;
        self.base = entry.range.first().into();
        self.size = if unobserved && entry.is_plain() {
            entry.range.size()
        } else {
            0
        };
        Some(self.index)
    }

    /// Calls the device of a region; `None` if the map has become out of date.
    #[inline(always)]
    fn visit(
        &self,
        shared: &Shared<K>,
        entry: &Entry<K>,
        offset: u64,
        io: &mut Io<'_>,
    ) -> Option<Result<(), AccessError>> {
        let device = address_of(&entry.device);
        let outcome = if self.presence.enter(shared, device, self.generation) {
            Some(io.call(&*entry.device, offset))
        } else {
            None
        };
        self.presence.leave();
        match outcome? {
            Some(Ok(())) => Some(Ok(())),
            failed => Some(Err(after_failure(shared, device, failed, io))),
        }
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
    io: &mut Io<'_>,
) -> AccessError {
    io.fill(shared.fill);
    match failed {
        Some(Err(error)) => error,
        _ => {
            shared.give_up(device);
            AccessError::Panicked
        }
    }
}

/// Counts and shows an access that did not go the short way.
pub(crate) fn report<K: Address>(
    shared: &Shared<K>,
    entry: Option<&Arc<Entry<K>>>,
    addr: K,
    io: &Io<'_>,
    outcome: Result<(), AccessError>,
) {
    if let Some(entry) = entry {
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

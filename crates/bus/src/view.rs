// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Access to the devices: the path that every exit of a vCPU takes.

use std::any::Any;
use std::array::from_fn;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::bus::Shared;
use crate::device::Device;
use crate::region::{Entry, Map};
use crate::sync::{AtomicBool, AtomicUsize, Ordering, address, light_barrier, lock};
use crate::thread::{ACCESS, Listed, thread_token};
use crate::{AccessError, Address, BusDeviceSync, RegionId, RegionInfo};

/// How an access calls a device: with an offset.
type Call<'a, R> = &'a mut dyn FnMut(&Device<R>, u64) -> Result<R, AccessError>;

/// How many guesses a view keeps where regions are.
const HINTS: usize = 1024;

/// One finished access, as an observer sees it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Access<'a, K> {
    /// Where the access started.
    pub addr: K,
    /// How many bytes it was for: whatever the caller passed, also 0 or more than 8.
    pub width: usize,
    /// Whether the guest wrote; otherwise it read.
    pub is_write: bool,
    /// The region that it started in.
    pub region: Option<&'a RegionInfo<K>>,
    /// What came of it.
    pub outcome: Result<(), AccessError>,
}

/// One vCPU's view of the bus for memory-mapped I/O.
pub type MmioView<R = ()> = BusView<u64, R>;

/// One vCPU's view of the bus for port I/O.
pub type PioView<R = ()> = BusView<u16, R>;

/// One vCPU's view of a bus.
///
/// A view always acts on the bus as it is now, but remembers what it saw last: as long as the bus
/// does not change, an access takes no lock and writes nothing that another thread uses. Each vCPU
/// thread makes its own, with [`Bus::view`](crate::Bus::view).
pub struct BusView<K: Address, R = ()> {
    shared: Arc<Shared<K, R>>,
    presence: Arc<Presence>,
    /// The same byte four times.
    fill: u32,
    map: Arc<Map<K, R>>,
    /// For each page of addresses, or for several: the index of a region that was found there.
    hints: Vec<usize>,
    /// The region of the last access that went the long way.
    last: Option<RegionId>,
    hit: Hit<R>,
}

/// What the short way needs to know about the region that is accessed again and again.
struct Hit<R> {
    base: u64,
    /// What the offset of an access has to be less than, for each width.
    limits: [u64; 9],
    device: Device<R>,
}

/// The device of no region.
struct Nothing;

impl<R> BusDeviceSync<R> for Nothing {}

impl<R> Default for Hit<R> {
    fn default() -> Self {
        Self {
            base: 0,
            limits: [0; 9],
            device: Arc::new(Nothing),
        }
    }
}

/// What a view and those who change the bus tell each other, on a cache line of its own. Lines are
/// fetched in pairs: its neighbours are the counts of the `Arc`, and padding. (Alignment to a pair
/// would do as well, but takes the short way longer instructions.)
#[derive(Default)]
#[repr(C, align(64))]
pub(crate) struct Presence {
    /// The thread that is in the device or about to call it, or 0. The view writes this.
    thread: AtomicUsize,
    /// The address of the device, while there is a thread. The view writes this.
    device: AtomicUsize,
    /// Whether the bus has changed since the view has looked.
    pub(crate) is_stale: AtomicBool,
    _padding: [u64; 8],
}

impl Presence {
    /// The thread, or 0, and the device.
    pub(crate) fn place(&self) -> (usize, usize) {
        // In this order: the device is at least as new as the thread, and a newer one is seen only
        // after the access is over.
        let thread = self.thread.load(Ordering::Acquire);
        (thread, self.device.load(Ordering::Acquire))
    }

    /// Says which device is going to be called. Not to be called inside of one.
    fn announce<R>(&self, device: &Device<R>) {
        self.device.store(address(&**device), Ordering::Release);
    }
}

impl<K: Address, R> BusView<K, R> {
    pub(crate) fn new(shared: Arc<Shared<K, R>>) -> Self {
        let presence = Arc::<Presence>::default();
        let mut state = lock(&shared.state);
        // Forgets the views that are gone.
        state.views.retain_mut(|view| Arc::get_mut(view).is_none());
        state.views.push(Arc::clone(&presence));
        Self {
            shared: Arc::clone(&shared),
            presence,
            fill: u32::from_ne_bytes([shared.fill; 4]),
            map: Arc::clone(&state.map),
            hints: vec![0; HINTS],
            last: None,
            hit: Hit::default(),
        }
    }

    /// Reads `data.len()` bytes, which must be 1, 2, 4 or 8, from the device at `addr`.
    ///
    /// Whatever happens, nothing of the former contents of `data` stays: the bus overwrites them
    /// with its fill value first, and again if the device returns an error.
    ///
    /// # Errors
    ///
    /// In this order: [`AccessError::Unclaimed`] if `addr` is in no region; [`AccessError::Width`]
    /// for another length, or one that the region does not take; [`AccessError::CrossesEnd`] beyond
    /// the end of the region; [`AccessError::Misaligned`] if the region minds; what the device
    /// returns. If the handler panics, [`AccessError::Panicked`], now and for each later access.
    #[inline(always)]
    pub fn read(&mut self, addr: K, data: &mut [u8]) -> Result<R, AccessError> {
        overwrite(data, self.fill);
        let outcome = self.access(addr, data.len(), false, &mut |device, at| {
            device.read(at, data)
        });
        if outcome.is_err() {
            overwrite_again(data, self.fill);
        }
        outcome
    }

    /// Writes `data`, which must be 1, 2, 4 or 8 bytes, to the device at `addr`.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    #[inline(always)]
    pub fn write(&mut self, addr: K, data: &[u8]) -> Result<R, AccessError> {
        self.access(addr, data.len(), true, &mut |device, at| {
            device.write(at, data)
        })
    }

    /// Lets go of devices that have been removed since the last access.
    ///
    /// Never needed for a right answer: each access does this first. A vCPU that rests for long
    /// may call it, so that a removed device is dropped early.
    pub fn refresh(&mut self) {
        if self.presence.is_stale.load(Ordering::Acquire) {
            self.hit = Hit::default();
            let state = lock(&self.shared.state);
            self.presence.is_stale.store(false, Ordering::Relaxed);
            let map = Arc::clone(&state.map);
            // Nothing is dropped under the lock.
            drop(state);
            self.map = map;
        }
    }

    /// The short way is for what is accessed most.
    #[inline(always)]
    fn access(
        &mut self,
        addr: K,
        width: usize,
        is_write: bool,
        call: Call<'_, R>,
    ) -> Result<R, AccessError> {
        let hit = &self.hit;
        let offset = addr.into().wrapping_sub(hit.base);
        if (hit.limits.get(width)).is_some_and(|limit| offset < *limit) {
            if let Some(outcome) = self.visit(false, || call(&hit.device, offset)) {
                return outcome;
            }
        }
        self.look_up(addr, width, is_write, call)
    }

    /// The long way is for all accesses; cold, so that the short one is straight code, too.
    #[cold]
    #[inline(never)]
    fn look_up(
        &mut self,
        addr: K,
        width: usize,
        is_write: bool,
        call: Call<'_, R>,
    ) -> Result<R, AccessError> {
        let is_fenced = self.shared.barrier.is_none();
        let (region, outcome) = loop {
            self.refresh();
            let page = usize::try_from(addr.into() >> 12).unwrap_or(0);
            let hint = self.hints.get_mut(page % HINTS);
            let Some(Entry { info, device }) = hint.and_then(|hint| self.map.find(addr, hint))
            else {
                break (None, Err(AccessError::Unclaimed));
            };
            let routed = Listed::new(ACCESS).and_then(|l| Ok((l, info.route(addr, width)?)));
            let (_listed, offset) = match routed {
                Ok(routed) => routed,
                Err(refused) => break (Some(info), Err(refused)),
            };
            self.presence.announce(device);
            let Some(outcome) = self.visit(is_fenced, || call(device, offset)) else {
                continue;
            };
            // The short way is for a region that was found twice in a row. Not sooner, because
            // taking it writes to the reference count of the device.
            let is_same = self.last.replace(info.id) == Some(info.id);
            if is_same && info.is_plain() && self.shared.observer.is_none() && !is_fenced {
                let limit = info.range.size() - (width as u64 - 1);
                self.hit = Hit {
                    base: info.range.first().into(),
                    limits: from_fn(|of| if of == width { limit } else { 0 }),
                    device: Arc::clone(device),
                };
            }
            // The short way relies on this.
            self.presence.announce(&self.hit.device);
            break (Some(info), outcome);
        };
        let access = Access {
            addr,
            width,
            is_write,
            region,
            outcome: outcome.as_ref().map(drop).map_err(|error| *error),
        };
        region.inspect(|region| region.count(&access));
        (self.shared.observer.iter()).for_each(|observer| observer(&access));
        outcome
    }

    /// Calls the device; `None` if the map has become out of date.
    #[inline(always)]
    fn visit(
        &self,
        is_fenced: bool,
        call: impl FnOnce() -> Result<R, AccessError>,
    ) -> Option<Result<R, AccessError>> {
        let presence = &*self.presence;
        // Release: who sees this view in its next access has seen all of the one before.
        presence.thread.store(thread_token(), Ordering::Release);
        light_barrier(is_fenced);
        let is_current = !presence.is_stale.load(Ordering::Acquire);
        // Costs nothing as long as nobody panics. What the handler may have left half-done is not
        // used: the buffer is filled anew, and the device is given up.
        let called = is_current.then(|| catch_unwind(AssertUnwindSafe(call)));
        presence.thread.store(0, Ordering::Release);
        Some(called?.unwrap_or_else(|payload| self.give_up(payload)))
    }

    /// Sees to it that the device that panicked is not called again.
    #[cold]
    fn give_up(&self, payload: Box<dyn Any + Send>) -> Result<R, AccessError> {
        // What a handler panicked with could panic again when it is dropped.
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(payload)));
        std::mem::forget(dropped.err());
        let (_, device) = self.presence.place();
        let state = lock(&self.shared.state);
        for entry in (state.map.0.iter()).filter(|entry| address(&*entry.device) == device) {
            entry.info.region.panicked.store(true, Ordering::Relaxed);
        }
        state.publish();
        Err(AccessError::Panicked)
    }
}

/// Sets all bytes that a guest is going to see.
#[inline(always)]
fn overwrite(data: &mut [u8], fill: u32) {
    // A single store for the usual width.
    match <&mut [u8; 4]>::try_from(&mut *data) {
        Ok(word) => *word = fill.to_ne_bytes(),
        Err(_) => data.fill(fill.to_ne_bytes()[0]),
    }
}

/// The same, for the few accesses that fail; cold, so that the others are straight code.
#[cold]
#[inline(never)]
fn overwrite_again(data: &mut [u8], fill: u32) {
    overwrite(data, fill);
}

impl<K: Address, R> fmt::Debug for BusView<K, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::{Bus, MmioBus};

    #[test]
    fn short_way_is_for_views_that_need_no_fence() {
        let buses: [(MmioBus, bool); 2] = [
            (MmioBus::new(), cfg!(any(target_os = "linux", miri))),
            (Bus::builder().fenced().build(), false),
        ];
        for (bus, is_short) in buses {
            bus.insert(Arc::new(Nothing), 0, 4).unwrap();
            let mut view = bus.view();
            view.write(0, &[0]).unwrap_err();
            assert_eq!(view.hit.limits, [0; 9], "not before the second access");
            view.write(0, &[0]).unwrap_err();
            assert_eq!(
                view.hit.limits,
                if is_short {
                    [0, 4, 0, 0, 0, 0, 0, 0, 0]
                } else {
                    [0; 9]
                }
            );
        }
    }
}

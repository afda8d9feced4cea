// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Access to the devices: the path that every exit of a vCPU takes.

use std::fmt;
use std::mem::replace;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::device::{Device, Outcome};
use crate::region::{Map, find};
use crate::shared::{Presence, Shared};
use crate::sync::{Ordering, address, fence, light_barrier, lock, thread_token};
use crate::{AccessError, Address, BusDeviceSync, RegionId, RegionInfo};

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

    /// Overwrites what the reader is going to see.
    #[inline(always)]
    fn fill(&mut self, fill: u32) {
        if let Self::Read(data) = self {
            // A single store for the usual width.
            match <&mut [u8; 4]>::try_from(&mut **data) {
                Ok(word) => *word = fill.to_ne_bytes(),
                Err(_) => data.fill(fill.to_ne_bytes()[0]),
            }
        }
    }

    #[inline(always)]
    fn call(&mut self, device: &dyn BusDeviceSync, offset: u64) -> Outcome {
        match self {
            Self::Read(data) => device.read(offset, data),
            Self::Write(data) => device.write(offset, data),
        }
    }
}

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
    presence: Arc<Presence>,
    fill: u32,
    map: Arc<Map<K>>,
    /// For each page of addresses, or for several: the index of a region that was found there.
    hints: Vec<usize>,
    /// The region of the last access that went the long way.
    last: Option<RegionId>,
    hit: Hit,
}

/// What the short way needs to know about the region that is accessed again and again.
struct Hit {
    base: u64,
    /// The largest offset for accesses of this width.
    reach: u64,
    /// Larger than any, as long as there is no such region.
    width: usize,
    device: Device,
}

/// Refuses all accesses, in the place of a device that was removed.
impl BusDeviceSync for Presence {}
impl<K: Address> BusView<K> {
    pub(crate) fn new(shared: Arc<Shared<K>>) -> Self {
        let presence = Arc::<Presence>::default();
        let mut state = lock(&shared.state);
        // Forgets the views that are gone.
        state.views.retain_mut(|view| Arc::get_mut(view).is_none());
        state.views.push(Arc::clone(&presence));
        Self {
            shared: Arc::clone(&shared),
            hit: Hit {
                base: 0,
                reach: 0,
                width: usize::MAX,
                device: Arc::clone(&presence) as _,
            },
            presence,
            fill: shared.fill,
            map: Arc::clone(&state.map),
            hints: vec![0; HINTS],
            last: None,
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
    #[inline]
    pub fn read(&mut self, addr: K, data: &mut [u8]) -> Result<(), AccessError> {
        self.access(addr, Io::Read(data))
    }

    /// Writes `data`, which must be 1, 2, 4 or 8 bytes, to the device at `addr`.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    #[inline]
    pub fn write(&mut self, addr: K, data: &[u8]) -> Result<(), AccessError> {
        self.access(addr, Io::Write(data))
    }

    /// Lets go of devices that have been removed since the last access.
    ///
    /// Never needed for a right answer: each access does this first. A vCPU that rests for long
    /// may call it, so that a removed device is dropped early.
    pub fn refresh(&mut self) {
        if self.presence.is_stale.load(Ordering::Acquire) {
            self.hit.width = usize::MAX;
            self.hit.device = Arc::clone(&self.presence) as _;
            let state = lock(&self.shared.state);
            self.presence.is_stale.store(false, Ordering::Relaxed);
            // Nothing is dropped under the lock.
            let old = replace(&mut self.map, Arc::clone(&state.map));
            drop(state);
            drop(old);
        }
    }

    /// The short way is for what is accessed most.
    #[inline(always)]
    fn access(&mut self, addr: K, mut io: Io<'_>) -> Outcome {
        let hit = &self.hit;
        let offset = addr.into().wrapping_sub(hit.base);
        if io.width() == hit.width && offset <= hit.reach {
            io.fill(self.fill);
            if let Some(outcome) = self.visit(false, &*hit.device, offset, &mut io) {
                return outcome;
            }
        }
        self.access_any(addr, io, Ok(()))
    }

    /// The long way, for all accesses that are allowed to reach a device.
    #[inline(never)]
    pub(crate) fn access_any(&mut self, addr: K, mut io: Io<'_>, allowed: Outcome) -> Outcome {
        let width = io.width();
        io.fill(self.fill);
        let (region, outcome) = loop {
            self.refresh();
            let page = usize::try_from(addr.into() >> 12).unwrap_or(0);
            let hint = self.hints.get_mut(page % HINTS);
            let Some(region) = hint.and_then(|hint| find(&self.map, addr, hint)) else {
                break (None, Err(AccessError::Unclaimed));
            };
            let offset = match allowed.and_then(|()| region.route(addr, width)) {
                Ok(offset) => offset,
                Err(refused) => break (Some(region), Err(refused)),
            };
            let device = &region.device;
            self.enter(device);
            let is_fenced = self.shared.barrier.is_none();
            let Some(outcome) = self.visit(is_fenced, &**device, offset, &mut io) else {
                continue;
            };
            // The short way is for a region that was found twice in a row. Not sooner, because
            // taking it writes to the reference count of the device.
            if self.last != Some(region.id) {
                self.last = Some(region.id);
            } else if region.is_plain() && self.shared.is_plain() {
                self.hit = Hit {
                    base: region.range.first().into(),
                    reach: region.range.size() - width as u64,
                    width,
                    device: Arc::clone(device),
                };
            }
            // The short way relies on this.
            self.enter(&self.hit.device);
            break (Some(region), outcome);
        };
        let access = Access {
            addr,
            width,
            is_write: matches!(io, Io::Write(_)),
            region,
            outcome,
        };
        region.inspect(|region| region.count(&access));
        let observer = self.shared.observer.as_ref();
        observer.inspect(|observer| observer(&access));
        outcome
    }

    /// Says which device is going to be called. Not to be called inside of one.
    fn enter(&self, device: &Device) {
        let device = address(&**device);
        self.presence.device.store(device, Ordering::Release);
    }

    /// Calls the device; `None` if the map has become out of date.
    #[inline(always)]
    fn visit(
        &self,
        is_fenced: bool,
        device: &dyn BusDeviceSync,
        offset: u64,
        io: &mut Io<'_>,
    ) -> Option<Outcome> {
        // Release: who sees this view in its next access has seen all of the one before.
        self.presence
            .thread
            .store(thread_token(), Ordering::Release);
        if is_fenced {
            fence(Ordering::SeqCst);
        } else {
            light_barrier();
        }
        let is_current = !self.presence.is_stale.load(Ordering::Acquire);
        // Costs nothing as long as nobody panics. What the handler may have left half-done is not
        // used: the buffer is filled anew, and the device is given up.
        let called = is_current.then(|| catch_unwind(AssertUnwindSafe(|| io.call(device, offset))));
        self.presence.thread.store(0, Ordering::Release);
        let outcome = match called? {
            Ok(Ok(())) => return Some(Ok(())),
            Ok(refused) => refused,
            Err(payload) => {
                let device = self.presence.device.load(Ordering::Relaxed);
                self.shared.give_up(device, payload)
            }
        };
        io.fill(self.fill);
        Some(outcome)
    }
}

impl<K: Address> fmt::Debug for BusView<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::{Bus, MmioBus};

    struct Nothing;
    impl BusDeviceSync for Nothing {}

    #[test]
    fn short_way_is_for_views_that_need_no_fence() {
        for (bus, is_short) in [
            (MmioBus::new(), cfg!(any(target_os = "linux", miri))),
            (Bus::builder().fenced().build(), false),
        ] {
            bus.insert(Arc::new(Nothing), 0, 4).unwrap();
            let mut view = bus.view();
            for _ in 0..3 {
                view.write(0, &[0]).unwrap_err();
            }
            assert_eq!(view.hit.width == 1, is_short);
        }
    }
}

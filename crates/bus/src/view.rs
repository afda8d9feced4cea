// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Access to the devices: the path that every exit of a vCPU takes.

use std::any::Any;
use std::array::from_fn;
use std::fmt;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::data::Data;
use crate::device::Device;
use crate::map::Map;
use crate::registry::{Place, Presence, panicked, registry};
use crate::shared::{Observer, Shared};
use crate::sync::{Ordering, discard, light_barrier, lock};
use crate::thread::{ACCESS, Listed, thread_token};
use crate::{Access, AccessError, Address, BusDeviceSync, RegionId};

/// How many pages of addresses a view remembers a region for: 2 KiB. With a quarter of that, an
/// access to one of 1024 devices at random takes half as long again.
const HINTS: usize = 1024;

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
    initiator: Option<u32>,
    map: Arc<Map<K, R>>,
    /// The devices that panicked, on whatever bus; none as a rule.
    panicked: Vec<usize>,
    /// For each page of addresses, or for several: the index of a region that was found there.
    hints: Box<[u16; HINTS]>,
    /// The region of the last access on the slow path.
    last: Option<RegionId>,
    hit: Hit<R>,
}

/// What the fast path needs to know about the region that is accessed again and again.
struct Hit<R> {
    base: u64,
    /// What the offset of an access has to be less than, for each width.
    limits: [u64; 9],
    device: Device<R>,
    place: Place,
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
            place: Place::default(),
        }
    }
}

impl<K: Address, R: 'static> BusView<K, R> {
    pub(crate) fn new(shared: Arc<Shared<K, R>>) -> Self {
        let mut view = Self {
            presence: Presence::register(),
            fill: u32::from_ne_bytes([shared.fill; 4]),
            initiator: None,
            map: Arc::default(),
            panicked: Vec::new(),
            hints: Box::new([0; HINTS]),
            last: None,
            hit: Hit::default(),
            shared,
        };
        view.refresh();
        view
    }

    /// Tells devices that ask, by [`BusDevice::read_by`](crate::BusDevice::read_by), which vCPU
    /// accesses them: any number that the VMM and its devices agree on.
    ///
    /// ```
    /// use bus::{AccessError, BusDeviceSync, MmioBus};
    /// use std::sync::Arc;
    ///
    /// /// Shows each vCPU its own number.
    /// struct WhoAmI;
    /// impl BusDeviceSync for WhoAmI {
    ///     fn read_by(
    ///         &self,
    ///         initiator: Option<u32>,
    ///         _offset: u64,
    ///         data: &mut [u8],
    ///     ) -> Result<(), AccessError> {
    ///         let vcpu = initiator.ok_or(AccessError::Refused)?;
    ///         let register = data.first_chunk_mut().ok_or(AccessError::Width)?;
    ///         *register = vcpu.to_le_bytes();
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let bus = MmioBus::new();
    /// bus.insert(Arc::new(WhoAmI), 0x1000, 4)?;
    /// let mut data = [0; 4];
    /// bus.view().initiated_by(3).read(0x1000, &mut data)?;
    /// assert_eq!(data, [3, 0, 0, 0]);
    /// assert!(bus.view().read(0x1000, &mut data).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn initiated_by(mut self, vcpu: u32) -> Self {
        self.initiator = Some(vcpu);
        self
    }

    /// Reads `data.len()` bytes, 1 to 8, from the device at `addr`.
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
        let initiator = self.initiator;
        let fast = self.access_hit(addr, data.len(), |device, offset| {
            device.read_by(initiator, offset, data)
        });
        let outcome = match fast {
            Some(outcome) => outcome,
            None => self.access(addr, Data::Read(data)),
        };
        if outcome.is_err() {
            overwrite_again(data, self.fill);
        }
        outcome
    }

    /// Writes `data`, 1 to 8 bytes, to the device at `addr`.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    #[inline(always)]
    pub fn write(&mut self, addr: K, data: &[u8]) -> Result<R, AccessError> {
        let initiator = self.initiator;
        let fast = self.access_hit(addr, data.len(), |device, offset| {
            device.write_by(initiator, offset, data)
        });
        match fast {
            Some(outcome) => outcome,
            None => self.access(addr, Data::Write(data)),
        }
    }

    /// Lets go of devices that have been removed since the last access.
    ///
    /// Never needed for a right answer: each access does this first. A vCPU that rests for long
    /// may call it, so that a removed device is dropped early.
    pub fn refresh(&mut self) {
        if self.presence.is_stale.load(Ordering::Acquire) {
            discard(mem::take(&mut self.hit));
            let map = lock(&self.shared.map);
            // Acquire: everything that was done before the view was marked stale is seen from here on.
            self.presence.is_stale.swap(false, Ordering::AcqRel);
            // The old map is not dropped under the lock.
            let old = mem::replace(&mut self.map, Arc::clone(&map));
            drop(map);
            drop(old);
            self.panicked = panicked();
        }
    }

    /// The fast path: for the region and width of the last two accesses.
    #[inline(always)]
    fn access_hit(
        &self,
        addr: K,
        width: usize,
        call: impl FnOnce(&Device<R>, u64) -> Result<R, AccessError>,
    ) -> Option<Result<R, AccessError>> {
        let hit = &self.hit;
        let offset = addr.into().wrapping_sub(hit.base);
        let is_hit = (hit.limits.get(width)).is_some_and(|limit| offset < *limit);
        match is_hit {
            true => self.visit(false, || call(&hit.device, offset)),
            false => None,
        }
    }

    /// The slow path: for all accesses. Cold, so that the fast one is straight code.
    #[cold]
    #[inline(never)]
    fn access(&mut self, addr: K, mut data: Data<'_>) -> Result<R, AccessError> {
        let (width, is_fenced) = (data.width(), self.shared.barrier.is_none());
        let (region, outcome) = loop {
            self.refresh();
            let page = usize::try_from(addr.into() >> 12).unwrap_or(0);
            let hint = self.hints.get_mut(page % HINTS);
            let guess = hint.as_ref().map_or(0, |hint| usize::from(**hint));
            let Some((index, entry)) = self.map.find(addr, guess) else {
                break (None, Err(AccessError::Unclaimed));
            };
            if let (Some(hint), Ok(index)) = (hint, index.try_into()) {
                *hint = index;
            }
            let (info, place) = (&entry.info, entry.place());
            let routed = Listed::new(ACCESS).and_then(|listed| {
                let offset = info.route(addr, width)?;
                match self.panicked.contains(&place.device) {
                    true => Err(AccessError::Panicked),
                    false => Ok((listed, offset)),
                }
            });
            let (_listed, offset) = match routed {
                Ok(routed) => routed,
                Err(refused) => break (Some(info), Err(refused)),
            };
            self.presence.announce(place);
            let call = || data.pass(&*entry.device, self.initiator, offset);
            let Some(outcome) = self.visit(is_fenced, call) else {
                continue;
            };
            // The fast path is for a region that was found twice in a row. Not sooner, because
            // taking it writes to the reference count of the device.
            let is_same = self.last.replace(info.id) == Some(info.id);
            let is_whole = width.is_power_of_two() && info.is_plain();
            if is_same && is_whole && self.shared.observer.is_none() && !is_fenced {
                let limit = info.range.size() - (width as u64 - 1);
                self.hit = Hit {
                    base: info.range.first().into(),
                    limits: from_fn(|of| if of == width { limit } else { 0 }),
                    device: Arc::clone(&entry.device),
                    place,
                };
            }
            // The fast path does not announce the region again: it must be announced here.
            self.presence.announce(self.hit.place);
            break (Some(info), outcome);
        };
        let access = Access {
            addr,
            width,
            is_write: matches!(data, Data::Write(_)),
            region,
            outcome: outcome.as_ref().map(drop).map_err(|error| *error),
        };
        region.inspect(|region| region.count(access.is_write, outcome.is_err()));
        if let Some(observer) = &self.shared.observer {
            observe(observer, &access);
        }
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
        // Release: a thread that sees this view's next access also sees all of this one.
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
        discard(payload);
        let place = self.presence.place();
        if let Some(entry) = self.map.0.iter().find(|entry| entry.place() == place) {
            registry().give_up(place.device, entry.is_dropped());
        }
        Err(AccessError::Panicked)
    }
}

/// A device's `Drop` that panics is not the fault of the vCPU that happens to be the last to hold it.
impl<K: Address, R> Drop for BusView<K, R> {
    fn drop(&mut self) {
        discard(mem::take(&mut self.hit));
    }
}

/// Tells of an access, on the list of this thread: what the observer accesses is told of as well, and
/// so on.
fn observe<K>(observer: &Observer<K>, access: &Access<'_, K>) {
    if let Ok(_listed) = Listed::observer() {
        observer(access);
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
    fn fast_path_is_for_views_that_need_no_fence() {
        let buses: [(MmioBus, bool); 2] = [
            (MmioBus::new(), cfg!(any(target_os = "linux", miri))),
            (Bus::builder().fenced().build(), false),
        ];
        for (bus, is_fast) in buses {
            bus.insert(Arc::new(Nothing), 0, 4).unwrap();
            let mut view = bus.view();
            view.write(0, &[0]).unwrap_err();
            assert_eq!(view.hit.limits, [0; 9], "not before the second access");
            view.write(0, &[0]).unwrap_err();
            assert_eq!(
                view.hit.limits,
                if is_fast {
                    [0, 4, 0, 0, 0, 0, 0, 0, 0]
                } else {
                    [0; 9]
                }
            );
        }
    }
}

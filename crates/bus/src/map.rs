// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The sorted table of regions and their devices.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::device::{Device, OnRemoval, WeakDevice};
use crate::registry::Place;
use crate::sync::discard;
use crate::{
    AccessError, Address, BusDeviceSync, BusError, BusRange, Region, RegionId, RegionInfo,
};

/// A region together with its device.
pub(crate) struct Entry<K, R> {
    pub(crate) info: RegionInfo<K>,
    /// What is called.
    pub(crate) device: Device<R>,
    /// What was inserted: the same, unless the bus does not keep it alive.
    identity: Weak<dyn BusDeviceSync<R>>,
    /// Who hears that the region has left the bus.
    pub(crate) notice: Arc<Notice>,
}

/// Is told once, at the latest when it is dropped.
pub(crate) struct Notice(Mutex<Option<OnRemoval>>);

impl Notice {
    /// Asks a device for its notice, on the way to `info`.
    fn of<K: Address, R>(
        device: &dyn BusDeviceSync<R>,
        info: &RegionInfo<K>,
    ) -> Result<Arc<Self>, BusError<K>> {
        let asked = match catch_unwind(AssertUnwindSafe(|| device.on_removal())) {
            Ok(Ok(notice)) => notice,
            // This device will not be called any more, so there is nobody to wait for.
            Ok(Err(AccessError::Panicked | AccessError::Unclaimed)) => None,
            Ok(Err(_)) => return Err(BusError::InsideDevice(info.clone())),
            Err(payload) => {
                discard(payload);
                None
            }
        };
        Ok(Arc::new(Self(Mutex::new(asked))))
    }

    /// One that panics on its way out harms nobody.
    pub(crate) fn tell(&self) {
        let notice = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(notice) = notice {
            let told = catch_unwind(AssertUnwindSafe(notice));
            discard(told.err());
        }
    }
}

impl Drop for Notice {
    fn drop(&mut self) {
        self.tell();
    }
}

impl<K: Address, R: 'static> Entry<K, R> {
    pub(crate) fn strong(at: Region<K>, device: Device<R>) -> Result<Self, BusError<K>> {
        let identity = Arc::downgrade(&device);
        Self::new(at, device, identity)
    }

    pub(crate) fn weak(
        at: Region<K>,
        device: Weak<dyn BusDeviceSync<R>>,
    ) -> Result<Self, BusError<K>> {
        Self::new(at, Arc::new(WeakDevice(Weak::clone(&device))), device)
    }

    fn new(
        at: Region<K>,
        device: Device<R>,
        identity: Weak<dyn BusDeviceSync<R>>,
    ) -> Result<Self, BusError<K>> {
        let info = RegionInfo::new(BusRange::new(at.base, at.len)?, at);
        Ok(Self {
            notice: Notice::of(&*device, &info)?,
            info,
            device,
            identity,
        })
    }

    /// What views announce before they call the device.
    pub(crate) fn place(&self) -> Place {
        Place {
            region: self.info.id.0,
            device: self.identity.as_ptr().addr(),
        }
    }

    /// Whether the device was dropped, wherever this is called.
    pub(crate) fn is_dropped(&self) -> impl Fn() -> bool + Send + 'static {
        let identity = Weak::clone(&self.identity);
        move || identity.strong_count() == 0
    }

    /// The device that was inserted, if it still exists.
    pub(crate) fn into_device(self) -> Device<R> {
        self.identity.upgrade().unwrap_or(self.device)
    }
}

impl<K: Address, R> Clone for Entry<K, R> {
    fn clone(&self) -> Self {
        Self {
            info: self.info.clone(),
            device: Arc::clone(&self.device),
            identity: Weak::clone(&self.identity),
            notice: Arc::clone(&self.notice),
        }
    }
}

/// All regions in the order of their addresses. Published maps are never changed, only replaced.
pub(crate) struct Map<K, R>(pub(crate) Vec<Entry<K, R>>);

impl<K, R> Default for Map<K, R> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Address, R> Clone for Map<K, R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// A view drops the last map that has a removed device whenever it happens to see the next map.
impl<K, R> Drop for Map<K, R> {
    fn drop(&mut self) {
        self.0.drain(..).for_each(discard);
    }
}

impl<K: Address, R> Map<K, R> {
    /// The entry that `addr` is in, and its index. `hint` is a guess at that.
    pub(crate) fn find(&self, addr: K, hint: usize) -> Option<(usize, &Entry<K, R>)> {
        let get = |index: usize| {
            let entry = self.0.get(index)?;
            (entry.info.range.contains(addr)).then_some((index, entry))
        };
        get(hint).or_else(|| {
            // This search compiles to conditional moves: guests' addresses are hard to predict.
            let map = &self.0;
            let behind = map.partition_point(|entry| entry.info.range.first() <= addr);
            get(behind.checked_sub(1)?)
        })
    }

    pub(crate) fn insert(&mut self, new: Entry<K, R>) -> Result<(), BusError<K>> {
        let (map, range) = (&mut self.0, new.info.range);
        let index = map.partition_point(|old| old.info.range.last() < range.first());
        let existing = map.get(index).map(|old| old.info.clone());
        if let Some(existing) = existing.filter(|old| old.range.overlaps(&range)) {
            let new = new.info;
            return Err(BusError::Overlap { new, existing });
        }
        map.insert(index, new);
        Ok(())
    }

    pub(crate) fn remove(&mut self, id: RegionId) -> Result<Entry<K, R>, BusError<K>> {
        let index = self.0.iter().position(|entry| entry.info.id == id);
        Ok(self.0.remove(index.ok_or(BusError::NoSuchRegion(id))?))
    }

    pub(crate) fn relocate(&mut self, id: RegionId, base: K) -> Result<(), BusError<K>> {
        let mut entry = self.remove(id)?;
        entry.info.range = BusRange::new(base, entry.info.range.size())?;
        self.insert(entry)
    }
}

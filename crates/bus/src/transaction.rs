// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a bus changes.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::device::Device;
use crate::map::{Entry, Map};
use crate::registry::{Awaited, Registry, Waiting, registry};
use crate::shared::Shared;
use crate::sync::{Ordering, fence, lock, yield_now};
use crate::{Address, BusDeviceSync, BusError, Region, RegionId};

/// Changes to a bus that become visible together, or not at all.
///
/// ```
/// use bus::{BusDevice, MmioBus, Region};
/// use std::sync::{Arc, Mutex};
///
/// struct Bar;
/// impl BusDevice for Bar {}
///
/// let bus = MmioBus::new();
/// let first = bus.insert(Arc::new(Mutex::new(Bar)), 0x1000, 0x1000)?;
/// let second = bus.insert(Arc::new(Mutex::new(Bar)), 0x2000, 0x1000)?;
///
/// // Two that change places; one after the other, each would be in the way of the other.
/// let mut changes = bus.transaction();
/// changes.relocate(first, 0x3000);
/// changes.relocate(second, 0x1000);
/// changes.relocate(first, 0x2000);
/// changes.commit()?;
/// assert_eq!(bus.find(0x1000).map(|region| region.id), Some(second));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "nothing changes until `commit` is called"]
pub struct Transaction<'a, K: Address, R = ()> {
    shared: &'a Shared<K, R>,
    changes: Vec<Change<K, R>>,
}

enum Change<K, R> {
    Insert(Entry<K, R>),
    Remove(RegionId),
    Relocate(RegionId, K),
}

impl<'a, K: Address, R: 'static> Transaction<'a, K, R> {
    pub(crate) fn new(shared: &'a Shared<K, R>) -> Self {
        Self {
            shared,
            changes: Vec::new(),
        }
    }

    /// Puts a device on the bus; see [`Bus::insert_region`](crate::Bus::insert_region).
    ///
    /// The identifier is valid for later steps of this transaction, and after it.
    ///
    /// # Errors
    ///
    /// [`BusError::InvalidRange`].
    pub fn insert(&mut self, device: Device<R>, at: Region<K>) -> Result<RegionId, BusError<K>> {
        Ok(self.insert_entry(Entry::strong(at, device)?))
    }

    /// Puts a device on the bus; see [`Bus::insert_weak`](crate::Bus::insert_weak).
    ///
    /// # Errors
    ///
    /// As [`Self::insert`].
    pub fn insert_weak(
        &mut self,
        device: Weak<dyn BusDeviceSync<R>>,
        at: Region<K>,
    ) -> Result<RegionId, BusError<K>> {
        Ok(self.insert_entry(Entry::weak(at, device)?))
    }

    fn insert_entry(&mut self, entry: Entry<K, R>) -> RegionId {
        let id = entry.info.id;
        self.changes.push(Change::Insert(entry));
        id
    }

    /// Takes a region off the bus; see [`Bus::remove`](crate::Bus::remove).
    pub fn remove(&mut self, id: RegionId) {
        self.changes.push(Change::Remove(id));
    }

    /// Moves a region to another base; see [`Bus::relocate`](crate::Bus::relocate).
    pub fn relocate(&mut self, id: RegionId, base: K) {
        self.changes.push(Change::Relocate(id, base));
    }

    /// Carries out all changes in the order they were asked for, and waits until no thread is in
    /// a region that was removed. Returns the removed devices in that order.
    ///
    /// Each access finds the bus either as it was before all changes, or as it is after them.
    ///
    /// # Errors
    ///
    /// What the first change that is not possible returns on its own: [`BusError::Overlap`],
    /// [`BusError::NoSuchRegion`], [`BusError::InvalidRange`]; or else what a removal returns:
    /// [`BusError::InsideDevice`], [`BusError::Barrier`].
    pub fn commit(self) -> Result<Vec<Device<R>>, BusError<K>> {
        // Declared before the lock is taken, so that nothing is dropped under it.
        let waiting;
        let (mut map, mut removed) = (Map::default(), Vec::new());
        let mut current = lock(&self.shared.map);
        map.clone_from(&current);
        for change in &self.changes {
            match change {
                Change::Insert(entry) => map.insert(entry.clone())?,
                Change::Remove(id) => removed.push(map.remove(*id)?),
                Change::Relocate(id, base) => map.relocate(*id, *base)?,
            }
        }
        // From here on views need the lock to find a device, so they miss nothing. Those made from
        // here on do anyway.
        let mut registry = registry();
        waiting = wait_for(&mut registry, &removed)?;
        registry.publish();
        let views = registry.views.clone();
        drop(registry);
        if waiting.is_some() {
            fence(Ordering::SeqCst);
            if !self.shared.barrier.is_none_or(|barrier| barrier()) {
                return Err(BusError::Barrier);
            }
        }
        let old = std::mem::replace(&mut *current, Arc::new(map));
        drop(current);
        for region in removed.iter().map(|entry| entry.place().region) {
            while views.iter().any(|view| view.is_in(region)) {
                yield_now();
                std::thread::sleep(Duration::from_micros(20));
            }
        }
        drop((waiting, old));
        removed.iter().for_each(|entry| entry.notice.tell());
        Ok(removed.into_iter().map(Entry::into_device).collect())
    }
}

/// Registers this thread as waiting until no access is inside these regions, if there are any.
fn wait_for<K: Address, R: 'static>(
    registry: &mut Registry,
    removed: &[Entry<K, R>],
) -> Result<Option<Waiting>, BusError<K>> {
    let Some(first) = removed.first() else {
        return Ok(None);
    };
    let endless = |entry: &Entry<K, R>| BusError::InsideDevice(entry.info.clone());
    let is_inside = |entry: &&Entry<K, R>| registry.is_inside(entry.place().device);
    if let Some(entry) = removed.iter().find(is_inside) {
        return Err(endless(entry));
    }
    let regions = removed.iter().map(|entry| entry.place().region).collect();
    let waiting = Waiting::new(registry, Awaited::Empty(regions));
    waiting.map(Some).ok_or_else(|| endless(first))
}

impl<K: Address, R> fmt::Debug for Transaction<'_, K, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.changes).finish()
    }
}

impl<K: Address, R> fmt::Debug for Change<K, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Insert(entry) => write!(f, "insert {}", entry.info),
            Self::Remove(id) => write!(f, "remove {id:?}"),
            Self::Relocate(id, base) => write!(f, "relocate {id:?} to {base:#x}"),
        }
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The bus itself: what is on it, and how that changes.

use std::fmt;
use std::sync::{Arc, Weak};

use crate::device::Device;
use crate::map::Entry;
use crate::shared::Shared;
use crate::sync::{address, lock};
use crate::{
    Access, Address, BusDeviceSync, BusError, BusView, Region, RegionId, RegionInfo, Transaction,
};

/// The bus for memory-mapped I/O.
pub type MmioBus<R = ()> = Bus<u64, R>;

/// The bus for port I/O.
pub type PioBus<R = ()> = Bus<u16, R>;

/// A set of devices, each with the range of addresses it answers to.
///
/// A `Bus` is a handle: clones of it are the same bus. Everything takes `&self` and may be called
/// at any time from any thread, also from inside of a device's handler, while vCPUs access devices
/// through their [views](Self::view).
///
/// ```
/// use bus::{AccessError, BusDevice, MmioBus};
/// use std::sync::{Arc, Mutex};
///
/// struct Scratch([u8; 8]);
/// impl BusDevice for Scratch {
///     fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
///         let bytes = self.0.get(offset as usize..).and_then(|rest| rest.get(..data.len()));
///         data.copy_from_slice(bytes.ok_or(AccessError::Offset)?);
///         Ok(())
///     }
/// }
///
/// let bus = MmioBus::new();
/// bus.insert(Arc::new(Mutex::new(Scratch([7; 8]))), 0x8000_0000, 8)?;
///
/// let mut data = [0; 4];
/// bus.view().read(0x8000_0004, &mut data)?;
/// assert_eq!(data, [7; 4]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A device that holds a handle of the bus it is on keeps the bus, and so itself, from ever being
/// dropped. Let it hold a [`Weak`](std::sync::Weak):
///
/// ```
/// use bus::{AccessError, BusDevice, MmioBus};
/// use std::sync::{Arc, Mutex, Weak};
///
/// /// Shows the bytes from `base` on at another place.
/// struct Mirror {
///     bus: Weak<MmioBus>,
///     base: u64,
/// }
///
/// impl BusDevice for Mirror {
///     fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
///         let bus = self.bus.upgrade().ok_or(AccessError::Failed)?;
///         bus.view().read(self.base + offset, data)
///     }
/// }
///
/// let bus = Arc::new(MmioBus::new());
/// let mirror = Mirror { bus: Arc::downgrade(&bus), base: 0x1000 };
/// bus.insert(Arc::new(Mutex::new(mirror)), 0x2000, 0x100)?;
/// assert_eq!(bus.view().read(0x2000, &mut [0]), Err(AccessError::Unclaimed));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Bus<K: Address, R = ()>(Arc<Shared<K, R>>);

/// How a bus differs from [`Bus::new`].
///
/// ```
/// use bus::{Bus, PioBus};
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use std::sync::Arc;
///
/// let unclaimed = Arc::new(AtomicU64::new(0));
/// let counter = Arc::clone(&unclaimed);
/// let bus: PioBus = Bus::builder()
///     .fill(0)
///     .observer(move |access| {
///         if access.region.is_none() {
///             counter.fetch_add(1, Ordering::Relaxed);
///         }
///     })
///     .build();
///
/// let mut data = [0xaa];
/// assert!(bus.view().read(0x60, &mut data).is_err());
/// assert_eq!(data, [0]);
/// assert_eq!(unclaimed.load(Ordering::Relaxed), 1);
/// ```
#[must_use]
pub struct BusBuilder<K: Address, R = ()>(Shared<K, R>);

impl<K: Address, R> Default for BusBuilder<K, R> {
    fn default() -> Self {
        Self(Shared::default())
    }
}

impl<K: Address, R> BusBuilder<K, R> {
    /// What each byte of a read is when no device sets it. The default is `0xff`, as on a bus
    /// whose lines are pulled up.
    pub fn fill(mut self, fill: u8) -> Self {
        self.0.fill = fill;
        self
    }

    /// Calls `observer` after each access, on the thread that made it.
    ///
    /// The guest decides how often that is. Accesses to a bus with an observer take longer. What
    /// the observer accesses on this bus is observed as well, unless that is nested too deep.
    pub fn observer(mut self, observer: impl Fn(&Access<'_, K>) + Send + Sync + 'static) -> Self {
        self.0.observer = Some(Box::new(observer));
        self
    }

    /// Never uses `membarrier(2)`; each access executes a memory fence instead, on the slow path.
    ///
    /// For processes whose seccomp filter will forbid that system call. Where it is forbidden or
    /// missing when the bus is built, this is chosen without being asked for.
    pub fn fenced(mut self) -> Self {
        self.0.barrier = None;
        self
    }

    /// A bus without devices.
    pub fn build(mut self) -> Bus<K, R> {
        self.0.barrier = self.0.barrier.filter(|barrier| barrier());
        Bus(Arc::new(self.0))
    }
}

impl<K: Address> Bus<K> {
    /// A bus without devices, on which reads of nothing give all ones.
    ///
    /// For devices that [answer](crate#answers-to-the-vmm), write `MmioBus::<Answer>::default()`.
    pub fn new() -> Self {
        Self::default()
    }

    /// A bus with other properties than the usual ones.
    ///
    /// For devices that [answer](crate#answers-to-the-vmm), write
    /// `BusBuilder::<u64, Answer>::default()`.
    pub fn builder() -> BusBuilder<K> {
        BusBuilder::default()
    }
}

impl<K: Address, R: 'static> Bus<K, R> {
    /// Puts a device on the bus, at the `len` addresses from `base` on.
    ///
    /// An `Arc<Mutex<D>>` of any [`BusDevice`](crate::BusDevice) is such a device, and so is an
    /// `Arc<D>` of any [`BusDeviceSync`](crate::BusDeviceSync). The same device may be inserted
    /// more than once.
    ///
    /// # Errors
    ///
    /// [`BusError::InvalidRange`] or [`BusError::Overlap`].
    pub fn insert(&self, device: Device<R>, base: K, len: u64) -> Result<RegionId, BusError<K>> {
        self.insert_region(device, Region::new(base, len))
    }

    /// Puts a device on the bus, under a name or access rules.
    ///
    /// # Errors
    ///
    /// As [`Self::insert`].
    pub fn insert_region(&self, device: Device<R>, at: Region<K>) -> Result<RegionId, BusError<K>> {
        self.change(|changes| changes.insert(device, at))
    }

    /// Puts a device on the bus that belongs to somebody else, who keeps it alive.
    ///
    /// Once the device is dropped, accesses return [`AccessError::Unclaimed`]; the region stays
    /// until it is removed.
    ///
    /// [`AccessError::Unclaimed`]: crate::AccessError::Unclaimed
    ///
    /// ```
    /// use bus::{AccessError, BusDevice, BusDeviceSync, MmioBus, Region};
    /// use std::sync::{Arc, Mutex, Weak};
    ///
    /// struct Zeros;
    /// impl BusDevice for Zeros {
    ///     fn read(&mut self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
    ///         data.fill(0);
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let bus = MmioBus::new();
    /// let device: Arc<dyn BusDeviceSync> = Arc::new(Mutex::new(Zeros));
    /// bus.insert_weak(Arc::downgrade(&device), Region::new(0x1000, 4))?;
    /// assert_eq!(bus.view().read(0x1000, &mut [0]), Ok(()));
    /// drop(device);
    /// assert_eq!(bus.view().read(0x1000, &mut [0]), Err(AccessError::Unclaimed));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Self::insert`].
    pub fn insert_weak(
        &self,
        device: Weak<dyn BusDeviceSync<R>>,
        at: Region<K>,
    ) -> Result<RegionId, BusError<K>> {
        self.change(|changes| changes.insert_weak(device, at))
    }

    /// Takes a region off the bus and waits until no thread is in it any more.
    ///
    /// When this returns, no access that came through this region runs in the device or will ever
    /// reach it. Returns the device. Accesses of the same device through other regions, of this
    /// bus or of another, go on. Views that have not been used since may still hold references to
    /// the device; see [`BusView::refresh`].
    ///
    /// # Errors
    ///
    /// [`BusError::NoSuchRegion`]; [`BusError::InsideDevice`] if the calling thread is inside of
    /// the device, by whatever bus, or waiting would never end for another reason;
    /// [`BusError::Barrier`].
    pub fn remove(&self, id: RegionId) -> Result<Device<R>, BusError<K>> {
        let mut changes = self.transaction();
        changes.remove(id);
        changes.commit()?.pop().ok_or(BusError::NoSuchRegion(id))
    }

    /// Takes the region that `addr` is in off the bus, as [`Self::remove`] does.
    ///
    /// # Errors
    ///
    /// [`BusError::NoRegionAt`], otherwise as [`Self::remove`].
    pub fn remove_at(&self, addr: K) -> Result<Device<R>, BusError<K>> {
        self.remove(self.find(addr).ok_or(BusError::NoRegionAt(addr))?.id)
    }

    /// Takes all regions of a device off the bus at once, as [`Self::remove`] does, and returns
    /// what they were.
    ///
    /// # Errors
    ///
    /// As [`Self::remove`].
    pub fn remove_device<D: ?Sized>(
        &self,
        device: &Arc<D>,
    ) -> Result<Vec<RegionInfo<K>>, BusError<K>> {
        let regions = self.find_device(device);
        self.change(|changes| {
            (regions.iter()).for_each(|region| changes.remove(region.id));
            Ok(())
        })?;
        Ok(regions)
    }

    /// Moves a region to another base, with the same length, name, rules and counters.
    ///
    /// Each access finds the region either at its old or at its new place, and only at the new one
    /// if it starts after this has returned. This does not wait for accesses that had found the
    /// region at its old place, so a handler may move its own device.
    ///
    /// # Errors
    ///
    /// [`BusError::NoSuchRegion`], [`BusError::InvalidRange`] or [`BusError::Overlap`].
    pub fn relocate(&self, id: RegionId, base: K) -> Result<(), BusError<K>> {
        self.change(|changes| {
            changes.relocate(id, base);
            Ok(())
        })
    }

    /// Several changes that become visible together.
    pub fn transaction(&self) -> Transaction<'_, K, R> {
        Transaction::new(&self.0)
    }

    fn change<T>(
        &self,
        prepare: impl FnOnce(&mut Transaction<'_, K, R>) -> Result<T, BusError<K>>,
    ) -> Result<T, BusError<K>> {
        let mut changes = self.transaction();
        let prepared = prepare(&mut changes)?;
        changes.commit()?;
        Ok(prepared)
    }

    /// The region that `addr` is in.
    pub fn find(&self, addr: K) -> Option<RegionInfo<K>> {
        let map = lock(&self.0.map);
        let (_, entry) = map.find(addr, 0)?;
        Some(entry.info.clone())
    }

    /// The regions of a device in the order of their addresses: of what was inserted, not of what
    /// that may wrap.
    pub fn find_device<D: ?Sized>(&self, device: &Arc<D>) -> Vec<RegionInfo<K>> {
        self.regions_if(|entry| entry.place().device == address(&**device))
    }

    /// All regions in the order of their addresses, as they are now.
    pub fn regions(&self) -> Vec<RegionInfo<K>> {
        self.regions_if(|_| true)
    }

    fn regions_if(&self, is_wanted: impl Fn(&Entry<K, R>) -> bool) -> Vec<RegionInfo<K>> {
        let map = Arc::clone(&lock(&self.0.map));
        let wanted = map.0.iter().filter(|entry| is_wanted(entry));
        wanted.map(|entry| entry.info.clone()).collect()
    }

    /// A way to access the devices that takes no locks: one for each vCPU.
    ///
    /// Making a view takes a lock and some memory, so that vCPUs do it once.
    pub fn view(&self) -> BusView<K, R> {
        BusView::new(Arc::clone(&self.0))
    }
}

impl<K: Address, R> Default for Bus<K, R> {
    fn default() -> Self {
        BusBuilder::default().build()
    }
}

impl<K: Address, R> Clone for Bus<K, R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Address, R> fmt::Debug for Bus<K, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<K: Address, R> fmt::Debug for BusBuilder<K, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The map of the bus, a line for each region, as in `/proc/iomem` and `/proc/ioports`.
impl<K: Address, R> fmt::Display for Bus<K, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let map = Arc::clone(&lock(&self.0.map));
        (map.0.iter()).try_for_each(|entry| writeln!(f, "{}", entry.info))
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::{AccessError, BusDeviceSync};

    struct Nothing;
    impl BusDeviceSync for Nothing {}

    #[test]
    fn remove_that_cannot_be_told_to_views_changes_nothing() {
        let mut builder = MmioBus::builder();
        builder.0.barrier = Some(|| false);
        let bus = Bus(Arc::new(builder.0));
        let id = bus.insert(Arc::new(Nothing), 0x1000, 4).unwrap();
        let mut view = bus.view();
        for _ in 0..3 {
            assert_eq!(view.read(0x1000, &mut [0]), Err(AccessError::Refused));
            assert!(matches!(bus.remove(id), Err(BusError::Barrier)));
            assert_eq!(bus.regions().len(), 1);
        }
        bus.relocate(id, 0x2000).unwrap();
        assert_eq!(view.read(0x1000, &mut [0]), Err(AccessError::Unclaimed));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_has_the_better_barrier() {
        assert!(Bus::<u64>::new().0.barrier.is_some());
    }
}

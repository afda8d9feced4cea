// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The bus itself: what is on it, and how that changes.

use std::fmt;
use std::mem;
use std::sync::{Arc, Weak};

use crate::access::Io;
use crate::device::Device;
use crate::map::Map;
use crate::nesting;
use crate::shared::{Generation, Shared};
use crate::sync::{Mutex, Ordering, barrier_in_all_threads, fence, lock, thread_token, wait_while};
use crate::{
    Access, AccessError, Address, BusError, BusRange, BusView, Region, RegionId, RegionInfo,
};

/// The bus for memory-mapped I/O.
pub type MmioBus = Bus<u64>;

/// The bus for port I/O.
pub type PioBus = Bus<u16>;

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
/// bus.read(0x8000_0004, &mut data)?;
/// assert_eq!(data, [7; 4]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A device that holds a handle of the bus it is on keeps the bus, and so itself, from ever being
/// dropped. Let such a device hold a [`WeakBus`].
#[derive(Clone, Debug)]
pub struct Bus<K: Address> {
    shared: Arc<Shared<K>>,
}

/// A handle of a bus that does not keep it, for devices that access other devices.
///
/// ```
/// use bus::{AccessError, BusDevice, MmioBus, WeakBus};
/// use std::sync::{Arc, Mutex};
///
/// /// Shows the bytes from `base` on at another place.
/// struct Mirror {
///     bus: WeakBus<u64>,
///     base: u64,
/// }
///
/// impl BusDevice for Mirror {
///     fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
///         let bus = self.bus.upgrade().ok_or(AccessError::Failed)?;
///         bus.read(self.base + offset, data)
///     }
/// }
///
/// let bus = MmioBus::new();
/// let mirror = Mirror { bus: bus.downgrade(), base: 0x1000 };
/// bus.insert(Arc::new(Mutex::new(mirror)), 0x2000, 0x100)?;
/// assert_eq!(bus.read(0x2000, &mut [0]), Err(AccessError::Unclaimed));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct WeakBus<K> {
    shared: Weak<Shared<K>>,
}

impl<K: Address> WeakBus<K> {
    /// The bus, unless all its handles and views are gone.
    pub fn upgrade(&self) -> Option<Bus<K>> {
        self.shared.upgrade().map(|shared| Bus { shared })
    }
}

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
/// assert!(bus.read(0x60, &mut data).is_err());
/// assert_eq!(data, [0]);
/// assert_eq!(unclaimed.load(Ordering::Relaxed), 1);
/// ```
#[derive(Debug)]
#[must_use]
pub struct BusBuilder<K: Address>(Shared<K>);

impl<K: Address> BusBuilder<K> {
    /// What each byte of a read is when no device sets it. The default is `0xff`, as on a bus
    /// whose lines are pulled up.
    pub fn fill(mut self, fill: u8) -> Self {
        self.0.fill = [fill; 8];
        self
    }

    /// Calls `observer` after each access, on the thread that made it.
    ///
    /// The guest decides how often that is. Accesses to a bus with an observer take longer.
    pub fn observer(mut self, observer: impl Fn(&Access<'_, K>) + Send + Sync + 'static) -> Self {
        self.0.observer = Some(Box::new(observer));
        self
    }

    /// Never uses `membarrier(2)`; each access executes a memory fence instead.
    ///
    /// For processes whose seccomp filter will forbid that system call. Where it is forbidden or
    /// missing when the bus is built, this is chosen without being asked for.
    pub fn fenced(mut self) -> Self {
        self.0.fenced = true;
        self
    }

    /// A bus without devices.
    pub fn build(self) -> Bus<K> {
        let mut shared = self.0;
        if shared.fenced || !barrier_in_all_threads() {
            shared.fenced = true;
            shared.barrier_of_remover = || {
                fence(Ordering::SeqCst);
                true
            };
        }
        let shared = Arc::new(shared);
        Bus { shared }
    }
}

impl<K: Address> Bus<K> {
    /// A bus without devices, on which reads of nothing give all ones.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A bus with other properties than the usual ones.
    pub fn builder() -> BusBuilder<K> {
        BusBuilder(Shared {
            generation: Generation::default(),
            fenced: false,
            barrier_of_remover: barrier_in_all_threads,
            fill: [0xff; 8],
            observer: None,
            state: Mutex::default(),
            spare: Mutex::default(),
        })
    }

    /// Puts a device on the bus, at the `len` addresses from `base` on.
    ///
    /// An `Arc<Mutex<D>>` of any [`BusDevice`](crate::BusDevice) is such a device, and so is an
    /// `Arc<D>` of any [`BusDeviceSync`](crate::BusDeviceSync). The same device may be inserted more than once.
    ///
    /// # Errors
    ///
    /// [`BusError::EmptyRange`], [`BusError::BeyondEnd`] or [`BusError::Overlap`].
    pub fn insert(&self, device: Device, base: K, len: u64) -> Result<RegionId, BusError<K>> {
        self.insert_region(device, Region::new(base, len))
    }

    /// Puts a device on the bus, under a name or access rules.
    ///
    /// # Errors
    ///
    /// As [`Self::insert`].
    pub fn insert_region(
        &self,
        device: Device,
        region: Region<K>,
    ) -> Result<RegionId, BusError<K>> {
        let region = region.with(device)?;
        let id = region.id();
        let mut state = lock(&self.shared.state);
        Arc::make_mut(&mut state.map).insert(region)?;
        self.shared.publish();
        Ok(id)
    }

    /// Takes a region off the bus and waits until no thread is inside of its device any more.
    ///
    /// When this returns, no access that came through this bus runs in the device or will ever
    /// reach it, unless the device has other regions. Returns the device. Views that have not been
    /// used since may still hold references to it; see [`BusView::refresh`].
    ///
    /// A device cannot remove itself from inside its own handler, since that would wait for the
    /// handler; nor may a handler wait for another device whose handler waits for this one.
    ///
    /// # Errors
    ///
    /// [`BusError::NoSuchRegion`], [`BusError::InsideDevice`] or [`BusError::Barrier`].
    pub fn remove(&self, id: RegionId) -> Result<Device, BusError<K>> {
        let shared = &*self.shared;
        let mut state = lock(&shared.state);
        let mut map = Map::clone(&state.map);
        let region = map.remove(id)?;
        let (thread, device) = (thread_token(), region.meta.device.address());
        if nesting::holds(device) || state.is_circle(thread, device) {
            return Err(BusError::InsideDevice {
                range: region.range,
                name: region.meta.asked.name.clone(),
            });
        }

        let before = mem::replace(&mut state.map, Arc::new(map));
        shared.publish();
        if !(shared.barrier_of_remover)() {
            // No view could fetch the new map while the lock was held: nobody has seen it.
            state.map = before;
            shared.publish();
            return Err(BusError::Barrier);
        }

        let views = state.views.clone();
        state.waits.push((thread, device));
        drop(state);
        for view in views {
            wait_while(|| view.is_inside(device));
        }
        lock(&shared.state).waits.retain(|wait| wait.0 != thread);
        // They may hold the last reference to the device.
        let spare = mem::take(&mut *lock(&shared.spare));
        drop(spare);
        Ok(Arc::clone(&region.meta.device))
    }

    /// Moves a region to another base, with the same length, name, rules and counters.
    ///
    /// Each access finds the region either at its old or at its new place, and only at the new one
    /// if it starts after this has returned. This does not wait for accesses that had found the
    /// region at its old place, so a handler may move its own device.
    ///
    /// # Errors
    ///
    /// [`BusError::NoSuchRegion`], [`BusError::BeyondEnd`] or [`BusError::Overlap`].
    pub fn relocate(&self, id: RegionId, base: K) -> Result<(), BusError<K>> {
        let mut state = lock(&self.shared.state);
        let mut map = Map::clone(&state.map);
        let mut region = map.remove(id)?;
        region.range = BusRange::new(base, region.range.size())?;
        map.insert(region)?;
        state.map = Arc::new(map);
        self.shared.publish();
        Ok(())
    }

    /// The region that `addr` is in.
    pub fn find(&self, addr: K) -> Option<RegionInfo<K>> {
        self.shared.current().0.find(addr, &mut 0).cloned()
    }

    /// All regions in the order of their addresses, as they are now.
    pub fn regions(&self) -> Vec<RegionInfo<K>> {
        self.shared.current().0.regions.clone()
    }

    /// A handle that does not keep the bus.
    pub fn downgrade(&self) -> WeakBus<K> {
        let shared = Arc::downgrade(&self.shared);
        WeakBus { shared }
    }

    /// A way to access the devices that takes no locks: one for each vCPU.
    pub fn view(&self) -> BusView<K> {
        BusView::new(Arc::clone(&self.shared))
    }

    /// Reads from the device at `addr`, like [`BusView::read`] but slower.
    ///
    /// # Errors
    ///
    /// As [`BusView::read`]. Accesses without a view can be nested in one another at least 16
    /// deep; too deep a one gets [`AccessError::Reentrant`].
    pub fn read(&self, addr: K, data: &mut [u8]) -> Result<(), AccessError> {
        self.shared.access(addr, Io::Read(data))
    }

    /// Writes to the device at `addr`, like [`BusView::write`] but slower.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn write(&self, addr: K, data: &[u8]) -> Result<(), AccessError> {
        self.shared.access(addr, Io::Write(data))
    }
}

impl<K: Address> Default for Bus<K> {
    fn default() -> Self {
        Self::new()
    }
}

/// The map of the bus, a line for each region, as in `/proc/iomem` and `/proc/ioports`.
impl<K: Address> fmt::Display for Bus<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.regions()
            .iter()
            .try_for_each(|region| writeln!(f, "{region}"))
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::BusDeviceSync;

    #[test]
    fn remove_that_cannot_be_told_to_views_changes_nothing() {
        struct Nothing;
        impl BusDeviceSync for Nothing {}

        let mut bus = Bus::<u64>::builder().fenced().build();
        Arc::get_mut(&mut bus.shared).unwrap().barrier_of_remover = || false;
        let id = bus.insert(Arc::new(Nothing), 0x1000, 4).unwrap();
        let mut view = bus.view();
        for _ in 0..3 {
            assert_eq!(view.read(0x1000, &mut [0]), Err(AccessError::Refused));
            assert_eq!(bus.remove(id).err(), Some(BusError::Barrier));
            assert_eq!(bus.regions().len(), 1);
        }
        bus.relocate(id, 0x2000).unwrap();
        assert_eq!(view.read(0x1000, &mut [0]), Err(AccessError::Unclaimed));
    }

    #[cfg(all(target_os = "linux", not(miri)))]
    #[test]
    fn linux_has_the_better_barrier() {
        assert!(!Bus::<u64>::new().shared.fenced);
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The bus itself: what is on it, and how that changes.

use std::fmt;
use std::mem;
use std::sync::{Arc, Weak};
use std::thread::sleep;
use std::time::Duration;

use crate::device::{Device, Outcome};
use crate::nesting::{ACCESS, Listed};
use crate::region::{self, Map};
use crate::shared::Shared;
use crate::sync::{
    Mutex, Ordering, address, barrier_in_all_threads, fence, lock, thread_token, yield_now,
};
use crate::view::Io;
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
pub struct Bus<K: Address>(Arc<Inner<K>>);

#[derive(Debug)]
struct Inner<K: Address> {
    shared: Arc<Shared<K>>,
    /// For accesses without a view.
    spare: Mutex<Vec<BusView<K>>>,
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
pub struct WeakBus<K: Address>(Weak<Inner<K>>);

impl<K: Address> WeakBus<K> {
    /// The bus, unless all its handles are gone. Views are no handles.
    pub fn upgrade(&self) -> Option<Bus<K>> {
        self.0.upgrade().map(Bus)
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
        self.0.fill = u32::from_ne_bytes([fill; 4]);
        self
    }

    /// Calls `observer` after each access, on the thread that made it.
    ///
    /// The guest decides how often that is. Accesses to a bus with an observer take longer.
    pub fn observer(mut self, observer: impl Fn(&Access<'_, K>) + Send + Sync + 'static) -> Self {
        self.0.observer = Some(Box::new(observer));
        self
    }

    /// Never uses `membarrier(2)`; each access executes a memory fence instead, on the longer way.
    ///
    /// For processes whose seccomp filter will forbid that system call. Where it is forbidden or
    /// missing when the bus is built, this is chosen without being asked for.
    pub fn fenced(mut self) -> Self {
        self.0.barrier = None;
        self
    }

    /// A bus without devices.
    pub fn build(mut self) -> Bus<K> {
        self.0.barrier = self.0.barrier.filter(|barrier| barrier());
        Bus(Arc::new(Inner {
            shared: Arc::new(self.0),
            spare: Mutex::default(),
        }))
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
            barrier: Some(barrier_in_all_threads),
            fill: u32::MAX,
            observer: None,
            state: Mutex::default(),
        })
    }

    /// Puts a device on the bus, at the `len` addresses from `base` on.
    ///
    /// An `Arc<Mutex<D>>` of any [`BusDevice`](crate::BusDevice) is such a device, and so is an
    /// `Arc<D>` of any [`BusDeviceSync`](crate::BusDeviceSync). The same device may be inserted
    /// more than once.
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
        let id = region.id;
        let mut state = lock(&self.0.shared.state);
        region::insert(Arc::make_mut(&mut state.map), region)?;
        state.publish();
        Ok(id)
    }

    /// Takes a region off the bus and waits until no thread is inside of its device any more.
    ///
    /// When this returns, no access that came through this bus runs in the device or will ever
    /// reach it, unless the device has other regions. Returns the device. Views that have not been
    /// used since may still hold references to it; see [`BusView::refresh`].
    ///
    /// A device cannot remove itself from inside its own handler, since that would wait for the
    /// handler. Nor can it remove another device while some thread waits for its own removal,
    /// since the two could wait for each other.
    ///
    /// # Errors
    ///
    /// [`BusError::NoSuchRegion`], [`BusError::InsideDevice`] or [`BusError::Barrier`].
    pub fn remove(&self, id: RegionId) -> Result<Device, BusError<K>> {
        let Inner { shared, spare } = &*self.0;
        let mut state = lock(&shared.state);
        let mut map = Map::clone(&state.map);
        let region = region::remove(&mut map, id)?;
        let (thread, device) = (thread_token(), address(&*region.device));
        let goes = |inside| inside == device || state.leaving.contains(&inside);
        let mut views = state.views.iter().map(|view| view.place());
        if views.any(|(inside, device)| inside == thread && goes(device)) {
            return Err(BusError::InsideDevice(region));
        }

        // From here on views need the lock to find a device, so they miss nothing.
        state.publish();
        fence(Ordering::SeqCst);
        if !shared.barrier.is_none_or(|barrier| barrier()) {
            return Err(BusError::Barrier);
        }
        state.map = Arc::new(map);
        state.leaving.push(device);
        let views = state.views.clone();
        drop(state);
        for view in views {
            while matches!(view.place(), (1.., inside) if inside == device) {
                yield_now();
                sleep(Duration::from_micros(20));
            }
        }
        let mut state = lock(&shared.state);
        let place = state.leaving.iter().position(|other| *other == device);
        place.map(|place| state.leaving.swap_remove(place));
        drop(state);
        // These may hold the last reference to the device.
        let spare = mem::take(&mut *lock(spare));
        drop(spare);
        Ok(region.device)
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
        let mut state = lock(&self.0.shared.state);
        let mut map = Map::clone(&state.map);
        let mut region = region::remove(&mut map, id)?;
        region.range = BusRange::new(base, region.range.size())?;
        region::insert(&mut map, region)?;
        state.map = Arc::new(map);
        state.publish();
        Ok(())
    }

    /// The region that `addr` is in.
    pub fn find(&self, addr: K) -> Option<RegionInfo<K>> {
        region::find(&lock(&self.0.shared.state).map, addr, &mut 0).cloned()
    }

    /// All regions in the order of their addresses, as they are now.
    pub fn regions(&self) -> Vec<RegionInfo<K>> {
        lock(&self.0.shared.state).map.to_vec()
    }

    /// A handle that does not keep the bus.
    pub fn downgrade(&self) -> WeakBus<K> {
        WeakBus(Arc::downgrade(&self.0))
    }

    /// A way to access the devices that takes no locks: one for each vCPU.
    pub fn view(&self) -> BusView<K> {
        BusView::new(Arc::clone(&self.0.shared))
    }

    /// Reads from the device at `addr`, like [`BusView::read`] but slower.
    ///
    /// # Errors
    ///
    /// As [`BusView::read`]. Accesses without a view can be nested in one another at least 16
    /// deep; too deep a one gets [`AccessError::Reentrant`].
    pub fn read(&self, addr: K, data: &mut [u8]) -> Result<(), AccessError> {
        self.access(addr, Io::Read(data))
    }

    /// Writes to the device at `addr`, like [`BusView::write`] but slower.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn write(&self, addr: K, data: &[u8]) -> Result<(), AccessError> {
        self.access(addr, Io::Write(data))
    }

    /// An access with a view that was used in this way before, or a new one.
    fn access(&self, addr: K, io: Io<'_>) -> Outcome {
        let nested = Listed::new(ACCESS);
        let spare = lock(&self.0.spare).pop();
        let mut view = spare.unwrap_or_else(|| self.view());
        let allowed = nested.as_ref().map_or_else(|error| Err(*error), |_| Ok(()));
        let outcome = view.access_any(addr, io, allowed);
        lock(&self.0.spare).push(view);
        outcome
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

    struct Nothing;
    impl BusDeviceSync for Nothing {}

    #[test]
    fn remove_that_cannot_be_told_to_views_changes_nothing() {
        let mut builder = Bus::<u64>::builder();
        builder.0.barrier = Some(|| false);
        let bus = Bus(Arc::new(Inner {
            shared: Arc::new(builder.0),
            spare: Mutex::default(),
        }));
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

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_has_the_better_barrier() {
        assert!(Bus::<u64>::new().0.shared.barrier.is_some());
    }
}

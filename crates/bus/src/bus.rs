// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The bus itself: what is on it, and how that changes.

use std::fmt;
use std::sync::Arc;

use crate::device::Device;
use crate::region::{Entry, Map};
use crate::sync::{Mutex, Ordering, address, barrier_in_all_threads, fence, lock, yield_now};
use crate::thread::thread_token;
use crate::view::Presence;
use crate::{Access, Address, BusError, BusRange, BusView, Region, RegionId, RegionInfo};

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

pub(crate) type Observer<K> = dyn Fn(&Access<'_, K>) + Send + Sync;

/// What a bus and its views have in common.
pub(crate) struct Shared<K, R> {
    /// What a remover calls to make all views execute a barrier; `false` if that failed. Without
    /// it, views execute a fence for each access.
    pub(crate) barrier: Option<fn() -> bool>,
    /// What a read gives without a device, in each byte.
    pub(crate) fill: u8,
    pub(crate) observer: Option<Box<Observer<K>>>,
    pub(crate) state: Mutex<State<K, R>>,
}

impl<K: Address, R> fmt::Debug for Shared<K, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let map = &lock(&self.state).map.0;
        f.debug_set()
            .entries(map.iter().map(|entry| &entry.info))
            .finish()
    }
}

/// No device is called or dropped while this is locked.
pub(crate) struct State<K, R> {
    pub(crate) map: Arc<Map<K, R>>,
    pub(crate) views: Vec<Arc<Presence>>,
    /// The devices that removers wait for, which they want everybody to leave.
    leaving: Vec<usize>,
}

impl<K, R> State<K, R> {
    /// Makes every view fetch the map before its next access. As it needs the lock for that, the
    /// map may be changed before or after.
    pub(crate) fn publish(&self) {
        (self.views.iter()).for_each(|view| view.is_stale.store(true, Ordering::Release));
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
/// assert!(bus.view().read(0x60, &mut data).is_err());
/// assert_eq!(data, [0]);
/// assert_eq!(unclaimed.load(Ordering::Relaxed), 1);
/// ```
#[must_use]
pub struct BusBuilder<K: Address, R = ()>(Shared<K, R>);

impl<K: Address, R> Default for BusBuilder<K, R> {
    fn default() -> Self {
        Self(Shared {
            barrier: Some(barrier_in_all_threads),
            fill: 0xff,
            observer: None,
            state: Mutex::new(State {
                map: Arc::default(),
                views: Vec::new(),
                leaving: Vec::new(),
            }),
        })
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
    /// the observer accesses on this bus is observed as well.
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

impl<K: Address, R> Bus<K, R> {
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
        let entry = Entry::new(at, device)?;
        let id = entry.info.id;
        let mut state = lock(&self.0.state);
        Arc::make_mut(&mut state.map).insert(entry)?;
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
    pub fn remove(&self, id: RegionId) -> Result<Device<R>, BusError<K>> {
        let mut state = lock(&self.0.state);
        let mut map = Map::clone(&state.map);
        let Entry { info, device } = map.remove(id)?;
        let (thread, place) = (thread_token(), address(&*device));
        let goes = |inside| inside == place || state.leaving.contains(&inside);
        let mut views = state.views.iter().map(|view| view.place());
        if views.any(|(inside, device)| inside == thread && goes(device)) {
            return Err(BusError::InsideDevice(info));
        }

        // From here on views need the lock to find a device, so they miss nothing.
        state.publish();
        fence(Ordering::SeqCst);
        if !self.0.barrier.is_none_or(|barrier| barrier()) {
            return Err(BusError::Barrier);
        }
        state.map = Arc::new(map);
        state.leaving.push(place);
        let views = state.views.clone();
        drop(state);
        for view in views {
            while matches!(view.place(), (1.., inside) if inside == place) {
                yield_now();
                std::thread::sleep(std::time::Duration::from_micros(20));
            }
        }
        let mut state = lock(&self.0.state);
        let place = state.leaving.iter().position(|other| *other == place);
        place.map(|place| state.leaving.swap_remove(place));
        Ok(device)
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
        let mut state = lock(&self.0.state);
        let mut map = Map::clone(&state.map);
        let mut entry = map.remove(id)?;
        entry.info.range = BusRange::new(base, entry.info.range.size())?;
        map.insert(entry)?;
        state.map = Arc::new(map);
        state.publish();
        Ok(())
    }

    /// The region that `addr` is in.
    pub fn find(&self, addr: K) -> Option<RegionInfo<K>> {
        let state = lock(&self.0.state);
        Some(state.map.find(addr, &mut 0)?.info.clone())
    }

    /// All regions in the order of their addresses, as they are now.
    pub fn regions(&self) -> Vec<RegionInfo<K>> {
        let map = &lock(&self.0.state).map.0;
        map.iter().map(|entry| entry.info.clone()).collect()
    }

    /// A way to access the devices that takes no locks: one for each vCPU.
    ///
    /// Making a view takes a lock and some KiB of memory, so that vCPUs do it once.
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
        let regions = self.regions();
        (regions.iter()).try_for_each(|region| writeln!(f, "{region}"))
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
        let mut builder = Bus::<u64>::builder();
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

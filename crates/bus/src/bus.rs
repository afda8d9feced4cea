// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The bus itself: what is on it, and how that changes.

use std::fmt;
use std::mem;
use std::sync::Arc;

use crate::map::Map;
use crate::nesting::{self, Call};
use crate::observer::Observer;
use crate::region::{RegionInfo, address_of};
use crate::sync::{AtomicU64, Barrier, Mutex, Ordering, Padded, back_off, lock, thread_token};
use crate::view::{BusView, Io, Lookup, Presence, report};
use crate::{Access, AccessError, Address, BusDeviceSync, BusError, BusRange, Region, RegionId};

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
pub struct Bus<K> {
    shared: Arc<Shared<K>>,
}

/// What a bus, its clones and its views have in common.
pub(crate) struct Shared<K> {
    /// Goes up whenever the map changes. The one thing that every access looks at, so it shares
    /// its cache line with nothing that is written more often.
    pub(crate) generation: Padded<AtomicU64>,
    pub(crate) barrier: Barrier,
    pub(crate) fill: u8,
    pub(crate) observer: Option<Observer<K>>,
    state: Mutex<State<K>>,
    /// For accesses without a view.
    spare: Mutex<Vec<Lookup<K>>>,
    /// What is called in the place of a device that panicked.
    pub(crate) failed: Arc<dyn BusDeviceSync>,
}

struct State<K> {
    map: Arc<Map<K>>,
    views: Vec<Arc<Presence>>,
    waits: Vec<Wait>,
}

/// A thread inside of `inside` that waits until nobody is inside of `device`.
struct Wait {
    /// Of the map without the device; tells waits apart.
    generation: u64,
    inside: Vec<usize>,
    device: usize,
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
pub struct BusBuilder<K> {
    fill: u8,
    observer: Option<Observer<K>>,
    barrier: Option<Barrier>,
}

impl<K: Address> BusBuilder<K> {
    /// What each byte of a read is when no device sets it. The default is `0xff`, as on a bus
    /// whose lines are pulled up.
    pub fn fill(mut self, fill: u8) -> Self {
        self.fill = fill;
        self
    }

    /// Calls `observer` after each access, on the thread that made it.
    ///
    /// The guest decides how often that is. Accesses to a bus with an observer take longer.
    pub fn observer(mut self, observer: impl Fn(&Access<'_, K>) + Send + Sync + 'static) -> Self {
        self.observer = Some(Observer(Box::new(observer)));
        self
    }

    /// Never uses `membarrier(2)`; each access executes a memory fence instead.
    ///
    /// For processes whose seccomp filter will forbid that system call. Where it is forbidden or
    /// missing when the bus is built, this is chosen without being asked for.
    pub fn fenced(mut self) -> Self {
        self.barrier = Some(Barrier::Fence);
        self
    }

    /// A bus without devices.
    #[must_use]
    pub fn build(self) -> Bus<K> {
        Bus {
            shared: Arc::new(Shared {
                generation: Padded(AtomicU64::new(0)),
                barrier: self.barrier.unwrap_or_else(Barrier::best),
                fill: self.fill,
                observer: self.observer,
                state: Mutex::new(State {
                    map: Arc::default(),
                    views: Vec::new(),
                    waits: Vec::new(),
                }),
                spare: Mutex::new(Vec::new()),
                failed: Arc::new(FailedDevice),
            }),
        }
    }
}

impl<K: Address> Bus<K> {
    /// A bus without devices, on which reads of nothing give all ones.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A bus with other properties than the usual ones.
    pub fn builder() -> BusBuilder<K> {
        BusBuilder {
            fill: 0xff,
            observer: None,
            barrier: None,
        }
    }

    /// Puts a device on the bus, at the `len` addresses from `base` on.
    ///
    /// An `Arc<Mutex<D>>` of any [`BusDevice`](crate::BusDevice) is such a device, and so is an
    /// `Arc<D>` of any [`BusDeviceSync`]. The same device may be inserted more than once.
    ///
    /// # Errors
    ///
    /// [`BusError::EmptyRange`], [`BusError::BeyondEnd`] or [`BusError::Overlap`].
    pub fn insert(
        &self,
        device: Arc<dyn BusDeviceSync>,
        base: K,
        len: u64,
    ) -> Result<RegionId, BusError<K>> {
        self.insert_region(device, Region::new(base, len))
    }

    /// Puts a device on the bus, under a name or access rules.
    ///
    /// # Errors
    ///
    /// As [`Self::insert`].
    pub fn insert_region(
        &self,
        device: Arc<dyn BusDeviceSync>,
        region: Region<K>,
    ) -> Result<RegionId, BusError<K>> {
        let entry = region.into_entry(device)?;
        let id = entry.meta.id;
        let mut state = lock(&self.shared.state);
        let place = state.map.place(&entry, None)?;
        Arc::make_mut(&mut state.map).insert(place, entry);
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
    pub fn remove(&self, id: RegionId) -> Result<Arc<dyn BusDeviceSync>, BusError<K>> {
        let shared = &*self.shared;
        let mut state = lock(&shared.state);
        let index = state.map.position(id)?;
        let entry = state.map.get(index).ok_or(BusError::NoSuchRegion { id })?;
        let entry = Arc::clone(entry);

        let device = address_of(&*entry.meta.device);
        let inside = state.inside(thread_token());
        if nesting::holds(device) || state.never_left(device, &inside) {
            return Err(BusError::InsideDevice {
                range: entry.range,
                name: entry.meta.name.clone(),
            });
        }

        let mut map = Map::clone(&state.map);
        map.remove(index);
        let before = mem::replace(&mut state.map, Arc::new(map));
        let generation = shared.publish();
        if !shared.barrier.heavy() {
            // No view could fetch the new map while the lock was held: nobody has seen it.
            state.map = before;
            shared.publish();
            return Err(BusError::Barrier);
        }

        let views = state.views.clone();
        state.waits.push(Wait {
            generation,
            inside,
            device,
        });
        drop(state);
        for view in &views {
            let mut round = 0;
            while view.may_be_inside(device, generation) {
                back_off(&mut round);
            }
        }
        let mut state = lock(&shared.state);
        state.waits.retain(|wait| wait.generation != generation);
        drop(state);
        shared.refresh_spare();
        Ok(Arc::clone(&entry.meta.device))
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
        let index = state.map.position(id)?;
        let entry = state.map.get(index).ok_or(BusError::NoSuchRegion { id })?;
        let range = BusRange::new(base, entry.range.size())?;
        let moved = entry.with(range, &entry.device);
        let place = state.map.place(&moved, Some(id))?;

        let map = Arc::make_mut(&mut state.map);
        map.remove(index);
        map.insert(place - usize::from(index < place), moved);
        self.shared.publish();
        Ok(())
    }

    /// The region that `addr` is in.
    #[must_use]
    pub fn find(&self, addr: K) -> Option<RegionInfo<K>> {
        let map = self.shared.map();
        let index = map.find(addr.into())?;
        map.get(index).map(|entry| entry.info())
    }

    /// All regions in the order of their addresses, as they are now.
    #[must_use]
    pub fn regions(&self) -> Vec<RegionInfo<K>> {
        let map = self.shared.map();
        map.entries().iter().map(|entry| entry.info()).collect()
    }

    /// A way to access the devices that takes no locks: one for each vCPU.
    #[must_use]
    pub fn view(&self) -> BusView<K> {
        BusView::new(Arc::clone(&self.shared))
    }

    /// Reads from the device at `addr`, like [`BusView::read`] but slower.
    ///
    /// # Errors
    ///
    /// As [`BusView::read`]. Accesses may be nested in one another 16 deep; the next one gets
    /// [`AccessError::Reentrant`].
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

impl<K: Address> Shared<K> {
    /// The current map.
    fn map(&self) -> Arc<Map<K>> {
        Arc::clone(&lock(&self.state).map)
    }

    /// The current map and its generation.
    pub(crate) fn current(&self) -> (Arc<Map<K>>, u64) {
        let state = lock(&self.state);
        // Only ever changed under the lock.
        let generation = self.generation.0.load(Ordering::Relaxed);
        (Arc::clone(&state.map), generation)
    }

    /// Tells every view that there is a new map. The caller holds the lock.
    fn publish(&self) -> u64 {
        self.generation.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The same for a new view, with the place where it says what it does.
    pub(crate) fn register(&self) -> (Arc<Map<K>>, u64, Arc<Presence>) {
        let mut state = lock(&self.state);
        let generation = self.generation.0.load(Ordering::Relaxed);
        let presence = Arc::new(Presence::new(generation));
        state.views.push(Arc::clone(&presence));
        (Arc::clone(&state.map), generation, presence)
    }

    pub(crate) fn unregister(&self, view: &Arc<Presence>) {
        let mut state = lock(&self.state);
        state.views.retain(|other| !Arc::ptr_eq(other, view));
    }

    /// An access without a view: with one that was used in this way before, or a new one.
    fn access(&self, addr: K, mut io: Io<'_>) -> Result<(), AccessError> {
        let _call = match Call::new() {
            Ok(call) => call,
            Err(error) => {
                io.fill(self.fill);
                let map = self.map();
                let entry = map.find(addr.into()).and_then(|index| map.get(index));
                report(self, entry, addr, &io, Err(error));
                return Err(error);
            }
        };
        let spare = lock(&self.spare).pop();
        let mut lookup = spare.unwrap_or_else(|| Lookup::new(self));
        let outcome = lookup.access(self, addr, io);
        lock(&self.spare).push(lookup);
        outcome
    }

    /// Lets go of old maps. They may hold the last reference to a device, which may call the bus
    /// when it is dropped: no lock is held then.
    fn refresh_spare(&self) {
        let mut spare = mem::take(&mut *lock(&self.spare));
        for lookup in &mut spare {
            lookup.refresh(self);
        }
        lock(&self.spare).append(&mut spare);
    }

    /// Never calls a device again, because it has panicked.
    pub(crate) fn give_up(&self, device: usize) {
        let mut state = lock(&self.state);
        Arc::make_mut(&mut state.map).replace(device, &self.failed);
        self.publish();
    }
}

impl<K> State<K> {
    /// The devices that a thread is inside of.
    fn inside(&self, thread: usize) -> Vec<usize> {
        let views = self.views.iter();
        views.filter_map(|view| view.device_of(thread)).collect()
    }

    /// Whether threads stay in `device` until the caller, who is in `inside`, has returned.
    fn never_left(&self, device: usize, inside: &[usize]) -> bool {
        // This ends, because no wait is ever added that would close a circle.
        inside.contains(&device)
            || self
                .waits
                .iter()
                .any(|wait| wait.inside.contains(&device) && self.never_left(wait.device, inside))
    }
}

/// Stands in for a device that panicked.
struct FailedDevice;

impl BusDeviceSync for FailedDevice {
    fn read(&self, _offset: u64, _data: &mut [u8]) -> Result<(), AccessError> {
        Err(AccessError::Panicked)
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), AccessError> {
        Err(AccessError::Panicked)
    }
}

impl<K> Clone for Bus<K> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<K: Address> Default for Bus<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Address> fmt::Debug for Bus<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.regions()).finish()
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

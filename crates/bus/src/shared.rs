// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a bus, its handles and its views have in common.

use std::mem;
use std::sync::Arc;

use crate::io::{Io, Outcome};
use crate::map::Map;
use crate::nesting::Listed;
use crate::presence::Presence;
use crate::region::Entry;
use crate::sync::{AtomicU64, Barrier, Mutex, MutexGuard, Ordering, Padded, lock};
use crate::view::Lookup;
use crate::{Access, AccessError, Address, BusDeviceSync};

pub(crate) type Observer<K> = dyn Fn(&Access<'_, K>) + Send + Sync;

pub(crate) struct Shared<K> {
    /// Goes up whenever the map changes. The one thing that every access looks at, so it shares
    /// its cache line with nothing that is written more often.
    pub(crate) generation: Padded<AtomicU64>,
    pub(crate) barrier: Barrier,
    /// What a read gives without a device, for each byte of the widest one.
    pub(crate) fill: [u8; 8],
    pub(crate) observer: Option<Box<Observer<K>>>,
    /// What is called in the place of a device that panicked.
    pub(crate) failed: Arc<dyn BusDeviceSync>,
    state: Mutex<State<K>>,
    /// For accesses without a view.
    spare: Mutex<Vec<Lookup<K>>>,
}

/// No device is called or dropped while this is locked.
pub(crate) struct State<K> {
    pub(crate) map: Arc<Map<K>>,
    pub(crate) views: Vec<Arc<Presence>>,
    pub(crate) waits: Vec<Wait>,
}

/// A thread inside of `inside` that waits until nobody is inside of `device`.
pub(crate) struct Wait {
    /// Of the map without the device; tells waits apart.
    pub(crate) generation: u64,
    pub(crate) inside: Vec<usize>,
    pub(crate) device: usize,
}

impl<K> State<K> {
    /// The devices that a thread is inside of.
    pub(crate) fn inside(&self, thread: usize) -> Vec<usize> {
        let views = self.views.iter();
        views.filter_map(|view| view.device_of(thread)).collect()
    }

    /// Whether threads stay in `device` until the caller, who is in `inside`, has returned.
    pub(crate) fn never_left(&self, device: usize, inside: &[usize]) -> bool {
        // This ends, because no wait is ever added that would close a circle.
        let mut waits = self.waits.iter();
        inside.contains(&device)
            || waits
                .any(|wait| wait.inside.contains(&device) && self.never_left(wait.device, inside))
    }
}

impl<K: Address> Shared<K> {
    pub(crate) fn new(barrier: Barrier, fill: u8, observer: Option<Box<Observer<K>>>) -> Self {
        Self {
            generation: Padded(AtomicU64::new(0)),
            barrier,
            fill: [fill; 8],
            observer,
            failed: Arc::new(Failed),
            state: Mutex::new(State {
                map: Arc::default(),
                views: Vec::new(),
                waits: Vec::new(),
            }),
            spare: Mutex::new(Vec::new()),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State<K>> {
        lock(&self.state)
    }

    /// Tells every view that there is a new map. The caller holds the lock.
    pub(crate) fn publish(&self) -> u64 {
        self.generation.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The current map and its generation.
    pub(crate) fn current(&self) -> (Arc<Map<K>>, u64) {
        let state = self.state();
        // Only ever changed under the lock.
        let generation = self.generation.0.load(Ordering::Relaxed);
        (Arc::clone(&state.map), generation)
    }

    /// The same for a new view, with the place where the view says what it does.
    pub(crate) fn register(&self) -> (Arc<Map<K>>, u64, Arc<Presence>) {
        let mut state = self.state();
        let generation = self.generation.0.load(Ordering::Relaxed);
        let presence = Arc::new(Presence::new(generation));
        state.views.push(Arc::clone(&presence));
        (Arc::clone(&state.map), generation, presence)
    }

    pub(crate) fn unregister(&self, view: &Arc<Presence>) {
        let mut state = self.state();
        state.views.retain(|other| !Arc::ptr_eq(other, view));
    }

    /// An access without a view: with one that was used in this way before, or a new one.
    pub(crate) fn access(&self, addr: K, mut io: Io<'_>) -> Outcome {
        let _listed = match Listed::access() {
            Ok(listed) => listed,
            Err(error) => {
                io.prepare(self.fill);
                let (map, _) = self.current();
                let entry = map.find(addr).and_then(|index| map.get(index));
                self.report(entry, addr, &io, Err(error));
                return Err(error);
            }
        };
        /// Goes back where it came from, also when an observer panics.
        struct Spare<'a, K>(&'a Mutex<Vec<Lookup<K>>>, Option<Lookup<K>>);
        impl<K> Drop for Spare<'_, K> {
            fn drop(&mut self) {
                lock(self.0).extend(self.1.take());
            }
        }
        let mut spare = Spare(&self.spare, lock(&self.spare).pop());
        spare
            .1
            .get_or_insert_with(|| Lookup::new(self))
            .access(self, addr, io)
    }

    /// Lets go of old maps, which may hold the last reference to a device.
    pub(crate) fn refresh_spare(&self) {
        let mut spare = mem::take(&mut *lock(&self.spare));
        for lookup in &mut spare {
            lookup.refresh(self);
        }
        lock(&self.spare).append(&mut spare);
    }

    /// Counts and shows an access.
    #[inline]
    pub(crate) fn report(
        &self,
        entry: Option<&Arc<Entry<K>>>,
        addr: K,
        io: &Io<'_>,
        outcome: Outcome,
    ) {
        if let Some(entry) = entry.filter(|entry| !entry.is_plain) {
            entry.count(io.direction(), outcome);
        }
        if let Some(observer) = &self.observer {
            observer(&Access {
                addr,
                width: io.width(),
                direction: io.direction(),
                region: entry.map(|entry| &entry.info),
                outcome,
            });
        }
    }

    /// Makes the best of a device that returned an error, or panicked: then it is not called again.
    #[cold]
    pub(crate) fn after_failure(
        &self,
        device: usize,
        failed: Option<Outcome>,
        buffer: &mut [u8],
    ) -> Outcome {
        buffer.fill(self.fill[0]);
        failed.unwrap_or_else(|| {
            let mut state = self.state();
            Arc::make_mut(&mut state.map).replace(device, &self.failed);
            self.publish();
            Err(AccessError::Panicked)
        })
    }
}

/// Stands in for a device that panicked.
pub(crate) struct Failed;

impl BusDeviceSync for Failed {
    fn read(&self, _offset: u64, _data: &mut [u8]) -> Outcome {
        Err(AccessError::Panicked)
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Outcome {
        Err(AccessError::Panicked)
    }
}

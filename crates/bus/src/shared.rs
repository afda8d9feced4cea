// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a bus and its views have in common.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::device::Outcome;
use crate::region::Map;
use crate::sync::{AtomicBool, AtomicUsize, Mutex, Ordering, address, lock};
use crate::{Access, AccessError, Address};

pub(crate) type Observer<K> = dyn Fn(&Access<'_, K>) + Send + Sync;

pub(crate) struct Shared<K> {
    /// What a remover calls to make all views execute a barrier; `false` if that failed. Without
    /// it, views execute a fence for each access.
    pub(crate) barrier: Option<fn() -> bool>,
    /// What a read gives without a device: the same byte four times.
    pub(crate) fill: u32,
    pub(crate) observer: Option<Box<Observer<K>>>,
    pub(crate) state: Mutex<State<K>>,
}

/// No device is called or dropped while this is locked.
#[derive(Default)]
pub(crate) struct State<K> {
    pub(crate) map: Arc<Map<K>>,
    pub(crate) views: Vec<Arc<Presence>>,
    /// The devices that removers wait for, which they want everybody to leave.
    pub(crate) leaving: Vec<usize>,
}

/// What a view and those who change the bus tell each other, on cache lines of its own (two,
/// because they are fetched in pairs).
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Presence {
    /// The thread that is in the device or about to call it, or 0. The view writes this.
    pub(crate) thread: AtomicUsize,
    /// The address of the device, while there is a thread. The view writes this.
    pub(crate) device: AtomicUsize,
    /// Whether the bus has changed since the view has looked.
    pub(crate) is_stale: AtomicBool,
}

impl Presence {
    /// The thread, or 0, and the device.
    pub(crate) fn place(&self) -> (usize, usize) {
        // In this order: the device is at least as new as the thread, and a newer one is seen only
        // after the access is over.
        let thread = self.thread.load(Ordering::Acquire);
        (thread, self.device.load(Ordering::Acquire))
    }
}

impl<K> State<K> {
    /// Makes every view fetch the map before its next access. As it needs the lock for that, the
    /// map may be changed before or after.
    pub(crate) fn publish(&self) {
        for view in &self.views {
            view.is_stale.store(true, Ordering::Release);
        }
    }
}

impl<K: Address> Shared<K> {
    /// Whether views may take a short way that knows neither the observer nor the fence.
    pub(crate) fn is_plain(&self) -> bool {
        self.observer.is_none() && self.barrier.is_some()
    }

    /// Sees to it that a device that panicked is not called again.
    #[cold]
    pub(crate) fn give_up(&self, device: usize, payload: Box<dyn Any + Send>) -> Outcome {
        // What a handler panicked with could panic again when it is dropped.
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(payload)));
        std::mem::forget(dropped.err());

        let state = lock(&self.state);
        for region in &*state.map {
            if address(&*region.device) == device {
                region.meta.panicked.store(true, Ordering::Relaxed);
            }
        }
        state.publish();
        Err(AccessError::Panicked)
    }
}

impl<K: Address> fmt::Debug for Shared<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&*lock(&self.state).map).finish()
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a bus, its handles and its views have in common.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::compiler_fence;

use crate::access::{Io, Outcome};
use crate::device::Device;
use crate::map::Map;
use crate::nesting::{ACCESS, Listed};
use crate::sync::{AtomicU64, AtomicUsize, Mutex, Ordering, fence, lock, thread_token};
use crate::view::Lookup;
use crate::{Access, AccessError, Address};

pub(crate) type Observer<K> = dyn Fn(&Access<'_, K>) + Send + Sync;

pub(crate) struct Shared<K> {
    pub(crate) generation: Generation,
    /// Whether views execute a memory fence for each access; see [`Self::barrier_of_view`].
    pub(crate) fenced: bool,
    /// The remover's side of that; `false` if it failed.
    pub(crate) barrier_of_remover: fn() -> bool,
    /// What a read gives without a device, for each byte of the widest one.
    pub(crate) fill: [u8; 8],
    pub(crate) observer: Option<Box<Observer<K>>>,
    pub(crate) state: Mutex<State<K>>,
    /// For accesses without a view.
    pub(crate) spare: Mutex<Vec<Lookup<K>>>,
}

/// Goes up whenever something changes. The one thing that every access looks at, so it shares its
/// cache lines (two, because they are fetched in pairs) with nothing that is written more often.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Generation(pub(crate) AtomicU64);

/// No device is called or dropped while this is locked.
#[derive(Default)]
pub(crate) struct State<K> {
    pub(crate) map: Arc<Map<K>>,
    pub(crate) views: Vec<Arc<Presence>>,
    /// Threads, and the device that each waits for, which it wants everybody to leave.
    pub(crate) waits: Vec<(usize, usize)>,
}

/// Where a view is. Each view writes its own, on cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Presence {
    /// The thread that is in the device or about to call it, or 0.
    thread: AtomicUsize,
    /// The address of the device, while there is a thread.
    device: AtomicUsize,
}

impl Presence {
    /// Says which device is going to be entered. Not to be called inside of one.
    pub(crate) fn set_device(&self, device: &Device) {
        self.device.store(device.address(), Ordering::Release);
    }

    /// Says that this thread is going to call the device.
    #[inline(always)]
    pub(crate) fn enter(&self) {
        // Release: who sees this view in its next access has seen all of the one before.
        self.thread.store(thread_token(), Ordering::Release);
    }

    #[inline(always)]
    pub(crate) fn leave(&self) {
        self.thread.store(0, Ordering::Release);
    }

    /// Whether somebody may be inside of the device, for who has published a map without it and
    /// executed the other half of the barrier.
    pub(crate) fn is_inside(&self, device: usize) -> bool {
        // In this order: the device is at least as new as the thread, and a newer one is seen only
        // after the access is over.
        self.thread.load(Ordering::Acquire) != 0 && self.device.load(Ordering::Acquire) == device
    }

    /// Whether this thread, which is the calling one or waits, is inside of the device.
    fn holds(&self, thread: usize, device: usize) -> bool {
        self.thread.load(Ordering::Relaxed) == thread && self.is_inside(device)
    }
}

impl<K> State<K> {
    /// Whether a thread, inside of the device, waits for what `thread` is inside of.
    pub(crate) fn is_circle(&self, thread: usize, device: usize) -> bool {
        let is_inside = |thread| self.views.iter().any(|view| view.holds(thread, device));
        // This ends, because no wait is ever added that would close a circle.
        let mut waits = self.waits.iter();
        is_inside(thread)
            || waits.any(|(other, target)| is_inside(*other) && self.is_circle(thread, *target))
    }
}

impl<K: Address> Shared<K> {
    /// Tells every view that something has changed. The caller holds the lock.
    pub(crate) fn publish(&self) {
        self.generation.0.fetch_add(1, Ordering::SeqCst);
    }

    /// The current map and its generation.
    pub(crate) fn current(&self) -> (Arc<Map<K>>, u64) {
        let state = lock(&self.state);
        // Only ever changed under the lock.
        let generation = self.generation.0.load(Ordering::Relaxed);
        (Arc::clone(&state.map), generation)
    }

    /// A place for a new view to say what it does.
    pub(crate) fn register(&self) -> Arc<Presence> {
        let presence = Arc::new(Presence::default());
        let mut state = lock(&self.state);
        // Forgets the views that are gone.
        state.views.retain_mut(|view| Arc::get_mut(view).is_none());
        state.views.push(Arc::clone(&presence));
        presence
    }

    /// Orders "a view says where it goes, then looks at the generation" against "a remover changes
    /// the generation, then looks where views are": at least one of the two must see the other.
    ///
    /// The remover makes every thread execute a barrier, if it can; if not, both sides execute one.
    #[inline(always)]
    pub(crate) fn barrier_of_view(&self) {
        if self.fenced {
            fence_out_of_line();
        } else {
            compiler_fence(Ordering::SeqCst);
        }
    }

    /// An access without a view: with one that was used in this way before, or a new one.
    pub(crate) fn access(&self, addr: K, mut io: Io<'_>) -> Outcome {
        let Ok(_listed) = Listed::new(ACCESS) else {
            io.fill(self.fill);
            let refused = Err(AccessError::Reentrant);
            self.report(&io.seen(addr, self.current().0.find(addr, &mut 0), refused));
            return refused;
        };
        let spare = lock(&self.spare).pop();
        let mut lookup = spare.unwrap_or_else(|| Lookup::new(self));
        let outcome = lookup.access(self, addr, io);
        lock(&self.spare).push(lookup);
        outcome
    }

    /// Counts and shows an access.
    pub(crate) fn report(&self, access: &Access<'_, K>) {
        if let Some(region) = access.region {
            region.count(access.direction, access.outcome);
        }
        if let Some(observer) = &self.observer {
            observer(access);
        }
    }

    /// Sees to it that a device that panicked is not called again.
    #[cold]
    pub(crate) fn give_up(&self, device: usize, payload: Box<dyn Any + Send>) -> Outcome {
        // What a handler panicked with could panic again when it is dropped.
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(payload)));
        std::mem::forget(dropped.err());

        let state = lock(&self.state);
        for region in &state.map.regions {
            if region.meta.device.address() == device {
                region.meta.panicked.store(true, Ordering::Relaxed);
            }
        }
        self.publish();
        Err(AccessError::Panicked)
    }
}

/// Keeps the fence out of the way of accesses that do without.
#[cold]
fn fence_out_of_line() {
    fence(Ordering::SeqCst);
}

impl<K: Address> fmt::Debug for Shared<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&self.current().0.regions).finish()
    }
}

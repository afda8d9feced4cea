// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What all buses of a process share: which thread is inside of which device, which threads wait,
//! and which devices have panicked.
//!
//! This is locked when a bus changes, when a view is made or refreshed, and when the lock of a
//! device is contended. All other accesses do without.

use std::sync::Arc;
// Not loom's: nothing of the modelled protocol depends on these.
use std::sync::atomic::{AtomicBool as PlainBool, AtomicUsize as PlainUsize};

use crate::sync::{AtomicBool, AtomicUsize, Mutex, MutexGuard, Ordering, lock};
use crate::thread::{PLACES, held_locks, thread_token};

/// What a view and those who change a bus tell each other, on a cache line of its own. Lines are
/// fetched in pairs: its neighbours are the counts of the `Arc`, and padding. (Alignment to a pair
/// would do as well, but takes the fast path longer instructions.)
#[repr(C, align(64))]
pub(crate) struct Presence {
    /// The thread that is in the device or about to call it, or 0. The view writes this.
    pub(crate) thread: AtomicUsize,
    /// The region that the device is called for, while there is a thread. The view writes this.
    region: AtomicUsize,
    /// The address of the device, likewise; only of interest to the thread itself.
    device: PlainUsize,
    /// Whether the bus may have changed since the view has looked.
    pub(crate) is_stale: AtomicBool,
    _padding: [u64; 8],
}

/// Where a thread is, as its view announces it.
#[derive(Clone, Copy, Default, PartialEq)]
pub(crate) struct Place {
    pub(crate) region: usize,
    pub(crate) device: usize,
}

impl Presence {
    /// The presence of a new view, which has not looked at its bus yet.
    pub(crate) fn register() -> Arc<Self> {
        let presence = Arc::new(Self {
            thread: AtomicUsize::new(0),
            region: AtomicUsize::new(0),
            device: PlainUsize::new(0),
            is_stale: AtomicBool::new(true),
            _padding: [0; 8],
        });
        let views = &mut registry().views;
        // Forgets the views that are gone.
        views.retain_mut(|view| Arc::get_mut(view).is_none());
        views.push(Arc::clone(&presence));
        presence
    }

    /// Whether a thread is at a place for which `is_there` holds.
    fn thread_at(&self, is_there: impl FnOnce(Place) -> bool) -> Option<usize> {
        // The thread is loaded first, so the place is at least as recent. A more recent place means
        // that the access which is asked about is over.
        let thread = self.thread.load(Ordering::Acquire);
        let place = self.place();
        (thread != 0 && is_there(place)).then_some(thread)
    }

    pub(crate) fn place(&self) -> Place {
        Place {
            region: self.region.load(Ordering::Acquire),
            device: self.device.load(Ordering::Relaxed),
        }
    }

    /// Whether any thread accesses the region through this view.
    pub(crate) fn is_in(&self, region: usize) -> bool {
        self.thread_at(|place| place.region == region).is_some()
    }

    /// Says which device is going to be called. Not to be called inside of one.
    pub(crate) fn announce(&self, place: Place) {
        self.region.store(place.region, Ordering::Release);
        self.device.store(place.device, Ordering::Relaxed);
    }
}

/// Nothing that users of the crate wrote runs while this is locked.
#[derive(Default)]
pub(crate) struct Registry {
    pub(crate) views: Vec<Arc<Presence>>,
    waiters: Vec<Waiter>,
    panicked: Vec<Panicked>,
}

/// A thread that waits.
struct Waiter {
    thread: usize,
    /// The locks of devices that it holds meanwhile.
    holds: [usize; PLACES],
    awaits: Awaited,
}

/// What a thread waits for.
pub(crate) enum Awaited {
    /// The lock of a device, by its address.
    Lock(usize),
    /// Until no access is inside these regions.
    Empty(Vec<usize>),
}

/// A device that panicked. While this is listed, no other device can have its address.
struct Panicked {
    device: usize,
    is_dropped: Box<dyn Fn() -> bool + Send>,
}

#[cfg(not(loom))]
static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    views: Vec::new(),
    waiters: Vec::new(),
    panicked: Vec::new(),
});
#[cfg(loom)]
loom::lazy_static! {
    static ref REGISTRY: Mutex<Registry> = Mutex::new(Registry::default());
}

/// Whether a device has ever panicked. It is seen by who sees a view marked as stale for that.
static HAS_PANICKED: PlainBool = PlainBool::new(false);

/// The addresses of the devices that panicked, on whatever bus.
pub(crate) fn panicked() -> Vec<usize> {
    match HAS_PANICKED.load(Ordering::Relaxed) {
        true => (registry().panicked.iter())
            .map(|panicked| panicked.device)
            .collect(),
        false => Vec::new(),
    }
}

pub(crate) fn registry() -> MutexGuard<'static, Registry> {
    lock(&REGISTRY)
}

impl Registry {
    /// Makes every view look at its bus before its next access.
    pub(crate) fn publish(&self) {
        (self.views.iter()).for_each(|view| view.is_stale.store(true, Ordering::Release));
    }

    /// Whether this thread is inside of a device, by whatever bus.
    pub(crate) fn is_inside(&self, device: usize) -> bool {
        let this = Some(thread_token());
        let mut views = self.views.iter();
        views.any(|view| view.thread_at(|place| place.device == device) == this)
    }

    /// Sees to it that no bus calls the device again: for as long as it exists.
    pub(crate) fn give_up(
        &mut self,
        device: usize,
        is_dropped: impl Fn() -> bool + Send + 'static,
    ) {
        self.panicked.retain(|panicked| !(panicked.is_dropped)());
        let is_dropped = Box::new(is_dropped);
        self.panicked.push(Panicked { device, is_dropped });
        HAS_PANICKED.store(true, Ordering::Relaxed);
        self.publish();
    }

    /// Whether `waiter` has what `awaited` stands for.
    fn keeps(&self, waiter: &Waiter, awaited: &Awaited) -> bool {
        match awaited {
            Awaited::Lock(lock) => waiter.holds.contains(lock),
            Awaited::Empty(regions) => self.views.iter().any(|view| {
                view.thread_at(|place| regions.contains(&place.region)) == Some(waiter.thread)
            }),
        }
    }

    /// Whether who waits for `awaited` waits for `waiter`: directly, or through other waiters.
    ///
    /// This ends, because no waiter is listed that would wait for itself.
    fn leads_to(&self, awaited: &Awaited, waiter: &Waiter) -> bool {
        self.keeps(waiter, awaited)
            || (self.waiters.iter())
                .any(|other| self.keeps(other, awaited) && self.leads_to(&other.awaits, waiter))
    }
}

/// Keeps this thread on the list of those that wait.
pub(crate) struct Waiting(usize);

impl Waiting {
    /// `None` if the thread would wait for itself, and so for ever.
    pub(crate) fn new(registry: &mut Registry, awaits: Awaited) -> Option<Self> {
        let mut holds = held_locks();
        if let Awaited::Lock(lock) = awaits {
            // The lock that is waited for is on the list already, and not held yet.
            (holds.iter_mut().filter(|held| **held == lock)).for_each(|held| *held = 0);
        }
        let thread = thread_token();
        let waiter = Waiter {
            thread,
            holds,
            awaits,
        };
        if registry.leads_to(&waiter.awaits, &waiter) {
            return None;
        }
        registry.waiters.push(waiter);
        Some(Self(thread))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        registry().waiters.retain(|waiter| waiter.thread != self.0);
    }
}

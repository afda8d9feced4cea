// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a remover finds out that nobody is inside of a device.

use crate::shared::Shared;
use crate::sync::{AtomicU64, AtomicUsize, Ordering, Padded, thread_token};

/// Where a view is. Each view writes its own, on cache lines of its own.
pub(crate) type Presence = Padded<Place>;

pub(crate) struct Place {
    /// The thread that is in the device or about to call it, or 0.
    thread: AtomicUsize,
    /// The address of the device, while there is a thread.
    device: AtomicUsize,
    /// Of the map in which the device was found.
    generation: AtomicU64,
}

impl Presence {
    pub(crate) fn new(generation: u64) -> Self {
        Padded(Place {
            thread: AtomicUsize::new(0),
            device: AtomicUsize::new(0),
            generation: AtomicU64::new(generation),
        })
    }

    /// Says in which map devices are found from now on. Not to be called inside of one.
    pub(crate) fn set_generation(&self, generation: u64) {
        self.0.generation.store(generation, Ordering::Release);
    }

    /// Says which device is going to be entered. Not to be called inside of one.
    #[inline]
    pub(crate) fn set_device(&self, device: usize) {
        self.0.device.store(device, Ordering::Release);
    }

    /// Says that this thread is going to call the device, and returns whether it may: whether
    /// nothing has changed since the device was found.
    #[inline(always)]
    pub(crate) fn enter<K>(&self, shared: &Shared<K>, generation: u64) -> bool {
        // Release: who sees this view in its next access has seen all of the one before.
        self.0.thread.store(thread_token(), Ordering::Release);
        shared.barrier.light();
        shared.generation.0.load(Ordering::Acquire) == generation
    }

    #[inline(always)]
    pub(crate) fn leave(&self) {
        self.0.thread.store(0, Ordering::Release);
    }

    /// Whether an access that found `device` before `generation` may be inside of it, for who has
    /// published that generation and executed the other half of the barrier.
    pub(crate) fn may_be_inside(&self, device: usize, generation: u64) -> bool {
        // In this order: the device and the map are at least as new as the thread, and newer ones
        // are seen only after the access is over.
        self.0.thread.load(Ordering::Acquire) != 0
            && self.0.device.load(Ordering::Acquire) == device
            && self.0.generation.load(Ordering::Acquire) < generation
    }

    /// The device that the calling thread, whose token this is, is inside of.
    pub(crate) fn device_of(&self, thread: usize) -> Option<usize> {
        let inside = self.0.thread.load(Ordering::Relaxed) == thread;
        inside.then(|| self.0.device.load(Ordering::Relaxed))
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a thread is in the middle of.
//!
//! A device's handler may call a bus. If that leads back to the device, taking its lock again would
//! never end, so each thread keeps a short list of the device locks that it holds. Accesses on the
//! slow path are on it too, and calls of observers, so that they do not nest until the stack overflows.

use std::cell::Cell;

use crate::AccessError;
use crate::sync::address;

/// Stands for an access, which no lock has the address of.
pub(crate) const ACCESS: usize = 0;

/// How deep accesses may nest; each takes a place, and another for the lock of its device.
pub(crate) const DEPTH: usize = 32;

/// Nesting depth, and the stack of accesses and held device locks.
type Thread = (Cell<usize>, [Cell<usize>; DEPTH]);

#[cfg(not(loom))]
std::thread_local! {
    static THREAD: Thread = const { (Cell::new(0), [const { Cell::new(0) }; DEPTH]) };
}
#[cfg(loom)]
loom::thread_local! {
    // Leaked, because loom does not know that memory which was freed may be handed out again.
    static THREAD: &'static Thread = Box::leak(Box::default());
}

/// A number that no other thread has as long as this one lives.
#[inline]
pub(crate) fn thread_token() -> usize {
    THREAD.with(|(depth, _)| address(depth))
}

/// The device locks that this thread holds or is about to take; [`ACCESS`] in all other places.
pub(crate) fn held_locks() -> [usize; DEPTH] {
    THREAD.with(|(depth, list)| {
        let mut held = [ACCESS; DEPTH];
        let listed = list.iter().take(depth.get());
        (held.iter_mut().zip(listed)).for_each(|(held, listed)| *held = listed.get());
        held
    })
}

/// Keeps something on the list of this thread, also when a handler panics.
pub(crate) struct Listed {
    place: usize,
}

impl Listed {
    /// Lists an access or, before it is taken, the lock at an address.
    #[inline]
    pub(crate) fn new(item: usize) -> Result<Self, AccessError> {
        THREAD.with(|(depth, list)| {
            let (place, mut held) = (depth.get(), list.iter().take(depth.get()));
            let is_held = item != ACCESS && held.any(|held| held.get() == item);
            let free = list.get(place).filter(|_| !is_held);
            free.ok_or(AccessError::Reentrant)?.set(item);
            depth.set(place + 1);
            Ok(Self { place })
        })
    }
}

impl Drop for Listed {
    #[inline]
    fn drop(&mut self) {
        THREAD.with(|(depth, _)| depth.set(self.place));
    }
}

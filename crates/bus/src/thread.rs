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
const DEPTH: usize = 32;

/// Places of a thread's list: these, and the last observer's.
pub(crate) const PLACES: usize = DEPTH + 1;

/// Nesting depth, and the stack of accesses and held device locks.
type Thread = (Cell<usize>, [Cell<usize>; PLACES]);

const fn empty() -> Thread {
    (Cell::new(0), [const { Cell::new(0) }; PLACES])
}

#[cfg(not(loom))]
std::thread_local! {
    static THREAD: Thread = const { empty() };
}
#[cfg(loom)]
loom::thread_local! {
    // Leaked, because loom does not know that memory which was freed may be handed out again.
    static THREAD: &'static Thread = Box::leak(Box::new(empty()));
}

/// A number that no other thread has as long as this one lives.
#[inline]
pub(crate) fn thread_token() -> usize {
    THREAD.with(|(depth, _)| address(depth))
}

/// The device locks that this thread holds or is about to take; [`ACCESS`] in all other places.
pub(crate) fn held_locks() -> [usize; PLACES] {
    THREAD.with(|(depth, list)| {
        let mut held = [ACCESS; PLACES];
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
        Self::within(DEPTH, item)
    }

    /// Lists a call of an observer. It has one more place, so that an access which finds none is told of.
    #[inline]
    pub(crate) fn observer() -> Result<Self, AccessError> {
        Self::within(PLACES, ACCESS)
    }

    /// Lists an item in one of the first `places`.
    #[inline]
    fn within(places: usize, item: usize) -> Result<Self, AccessError> {
        THREAD.with(|(depth, list)| {
            let (place, mut held) = (depth.get(), list.iter().take(depth.get()));
            let is_held = item != ACCESS && held.any(|held| held.get() == item);
            let free = list.get(place).filter(|_| place < places && !is_held);
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

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What this thread is in the middle of.
//!
//! A device's handler may call a bus. If that leads back to the device, taking its lock again would
//! never end, so each thread keeps a short list of the device locks that it holds. Accesses without
//! a view are on it too, because nothing else keeps them from nesting until the stack overflows.

use std::cell::Cell;

use crate::AccessError;

/// Stands for an access without a view, which no lock has the address of.
pub(crate) const ACCESS: usize = 0;

/// How long the list can get. An access without a view to a locked device takes two places.
const LIMIT: usize = 32;

std::thread_local! {
    static LIST: [Cell<usize>; LIMIT] = const { [const { Cell::new(0) }; LIMIT] };
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Keeps something on the list of this thread, also when a handler panics.
pub(crate) struct Listed {
    depth: usize,
}

impl Listed {
    /// Lists an access or, before it is taken, the lock at an address.
    #[inline]
    pub(crate) fn new(item: usize) -> Result<Self, AccessError> {
        let depth = DEPTH.get();
        if depth > 0 && item != ACCESS && holds(item) {
            return Err(AccessError::Reentrant);
        }
        LIST.with(|list| list.get(depth).map(|place| place.set(item)))
            .ok_or(AccessError::Reentrant)?;
        DEPTH.set(depth + 1);
        Ok(Self { depth })
    }
}

impl Drop for Listed {
    #[inline]
    fn drop(&mut self) {
        DEPTH.set(self.depth);
    }
}

/// Whether this thread holds the lock at this address.
#[cold]
fn holds(lock: usize) -> bool {
    LIST.with(|list| list.iter().take(DEPTH.get()).any(|item| item.get() == lock))
}

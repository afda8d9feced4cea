// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What this thread is in the middle of.
//!
//! A device's handler may call a bus. If that leads back to the device, taking its lock again would
//! never end, so each thread keeps a short list of the device locks that it holds. Accesses without
//! a view are on it too, because nothing else keeps them from nesting until the stack overflows.

use std::cell::Cell;
use std::sync::Mutex;

use crate::AccessError;
use crate::io::Outcome;

/// How many places the list has besides the first. An access without a view to a locked device
/// takes two.
const OTHERS: usize = 31;

struct Nesting {
    /// The lock that was taken first, or 0. Nearly always the only one, so it is quick to note.
    first: Cell<usize>,
    /// What has come on top since: as many as `depth`, 0 for an access without a view.
    others: [Cell<usize>; OTHERS],
    depth: Cell<usize>,
}

std::thread_local! {
    static NESTING: Nesting = const {
        Nesting {
            first: Cell::new(0),
            others: [const { Cell::new(0) }; OTHERS],
            depth: Cell::new(0),
        }
    };
}

impl Nesting {
    fn holds(&self, lock: usize) -> bool {
        let mut others = self.others.iter().take(self.depth.get());
        self.first.get() == lock || others.any(|other| other.get() == lock)
    }

    #[cold]
    fn push(&self, lock: usize) -> Result<Listed, AccessError> {
        let depth = self.depth.get();
        let place = self.others.get(depth).ok_or(AccessError::Reentrant)?;
        place.set(lock);
        self.depth.set(depth + 1);
        Ok(Listed::Other)
    }
}

/// Keeps something on the list of this thread, also when a handler panics.
pub(crate) enum Listed {
    First,
    Other,
}

impl Listed {
    /// For an access without a view.
    pub(crate) fn access() -> Result<Self, AccessError> {
        NESTING.with(|nesting| nesting.push(0))
    }

    /// For a lock, before it is taken.
    #[inline]
    fn lock(address: usize) -> Result<Self, AccessError> {
        NESTING.with(|nesting| {
            if nesting.first.get() == 0 {
                nesting.first.set(address);
                Ok(Self::First)
            } else if nesting.holds(address) {
                Err(AccessError::Reentrant)
            } else {
                nesting.push(address)
            }
        })
    }
}

impl Drop for Listed {
    #[inline]
    fn drop(&mut self) {
        NESTING.with(|nesting| match self {
            Self::First => nesting.first.set(0),
            Self::Other => nesting.depth.set(nesting.depth.get() - 1),
        });
    }
}

/// Whether this thread holds the lock at this address.
pub(crate) fn holds(address: usize) -> bool {
    NESTING.with(|nesting| nesting.holds(address))
}

/// Calls a device under its lock, unless this thread holds that already.
#[inline(always)]
pub(crate) fn locked<T: ?Sized>(mutex: &Mutex<T>, call: impl FnOnce(&mut T) -> Outcome) -> Outcome {
    let _listed = Listed::lock(std::ptr::from_ref(mutex).cast::<()>().addr())?;
    let mut device = mutex.lock().map_err(|_| AccessError::Panicked)?;
    call(&mut device)
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What this thread is in the middle of: which locked devices, how many calls deep.
//!
//! A device's handler may call a bus. When that leads back to the device, taking its lock again
//! would never end, so each thread keeps a short list of the locks that it holds.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard};

use crate::AccessError;

/// How many accesses may be nested in one another.
pub(crate) const MAX_DEPTH: usize = 16;

struct Nesting {
    /// The lock that was taken first, or 0. Nearly always the only one, so it is quick to note.
    first: Cell<usize>,
    /// The locks that were taken since, as many as `depth`.
    others: [Cell<usize>; MAX_DEPTH - 1],
    depth: Cell<usize>,
    /// Accesses without a view.
    calls: Cell<usize>,
}

std::thread_local! {
    static NESTING: Nesting = const {
        Nesting {
            first: Cell::new(0),
            others: [const { Cell::new(0) }; MAX_DEPTH - 1],
            depth: Cell::new(0),
            calls: Cell::new(0),
        }
    };
}

/// A locked device; this thread knows that it holds the lock.
pub(crate) struct Locked<'a, T: ?Sized> {
    device: MutexGuard<'a, T>,
    _listed: Listed,
}

impl<T: ?Sized> Deref for Locked<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.device
    }
}

impl<T: ?Sized> DerefMut for Locked<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.device
    }
}

/// Locks a device, unless this thread holds it already.
#[inline(always)]
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> Result<Locked<'_, T>, AccessError> {
    let address = std::ptr::from_ref(mutex).cast::<()>().addr();
    let _listed = Listed::new(address)?;
    let device = mutex.lock().map_err(|_| AccessError::Panicked)?;
    Ok(Locked { device, _listed })
}

/// Whether this thread holds or waits for the lock at this address.
pub(crate) fn holds(address: usize) -> bool {
    NESTING.with(|nesting| nesting.holds(address))
}

/// Keeps a lock on the list of this thread, from before it is taken until it is free again.
enum Listed {
    First,
    Other,
}

impl Listed {
    #[inline]
    fn new(address: usize) -> Result<Self, AccessError> {
        NESTING.with(|nesting| {
            if nesting.first.get() == 0 {
                nesting.first.set(address);
                Ok(Self::First)
            } else {
                nesting.add(address)
            }
        })
    }
}

impl Nesting {
    fn holds(&self, address: usize) -> bool {
        let mut others = self.others.iter().take(self.depth.get());
        self.first.get() == address || others.any(|lock| lock.get() == address)
    }

    #[cold]
    fn add(&self, address: usize) -> Result<Listed, AccessError> {
        if self.holds(address) {
            return Err(AccessError::Reentrant);
        }
        let depth = self.depth.get();
        let place = self.others.get(depth).ok_or(AccessError::Reentrant)?;
        place.set(address);
        self.depth.set(depth + 1);
        Ok(Listed::Other)
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

/// Counts an access that was made without a view; they can nest without end otherwise.
pub(crate) struct Call;

impl Call {
    pub(crate) fn new() -> Result<Self, AccessError> {
        NESTING.with(|nesting| match nesting.calls.get() {
            MAX_DEPTH.. => Err(AccessError::Reentrant),
            calls => {
                nesting.calls.set(calls + 1);
                Ok(Self)
            }
        })
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        NESTING.with(|nesting| nesting.calls.set(nesting.calls.get() - 1));
    }
}

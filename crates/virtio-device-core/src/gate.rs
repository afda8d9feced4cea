// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A gate that any number of threads may enter at once, until it is closed: the closing thread can wait for
//! those that are inside. No lock is held by them, so they may go through again.

use std::sync::PoisonError;
use std::time::Instant;

use crate::sync::{AtomicUsize, Condvar, Mutex, MutexGuard, Ordering};

#[derive(Debug)]
pub(crate) struct Gate {
    /// [`PAUSED`], [`REVOKED`], and the number of those inside in units of [`ONE`]: in one word, so
    /// that nobody goes in after either flag was seen to be set.
    state: AtomicUsize,
    /// Guards the condition variable alone.
    idle: Mutex<()>,
    drained: Condvar,
}

pub(crate) const PAUSED: usize = 1;
pub(crate) const REVOKED: usize = 2;
const FLAGS: usize = PAUSED | REVOKED;
const ONE: usize = 4;

impl Gate {
    pub(crate) fn new(flags: usize) -> Self {
        Self {
            state: AtomicUsize::new(flags),
            idle: Mutex::new(()),
            drained: Condvar::new(),
        }
    }

    /// The flags that are set.
    #[inline]
    pub(crate) fn flags(&self) -> usize {
        self.state.load(Ordering::Acquire) & FLAGS
    }

    /// Goes in; an error is the flags that are set, and nobody has gone in then. Everyone who went in
    /// [leaves](Self::leave).
    #[inline]
    pub(crate) fn enter(&self) -> Result<(), usize> {
        let mut seen = self.state.load(Ordering::Acquire);
        loop {
            if seen & FLAGS != 0 {
                return Err(seen & FLAGS);
            }
            let more = seen + ONE;
            match (self.state).compare_exchange_weak(
                seen,
                more,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return Ok(()),
                Err(now) => seen = now,
            }
        }
    }

    #[inline]
    pub(crate) fn leave(&self) {
        let before = self.state.fetch_sub(ONE, Ordering::AcqRel);
        let last = before & !FLAGS == ONE;
        if last && before & FLAGS != 0 {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        // Under the lock: a waiter that has found the gate busy is in `wait` before this notifies.
        let _idle = self.lock();
        self.drained.notify_all();
    }

    /// Sets a flag: no thread enters any more.
    pub(crate) fn set(&self, flag: usize) {
        self.state.fetch_or(flag, Ordering::AcqRel);
    }

    pub(crate) fn clear(&self, flag: usize) {
        self.state.fetch_and(!flag, Ordering::AcqRel);
    }

    /// Whether no thread is inside.
    pub(crate) fn is_idle(&self) -> bool {
        self.state.load(Ordering::Acquire) < ONE
    }

    /// Waits until no thread is inside, but not beyond `deadline`, if there is one; to be called after
    /// [`set`](Self::set). Returns whether that is so.
    pub(crate) fn wait_idle(&self, deadline: Option<Instant>) -> bool {
        let mut idle = self.lock();
        while !self.is_idle() {
            let Some(deadline) = deadline else {
                let waited = self.drained.wait(idle);
                idle = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.drained.wait_timeout(idle, left);
            (idle, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

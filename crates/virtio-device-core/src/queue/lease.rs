// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The lease by which a device holds a queue.

use std::sync::{Arc, PoisonError};

use super::virtqueue::Virtqueue;
use crate::sync::{AtomicU8, Condvar, Mutex, MutexGuard, Ordering};

/// A queue on loan to a device, until the transport wants it back.
///
/// A device touches guest memory only while it holds the lock of the queue that told it to, and
/// never waits for anything while it does. That makes taking a queue back quick and final, at
/// reset for one: once [`QueueLease::revoke`] has returned, no device that keeps this rule can
/// reach the driver's memory any more, whatever its worker is stuck in. [`QueueLease::pause`] is
/// as quick, and [`QueueLease::resume`] takes it back.
#[derive(Clone, Debug)]
pub struct QueueLease {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Changed by the transport alone, and asked before the lock is taken.
    gate: AtomicU8,
    /// Signalled when the gate is not paused any more.
    changed: Condvar,
    queue: Mutex<Option<Virtqueue>>,
}

const OPEN: u8 = 0;
const PAUSED: u8 = 1;
const REVOKED: u8 = 2;

impl QueueLease {
    /// Lends `queue`; for transports.
    #[must_use]
    pub fn new(queue: Virtqueue) -> Self {
        Self {
            shared: Arc::new(Shared {
                gate: AtomicU8::new(OPEN),
                changed: Condvar::new(),
                queue: Mutex::new(Some(queue)),
            }),
        }
    }

    /// Runs `look` on the queue under its lock; `None` once the queue has been taken back.
    ///
    /// `look` must not wait for anything but guest memory. The call itself waits while the queue is
    /// paused: a request that is half done then goes on where it was.
    pub fn with<T>(&self, look: impl FnOnce(&mut Virtqueue) -> T) -> Option<T> {
        // Asked before the lock, so that a busy worker does not keep the transport waiting.
        if self.is_revoked() {
            return None;
        }
        let mut queue = self.lock();
        loop {
            match self.shared.gate.load(Ordering::Acquire) {
                OPEN => return queue.as_mut().map(look),
                PAUSED => {
                    let waited = self.shared.changed.wait(queue);
                    queue = waited.unwrap_or_else(PoisonError::into_inner);
                }
                // A queue that is taken back during a pause is not looked at once more.
                _ => return None,
            }
        }
    }

    /// Whether the queue has been taken back, or is about to be.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.shared.gate.load(Ordering::Acquire) == REVOKED
    }

    /// Whether the queue is paused, or about to be.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.shared.gate.load(Ordering::Acquire) == PAUSED
    }

    /// Takes the queue back, with its final state; `None` if that was done before.
    ///
    /// Waits for at most one critical section of the device.
    #[must_use = "the state of the queue is lost otherwise; drop it explicitly"]
    pub fn revoke(&self) -> Option<Virtqueue> {
        // A swap, which no concurrent change of the gate can come to stand behind.
        self.shared.gate.swap(REVOKED, Ordering::AcqRel);
        let queue = self.lock().take();
        self.shared.changed.notify_all();
        queue
    }

    /// Keeps the device from the queue until [`QueueLease::resume`]; nothing to do if the queue has
    /// been taken back.
    ///
    /// Waits for at most one critical section of the device. When this returns the queue and the
    /// memory that it leads to are at rest.
    pub fn pause(&self) {
        self.change_gate(OPEN, PAUSED);
        drop(self.lock());
    }

    /// Lets the device look at the queue again. It has missed no notification if the queue's event
    /// fd is written afterwards.
    pub fn resume(&self) {
        // Under the lock, so that a device that has just asked does not start to wait.
        let _queue = self.lock();
        self.change_gate(PAUSED, OPEN);
        self.shared.changed.notify_all();
    }

    /// Looks at a queue that is paused, or that nobody works on; `None` if it has been taken back.
    pub fn inspect<T>(&self, look: impl FnOnce(&Virtqueue) -> T) -> Option<T> {
        self.lock().as_ref().map(look)
    }

    fn change_gate(&self, from: u8, to: u8) {
        let gate = &self.shared.gate;
        // A queue that was taken back stays so.
        let _ = gate.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
    }

    /// A device that panicked during a look leaves no more than a half-served request.
    fn lock(&self) -> MutexGuard<'_, Option<Virtqueue>> {
        let queue = self.shared.queue.lock();
        queue.unwrap_or_else(PoisonError::into_inner)
    }
}

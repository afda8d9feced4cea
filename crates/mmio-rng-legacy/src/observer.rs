// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the device tells about its accesses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Hears of each access, on the thread of the vCPU that makes it; every method does nothing unless
/// it is implemented. `()` hears nothing and costs nothing; [`AccessCounters`] counts.
pub trait AccessObserver: Send + Sync {
    /// A read was answered with `bytes` random bytes.
    fn read(&self, bytes: usize) {
        let _ = bytes;
    }

    /// A read failed, because the source did.
    fn failed(&self) {}

    /// An access was refused: a write, another width, another offset.
    fn refused(&self) {}
}

impl AccessObserver for () {}

impl<T: AccessObserver + ?Sized> AccessObserver for Arc<T> {
    fn read(&self, bytes: usize) {
        (**self).read(bytes);
    }

    fn failed(&self) {
        (**self).failed();
    }

    fn refused(&self) {
        (**self).refused();
    }
}

/// Counts accesses; hand it over in an [`Arc`] and read it from anywhere.
#[derive(Debug, Default)]
pub struct AccessCounters {
    reads: AtomicU64,
    bytes: AtomicU64,
    failures: AtomicU64,
    refusals: AtomicU64,
}

impl AccessCounters {
    /// Reads that were answered; each has cost its vCPU an exit.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Random bytes given.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Reads that failed with the source.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Accesses that were refused.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }
}

impl AccessObserver for AccessCounters {
    fn read(&self, bytes: usize) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    fn refused(&self) {
        self.refusals.fetch_add(1, Ordering::Relaxed);
    }
}

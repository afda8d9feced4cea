// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the device tells about its accesses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What an access has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AccessEvent {
    /// A read was answered with this many random bytes.
    Answered(usize),
    /// A read failed, because the source did.
    Failed,
    /// An access was refused: a write, another width, another offset.
    Refused,
}

/// Receives [`AccessEvent`]s, one for each access.
///
/// Called on the thread of the vCPU that makes the access: it must not wait. `()` ignores all events
/// and costs nothing; [`AccessCounters`] counts them.
///
/// ```
/// use bus::BusDevice;
/// use mmio_rng_legacy::{AccessEvent, AccessObserver, Rngboi1337};
///
/// /// Says so when the source fails.
/// struct Complain;
/// impl AccessObserver for Complain {
///     fn event(&self, event: &AccessEvent) {
///         if *event == AccessEvent::Failed {
///             eprintln!("the source of random numbers has failed");
///         }
///     }
/// }
///
/// let mut device = Rngboi1337::with_observer(std::io::empty(), Complain);
/// assert!(device.read(0, &mut [0; 4]).is_err());
/// ```
pub trait AccessObserver: Send + Sync {
    /// Takes note of `event`.
    fn event(&self, event: &AccessEvent);
}

impl AccessObserver for () {
    fn event(&self, _event: &AccessEvent) {}
}

impl<T: AccessObserver + ?Sized> AccessObserver for Arc<T> {
    fn event(&self, event: &AccessEvent) {
        (**self).event(event);
    }
}

/// Counts accesses; hand it over in an [`Arc`] and read it from anywhere.
///
/// ```
/// use std::sync::Arc;
/// use bus::BusDevice;
/// use mmio_rng_legacy::{AccessCounters, Rngboi1337};
///
/// let counters = Arc::new(AccessCounters::default());
/// let mut device = Rngboi1337::with_observer(std::io::repeat(7), counters.clone());
/// device.read(0, &mut [0; 4])?;
/// assert!(device.write(0, &[0; 4]).is_err());
/// assert_eq!((counters.reads(), counters.refusals()), (1, 1));
/// # Ok::<(), bus::AccessError>(())
/// ```
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
    fn event(&self, event: &AccessEvent) {
        let count = match *event {
            AccessEvent::Answered(bytes) => {
                self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                &self.reads
            }
            AccessEvent::Failed => &self.failures,
            AccessEvent::Refused => &self.refusals,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

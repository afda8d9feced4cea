// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device tells about its work.

use std::fmt;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_device_core::RingFault;

/// Hears what the device does; every method does nothing unless it is implemented.
///
/// Called on the worker's thread, under the queue's lock as a rule: it must not wait. `()` hears
/// nothing and costs nothing; [`RngCounters`] counts.
pub trait RngObserver: Send + Sync {
    /// A request was given back with `bytes` random bytes.
    fn request_served(&self, bytes: u32) {
        let _ = bytes;
    }

    /// A request without a writable byte, or with a buffer outside of memory, was given back empty.
    fn request_malformed(&self) {}

    /// A request began to wait for the rate limits.
    fn request_throttled(&self) {}

    /// The source gave nothing; the request waits, unless the device gives up.
    fn source_failed(&self, failure: SourceFailure) {
        let _ = failure;
    }

    /// The driver broke its ring, and the device asks for a reset.
    fn ring_broken(&self, fault: RingFault) {
        let _ = fault;
    }
}

impl RngObserver for () {}

impl<T: RngObserver + ?Sized> RngObserver for Arc<T> {
    fn request_served(&self, bytes: u32) {
        (**self).request_served(bytes);
    }

    fn request_malformed(&self) {
        (**self).request_malformed();
    }

    fn request_throttled(&self) {
        (**self).request_throttled();
    }

    fn source_failed(&self, failure: SourceFailure) {
        (**self).source_failed(failure);
    }

    fn ring_broken(&self, fault: RingFault) {
        (**self).ring_broken(fault);
    }
}

/// Why a source gave nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceFailure {
    /// It failed with an error of this kind; [`ErrorKind::WouldBlock`] has nothing yet, and
    /// [`ErrorKind::Interrupted`] was interrupted too many times in a row.
    Error(ErrorKind),
    /// It has come to its end.
    Ended,
    /// It claims to have given more bytes than it was given room for.
    ClaimsTooMuch,
    /// It panicked, now or earlier.
    Panicked,
}

impl SourceFailure {
    /// Whether asking again may help.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Error(_))
    }
}

impl fmt::Display for SourceFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(kind) => write!(f, "entropy source failed: {kind}"),
            Self::Ended => f.write_str("entropy source has ended"),
            Self::ClaimsTooMuch => f.write_str("entropy source claims more than it had room for"),
            Self::Panicked => f.write_str("entropy source has panicked"),
        }
    }
}

impl std::error::Error for SourceFailure {}

/// Counts what the device does; hand it over in an [`Arc`] and read it from anywhere.
///
/// Each count wraps after 2^64, which takes centuries.
#[derive(Debug, Default)]
pub struct RngCounters {
    served: AtomicU64,
    bytes: AtomicU64,
    malformed: AtomicU64,
    throttled: AtomicU64,
    source_failures: AtomicU64,
    broken_rings: AtomicU64,
}

impl RngCounters {
    /// Requests that were given random bytes.
    #[must_use]
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// Random bytes given.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Requests given back empty, because they were malformed.
    #[must_use]
    pub fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }

    /// Requests that had to wait for the rate limits.
    #[must_use]
    pub fn throttled(&self) -> u64 {
        self.throttled.load(Ordering::Relaxed)
    }

    /// Times that the source gave nothing.
    #[must_use]
    pub fn source_failures(&self) -> u64 {
        self.source_failures.load(Ordering::Relaxed)
    }

    /// Rings broken by the driver.
    #[must_use]
    pub fn broken_rings(&self) -> u64 {
        self.broken_rings.load(Ordering::Relaxed)
    }
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl RngObserver for RngCounters {
    fn request_served(&self, bytes: u32) {
        count(&self.served, 1);
        count(&self.bytes, bytes.into());
    }

    fn request_malformed(&self) {
        count(&self.malformed, 1);
    }

    fn request_throttled(&self) {
        count(&self.throttled, 1);
    }

    fn source_failed(&self, _failure: SourceFailure) {
        count(&self.source_failures, 1);
    }

    fn ring_broken(&self, _fault: RingFault) {
        count(&self.broken_rings, 1);
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Watching what the device does.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;
use virtio_device_core::RingFault;

/// Something that the device has done or met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RngEvent {
    /// A request was given back with this many random bytes.
    RequestServed(u32),
    /// A request without a writable byte, or with a buffer outside of memory, was given back empty.
    RequestMalformed,
    /// A request began to wait for the rate limits.
    RequestThrottled,
    /// The source gave nothing; the request waits, unless the device gives up.
    SourceFailed(SourceFailure),
    /// The driver broke its ring, and the device asks for a reset.
    RingBroken(RingFault),
}

/// Receives [`RngEvent`]s.
///
/// Called on the worker's thread, under the queue's lock as a rule: it must not wait. `()` ignores
/// all events and costs nothing; [`RngCounters`] counts them.
///
/// ```
/// use virtio_rng_device::{RngEvent, RngObserver};
///
/// /// Says so when the source is not what it should be. There may be many events: print with a limit.
/// struct Log;
///
/// impl RngObserver for Log {
///     fn event(&self, event: &RngEvent) {
///         eprintln!("{event:?}");
///     }
/// }
/// ```
pub trait RngObserver: Send + Sync {
    /// Called for each event.
    fn event(&self, event: &RngEvent);
}

impl RngObserver for () {
    #[inline]
    fn event(&self, _event: &RngEvent) {}
}

impl<T: RngObserver + ?Sized> RngObserver for Arc<T> {
    #[inline]
    fn event(&self, event: &RngEvent) {
        (**self).event(event);
    }
}

/// Why a source gave nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SourceFailure {
    /// It failed with an error of this kind; [`ErrorKind::WouldBlock`] has nothing yet, and
    /// [`ErrorKind::Interrupted`] was interrupted too many times in a row.
    #[error("entropy source failed: {0}")]
    Error(ErrorKind),
    /// It has come to its end.
    #[error("entropy source has ended")]
    Ended,
    /// It claims to have given more bytes than it was given room for.
    #[error("entropy source claims more than it had room for")]
    ClaimsTooMuch,
    /// It panicked, now or earlier.
    #[error("entropy source has panicked")]
    Panicked,
}

impl SourceFailure {
    /// Whether asking again may help.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Error(_))
    }
}

/// Counts what the device does; hand it over in an [`Arc`] and read it from anywhere.
///
/// Each count wraps after 2^64, which takes centuries.
///
/// ```
/// use std::sync::Arc;
/// use virtio_device_core::WorkerThread;
/// use virtio_rng_device::{EntropyDevice, KernelEntropy, RngCounters};
///
/// let counters = Arc::new(RngCounters::default());
/// let worker = WorkerThread::named("virtio-rng")?;
/// let device = EntropyDevice::with_observer(KernelEntropy, worker, counters.clone());
/// println!("{counters:?}"); // at any time
/// # let _ = device;
/// # Ok::<(), std::io::Error>(())
/// ```
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
    #[inline]
    fn event(&self, event: &RngEvent) {
        match *event {
            RngEvent::RequestServed(bytes) => {
                count(&self.served, 1);
                count(&self.bytes, bytes.into());
            }
            RngEvent::RequestMalformed => count(&self.malformed, 1),
            RngEvent::RequestThrottled => count(&self.throttled, 1),
            RngEvent::SourceFailed(_) => count(&self.source_failures, 1),
            RngEvent::RingBroken(_) => count(&self.broken_rings, 1),
        }
    }
}

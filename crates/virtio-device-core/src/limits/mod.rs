// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rate limits of a device: on bytes, on operations, changed at run time, saved and restored.

mod bucket;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

pub use bucket::RateLimit;
use bucket::TokenBucket;

/// A handle to a device's rate limits; clones are handles to the same.
///
/// A request waits, in its queue, while either bucket is empty, and is charged afterwards with what
/// it came to: its bytes, and one operation, also if it was malformed. The buckets are the device's,
/// not its driver's: a driver that resets the device finds them as it left them.
///
/// ```
/// use virtio_device_core::{RateLimit, RateLimits};
///
/// let limits = RateLimits::none();
/// limits.set(RateLimit::new(1_000_000, 64 * 1024), None);
/// assert_eq!(limits.admit(), Ok(64 * 1024)); // a request, of up to this many bytes
/// limits.charge(100_000);
/// assert!(limits.admit().is_err(), "overdrawn");
/// ```
#[derive(Clone)]
pub struct RateLimits {
    shared: Arc<Shared>,
}

struct Shared {
    /// Whether there is any limit: a device without does not take the lock.
    limited: AtomicBool,
    buckets: Mutex<Buckets>,
    start: Instant,
}

#[derive(Default)]
struct Buckets {
    bytes: Option<TokenBucket>,
    operations: Option<TokenBucket>,
    /// The event fds of the queues, to have requests that wait looked at again.
    wakers: Vec<Arc<EventFd>>,
}

impl RateLimits {
    /// No limits.
    #[must_use]
    pub fn none() -> Self {
        Self {
            shared: Arc::new(Shared {
                limited: AtomicBool::new(false),
                buckets: Mutex::default(),
                start: Instant::now(),
            }),
        }
    }

    /// Sets both limits; `None` is no limit. Takes effect at once, also on a request that waits.
    ///
    /// A bucket that was there keeps what it holds, down to the fraction of a token, as far as it
    /// fits; a new one is full.
    pub fn set(&self, bytes: Option<RateLimit>, operations: Option<RateLimit>) {
        let now = self.now();
        let change = |bucket: Option<TokenBucket>, limit: Option<RateLimit>| {
            limit.map(|limit| match bucket {
                Some(old) => old.with_limit(limit, now),
                None => TokenBucket::full(limit, now),
            })
        };
        let mut buckets = self.lock();
        let bytes = change(buckets.bytes, bytes);
        let operations = change(buckets.operations, operations);
        self.replace(&mut buckets, bytes, operations);
    }

    /// The limits on bytes and on operations, with what is left of each: plain data.
    #[must_use]
    pub fn save(&self) -> (Option<RateLimit>, Option<RateLimit>) {
        let now = self.now();
        let buckets = self.lock();
        let save = |bucket: Option<TokenBucket>| bucket.map(|bucket| bucket.saved(now));
        (save(buckets.bytes), save(buckets.operations))
    }

    /// Puts back what [`save`](Self::save) gave. What is overdrawn by more than a burst, or by more
    /// than comes in within an hour, is forgiven: no state makes a device wait for longer.
    pub fn restore(&self, bytes: Option<RateLimit>, operations: Option<RateLimit>) {
        let now = self.now();
        let restore = |limit: Option<RateLimit>| limit.map(|l| TokenBucket::restored(l, now));
        let (bytes, operations) = (restore(bytes), restore(operations));
        self.replace(&mut self.lock(), bytes, operations);
    }

    /// Whether a request may be served now: then how many bytes fit into one burst, for a device that
    /// can serve less than it was asked for.
    ///
    /// # Errors
    ///
    /// How long the request must wait.
    #[inline]
    pub fn admit(&self) -> Result<u64, Duration> {
        if !self.shared.limited.load(Ordering::Acquire) {
            return Ok(u64::MAX);
        }
        self.admit_by_buckets()
    }

    fn admit_by_buckets(&self) -> Result<u64, Duration> {
        let now = self.now();
        let mut buckets = self.lock();
        let wait = |bucket: &mut Option<TokenBucket>| bucket.as_mut().and_then(|b| b.wait(now));
        let longest = wait(&mut buckets.bytes).max(wait(&mut buckets.operations));
        let most = buckets.bytes.map_or(u64::MAX, |b| b.limit().burst());
        longest.map_or(Ok(most), Err)
    }

    /// Charges for a request that came to `bytes` bytes.
    #[inline]
    pub fn charge(&self, bytes: u64) {
        if self.shared.limited.load(Ordering::Acquire) {
            self.charge_buckets(bytes);
        }
    }

    fn charge_buckets(&self, bytes: u64) {
        let mut buckets = self.lock();
        if let Some(bucket) = &mut buckets.bytes {
            bucket.charge(bytes);
        }
        if let Some(bucket) = &mut buckets.operations {
            bucket.charge(1);
        }
    }

    /// Names the event fds of the queues whose requests may have to wait: they are notified when the
    /// limits change.
    pub fn set_wakers(&self, wakers: Vec<Arc<EventFd>>) {
        self.lock().wakers = wakers;
    }

    fn replace(
        &self,
        buckets: &mut Buckets,
        bytes: Option<TokenBucket>,
        operations: Option<TokenBucket>,
    ) {
        (buckets.bytes, buckets.operations) = (bytes, operations);
        let limited = bytes.is_some() || operations.is_some();
        self.shared.limited.store(limited, Ordering::Release);
        for waker in &buckets.wakers {
            // An error means that the counter is full, and then the fd is readable already.
            let _ = waker.write(1);
        }
    }

    /// The moment, on a clock that is a second ahead: the part of a token that is on its way takes less,
    /// whatever the limit, so it never begins before the clock does.
    fn now(&self) -> Duration {
        let elapsed = self.shared.start.elapsed();
        elapsed.saturating_add(Duration::from_secs(1))
    }

    fn lock(&self) -> MutexGuard<'_, Buckets> {
        // No code under this lock leaves a bucket half-changed, so a panic there did no harm.
        let buckets = self.shared.buckets.lock();
        buckets.unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for RateLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, operations) = self.save();
        f.debug_struct("RateLimits")
            .field("bytes", &bytes)
            .field("operations", &operations)
            .finish()
    }
}

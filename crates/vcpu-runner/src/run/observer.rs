// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Watching the exits of a vCPU.

use std::time::Instant;

use crate::exit::ExitKind;
use crate::sync::{Arc, AtomicU64, Ordering};

/// Sees every exit of one vCPU, on its thread.
///
/// The default observer is `()`, which is compiled away.
///
/// ```
/// use vcpu_runner::{ExitKind, ExitObserver};
///
/// /// Remembers the last exit, for a post-mortem.
/// #[derive(Default)]
/// struct Last(Option<ExitKind>);
///
/// impl ExitObserver for Last {
///     fn exit(&mut self, kind: ExitKind) {
///         self.0 = Some(kind);
///     }
/// }
///
/// let mut last = Last::default();
/// last.exit(ExitKind::Hlt);
/// assert_eq!(last.0, Some(ExitKind::Hlt));
/// ```
pub trait ExitObserver {
    /// The guest exited; the exit is about to be carried out.
    ///
    /// [`ExitKind::Interrupted`] is not followed by [`ExitObserver::handled`]: there is nothing to
    /// carry out, and the vCPU may be paused for long.
    fn exit(&mut self, kind: ExitKind);

    /// The exit has been carried out; the guest is about to be entered again, or the loop ends.
    #[inline]
    fn handled(&mut self, kind: ExitKind) {
        let _ = kind;
    }
}

impl ExitObserver for () {
    #[inline(always)]
    fn exit(&mut self, _kind: ExitKind) {}
}

impl<O: ExitObserver + ?Sized> ExitObserver for Box<O> {
    fn exit(&mut self, kind: ExitKind) {
        (**self).exit(kind);
    }

    fn handled(&mut self, kind: ExitKind) {
        (**self).handled(kind);
    }
}

/// Two observers, one after the other.
impl<A: ExitObserver, B: ExitObserver> ExitObserver for (A, B) {
    #[inline]
    fn exit(&mut self, kind: ExitKind) {
        self.0.exit(kind);
        self.1.exit(kind);
    }

    #[inline]
    fn handled(&mut self, kind: ExitKind) {
        self.0.handled(kind);
        self.1.handled(kind);
    }
}

const KINDS: usize = ExitKind::ALL.len();

/// Counts the exits of one vCPU by kind.
///
/// The vCPU's thread counts through an `Arc<ExitCounters>`, any thread reads. One of these is for
/// one vCPU: two that shared it would lose counts, because counting is not a locked operation.
///
/// ```
/// use std::sync::Arc;
/// use vcpu_runner::{ExitCounters, ExitKind, ExitObserver};
///
/// let counters = Arc::new(ExitCounters::default());
/// let mut observer = Arc::clone(&counters); // what a runner is given
/// observer.exit(ExitKind::MmioRead);
/// assert_eq!(counters.get(ExitKind::MmioRead), 1);
/// assert_eq!(counters.total(), 1);
/// ```
#[derive(Debug)]
pub struct ExitCounters {
    counts: [AtomicU64; KINDS],
}

impl Default for ExitCounters {
    fn default() -> Self {
        Self {
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl ExitCounters {
    /// How many exits of this kind there were.
    #[must_use]
    pub fn get(&self, kind: ExitKind) -> u64 {
        self.counts
            .get(kind.index())
            .map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// How many times the guest exited; interruptions from outside are not counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.iter()
            .filter(|&(kind, _)| kind != ExitKind::Interrupted)
            .map(|(_, count)| count)
            .sum()
    }

    /// Every kind with its count.
    pub fn iter(&self) -> impl Iterator<Item = (ExitKind, u64)> + '_ {
        ExitKind::ALL.iter().map(|&kind| (kind, self.get(kind)))
    }
}

/// Adds one where only this thread writes: cheaper than a locked addition.
fn bump(count: Option<&AtomicU64>) {
    if let Some(count) = count {
        count.store(
            count.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Relaxed,
        );
    }
}

impl ExitObserver for Arc<ExitCounters> {
    #[inline]
    fn exit(&mut self, kind: ExitKind) {
        bump(self.counts.get(kind.index()));
    }
}

/// How many powers of two a latency is sorted into.
const BUCKETS: usize = 40;

/// How long the exits of one vCPU took to be carried out, by kind.
///
/// The time is that between the exit and the next entry, spent in devices and policy. Two clock
/// readings for each exit are the price.
///
/// ```
/// use std::sync::Arc;
/// use vcpu_runner::{ExitKind, ExitLatencies, ExitObserver};
///
/// let latencies = Arc::new(ExitLatencies::default());
/// let mut observer = latencies.observer(); // what a runner is given
/// observer.exit(ExitKind::MmioRead);
/// observer.handled(ExitKind::MmioRead);
/// for (below, count) in latencies.histogram(ExitKind::MmioRead) {
///     println!("{count} exits took less than {below} ns");
/// }
/// ```
#[derive(Debug)]
pub struct ExitLatencies {
    buckets: [[AtomicU64; BUCKETS]; KINDS],
}

impl Default for ExitLatencies {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
        }
    }
}

/// The number of the bucket for a time, whose bound is two to the power of it.
fn bucket(nanos: u128) -> usize {
    let bits = u128::BITS - nanos.leading_zeros();
    usize::try_from(bits).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

impl ExitLatencies {
    /// The filled part of the histogram of one kind: upper bound in nanoseconds, count.
    ///
    /// The bounds are powers of two, each exclusive; the last bucket also holds what is longer.
    pub fn histogram(&self, kind: ExitKind) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.buckets
            .get(kind.index())
            .into_iter()
            .flatten()
            .enumerate()
            .map(|(power, count)| (1 << power, count.load(Ordering::Relaxed)))
            .filter(|&(_, count)| count > 0)
    }

    /// The observer that fills these histograms.
    #[must_use]
    pub fn observer(self: &Arc<Self>) -> LatencyObserver {
        LatencyObserver {
            latencies: Arc::clone(self),
            since: None,
        }
    }
}

/// Fills an [`ExitLatencies`].
///
/// ```
/// use std::sync::Arc;
/// use vcpu_runner::{ExitKind, ExitLatencies, ExitObserver, LatencyObserver};
///
/// let latencies = Arc::new(ExitLatencies::default());
/// let mut observer: LatencyObserver = latencies.observer();
/// observer.exit(ExitKind::Hlt);
/// observer.handled(ExitKind::Hlt);
/// assert_eq!(latencies.histogram(ExitKind::Hlt).count(), 1);
/// ```
#[derive(Debug)]
pub struct LatencyObserver {
    latencies: Arc<ExitLatencies>,
    since: Option<Instant>,
}

impl ExitObserver for LatencyObserver {
    #[inline]
    fn exit(&mut self, _kind: ExitKind) {
        self.since = Some(Instant::now());
    }

    #[inline]
    fn handled(&mut self, kind: ExitKind) {
        let Some(since) = self.since.take() else {
            return;
        };
        let bucket = bucket(since.elapsed().as_nanos());
        bump(
            self.latencies
                .buckets
                .get(kind.index())
                .and_then(|buckets| buckets.get(bucket)),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_below_the_bound_of_its_bucket_and_of_no_smaller_one() {
        for (nanos, power) in [(0, 0), (1, 1), (2, 2), (3, 2), (1023, 10), (1024, 11)] {
            assert_eq!(bucket(nanos), power, "{nanos} ns");
        }
        // The last one also holds what is longer.
        assert_eq!(bucket((1 << (BUCKETS - 1)) - 1), BUCKETS - 1);
        assert_eq!(bucket(1 << (BUCKETS - 1)), BUCKETS - 1);
        assert_eq!(bucket(u128::MAX), BUCKETS - 1);
    }
}

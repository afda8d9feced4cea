// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Asking a source that may be anything: short, slow, broken, lying.

use std::fmt;
use std::io::{ErrorKind, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::observer::SourceFailure;
use crate::queue::MAX_REQUEST;

/// How often one draw goes back to a source that was interrupted.
const MAX_INTERRUPTIONS: u32 = 64;

/// How a request waits for a source that has failed.
///
/// The first wait is a millisecond, each further one is twice as long, up to a quarter of a second.
/// By default that goes on for ever: a source that may come back is waited for. One that has ended,
/// panicked, or lied about what it gave, does not come back, and ends the device.
///
/// ```
/// use std::time::Duration;
/// use virtio_rng_device::SourcePolicy;
///
/// let policy = SourcePolicy::default();
/// assert_eq!(policy.wait(1), Some(Duration::from_millis(1)));
/// assert_eq!(policy.wait(1_000_000), Some(Duration::from_millis(250)));
/// assert_eq!(policy.give_up_after(3).wait(3), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourcePolicy {
    first: Duration,
    longest: Duration,
    attempts: Option<u32>,
}

impl Default for SourcePolicy {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(1),
            longest: Duration::from_millis(250),
            attempts: None,
        }
    }
}

impl SourcePolicy {
    /// Sets the first wait, and the longest.
    #[must_use]
    pub const fn with_waits(mut self, first: Duration, longest: Duration) -> Self {
        (self.first, self.longest) = (first, longest);
        self
    }

    /// Gives up after this many failures in a row, and has the device ask its driver for a reset; 0
    /// and 1 mean that the first one does.
    #[must_use]
    pub const fn give_up_after(mut self, attempts: u32) -> Self {
        self.attempts = Some(attempts);
        self
    }

    /// The wait after `failures` failures in a row, at least 1; `None` to give up.
    #[must_use]
    pub fn wait(&self, failures: u32) -> Option<Duration> {
        if self.attempts.is_some_and(|attempts| failures >= attempts) {
            return None;
        }
        let doublings = failures.saturating_sub(1).min(31);
        let wait = self.first.saturating_mul(1 << doublings);
        Some(wait.min(self.longest))
    }
}

/// The failures of a source in a row, and when it may be asked again.
#[derive(Debug)]
struct Patience {
    policy: SourcePolicy,
    failures: u32,
    until: Option<Instant>,
}

impl Patience {
    const fn new(policy: SourcePolicy) -> Self {
        Self {
            policy,
            failures: 0,
            until: None,
        }
    }

    /// What is left of the wait, if the source must not be asked yet. A driver that notifies over
    /// and over does not make it shorter.
    fn left(&self) -> Option<Duration> {
        let left = self.until?.checked_duration_since(Instant::now())?;
        (!left.is_zero()).then_some(left)
    }

    const fn succeeded(&mut self) {
        (self.failures, self.until) = (0, None);
    }

    /// How long to wait now; `None` to give up.
    fn failed(&mut self, failure: SourceFailure) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        let wait = failure
            .is_transient()
            .then(|| self.policy.wait(self.failures))
            .flatten()?;
        self.until = Instant::now().checked_add(wait);
        Some(wait)
    }
}

/// Where a device's source is: with the device, or with the worker that asks it.
#[derive(Debug)]
pub(crate) enum SourceSlot<S> {
    /// With the device.
    Here(S),
    /// With a worker, maybe one that was told to stop and is stuck.
    Away,
    /// It panicked, and is not asked again: nobody knows what state it is in.
    Lost,
}

/// A worker's hold on its device's source: taken with the first draw, and given back at the end,
/// so that a draw needs no lock.
#[derive(Debug)]
struct SourceGuard<S> {
    source: Option<S>,
}

impl<S: Read> SourceGuard<S> {
    /// Draws up to `room.len()` bytes, at least one. After a failure no byte is left in `room`.
    fn draw(
        &mut self,
        slot: &Mutex<SourceSlot<S>>,
        room: &mut [u8],
    ) -> Result<usize, SourceFailure> {
        if self.source.is_none() {
            self.source = take(slot)?;
        }
        let drawn = match &mut self.source {
            Some(source) => catch_unwind(AssertUnwindSafe(|| read(source, room))),
            None => Ok(Err(SourceFailure::Panicked)),
        };
        let drawn = drawn.unwrap_or_else(|payload| {
            *lock(slot) = SourceSlot::Lost;
            discard(payload);
            discard(self.source.take());
            Err(SourceFailure::Panicked)
        });
        if drawn.is_err() {
            wipe(room);
        }
        drawn
    }
}

impl<S> SourceGuard<S> {
    const fn none() -> Self {
        Self { source: None }
    }

    /// Gives the source back, if this is where it is.
    fn release(&mut self, slot: &Mutex<SourceSlot<S>>) {
        if let Some(source) = self.source.take() {
            *lock(slot) = SourceSlot::Here(source);
        }
    }
}

/// A worker's supply of random bytes: its hold on the source, the patience that takes, and a place
/// for what it gives.
#[derive(Debug)]
pub(crate) struct EntropyReader<S> {
    source: SourceGuard<S>,
    patience: Patience,
    /// Holds random bytes only between their draw and their hand-over.
    scratch: Box<Scratch>,
}

/// Aligned as what is copied fastest.
#[repr(align(64))]
struct Scratch([u8; MAX_REQUEST]);

impl<S> EntropyReader<S> {
    pub(crate) fn new(policy: SourcePolicy) -> Self {
        Self {
            source: SourceGuard::none(),
            patience: Patience::new(policy),
            scratch: Box::new(Scratch([0; MAX_REQUEST])),
        }
    }

    /// How long the source must not be asked yet, if it must not.
    pub(crate) fn wait(&self) -> Option<Duration> {
        self.patience.left()
    }

    /// The first `len` bytes, which were drawn.
    #[inline]
    pub(crate) fn bytes(&mut self, len: usize) -> &mut [u8] {
        self.scratch.0.get_mut(..len).unwrap_or_default()
    }

    /// The source may be asked at once: it is said to have something again.
    pub(crate) const fn forget_wait(&mut self) {
        self.patience.until = None;
    }

    /// Draws up to `len` bytes, at least one; or tells why there are none, and how long to wait, if
    /// that helps.
    #[inline]
    pub(crate) fn draw(
        &mut self,
        slot: &Mutex<SourceSlot<S>>,
        len: usize,
    ) -> Result<usize, (SourceFailure, Option<Duration>)>
    where
        S: Read,
    {
        let room = self.scratch.0.get_mut(..len).unwrap_or_default();
        match self.source.draw(slot, room) {
            Ok(count) => {
                self.patience.succeeded();
                Ok(count)
            }
            Err(failure) => Err((failure, self.patience.failed(failure))),
        }
    }

    /// Whether the source is here, and not with a worker that has not ended yet.
    pub(crate) const fn has_source(&self) -> bool {
        self.source.source.is_some()
    }

    pub(crate) fn wipe(&mut self) {
        wipe(&mut self.scratch.0);
    }

    /// Gives the source back, and wipes what nobody took.
    pub(crate) fn release(&mut self, slot: &Mutex<SourceSlot<S>>) {
        self.source.release(slot);
        self.wipe();
    }
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scratch")
    }
}

/// Drops what is left of a panic, which may panic again.
fn discard<T>(value: T) {
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(value)));
    // Not dropped as well: that could panic again, and so on without end.
    std::mem::forget(dropped.err());
}

/// Takes the source from the device. Another worker's may come back, so it is worth waiting for.
fn take<S>(slot: &Mutex<SourceSlot<S>>) -> Result<Option<S>, SourceFailure> {
    let mut slot = lock(slot);
    match std::mem::replace(&mut *slot, SourceSlot::Away) {
        SourceSlot::Here(source) => Ok(Some(source)),
        SourceSlot::Away => Err(SourceFailure::Error(ErrorKind::WouldBlock)),
        SourceSlot::Lost => {
            *slot = SourceSlot::Lost;
            Err(SourceFailure::Panicked)
        }
    }
}

fn lock<S>(slot: &Mutex<SourceSlot<S>>) -> MutexGuard<'_, SourceSlot<S>> {
    // Nothing that may panic is done under this lock.
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(source: &mut impl Read, room: &mut [u8]) -> Result<usize, SourceFailure> {
    for _ in 0..MAX_INTERRUPTIONS {
        match source.read(room) {
            Ok(0) => return Err(SourceFailure::Ended),
            Ok(count) if count > room.len() => return Err(SourceFailure::ClaimsTooMuch),
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(SourceFailure::Error(error.kind())),
        }
    }
    Err(SourceFailure::Error(ErrorKind::Interrupted))
}

/// Overwrites bytes that were or might have been random, in a way that the compiler keeps.
pub(crate) fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    zeroize::optimization_barrier(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_end() {
        let ms = Duration::from_millis;
        let policy = SourcePolicy::default()
            .with_waits(ms(1), ms(5))
            .give_up_after(6);
        let waits: Vec<_> = (1..=7).map(|failures| policy.wait(failures)).collect();
        let some = |millis| Some(ms(millis));
        assert_eq!(
            waits,
            [some(1), some(2), some(4), some(5), some(5), None, None]
        );
        let extreme = SourcePolicy::default().with_waits(Duration::MAX, Duration::MAX);
        assert_eq!(extreme.wait(1000), Some(Duration::MAX));
        // The end of such a wait is beyond the clock's range, so only the timer keeps it.
        let mut patience = Patience::new(extreme);
        let failure = SourceFailure::Error(ErrorKind::WouldBlock);
        assert_eq!(patience.failed(failure), Some(Duration::MAX));
        assert_eq!(patience.left(), None);
    }

    #[test]
    fn by_default_a_source_is_waited_for_for_ever() {
        let policy = SourcePolicy::default();
        assert_eq!(policy.wait(u32::MAX), Some(Duration::from_millis(250)));
    }

    #[test]
    fn one_worker_at_a_time_has_the_source() {
        let place = Mutex::new(SourceSlot::Here(std::io::repeat(7)));
        let (mut first, mut second) = (SourceGuard::none(), SourceGuard::none());
        let mut room = [0; 4];
        assert_eq!(first.draw(&place, &mut room), Ok(4));
        let away = Err(SourceFailure::Error(ErrorKind::WouldBlock));
        assert_eq!(second.draw(&place, &mut room), away);
        second.release(&place);
        first.release(&place);
        assert_eq!(second.draw(&place, &mut room), Ok(4));
    }

    #[test]
    fn a_failed_draw_leaves_nothing_behind() {
        struct Scribbles(bool);
        impl Read for Scribbles {
            fn read(&mut self, data: &mut [u8]) -> std::io::Result<usize> {
                data.fill(0x77);
                assert!(!self.0, "the source panics");
                Ok(data.len() + 1)
            }
        }
        for panics in [false, true] {
            let mut room = [0; 64];
            let place = Mutex::new(SourceSlot::Here(Scribbles(panics)));
            SourceGuard::none().draw(&place, &mut room).unwrap_err();
            assert_eq!(room, [0; 64]);
        }
    }
}

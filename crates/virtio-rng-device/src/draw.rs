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
/// The first wait is `first`, each further one is twice as long, up to `longest`. After `attempts`
/// failures in a row the device gives up and asks its driver for a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The first wait.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
    /// Failures in a row that end it; 0 and 1 mean that the first one does.
    pub attempts: u32,
}

impl Default for Retry {
    /// From 1 ms to 250 ms, for some ten seconds.
    fn default() -> Self {
        Self {
            first: Duration::from_millis(1),
            longest: Duration::from_millis(250),
            attempts: 48,
        }
    }
}

impl Retry {
    /// The wait after `failures` failures in a row, at least 1; `None` to give up.
    #[must_use]
    pub fn wait(&self, failures: u32) -> Option<Duration> {
        if failures >= self.attempts {
            return None;
        }
        let doublings = failures.saturating_sub(1).min(31);
        let wait = self.first.saturating_mul(1 << doublings);
        Some(wait.min(self.longest))
    }
}

/// How a device asks its source.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Manner {
    pub(crate) retry: Retry,
    /// The source never waits for anything.
    pub(crate) prompt: bool,
}

/// The failures of a source in a row, and when it may be asked again.
#[derive(Debug)]
struct Patience {
    retry: Retry,
    failures: u32,
    until: Option<Instant>,
}

impl Patience {
    const fn new(retry: Retry) -> Self {
        Self {
            retry,
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
            .then(|| self.retry.wait(self.failures))
            .flatten()?;
        self.until = Instant::now().checked_add(wait);
        Some(wait)
    }
}

/// Where a device's source is: with the device, or with the worker that asks it.
#[derive(Debug)]
pub(crate) enum Place<S> {
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
struct Hold<S> {
    source: Option<S>,
}

impl<S: Read> Hold<S> {
    /// Draws up to `room.len()` bytes, at least one. After a failure no byte is left in `room`.
    fn draw(&mut self, place: &Mutex<Place<S>>, room: &mut [u8]) -> Result<usize, SourceFailure> {
        if self.source.is_none() {
            self.source = take(place)?;
        }
        let drawn = match &mut self.source {
            Some(source) => catch_unwind(AssertUnwindSafe(|| read(source, room))),
            None => Ok(Err(SourceFailure::Panicked)),
        };
        let drawn = drawn.unwrap_or_else(|_| {
            *lock(place) = Place::Lost;
            // What has panicked may do so again when it is dropped.
            let source = self.source.take();
            let _ = catch_unwind(AssertUnwindSafe(|| drop(source)));
            Err(SourceFailure::Panicked)
        });
        if drawn.is_err() {
            wipe(room);
        }
        drawn
    }
}

impl<S> Hold<S> {
    const fn none() -> Self {
        Self { source: None }
    }

    /// Gives the source back, if this is where it is.
    fn release(&mut self, place: &Mutex<Place<S>>) {
        if let Some(source) = self.source.take() {
            *lock(place) = Place::Here(source);
        }
    }
}

/// A worker's supply of random bytes: its hold on the source, the patience that takes, and a place
/// for what it gives.
#[derive(Debug)]
pub(crate) struct Supply<S> {
    source: Hold<S>,
    patience: Patience,
    /// Holds random bytes only between their draw and their hand-over.
    scratch: Box<Scratch>,
}

/// Aligned as what is copied fastest.
#[repr(align(64))]
struct Scratch([u8; MAX_REQUEST]);

impl<S> Supply<S> {
    pub(crate) fn new(retry: Retry) -> Self {
        Self {
            source: Hold::none(),
            patience: Patience::new(retry),
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

    /// Draws up to `len` bytes, at least one; or tells why there are none, and how long to wait, if
    /// that helps.
    #[inline]
    pub(crate) fn draw(
        &mut self,
        place: &Mutex<Place<S>>,
        len: usize,
    ) -> Result<usize, (SourceFailure, Option<Duration>)>
    where
        S: Read,
    {
        let room = self.scratch.0.get_mut(..len).unwrap_or_default();
        match self.source.draw(place, room) {
            Ok(count) => {
                self.patience.succeeded();
                Ok(count)
            }
            Err(failure) => Err((failure, self.patience.failed(failure))),
        }
    }

    pub(crate) fn wipe(&mut self) {
        wipe(&mut self.scratch.0);
    }

    /// Gives the source back, and wipes what nobody took.
    pub(crate) fn release(&mut self, place: &Mutex<Place<S>>) {
        self.source.release(place);
        self.wipe();
    }
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scratch")
    }
}

/// Takes the source from the device. Another worker's may come back, so it is worth waiting for.
fn take<S>(place: &Mutex<Place<S>>) -> Result<Option<S>, SourceFailure> {
    let mut place = lock(place);
    match std::mem::replace(&mut *place, Place::Away) {
        Place::Here(source) => Ok(Some(source)),
        Place::Away => Err(SourceFailure::Error(ErrorKind::WouldBlock)),
        Place::Lost => {
            *place = Place::Lost;
            Err(SourceFailure::Panicked)
        }
    }
}

fn lock<S>(place: &Mutex<Place<S>>) -> MutexGuard<'_, Place<S>> {
    // Nothing that may panic is done under this lock.
    place.lock().unwrap_or_else(PoisonError::into_inner)
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
        let retry = Retry {
            first: Duration::from_millis(1),
            longest: Duration::from_millis(5),
            attempts: 6,
        };
        let waits: Vec<_> = (1..=7).map(|failures| retry.wait(failures)).collect();
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(waits, [ms(1), ms(2), ms(4), ms(5), ms(5), None, None]);
        let extreme = Retry {
            first: Duration::MAX,
            longest: Duration::MAX,
            attempts: u32::MAX,
        };
        assert_eq!(extreme.wait(1000), Some(Duration::MAX));
        // A wait that no clock can tell the end of is waited out by the timer alone.
        let mut patience = Patience::new(extreme);
        let failure = SourceFailure::Error(ErrorKind::WouldBlock);
        assert_eq!(patience.failed(failure), Some(Duration::MAX));
        assert_eq!(patience.left(), None);
    }

    #[test]
    fn the_default_gives_up_after_some_ten_seconds() {
        let retry = Retry::default();
        let total: Duration = (1..).map_while(|failures| retry.wait(failures)).sum();
        assert!((9..=11).contains(&total.as_secs()), "{total:?}");
    }

    #[test]
    fn one_worker_at_a_time_has_the_source() {
        let place = Mutex::new(Place::Here(std::io::repeat(7)));
        let (mut first, mut second) = (Hold::none(), Hold::none());
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
            let place = Mutex::new(Place::Here(Scribbles(panics)));
            Hold::none().draw(&place, &mut room).unwrap_err();
            assert_eq!(room, [0; 64]);
        }
    }
}

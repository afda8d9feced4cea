// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sources that fail in every way there is.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use virtio_device_core::Features;
use virtio_rng_device::{RngCounters, RngObserver, SourceFailure};

use crate::support::{BUFFER, CANARY, Fixture, QUICK, Script, Step, memory, script};

const NOT_YET: Step = Step::Fail(ErrorKind::WouldBlock);
const BROKEN: Step = Step::Fail(ErrorKind::Other);
const INTERRUPTED: Step = Step::Fail(ErrorKind::Interrupted);

/// Each of `steps`, of a source that may wait and of one that does not.
fn both<const N: usize>(steps: [Step; N]) -> impl Iterator<Item = (Step, bool)> {
    let steps = steps.into_iter();
    steps.flat_map(|step| [(step, false), (step, true)])
}

fn nothing_was_given<O: RngObserver + 'static>(fixture: &mut Fixture<'_, Script, O>) {
    assert_eq!(fixture.driver.take_used(), []);
    assert_eq!(fixture.bytes(BUFFER, 8), [CANARY; 8]);
}

#[test]
fn a_source_that_is_beyond_hope_asks_for_a_reset_and_completes_nothing() {
    for (step, prompt) in both([Step::End, Step::ClaimTooMuch, Step::Panic]) {
        let memory = memory();
        let counters = Arc::new(RngCounters::default());
        let mut fixture = Fixture::made(
            &memory,
            Features::NONE,
            prompt,
            script(&[step]),
            counters.clone(),
        );
        fixture.driver.offer_writable(0, BUFFER, 8);
        assert!(!fixture.notify(), "{step:?}");
        assert!(fixture.interrupt.is_broken());
        assert_eq!(fixture.counts.status.load(Ordering::SeqCst), 1);
        assert_eq!(counters.source_failures(), 1);
        nothing_was_given(&mut fixture);
    }
}

#[test]
fn a_request_waits_for_a_source_that_fails_for_a_while() {
    for (step, prompt) in both([NOT_YET, BROKEN]) {
        let memory = memory();
        let counters = Arc::new(RngCounters::default());
        let source = script(&[step, step, Step::Give]);
        let mut fixture = Fixture::made(&memory, Features::NONE, prompt, source, counters.clone());
        fixture.driver.offer_writable(3, BUFFER, 8);
        assert!(fixture.notify());
        nothing_was_given(&mut fixture);
        assert_eq!(fixture.wait(), Some(Duration::from_millis(1)));
        assert!(fixture.expire());
        nothing_was_given(&mut fixture);
        assert_eq!(fixture.wait(), Some(Duration::from_millis(2)));
        assert!(fixture.expire());
        assert_eq!(fixture.driver.take_used(), [(3, 8)]);
        assert_eq!(fixture.used_interrupts(), 1);
        assert_eq!(fixture.wait(), None);
        assert!(!fixture.interrupt.is_broken());
        assert_eq!((counters.served(), counters.source_failures()), (1, 2));
    }
}

#[test]
fn a_source_that_fails_for_too_long_asks_for_a_reset() {
    for (step, prompt) in both([NOT_YET, BROKEN, INTERRUPTED]) {
        let memory = memory();
        let mut fixture = Fixture::made(&memory, Features::NONE, prompt, script(&[step]), ());
        fixture.driver.offer_writable(0, BUFFER, 8);
        assert!(fixture.notify());
        for _ in 2..QUICK.attempts {
            assert!(fixture.expire());
            assert!(!fixture.interrupt.is_broken());
        }
        assert!(!fixture.expire());
        assert!(fixture.interrupt.is_broken());
        assert_eq!(fixture.counts.status.load(Ordering::SeqCst), 1);
        assert_eq!(fixture.used_interrupts(), 0);
        nothing_was_given(&mut fixture);
    }
}

#[test]
#[cfg_attr(miri, ignore = "slower than the waits are")]
fn notifications_do_not_make_a_failing_source_be_asked_more_often() {
    let memory = memory();
    let source = script(&[BROKEN]);
    let reads = source.reads.clone();
    let mut fixture = Fixture::new(&memory, Features::NONE, source);
    fixture.driver.offer_writable(0, BUFFER, 8);
    for _ in 0..3 {
        assert!(fixture.notify());
    }
    // One millisecond may have passed, but not the two after it.
    assert!(reads.load(Ordering::SeqCst) <= 2);
}

#[test]
fn failures_in_a_row_are_forgotten_when_the_source_gives() {
    let memory = memory();
    let pattern = [NOT_YET, NOT_YET, NOT_YET, Step::Give].repeat(3);
    let mut fixture = Fixture::new(&memory, Features::NONE, script(&pattern));
    for index in 0..3 {
        fixture.driver.offer_writable(index, BUFFER, 8);
    }
    assert!(fixture.notify());
    while fixture.wait().is_some() {
        assert!(fixture.expire());
    }
    assert_eq!(fixture.driver.take_used(), [(0, 8), (1, 8), (2, 8)]);
}

#[test]
fn what_was_served_before_a_failure_is_announced() {
    for (step, prompt) in both([NOT_YET, Step::End]) {
        let memory = memory();
        let mut fixture = Fixture::made(
            &memory,
            Features::NONE,
            prompt,
            script(&[Step::Give, step]),
            (),
        );
        fixture.driver.offer_writable(0, BUFFER, 8);
        fixture.driver.offer_writable(1, BUFFER, 8);
        fixture.notify();
        assert_eq!(fixture.driver.take_used(), [(0, 8)]);
        assert_eq!(fixture.used_interrupts(), 1);
    }
}

#[test]
fn a_reset_ends_the_wait_and_the_failure() {
    let memory = memory();
    let mut fixture = Fixture::new(
        &memory,
        Features::NONE,
        script(&[NOT_YET, Step::End, Step::Give]),
    );
    fixture.driver.offer_writable(0, BUFFER, 8);
    assert!(fixture.notify());
    assert!(!fixture.expire());
    fixture.reset_and_serve();
}

#[test]
fn a_source_that_is_interrupted_now_and_then_is_asked_again_at_once() {
    let memory = memory();
    let steps = [&[INTERRUPTED; 63][..], &[Step::Give]].concat();
    let source = script(&steps);
    let reads = source.reads.clone();
    let mut fixture = Fixture::new(&memory, Features::NONE, source);
    fixture.driver.offer_writable(0, BUFFER, 8);
    assert!(fixture.notify());
    assert_eq!(fixture.driver.take_used(), [(0, 8)]);
    assert_eq!(reads.load(Ordering::SeqCst), 64);
}

#[test]
fn a_source_that_panicked_is_never_asked_again() {
    for prompt in [false, true] {
        let memory = memory();
        let source = script(&[Step::Panic, Step::Give]);
        let reads = source.reads.clone();
        let mut fixture = Fixture::made(&memory, Features::NONE, prompt, source, ());
        fixture.driver.offer_writable(0, BUFFER, 8);
        assert!(!fixture.notify());
        assert!(
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                fixture.reset_and_serve();
            }))
            .is_err()
        );
        assert_eq!(reads.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn the_observer_hears_the_kind_of_each_failure() {
    #[derive(Default)]
    struct Heard(std::sync::Mutex<Vec<SourceFailure>>);
    impl RngObserver for Heard {
        fn source_failed(&self, failure: SourceFailure) {
            self.0.lock().unwrap().push(failure);
        }
    }
    let memory = memory();
    let heard = Arc::new(Heard::default());
    let source = script(&[NOT_YET, BROKEN, Step::End]);
    let mut fixture = Fixture::observed(&memory, Features::NONE, source, heard.clone());
    fixture.driver.offer_writable(0, BUFFER, 8);
    assert!(fixture.notify());
    assert!(fixture.expire());
    assert!(!fixture.expire());
    assert_eq!(
        *heard.0.lock().unwrap(),
        [
            SourceFailure::Error(ErrorKind::WouldBlock),
            SourceFailure::Error(ErrorKind::Other),
            SourceFailure::Ended,
        ]
    );
}

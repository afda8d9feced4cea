// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sources that fail in every way there is.

use std::io::{self, ErrorKind, Read};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use virtio_conformance::DriverQueue;
use virtio_device_core::{Features, Virtqueue, transport::Session};
use virtio_rng_device::{
    QUEUE_SIZE, RngCounters, RngEvent, RngObserver, SourceFailure, SourcePolicy,
};

use crate::support::{ATTEMPTS, BUFFER, CANARY, Fixture, Memory, Script, Step, memory, script};

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
        assert!(fixture.is_broken());
        assert_eq!(fixture.config_interrupts(), 1);
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
        assert!(fixture.kick());
        nothing_was_given(&mut fixture);
        assert!(fixture.expire());
        nothing_was_given(&mut fixture);
        assert!(fixture.expire());
        assert_eq!(fixture.driver.take_used(), [(3, 8)]);
        assert_eq!(fixture.used_interrupts(), 1);
        assert!(!fixture.waits());
        assert!(!fixture.is_broken());
        assert_eq!((counters.served(), counters.source_failures()), (1, 2));
    }
}

#[test]
fn by_default_a_source_that_may_come_back_is_waited_for_for_ever() {
    for step in [NOT_YET, BROKEN, INTERRUPTED] {
        let memory = memory();
        let rounds = if cfg!(miri) { 100 } else { 10_000 };
        let steps = [&vec![step; rounds][..], &[Step::Give]].concat();
        let source = script(&steps);
        let reads = source.reads.clone();
        let policy = SourcePolicy::default().with_waits(Duration::ZERO, Duration::ZERO);
        let mut fixture = Fixture::with(&memory, Features::NONE, source, (), |device| {
            device.with_source_policy(policy)
        });
        fixture.driver.offer_writable(0, BUFFER, 8);
        assert!(fixture.kick());
        while fixture.driver.used_index() == 0 {
            assert!(fixture.expire());
        }
        assert_eq!(fixture.driver.take_used(), [(0, 8)]);
        assert_eq!(reads.load(Ordering::SeqCst) as usize, rounds + 1);
    }
}

#[test]
fn a_source_that_fails_as_often_as_the_policy_allows_asks_for_a_reset() {
    for (step, prompt) in both([NOT_YET, BROKEN, INTERRUPTED]) {
        let memory = memory();
        let mut fixture = Fixture::made(&memory, Features::NONE, prompt, script(&[step]), ());
        fixture.driver.offer_writable(0, BUFFER, 8);
        assert!(fixture.kick());
        for _ in 2..ATTEMPTS {
            assert!(fixture.expire());
        }
        assert!(!fixture.expire());
        assert_eq!(fixture.config_interrupts(), 1);
        assert_eq!(fixture.used_interrupts(), 0);
        nothing_was_given(&mut fixture);
    }
}

#[test]
fn notifications_do_not_make_a_failing_source_be_asked_more_often() {
    let memory = memory();
    let source = script(&[BROKEN]);
    let reads = source.reads.clone();
    let hour = Duration::from_secs(3600);
    let mut fixture = Fixture::with(&memory, Features::NONE, source, (), |device| {
        device.with_source_policy(SourcePolicy::default().with_waits(hour, hour))
    });
    fixture.driver.offer_writable(0, BUFFER, 8);
    for _ in 0..100 {
        assert!(fixture.kick());
    }
    assert_eq!(reads.load(Ordering::SeqCst), 1);
}

#[test]
fn failures_in_a_row_are_forgotten_when_the_source_gives() {
    let memory = memory();
    let pattern = [NOT_YET, NOT_YET, NOT_YET, Step::Give].repeat(3);
    let mut fixture = Fixture::new(&memory, Features::NONE, script(&pattern));
    for index in 0..3 {
        fixture.driver.offer_writable(index, BUFFER, 8);
    }
    assert!(fixture.kick());
    while fixture.driver.used_index() < 3 {
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
    assert!(fixture.kick());
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

#[derive(Default)]
struct Heard(Mutex<Vec<SourceFailure>>);

impl RngObserver for Heard {
    fn event(&self, event: &RngEvent) {
        if let RngEvent::SourceFailed(failure) = *event {
            self.0.lock().unwrap().push(failure);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "leaks what the payload panicked with")]
fn a_source_that_panicked_is_a_failed_source_whatever_it_panicked_with() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    struct Panics;
    impl Read for Panics {
        fn read(&mut self, _data: &mut [u8]) -> io::Result<usize> {
            std::panic::panic_any(Bomb)
        }
    }
    let memory = memory();
    let heard = Arc::new(Heard::default());
    let mut fixture = Fixture::observed(&memory, Features::NONE, Panics, heard.clone());
    fixture.driver.offer_writable(0, BUFFER, 8);
    assert!(!fixture.notify());
    assert_eq!(*heard.0.lock().unwrap(), [SourceFailure::Panicked]);
}

#[test]
fn the_observer_hears_the_kind_of_each_failure() {
    let memory = memory();
    let heard = Arc::new(Heard::default());
    let source = script(&[NOT_YET, BROKEN, Step::End]);
    let mut fixture = Fixture::observed(&memory, Features::NONE, source, heard.clone());
    fixture.driver.offer_writable(0, BUFFER, 8);
    assert!(fixture.kick());
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

/// Gives a letter a read, and takes the queue back during the first one.
struct TakesBack {
    session: Arc<Mutex<Option<Arc<Mutex<Session>>>>>,
    way: fn(&Session),
    next: u8,
}

impl Read for TakesBack {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        assert!(data.iter().all(|&byte| byte == 0), "not wiped");
        if let Some(session) = self.session.lock().unwrap().take() {
            (self.way)(&session.lock().unwrap());
        }
        data.fill(self.next);
        self.next += 1;
        Ok(data.len())
    }
}

/// A device whose queue was taken back during its first draw.
fn taken_back(memory: &Memory, way: fn(&Session)) -> Fixture<'_, TakesBack> {
    let session = Arc::new(Mutex::new(None));
    let source = TakesBack {
        session: session.clone(),
        way,
        next: b'a',
    };
    let mut fixture = Fixture::new(memory, Features::NONE, source);
    *session.lock().unwrap() = Some(fixture.session.clone());
    fixture.driver.offer_writable(0, BUFFER, 4);
    assert!(fixture.notify());
    assert_eq!(fixture.driver.take_used(), []);
    assert_eq!(fixture.bytes(BUFFER, 4), [CANARY; 4]);
    fixture
}

#[test]
fn what_was_drawn_when_a_pause_came_is_given_back_after_it() {
    let memory = memory();
    let mut fixture = taken_back(&memory, Session::pause);
    fixture.session.lock().unwrap().resume();
    assert!(fixture.notify());
    assert_eq!(fixture.driver.take_used(), [(0, 4)]);
    assert_eq!(fixture.bytes(BUFFER, 5), *b"aaaa\xc5");
}

#[test]
fn what_was_drawn_for_a_queue_that_was_reset_is_wiped_at_once() {
    let ways: [fn(&Session); 2] = [Session::pause, |session| session.revoke_queue(0)];
    for way in ways {
        let memory = memory();
        let mut fixture = taken_back(&memory, way);
        let mut driver = DriverQueue::new(&*memory, 0, QUEUE_SIZE);
        let queue = Virtqueue::new(driver.layout(), Features::NONE);
        {
            let mut session = fixture.session.lock().unwrap();
            session.revoke_queue(0);
            assert!(session.restart_queue(0, queue));
            session.resume();
        }
        // The source sees what is left of it, if it is.
        driver.offer_writable(0, BUFFER, 2);
        driver.offer_writable(1, BUFFER + 8, 8);
        assert!(fixture.notify());
        assert_eq!(driver.take_used(), [(0, 2), (1, 8)]);
        assert_eq!(fixture.bytes(BUFFER, 3), *b"bb\xc5");
        assert_eq!(fixture.bytes(BUFFER + 8, 8), *b"cccccccc");
    }
}

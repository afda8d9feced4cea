// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! In which order things are taken back from a device that is in the middle of its work.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

mod support;

use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use support::{SOON, activated, kicks, virtqueue};
use virtio_device_core::{
    ConfigNotifier, Features,
    transport::{Interrupt, Session},
};

/// Long enough for a call that does not wait to return, were it not to wait.
const EARLY: Duration = Duration::from_millis(50);

fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time");
        thread::yield_now();
    }
}

#[test]
fn a_worker_that_finds_its_queue_gone_knows_whether_the_device_was_reset() {
    for looks_at in 0..2 {
        let activated = activated(2);
        let (lease, interrupt) = (&activated.queues[looks_at].lease, &activated.interrupt);
        let (inside, is_inside) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                let looked = lease.with(|_| {
                    inside.send(()).unwrap();
                    until(|| lease.is_revoked());
                    interrupt.is_revoked()
                });
                assert_eq!(looked, Ok(true), "the queue went before the interrupt");
            });
            is_inside.recv_timeout(SOON).unwrap();
            activated.session.revoke();
        });
    }
}

#[test]
fn no_interrupt_comes_of_a_look_that_outlasts_its_queue() {
    for alone in [false, true] {
        let activated = activated(2);
        let queue = &activated.queues[1];
        let (inside, is_inside) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                let looked = queue.lease.with(|_| {
                    queue.signal_used();
                    inside.send(()).unwrap();
                    until(|| queue.lease.is_revoked());
                    queue.signal_used();
                });
                assert_eq!(looked, Ok(()));
            });
            is_inside.recv_timeout(SOON).unwrap();
            if alone {
                activated.session.revoke_queue(1);
            } else {
                activated.session.revoke();
            }
        });
        assert_eq!(activated.told.used.load(Ordering::SeqCst), 1);
    }
}

/// A call that goes on until somebody else has returned, or for long enough.
struct Slow {
    begun: Sender<()>,
    returned: Mutex<Receiver<()>>,
}

impl Slow {
    fn new() -> (Self, Receiver<()>, Sender<()>) {
        let ((begun, has_begun), (returns, returned)) = (mpsc::channel(), mpsc::channel());
        let returned = Mutex::new(returned);
        (Self { begun, returned }, has_begun, returns)
    }

    fn call(&self) {
        self.begun.send(()).unwrap();
        let early = self.returned.lock().unwrap().recv_timeout(EARLY);
        assert_eq!(
            early,
            Err(RecvTimeoutError::Timeout),
            "nobody waits for this"
        );
    }
}

impl Interrupt for Slow {
    fn used_buffers(&self, _queue: u16) {
        self.call();
    }

    fn config_interrupt(&self) {}
}

/// The ways to take a queue back for a while or for good.
const WAYS: [fn(&Session); 3] = [Session::pause, Session::revoke, |session| {
    session.revoke_queue(0)
}];

#[test]
fn pause_and_reset_wait_for_a_look_that_goes_on() {
    for take_back in WAYS {
        let (slow, has_begun, returns) = Slow::new();
        let activated = activated(1);
        let lease = &activated.queues[0].lease;
        thread::scope(|scope| {
            let look = scope.spawn(|| lease.with(|_| slow.call()));
            has_begun.recv_timeout(SOON).unwrap();
            take_back(&activated.session);
            returns.send(()).unwrap();
            look.join().unwrap().unwrap();
        });
    }
}

#[test]
fn a_reset_waits_for_an_interrupt_that_is_on_its_way() {
    for take_back in &WAYS[1..] {
        let (slow, has_begun, returns) = Slow::new();
        let config = ConfigNotifier::new(Arc::new(slow));
        let queue = (0, kicks(1).remove(0), Some(virtqueue()));
        let (session, activation) = Session::new(&config, (), Features::NONE, [queue], false);
        let queue = &activation.queues[0];
        thread::scope(|scope| {
            let interrupt = scope.spawn(|| queue.signal_used());
            has_begun.recv_timeout(SOON).unwrap();
            take_back(&session);
            returns.send(()).unwrap();
            interrupt.join().unwrap();
        });
    }
}

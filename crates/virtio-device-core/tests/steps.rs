// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Workers in a loop that is stepped by hand.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use support::activated;
use virtio_device_core::{Executor, Progress, RingFault, StepLoop};

#[test]
fn a_step_serves_what_was_notified_and_what_waits() {
    let activated = activated(2);
    let calls = Arc::new(AtomicU32::new(0));
    let seen = calls.clone();
    let worker = activated.worker(move |index, _| {
        seen.fetch_add(1 << (16 * index), Ordering::SeqCst);
        Ok(match index {
            0 => Progress::Idle,
            _ => Progress::After(Duration::from_secs(3600)),
        })
    });
    let mut workers = StepLoop::new().unwrap();
    workers.handle().start(worker).unwrap();
    let counts = || calls.load(Ordering::SeqCst);
    assert!(workers.step(), "the worker has started");
    assert!(!workers.step());
    activated.kick(1);
    assert!(workers.step());
    assert_eq!(counts(), 0x1_0000);
    assert!(workers.step(), "the wait is over at the next step");
    assert_eq!(counts(), 0x2_0000);
    activated.kick(0);
    assert!(workers.step());
    assert_eq!(counts(), 0x3_0001);
    // Nothing is called during a pause, and everything after it.
    activated.session.pause();
    activated.kick(0);
    workers.step();
    assert_eq!(counts(), 0x3_0001);
    activated.session.resume();
    assert!(workers.step());
    assert!(counts() >= 0x4_0002);
}

#[test]
fn a_look_needs_no_notification_and_takes_none() {
    let activated = activated(2);
    let calls = Arc::new(AtomicU32::new(0));
    let seen = calls.clone();
    let worker = activated.worker(move |_, _| match seen.fetch_add(1, Ordering::SeqCst) {
        4.. => Err(RingFault::ChainTooLong.into()),
        _ => Ok(Progress::Idle),
    });
    let mut workers = StepLoop::new().unwrap();
    workers.handle().start(worker).unwrap();
    workers.look();
    assert_eq!(calls.load(Ordering::SeqCst), 0, "it starts with a step");
    workers.step();
    activated.kick(0);
    workers.look();
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    assert!(workers.step(), "the notification is still there");
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    activated.session.pause();
    workers.look();
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    activated.session.resume();
    workers.look();
    assert!(activated.session.is_broken());
    let count = calls.load(Ordering::SeqCst);
    workers.look();
    assert_eq!(
        calls.load(Ordering::SeqCst),
        count,
        "a worker that has failed has ended"
    );
}

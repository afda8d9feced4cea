// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Waits of every length, in a loop that waits.
#![cfg(not(miri))] // It has no level-triggered epoll.

mod support;

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use support::{SOON, activated};
use virtio_device_core::{Executor, Progress, RateLimit, RateLimits, WorkerThread};

#[test]
fn a_wait_for_nothing_comes_round_at_once_and_lets_others_in() {
    let activated = activated(2);
    let (sender, calls) = channel();
    let worker = activated.worker(move |queue, _| {
        let _ = sender.send(queue);
        Ok(match queue {
            0 => Progress::After(Duration::ZERO),
            _ => Progress::Idle,
        })
    });
    let mut thread = WorkerThread::named("timers").unwrap();
    thread.start(worker).unwrap();
    activated.kick(0);
    for _ in 0..100 {
        assert_eq!(calls.recv_timeout(SOON), Ok(0));
    }
    activated.kick(1);
    while calls.recv_timeout(SOON).unwrap() != 1 {}
}

#[test]
fn a_wait_that_no_clock_sees_the_end_of_keeps_nobody_from_being_served() {
    let far = [
        Duration::MAX,
        Duration::from_secs(u64::MAX),
        Duration::from_secs(u64::MAX >> 2),
        Duration::from_secs(1 << 40),
        Duration::from_secs((1 << 30) + 1),
    ];
    for wait in far {
        let activated = activated(2);
        let (sender, calls) = channel();
        let worker = activated.worker(move |queue, _| {
            let _ = sender.send(queue);
            Ok(match queue {
                0 => Progress::After(wait),
                _ => Progress::After(Duration::from_millis(1)),
            })
        });
        let mut thread = WorkerThread::named("timers").unwrap();
        thread.start(worker).unwrap();
        activated.kick(0);
        assert_eq!(calls.recv_timeout(SOON), Ok(0));
        let quiet = calls.recv_timeout(Duration::from_millis(20));
        assert_eq!(quiet, Err(RecvTimeoutError::Timeout));
        // The shorter wait is kept, and a kick still comes through.
        activated.kick(1);
        for _ in 0..3 {
            assert_eq!(calls.recv_timeout(SOON), Ok(1));
        }
        activated.kick(0);
        while calls.recv_timeout(SOON).unwrap() != 0 {}
        assert!(!activated.session.is_broken());
    }
}

#[test]
fn a_hook_that_fails_or_panics_makes_no_thread() {
    let refused = WorkerThread::with_hook("hook", || Err(std::io::Error::other("no affinity")));
    assert_eq!(refused.unwrap_err().to_string(), "no affinity");
    let panicked = WorkerThread::with_hook("hook", || panic!("in the hook"));
    assert!(panicked.unwrap_err().to_string().contains("panicked"));
}

#[test]
fn a_limit_that_is_changed_early_keeps_the_part_of_a_token() {
    let limits = RateLimits::none();
    limits.set(RateLimit::new(10, 1), None);
    limits.charge(1);
    std::thread::sleep(Duration::from_millis(60));
    limits.set(RateLimit::new(1, 1), None);
    // At least 6 tenths of a token had come in, if not all of it.
    let wait = limits.admit().err().unwrap_or_default();
    assert!(wait <= Duration::from_millis(400), "{wait:?}");
}

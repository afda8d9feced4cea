// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Workers in a loop of the VMM's own.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]
#![cfg(not(miri))] // Miri has no level-triggered epoll.

mod support;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use support::{SOON, activated, activated_with, kicks};
use virtio_device_core::{Executor, Progress, WorkerLoop};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Whether `fd` becomes readable in an epoll instance of the VMM's own.
fn readable(fd: &impl AsRawFd, wait: Duration) -> bool {
    let epoll = Epoll::new().unwrap();
    let event = EpollEvent::new(EventSet::IN, 0);
    epoll
        .ctl(ControlOperation::Add, fd.as_raw_fd(), event)
        .unwrap();
    let wait = i32::try_from(wait.as_millis()).unwrap();
    epoll.wait(wait, &mut [EpollEvent::default()]).unwrap() == 1
}

#[test]
fn a_worker_leaves_a_loop_of_the_vmms_own_and_comes_back() {
    let mut workers = WorkerLoop::new().unwrap();
    let kicks = kicks(2);
    for round in 0..10 {
        let activated = activated_with(&kicks);
        let calls = Arc::new(AtomicU32::new(0));
        let seen = calls.clone();
        let worker = activated.worker(move |_, _| {
            seen.fetch_add(1, Ordering::SeqCst);
            Ok(Progress::Idle)
        });
        workers.handle().start(worker).unwrap();
        assert!(readable(&workers, SOON));
        workers.dispatch().unwrap();
        assert_eq!(workers.workers(), 1, "round {round}");
        assert!(!readable(&workers, Duration::ZERO));
        activated.session.kick_all();
        assert!(readable(&workers, SOON));
        workers.dispatch().unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 2);
        activated.session.revoke();
        assert!(readable(&workers, SOON));
        workers.dispatch().unwrap();
        assert_eq!(workers.workers(), 0);
        // No descriptor was left behind: a kick of the next life wakes nobody yet.
        activated.kick(0);
        assert!(!readable(&workers, Duration::ZERO));
        activated.queues[0].kick.read().unwrap();
    }
}

#[test]
fn a_loop_of_the_vmms_own_waits_for_time_as_well() {
    let mut workers = WorkerLoop::new().unwrap();
    let activated = activated(1);
    let calls = Arc::new(AtomicU32::new(0));
    let seen = calls.clone();
    let worker = activated.worker(move |_, _| {
        Ok(match seen.fetch_add(1, Ordering::SeqCst) {
            0 => Progress::After(Duration::from_millis(5)),
            1 => Progress::More,
            _ => Progress::Idle,
        })
    });
    workers.handle().start(worker).unwrap();
    activated.kick(0);
    while calls.load(Ordering::SeqCst) < 3 {
        assert!(readable(&workers, SOON));
        workers.dispatch().unwrap();
    }
    assert!(!readable(&workers, Duration::from_millis(20)));
}

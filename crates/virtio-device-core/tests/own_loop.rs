// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Workers in a loop of the VMM's own.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]
#![cfg(not(miri))] // Miri has no level-triggered epoll.

mod support;

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::{Input, SOON, activated, activated_with, kicks};
use virtio_device_core::{
    Context, DeviceFault, Executor, InFlight, Progress, QueueHandler, Worker, WorkerLoop,
};
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

#[test]
fn a_sibling_of_a_worker_that_has_failed_is_not_called_for_a_source_either() {
    let mut workers = WorkerLoop::new().unwrap();
    let activated = activated(0);
    let calls = Arc::new(AtomicU32::new(0));
    let _peers = [(); 3].map(|()| {
        let (host, mut peer) = UnixStream::pair().unwrap();
        peer.write_all(b"x").unwrap();
        let seen = calls.clone();
        let input = Input(
            move |cx: &mut Context<'_>| {
                let watched = cx.watch(0, &host, EventSet::IN);
                watched.map_err(DeviceFault::Backend)
            },
            move |_, _: EventSet, _: &mut Context<'_>| {
                seen.fetch_add(1, Ordering::SeqCst);
                Err(DeviceFault::device("a fault"))
            },
        );
        let worker = Worker::new(input, vec![], activated.interrupt.clone());
        workers.handle().start(worker).unwrap();
        peer
    });
    (0..5).for_each(|_| workers.dispatch().unwrap());
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(workers.workers(), 0);
}

#[test]
fn sources_that_take_turns_are_called_when_they_are_ready_alone_whatever_is_paused() {
    let mut workers = WorkerLoop::new().unwrap();
    let activated = activated(1);
    let (mut peers, mut hosts) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let (host, peer) = UnixStream::pair().unwrap();
        peers.push(peer);
        hosts.push(host);
    }
    let log = Arc::new(Mutex::new(Vec::new()));
    let (watched, seen) = ([0, 1].map(|n| hosts[n].try_clone().unwrap()), log.clone());
    let input = Input(
        move |cx: &mut Context<'_>| {
            for (number, host) in (0..).zip(&watched) {
                let interest = [EventSet::IN, EventSet::empty()][number as usize];
                let watched = cx.watch(number, host, interest);
                watched.map_err(DeviceFault::Backend)?;
            }
            Ok(())
        },
        move |number: u32, readiness: EventSet, cx: &mut Context<'_>| {
            // A read that would block would block for ever.
            assert_eq!(readiness, EventSet::IN);
            let mut byte = [0];
            hosts[number as usize].read_exact(&mut byte).unwrap();
            seen.lock().unwrap().push((number, byte[0]));
            cx.set_interest(number, EventSet::empty()).unwrap();
            cx.set_interest(1 - number, EventSet::IN).unwrap();
            Ok(Progress::Idle)
        },
    );
    let queues = activated.queues.clone();
    let worker = Worker::new(input, queues, activated.interrupt.clone());
    workers.handle().start(worker).unwrap();
    let bytes: Vec<u8> = (0..20).collect();
    peers
        .iter_mut()
        .for_each(|it| it.write_all(&bytes).unwrap());
    for round in 0..100 {
        match round {
            10 => activated.session.pause(),
            13 => {
                activated.session.resume();
                activated.session.pause();
            }
            20 => activated.session.resume(),
            _ => {}
        }
        workers.dispatch().unwrap();
    }
    assert!(!activated.session.is_broken());
    let turns = bytes.iter().flat_map(|&byte| [(0, byte), (1, byte)]);
    assert_eq!(*log.lock().unwrap(), turns.collect::<Vec<_>>());
}

#[test]
fn a_callback_that_resets_another_device_of_the_loop_does_not_wait_for_its_own_loop() {
    struct Holds(Option<InFlight>);
    impl QueueHandler for Holds {
        fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
            self.0 = cx.queue(queue).and_then(|queue| queue.lease.hold().ok());
            Ok(Progress::Idle)
        }
    }
    for place in 0..3 {
        let mut workers = WorkerLoop::new().unwrap();
        let resets = activated(1);
        let others = [activated(1), activated(1)];
        let holds = others.each_ref().map(|other| {
            let queues = other.queues.clone();
            Worker::new(Holds(None), queues, other.interrupt.clone())
        });
        others.iter().for_each(|other| other.session.kick_all());
        let mut sessions = Some(others.map(|other| other.session));
        let idle = Arc::new(Mutex::new(Vec::new()));
        let seen = idle.clone();
        let reset = resets.worker(move |_, _| {
            for session in sessions.take().into_iter().flatten() {
                session.revoke();
                seen.lock().unwrap().push(session.wait_idle(Some(SOON)));
            }
            Ok(Progress::Idle)
        });
        let mut all = Vec::from(holds);
        all.insert(place, reset);
        for worker in all {
            workers.handle().start(worker).unwrap();
        }
        (0..4).for_each(|_| workers.dispatch().unwrap());
        assert_eq!(workers.workers(), 3);
        resets.kick(0);
        (0..4).for_each(|_| workers.dispatch().unwrap());
        assert_eq!(*idle.lock().unwrap(), [true, true], "in place {place}");
        assert_eq!(workers.workers(), 1);
        resets.kick(0);
        workers.dispatch().unwrap();
        assert!(!resets.session.is_broken());
    }
}

#[test]
fn a_callback_that_resets_a_device_whose_worker_is_about_to_start_does_not_wait_either() {
    let mut workers = WorkerLoop::new().unwrap();
    let (resets, other) = (activated(1), activated(1));
    let held = other.queues[0].lease.hold().unwrap();
    let starts = other.worker(move |_, _| {
        let _ = &held;
        Ok(Progress::Idle)
    });
    let (mut session, mut calls) = (Some(other.session), 0);
    let idle = Arc::new(Mutex::new(None));
    let seen = idle.clone();
    let reset = resets.worker(move |_, _| {
        calls += 1;
        if calls == 1 {
            return Ok(Progress::More);
        }
        if let Some(session) = session.take() {
            session.revoke();
            *seen.lock().unwrap() = Some(session.wait_idle(Some(SOON)));
        }
        Ok(Progress::Idle)
    });
    workers.handle().start(reset).unwrap();
    workers.dispatch().unwrap();
    resets.kick(0);
    workers.dispatch().unwrap();
    workers.handle().start(starts).unwrap();
    (0..3).for_each(|_| workers.dispatch().unwrap());
    assert_eq!(*idle.lock().unwrap(), Some(true));
    assert_eq!(workers.workers(), 1);
}

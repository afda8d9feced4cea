// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Handlers that leave something behind which panics in its turn, when it is dropped.
#![expect(clippy::panic, reason = "what is tested is what follows from a panic")]
#![cfg(not(miri))] // Miri has no level-triggered epoll.

mod support;

use std::error::Error;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::mpsc::channel;

use support::{Activated, Input, SOON, activated, activated_with, kicks, wait_until};
use virtio_device_core::{
    Context, DeviceFault, Executor, Progress, QueueHandler, StepLoop, Worker, WorkerLoop,
    WorkerThread,
};

type Handler = Box<dyn QueueHandler>;

/// Panics when it is dropped, with another one for as often as it says.
#[derive(Debug)]
struct Bomb(u32);

impl Drop for Bomb {
    fn drop(&mut self) {
        if let Some(left) = self.0.checked_sub(1) {
            panic_any(Self(left));
        }
    }
}

impl fmt::Display for Bomb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a bug in the device")
    }
}

impl Error for Bomb {}

/// A worker whose handler does this when it starts.
fn starts(activated: &Activated, start: fn() -> Result<(), DeviceFault>) -> Worker {
    let handler = Input(
        move |_: &mut Context<'_>| start(),
        |_, _, _: &mut Context<'_>| Ok(Progress::Idle),
    );
    let (queues, interrupt) = (activated.queues.clone(), activated.interrupt.clone());
    Worker::new(handler, queues, interrupt)
}

/// A worker whose handler is built by this.
fn is_built(activated: &Activated, build: fn() -> Result<Handler, DeviceFault>) -> Worker {
    let (queues, interrupt) = (activated.queues.clone(), activated.interrupt.clone());
    Worker::build(queues, interrupt, build)
}

#[test]
fn what_a_failed_handler_leaves_behind_ends_no_other_worker_of_the_thread() {
    let bad: [fn(&Activated) -> Worker; 6] = [
        |it| it.worker(|_, _| panic_any(Bomb(3))),
        |it| it.worker(|_, _| Err(DeviceFault::device(Bomb(3)))),
        |it| starts(it, || panic_any(Bomb(3))),
        |it| starts(it, || Err(DeviceFault::device(Bomb(3)))),
        |it| is_built(it, || panic_any(Bomb(3))),
        |it| is_built(it, || Err(DeviceFault::device(Bomb(3)))),
    ];
    let mut thread = WorkerThread::named("test").unwrap();
    for (case, bad) in bad.into_iter().enumerate() {
        let kicks = kicks(1);
        let first = activated_with(&kicks);
        first.kick(0);
        thread.start(bad(&first)).unwrap();
        wait_until("failure", || first.session.is_broken());
        first.session.revoke();
        // The next one waits for the same queue.
        let next = activated_with(&kicks);
        let (sender, calls) = channel();
        let worker = next.worker(move |_, _| {
            let _ = sender.send(());
            Ok(Progress::Idle)
        });
        thread.start(worker).unwrap();
        next.kick(0);
        assert_eq!(calls.recv_timeout(SOON), Ok(()), "case {case}");
        assert!(!next.session.is_broken(), "case {case}");
        next.session.revoke();
    }
}

/// A worker whose handler panics when it is dropped.
fn explosive(activated: &Activated) -> Worker {
    let bomb = Bomb(3);
    activated.worker(move |_, _| {
        let _ = &bomb;
        Ok(Progress::Idle)
    })
}

#[test]
fn a_handler_that_panics_whenever_it_is_dropped_ends_no_loop() {
    let mut workers = WorkerLoop::new().unwrap();
    for has_started in [false, true] {
        let activated = activated(1);
        let worker = explosive(&activated);
        workers.handle().start(worker).unwrap();
        let mut dispatch = || {
            let dispatched = catch_unwind(AssertUnwindSafe(|| workers.dispatch().unwrap()));
            let is_caught = dispatched.map_err(std::mem::forget).is_ok();
            assert!(is_caught, "started: {has_started}");
            workers.workers()
        };
        if has_started {
            assert_eq!(dispatch(), 1);
        }
        activated.session.revoke();
        assert_eq!(dispatch(), 0);
    }
}

#[test]
fn a_hook_that_panics_with_what_panics_again_is_an_error() {
    let panicked = WorkerThread::with_hook("hook", || panic_any(Bomb(3)));
    assert!(panicked.unwrap_err().to_string().contains("panicked"));
}

/// Whether this returns.
fn returns(what: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(what))
        .map_err(std::mem::forget)
        .is_ok()
}

#[test]
fn a_worker_that_nobody_takes_panics_at_nobody() {
    let activated = activated(1);
    let stopped = StepLoop::new().unwrap().handle();
    let nobody: [Box<dyn Executor>; 2] =
        [Box::new(stopped), Box::new(Vec::<WorkerThread>::default())];
    for (case, mut nobody) in nobody.into_iter().enumerate() {
        let refuses = || assert!(nobody.start(explosive(&activated)).is_err());
        assert!(returns(refuses), "case {case}");
    }
}

#[test]
fn a_loop_goes_away_whatever_its_handlers_do() {
    let activated = [activated(1), activated(1)];
    let mut stepped = StepLoop::new().unwrap();
    let mut waits = WorkerLoop::new().unwrap();
    for activated in &activated {
        stepped.handle().start(explosive(activated)).unwrap();
        waits.handle().start(explosive(activated)).unwrap();
    }
    stepped.step();
    waits.dispatch().unwrap();
    assert!(returns(|| drop(waits)));
    assert!(returns(|| drop(stepped)));
}

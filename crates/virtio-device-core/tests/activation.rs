// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Beginning and end of an activation: who is told, from where, and who lets go of what.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

mod support;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::{SOON, activated, kicks, virtqueue};
use virtio_device_core::transport::{Interrupt, Session};
use virtio_device_core::{
    ActiveQueue, BadRequest, ConfigNotifier, Context, DeviceFault, Event, Executor, Features,
    InterruptHandle, Progress, QueueHandler, RingFault, StepLoop, Worker, WorkerLoop,
};

/// A driver's end that uses the device's handles itself, once for each call.
#[derive(Default)]
struct Eager {
    handles: Mutex<Option<(ActiveQueue, InterruptHandle, ConfigNotifier)>>,
    used: AtomicU32,
    config: AtomicU32,
    depth: AtomicU32,
}

impl Eager {
    fn use_handles(&self) {
        let handles = self.handles.lock().unwrap().clone();
        let Some((queue, interrupt, config)) = handles else {
            return;
        };
        if self.depth.fetch_add(1, Ordering::SeqCst) == 0 {
            queue.signal_used();
            assert!(queue.interrupt_fd().is_none());
            interrupt.bad_request(0, BadRequest::Layout);
            interrupt.device_failed(&DeviceFault::Panicked);
            config.update(|| ());
            assert!(!interrupt.is_revoked() && !interrupt.is_paused());
        }
        self.depth.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Interrupt for Eager {
    fn used_buffers(&self, _queue: u16) {
        self.used.fetch_add(1, Ordering::SeqCst);
        self.use_handles();
    }

    fn config_interrupt(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
        self.use_handles();
    }

    fn observe(&self, _event: &Event<'_>) {
        self.use_handles();
    }
}

#[test]
fn a_line_or_an_observer_may_use_the_handles_that_called_it() {
    let calls: [fn(&ActiveQueue, &InterruptHandle, &ConfigNotifier); 4] = [
        |queue, _, _| queue.signal_used(),
        |_, interrupt, _| interrupt.device_failed(&DeviceFault::Panicked),
        |_, interrupt, _| interrupt.bad_request(0, BadRequest::Layout),
        |_, _, config| config.update(|| ()),
    ];
    for call in calls {
        let eager = Arc::new(Eager::default());
        let config = ConfigNotifier::new(eager.clone());
        let queue = (0, kicks(1).remove(0), Some(virtqueue()));
        let (session, activation) = Session::new(&config, (), Features::NONE, [queue], false);
        let queue = activation.queues[0].clone();
        let handles = (queue.clone(), activation.interrupt.clone(), config.clone());
        *eager.handles.lock().unwrap() = Some(handles);
        call(&queue, &activation.interrupt, &config);
        assert!(session.is_broken());
        assert!(eager.used.load(Ordering::SeqCst) > 0);
        assert!(eager.config.load(Ordering::SeqCst) > 1);
        // And after the reset nothing reaches the driver.
        session.revoke();
        let before = [&eager.used, &eager.config].map(|count| count.load(Ordering::SeqCst));
        call(&queue, &activation.interrupt, &config);
        let after = [&eager.used, &eager.config].map(|count| count.load(Ordering::SeqCst));
        assert_eq!(after, before);
    }
}

#[test]
fn a_reset_on_the_loops_own_thread_lets_go_of_what_its_handler_holds() {
    let (mut steps, mut workers) = (StepLoop::new().unwrap(), WorkerLoop::new().unwrap());
    for stepped in [true, false] {
        let activated = activated(1);
        let held = activated.queues[0].lease.hold().unwrap();
        let worker = activated.worker(move |_, _| {
            let _ = &held;
            Ok(Progress::Idle)
        });
        if stepped {
            steps.handle().start(worker).unwrap();
            steps.step();
        } else {
            if cfg!(miri) {
                continue; // it has no level-triggered epoll
            }
            workers.handle().start(worker).unwrap();
            workers.dispatch().unwrap();
        }
        activated.session.pause();
        assert!(!activated.session.wait_idle(Some(Duration::ZERO)));
        activated.session.revoke();
        assert!(activated.session.wait_idle(Some(SOON)));
    }
    assert!(!steps.step());
    assert_eq!(workers.workers(), 0);
}

#[test]
fn a_reset_on_the_loops_own_thread_lets_go_of_a_handler_that_has_not_started() {
    let (steps, workers) = (StepLoop::new().unwrap(), WorkerLoop::new().unwrap());
    let executors: [&mut dyn Executor; 2] = [&mut steps.handle(), &mut workers.handle()];
    for executor in executors {
        let activated = activated(1);
        let held = activated.queues[0].lease.hold().unwrap();
        let worker = activated.worker(move |_, _| {
            let _ = &held;
            Ok(Progress::Idle)
        });
        executor.start(worker).unwrap();
        activated.session.revoke();
        assert!(activated.session.wait_idle(Some(SOON)));
    }
    // Also if the loop goes away before it has come to that.
    let activated = activated(1);
    let held = Arc::new(());
    let theirs = held.clone();
    let worker = activated.worker(move |_, _| {
        let _ = &theirs;
        Ok(Progress::Idle)
    });
    let _handle = steps.handle();
    steps.handle().start(worker).unwrap();
    drop(steps);
    assert_eq!(Arc::strong_count(&held), 1);
}

#[test]
fn nobody_is_left_out_of_a_round_in_which_a_handler_resets_another_device() {
    struct Resets(Session);
    impl Drop for Resets {
        fn drop(&mut self) {
            self.0.revoke();
            assert!(self.0.wait_idle(Some(SOON)));
        }
    }
    let mut workers = StepLoop::new().unwrap();
    let mut executor = workers.handle();
    let [first, failing, last] = [(); 3].map(|()| activated(1));
    let calls = Arc::new(AtomicU32::new(0));
    let seen = calls.clone();
    executor.start(first.idle()).unwrap();
    let resets = Resets(first.session);
    let fails = failing.worker(move |_, _| {
        let _ = &resets;
        Err(RingFault::ChainTooLong.into())
    });
    executor.start(fails).unwrap();
    let counts = last.worker(move |_, _| {
        seen.fetch_add(1, Ordering::SeqCst);
        Ok(Progress::Idle)
    });
    executor.start(counts).unwrap();
    workers.step();
    failing.kick(0);
    last.kick(0);
    workers.step();
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[test]
fn a_device_is_live_although_it_has_dropped_a_worker() {
    let mut workers = StepLoop::new().unwrap();
    let activated = activated(1);
    drop(activated.idle());
    workers.handle().start(activated.idle()).unwrap();
    // One that its executor refuses.
    let gone = StepLoop::new().unwrap().handle();
    let refused = Executor::start(&mut gone.clone(), activated.idle());
    assert!(matches!(refused, Err(DeviceFault::Worker(_))));
    activated.session.activated();
    assert!(activated.told.events.lock().unwrap().is_empty());
    workers.step();
    let events = activated.told.events.lock().unwrap();
    assert_eq!(events.len(), 1);
    assert!(events[0].starts_with("Activated"), "{events:?}");
}

#[test]
fn a_handler_may_start_a_worker_when_its_loop_is_gone() {
    struct StartsAnother<E: Executor>(E, Option<Worker>);
    impl<E: Executor> Drop for StartsAnother<E> {
        fn drop(&mut self) {
            assert!(self.0.start(self.1.take().unwrap()).is_err());
        }
    }
    impl<E: Executor> QueueHandler for StartsAnother<E> {
        fn process(&mut self, _: u16, _: &mut Context<'_>) -> Result<Progress, DeviceFault> {
            Ok(Progress::Idle)
        }
    }
    let activated = activated(0);
    let workers = WorkerLoop::new().unwrap();
    let mut executor = workers.handle();
    let handler = StartsAnother(executor.clone(), Some(activated.idle()));
    let worker = Worker::new(handler, vec![], activated.interrupt.clone());
    executor.start(worker).unwrap();
    drop(workers);
    assert!(activated.session.is_broken());
}

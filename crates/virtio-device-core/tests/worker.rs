// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Workers: started, woken, stuck, failing, ended.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]
#![cfg(not(miri))] // Miri has no level-triggered epoll.

mod support;

use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::{Activated, SOON, Script, activated, activated_with, kicks, wait_until};
use virtio_device_core::{
    Context, DeviceFault, Executor, Progress, RingFault, Unavailable, Worker, WorkerLoop,
    WorkerThread,
};

fn thread() -> WorkerThread {
    WorkerThread::named("test").unwrap()
}

/// A worker that waits for the test in the middle of its work.
fn stuck(activated: &Activated) -> (Worker, Receiver<()>, Sender<()>) {
    let (entered, inside) = channel();
    let (release, released) = channel::<()>();
    let released = Mutex::new(released);
    let worker = activated.worker(move |_, _| {
        entered.send(()).unwrap();
        let _ = released.lock().unwrap().recv();
        Ok(Progress::Idle)
    });
    (worker, inside, release)
}

#[test]
fn a_kick_before_the_start_is_not_lost() {
    let activated = activated(1);
    activated.kick(0);
    let (sender, calls) = channel();
    let worker = activated.worker(move |index, _| {
        sender.send(index).unwrap();
        Ok(Progress::Idle)
    });
    let mut thread = thread();
    thread.start(worker).unwrap();
    assert_eq!(calls.recv_timeout(SOON), Ok(0));
}

#[test]
fn a_handler_that_wants_more_is_called_again_until_reset() {
    let activated = activated(1);
    activated.kick(0);
    let calls = Arc::new(AtomicU32::new(0));
    let seen = calls.clone();
    let worker = activated.worker(move |_, _| {
        seen.fetch_add(1, Ordering::SeqCst);
        Ok(Progress::More)
    });
    let mut thread = thread();
    thread.start(worker).unwrap();
    wait_until("100 calls", || calls.load(Ordering::SeqCst) > 100);
    activated.session.revoke();
    // Its handler is dropped, and with it the other half of this counter.
    wait_until("the end of the worker", || Arc::strong_count(&calls) == 1);
}

#[test]
fn a_fault_is_told_once_and_ends_the_siblings() {
    let activated = activated(2);
    let alive = Arc::new(());
    let sibling = alive.clone();
    let idle = Worker::new(
        Script(move |_, _: &mut Context<'_>| {
            let _ = &sibling;
            Ok(Progress::Idle)
        }),
        vec![activated.queues[1].clone()],
        activated.interrupt.clone(),
    );
    let failing = Worker::new(
        Script(|_, _: &mut Context<'_>| Err(RingFault::ChainTooLong.into())),
        vec![activated.queues[0].clone()],
        activated.interrupt.clone(),
    );
    let mut pool = vec![thread(), thread()];
    pool.start(idle).unwrap();
    pool.start(failing).unwrap();
    activated.kick(0);
    wait_until("failure", || activated.session.is_broken());
    wait_until("the end of the sibling", || Arc::strong_count(&alive) == 1);
    activated.kick(0);
    assert_eq!(activated.told.config.load(Ordering::SeqCst), 1);
    let events = activated.told.events.lock().unwrap();
    assert_eq!(*events, ["DeviceFailed(Ring(ChainTooLong))"]);
}

#[test]
fn a_panic_is_told_to_the_driver_and_harms_no_other_device_on_the_thread() {
    let (bad, good) = (activated(1), activated(1));
    let mut thread = thread();
    let panicking = bad.worker(|_, _| panic!("a bug in the device"));
    thread.start(panicking).unwrap();
    let (sender, calls) = channel();
    let worker = good.worker(move |_, _| {
        sender.send(()).unwrap();
        Ok(Progress::Idle)
    });
    thread.start(worker).unwrap();
    bad.kick(0);
    wait_until("failure", || bad.session.is_broken());
    assert_eq!(*bad.told.events.lock().unwrap(), ["DeviceFailed(Panicked)"]);
    good.kick(0);
    assert_eq!(calls.recv_timeout(SOON), Ok(()));
    assert!(!good.session.is_broken());
}

#[test]
fn a_handler_that_panics_when_it_is_dropped_harms_nobody() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(std::thread::panicking(), "a bug in the device");
        }
    }
    let (bad, good) = (activated(1), activated(1));
    let bomb = Bomb;
    let (sender, calls) = channel();
    let worker = bad.worker(move |_, _| {
        let _ = &bomb;
        Ok(Progress::Idle)
    });
    let mut thread = thread();
    thread.start(worker).unwrap();
    let worker = good.worker(move |_, _| {
        sender.send(()).unwrap();
        Ok(Progress::Idle)
    });
    thread.start(worker).unwrap();
    bad.session.revoke();
    good.kick(0);
    assert_eq!(calls.recv_timeout(SOON), Ok(()));
}

#[test]
fn behind_a_stuck_worker_resets_in_any_number_leave_one_that_waits() {
    let kicks = kicks(1);
    let first = activated_with(&kicks);
    first.kick(0);
    let (worker, inside, release) = stuck(&first);
    let mut thread = thread();
    thread.start(worker).unwrap();
    inside.recv_timeout(SOON).unwrap();
    first.session.revoke();

    let alive = Arc::new(());
    let (sender, served) = channel();
    let mut last = None;
    for round in 0..1000 {
        let next = activated_with(&kicks);
        let (held, sender) = (alive.clone(), sender.clone());
        let worker = next.worker(move |_, _| {
            let _ = &held;
            sender.send(round).unwrap();
            Ok(Progress::Idle)
        });
        thread.start(worker).unwrap();
        assert!(Arc::strong_count(&alive) <= 3, "{round}: they pile up");
        next.session.kick_all();
        if let Some(before) = last.replace(next) {
            drop::<Activated>(before);
        }
        if round < 999 {
            last.as_ref().unwrap().session.revoke();
        }
    }
    // It was never the driver's fault, and the driver is served as soon as the backend is.
    assert!(!last.as_ref().unwrap().session.is_broken());
    drop(release);
    assert_eq!(served.recv_timeout(SOON), Ok(999));
}

#[test]
fn a_notification_for_the_next_worker_is_not_taken_by_the_last() {
    let kicks = kicks(1);
    let mut pool = [thread(), thread()];
    for round in 0..500 {
        let activated = activated_with(&kicks);
        let (sender, calls) = channel();
        let worker = activated.worker(move |_, _| {
            let _ = sender.send(());
            Ok(Progress::Idle)
        });
        pool[round % 2].start(worker).unwrap();
        activated.kick(0);
        let called = calls.recv_timeout(SOON);
        assert_eq!(called, Ok(()), "round {round}: a lost wake-up");
        activated.session.revoke();
    }
}

#[test]
fn a_wait_of_one_queue_survives_a_kick_of_another() {
    let activated = activated(2);
    let (sender, calls) = channel();
    let mut waits = vec![Duration::from_millis(30)].into_iter();
    let worker = activated.worker(move |index, _| {
        sender.send((index, Instant::now())).unwrap();
        Ok(match index {
            1 => waits.next().map_or(Progress::Idle, Progress::After),
            _ => Progress::Idle,
        })
    });
    let mut thread = thread();
    thread.start(worker).unwrap();
    activated.kick(1);
    let (index, begin) = calls.recv_timeout(SOON).unwrap();
    assert_eq!(index, 1);
    activated.kick(0);
    assert_eq!(calls.recv_timeout(SOON).unwrap().0, 0);
    let (index, end) = calls.recv_timeout(SOON).unwrap();
    assert_eq!(index, 1);
    assert!(end - begin >= Duration::from_millis(30));
    // The timer goes off once for each wait.
    calls.recv_timeout(Duration::from_millis(50)).unwrap_err();
}

#[test]
fn a_wait_for_ever_is_a_wait() {
    let activated = activated(1);
    let (sender, calls) = channel();
    let worker = activated.worker(move |_, _| {
        sender.send(()).unwrap();
        Ok(Progress::After(Duration::MAX))
    });
    let mut thread = thread();
    thread.start(worker).unwrap();
    for _ in 0..2 {
        activated.kick(0);
        calls.recv_timeout(SOON).unwrap();
    }
    calls.recv_timeout(Duration::from_millis(20)).unwrap_err();
    assert!(!activated.session.is_broken());
}

#[test]
fn nothing_is_called_during_a_pause_and_everything_after_it() {
    let activated = activated(2);
    let calls = Arc::new(AtomicU32::new(0));
    let seen = calls.clone();
    let (sender, after) = channel();
    let worker = activated.worker(move |index, cx| {
        seen.fetch_add(1, Ordering::SeqCst);
        let size = cx.queue(index).unwrap().lease.with(|queue| queue.size());
        let _ = sender.send((index, size));
        Ok(Progress::More)
    });
    let mut thread = thread();
    thread.start(worker).unwrap();
    activated.session.kick_all();
    for _ in 0..20 {
        let before = calls.load(Ordering::SeqCst);
        wait_until("a call", || calls.load(Ordering::SeqCst) > before + 10);
        activated.session.pause();
        assert!(activated.session.wait_idle(Some(SOON)));
        // A call that was under way, however long ago, finds its queue paused; there is no further one.
        let at_rest = calls.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(4));
        while after.try_recv().is_ok() {}
        let later = calls.load(Ordering::SeqCst);
        assert!(later <= at_rest + 1, "{later} calls after {at_rest}");
        activated.session.resume();
    }
    let mut seen = [false; 2];
    while seen != [true; 2] {
        if let (index, Ok(4)) = after.recv_timeout(SOON).unwrap() {
            seen[usize::from(index)] = true;
        }
    }
}

#[test]
fn a_request_that_was_half_done_at_a_pause_is_seen_again_after_it() {
    let activated = activated(1);
    let (entered, inside) = channel();
    let (release, released) = channel::<()>();
    let released = Mutex::new(released);
    let mut first = true;
    let worker = activated.worker(move |index, cx| {
        if std::mem::take(&mut first) {
            entered.send(Ok(0)).unwrap();
            released.lock().unwrap().recv().unwrap();
        }
        let size = cx.queue(index).unwrap().lease.with(|queue| queue.size());
        entered.send(size).unwrap();
        Ok(Progress::Idle)
    });
    let mut thread = thread();
    thread.start(worker).unwrap();
    activated.kick(0);
    assert_eq!(inside.recv_timeout(SOON), Ok(Ok(0)));
    activated.session.pause();
    release.send(()).unwrap();
    let paused = Ok(Err(Unavailable::Paused));
    assert_eq!(inside.recv_timeout(SOON), paused);
    activated.session.resume();
    assert_eq!(inside.recv_timeout(SOON), Ok(Ok(4)));
}

#[test]
fn a_queue_that_is_reset_alone_comes_back_to_its_worker() {
    let mut activated = activated(2);
    let (sender, calls) = channel();
    let worker = activated.worker(move |index, cx| {
        let size = cx.queue(index).unwrap().lease.with(|queue| queue.size());
        sender.send((index, size)).unwrap();
        Ok(Progress::Idle)
    });
    let mut thread = thread();
    thread.start(worker).unwrap();
    activated.kick(0);
    assert_eq!(calls.recv_timeout(SOON), Ok((0, Ok(4))));
    // Which is told to the worker, without a notification by the driver.
    activated.session.revoke_queue(0);
    let revoked = Err(Unavailable::Revoked);
    assert_eq!(calls.recv_timeout(SOON), Ok((0, revoked)));
    activated.kick(1);
    assert_eq!(calls.recv_timeout(SOON), Ok((1, Ok(4))));
    assert!(activated.session.restart_queue(0, support::virtqueue()));
    assert_eq!(calls.recv_timeout(SOON), Ok((0, Ok(4))));
    assert!(!activated.session.restart_queue(7, support::virtqueue()));
}

#[test]
fn a_handler_built_on_its_thread_need_not_be_send() {
    let activated = activated(1);
    let (sender, calls) = channel();
    let worker = Worker::build(
        activated.queues.clone(),
        activated.interrupt.clone(),
        move || {
            let local = Rc::new(std::thread::current().id());
            Ok(Box::new(Script(move |_, _: &mut Context<'_>| {
                sender.send(*local == std::thread::current().id()).unwrap();
                Ok(Progress::Idle)
            })))
        },
    );
    let mut thread = thread();
    thread.start(worker).unwrap();
    activated.kick(0);
    assert_eq!(calls.recv_timeout(SOON), Ok(true));
}

#[test]
fn a_handler_that_cannot_be_built_fails_the_device_and_is_never_activated() {
    for panics in [false, true] {
        let activated = activated(1);
        let worker = Worker::build(
            activated.queues.clone(),
            activated.interrupt.clone(),
            move || {
                assert!(!panics, "a bug in the device");
                Err(DeviceFault::Backend(std::io::ErrorKind::NotFound.into()))
            },
        );
        let mut thread = thread();
        thread.start(worker).unwrap();
        activated.session.activated();
        wait_until("failure", || activated.session.is_broken());
        let events = activated.told.events.lock().unwrap();
        assert_eq!(events.len(), 1, "{events:?}");
    }
}

#[test]
fn a_device_is_live_when_its_last_worker_has_started() {
    let activated = activated(2);
    let [first, second] = [0, 1].map(|index: usize| {
        let idle = Script(|_, _: &mut Context<'_>| Ok(Progress::Idle));
        let queue = activated.queues[index].clone();
        Worker::new(idle, vec![queue], activated.interrupt.clone())
    });
    activated.session.activated();
    let live = || !activated.told.events.lock().unwrap().is_empty();
    let mut thread = thread();
    thread.start(first).unwrap();
    // Started by now, or never.
    std::thread::sleep(Duration::from_millis(20));
    assert!(!live());
    thread.start(second).unwrap();
    wait_until("the device is live", live);
    let events = activated.told.events.lock().unwrap();
    assert!(events[0].starts_with("Activated"), "{events:?}");
}

#[test]
fn a_worker_that_a_live_device_starts_later_is_no_news() {
    let activated = activated(1);
    activated.session.activated();
    let mut workers = WorkerLoop::new().unwrap();
    workers.handle().start(activated.idle()).unwrap();
    workers.dispatch().unwrap();
    assert_eq!(workers.workers(), 1);
    let told = activated.told.events.lock().unwrap().len();
    assert_eq!(told, 1);
}

#[test]
fn a_hook_runs_on_the_thread_and_may_refuse() {
    let (sender, ran) = channel();
    let thread = WorkerThread::with_hook("hooked", move || {
        sender
            .send(std::thread::current().name().map(str::to_owned))
            .unwrap();
        Ok(())
    });
    let _thread = thread.unwrap();
    assert_eq!(ran.recv_timeout(SOON).unwrap().as_deref(), Some("hooked"));
    let refused = WorkerThread::with_hook("refused", || Err(std::io::ErrorKind::Other.into()));
    refused.unwrap_err();
    let panicked = WorkerThread::with_hook("panicked", || panic!("a bug in the hook"));
    panicked.unwrap_err();
}

#[test]
fn a_thread_ends_when_its_executor_is_dropped() {
    let activated = activated(1);
    let alive = Arc::new(());
    let held = alive.clone();
    let worker = activated.worker(move |_, _| {
        let _ = &held;
        Ok(Progress::Idle)
    });
    let mut thread = thread();
    thread.start(worker).unwrap();
    drop(thread);
    wait_until("the end of the thread", || Arc::strong_count(&alive) == 1);
    // A driver that is still there learns that nobody serves it any more.
    assert!(activated.session.is_broken());
}

#[test]
fn a_reset_and_a_start_between_two_steps_of_the_loop_meet_no_old_worker() {
    let kicks = kicks(1);
    let old = activated_with(&kicks);
    old.kick(0);
    let mut thread = thread();
    thread.start(old.worker(|_, _| Ok(Progress::More))).unwrap();
    // A neighbour holds the loop up where it has just looked at the old worker.
    let neighbour = activated(1);
    let (entered, inside) = channel();
    let (release, released) = channel::<()>();
    let worker = neighbour.worker(move |_, _| {
        let _ = entered.send(());
        let _ = released.recv();
        Ok(Progress::More)
    });
    thread.start(worker).unwrap();
    neighbour.kick(0);
    // The first call is for the kick, the second one in the loop's round.
    inside.recv_timeout(SOON).unwrap();
    release.send(()).unwrap();
    inside.recv_timeout(SOON).unwrap();
    old.session.revoke();
    let new = activated_with(&kicks);
    let (sender, called) = channel();
    let worker = new.worker(move |_, _| {
        let _ = sender.send(());
        Ok(Progress::Idle)
    });
    thread.start(worker).unwrap();
    new.kick(0);
    drop(release);
    let served = called.recv_timeout(SOON);
    let events = new.told.events.lock().unwrap();
    assert_eq!(served, Ok(()), "{events:?}");
}

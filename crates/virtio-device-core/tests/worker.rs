// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Workers: started, woken, stopped, stuck, failing.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]
#![cfg(feature = "worker")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use virtio_device_core::test_utils::DriverQueue;
use virtio_device_core::{
    ActiveQueue, DeviceFault, Event, Executor, Features, Interrupt, InterruptHandle, Progress,
    QueueHandler, QueueLease, RingFault, Virtqueue, Worker, WorkerThread,
};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const SOON: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Failures {
    count: AtomicU32,
    causes: Mutex<Vec<String>>,
}

impl Interrupt for Failures {
    fn used_buffers(&self, _queue: u16) {}

    fn config_changed(&self) {}

    fn status_changed(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    fn observe(&self, event: &Event<'_>) {
        self.causes.lock().unwrap().push(format!("{event:?}"));
    }
}

/// Does what the test's closure says, once per call.
struct Script<F>(F);

impl<F: FnMut() -> Result<Progress, DeviceFault> + Send> QueueHandler for Script<F> {
    fn process(&mut self, _index: u16) -> Result<Progress, DeviceFault> {
        self.0()
    }
}

fn queue() -> ActiveQueue {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let queue = Virtqueue::new(DriverQueue::new(&memory, 0, 4).layout(), Features::NONE);
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    ActiveQueue::new(0, QueueLease::new(queue), kick)
}

fn worker<F>(queue: &ActiveQueue, interrupt: &InterruptHandle, script: F) -> Worker
where
    F: FnMut() -> Result<Progress, DeviceFault> + Send + 'static,
{
    Worker::new(
        Box::new(Script(script)),
        vec![queue.clone()],
        interrupt.clone(),
    )
}

fn interrupt() -> (Arc<Failures>, InterruptHandle) {
    let failures = Arc::new(Failures::default());
    (failures.clone(), InterruptHandle::new(failures))
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no level-triggered epoll")]
fn a_kick_before_the_start_is_not_lost() {
    let (queue, (_, interrupt)) = (queue(), interrupt());
    queue.kick.write(1).unwrap();
    let (sender, calls) = channel();
    let script = worker(&queue, &interrupt, move || {
        sender.send(()).unwrap();
        Ok(Progress::Idle)
    });
    let _running = WorkerThread::named("test").start(script).unwrap();
    calls.recv_timeout(SOON).unwrap();
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no level-triggered epoll")]
fn a_handler_that_wants_more_is_called_again_and_can_be_stopped() {
    let (queue, (_, interrupt)) = (queue(), interrupt());
    queue.kick.write(1).unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let seen = calls.clone();
    let script = worker(&queue, &interrupt, move || {
        seen.fetch_add(1, Ordering::SeqCst);
        Ok(Progress::More)
    });
    let mut thread = WorkerThread::named("test");
    let running = thread.start(script).unwrap();
    wait_until("100 calls", || calls.load(Ordering::SeqCst) > 100);
    drop(running);
    // The next start waits for the thread to end, so the endless handler has been stopped.
    let idle = worker(&queue, &interrupt, || Ok(Progress::Idle));
    let _running = thread.start(idle).unwrap();
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no level-triggered epoll")]
fn a_fault_is_told_to_the_driver_once_and_ends_the_work() {
    let (queue, (failures, interrupt)) = (queue(), interrupt());
    let calls = Arc::new(AtomicU32::new(0));
    let seen = calls.clone();
    let script = worker(&queue, &interrupt, move || {
        seen.fetch_add(1, Ordering::SeqCst);
        Err(RingFault::ChainTooLong.into())
    });
    let _running = WorkerThread::named("test").start(script).unwrap();
    queue.kick.write(1).unwrap();
    wait_until("failure", || interrupt.is_broken());
    queue.kick.write(1).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(failures.count.load(Ordering::SeqCst), 1);
    let causes = failures.causes.lock().unwrap();
    assert_eq!(*causes, ["DeviceFailed(Ring(ChainTooLong))"]);
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no level-triggered epoll")]
fn a_panic_is_told_to_the_driver() {
    let (queue, (failures, interrupt)) = (queue(), interrupt());
    queue.kick.write(1).unwrap();
    let script = worker(&queue, &interrupt, || panic!("a bug in the device"));
    let mut thread = WorkerThread::named("test");
    let _running = thread.start(script).unwrap();
    wait_until("failure", || failures.count.load(Ordering::SeqCst) == 1);
    assert!(interrupt.is_broken());
    assert_eq!(*failures.causes.lock().unwrap(), ["DeviceFailed(Panicked)"]);
    // And the thread can be used again.
    let _running = thread
        .start(worker(&queue, &interrupt, || Ok(Progress::Idle)))
        .unwrap();
}

/// A handler that waits for the test in the middle of its work.
fn stuck(queue: &ActiveQueue, interrupt: &InterruptHandle) -> (Worker, Receiver<()>, Sender<()>) {
    let (entered, inside) = channel();
    let (release, released) = channel::<()>();
    let released = Mutex::new(released);
    let script = worker(queue, interrupt, move || {
        entered.send(()).unwrap();
        let _ = released.lock().unwrap().recv();
        Ok(Progress::Idle)
    });
    (script, inside, release)
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no level-triggered epoll")]
fn a_stuck_worker_holds_up_neither_revoke_nor_stop_but_the_next_worker() {
    let (queue, (_, interrupt)) = (queue(), interrupt());
    queue.kick.write(1).unwrap();
    let (script, inside, release) = stuck(&queue, &interrupt);
    let mut thread = WorkerThread::named("test");
    let mut running = thread.start(script).unwrap();
    inside.recv_timeout(SOON).unwrap();

    assert!(queue.queue.revoke().is_some());
    running.stop();
    let error = thread
        .start(worker(&queue, &interrupt, || Ok(Progress::Idle)))
        .err()
        .unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy);

    drop(release);
    let deadline = Instant::now() + SOON;
    while thread
        .start(worker(&queue, &interrupt, || Ok(Progress::Idle)))
        .is_err()
    {
        assert!(Instant::now() < deadline, "the next worker never starts");
    }
}

#[test]
fn a_notification_for_the_next_worker_is_passed_on() {
    let (old, (_, interrupt)) = (queue(), interrupt());
    let mut worker = worker(&old, &interrupt, || {
        unreachable!("the queue was taken back")
    });
    interrupt.revoke();
    assert!(old.queue.revoke().is_some());
    old.kick.write(1).unwrap();
    assert!(!worker.notified(0));
    assert_eq!(old.kick.read().unwrap(), 1);
}

#[test]
fn a_notification_that_is_none_does_no_harm() {
    let (queue, (failures, interrupt)) = (queue(), interrupt());
    let mut worker = worker(&queue, &interrupt, || Ok(Progress::Idle));
    // Nothing can be read from the event fd, or as much as goes into it; and no such queue exists.
    assert!(worker.notified(0));
    queue.kick.write(u64::MAX - 1).unwrap();
    assert!(worker.notified(0));
    queue.kick.read().unwrap_err();
    assert!(worker.notified(1));
    assert_eq!(failures.count.load(Ordering::SeqCst), 0);
}

#[test]
fn a_panic_during_a_look_leaves_the_queue_to_the_others() {
    let (queue, (_, interrupt)) = (queue(), interrupt());
    let look = || queue.queue.with(|_| panic!("a bug in the device"));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(look)).unwrap_err();
    assert_eq!(queue.queue.with(|queue| queue.size()), Some(4));
    queue.queue.pause();
    assert_eq!(queue.queue.inspect(|queue| queue.size()), Some(4));
    queue.queue.resume();
    assert!(queue.queue.revoke().is_some());
    interrupt.revoke();
}

#[test]
fn a_worker_outlives_one_of_its_queues() {
    let (queue, (_, interrupt)) = (queue(), interrupt());
    let mut worker = worker(&queue, &interrupt, || {
        unreachable!("the queue was taken back")
    });
    assert!(queue.queue.revoke().is_some());
    queue.kick.write(1).unwrap();
    assert!(worker.notified(0));
    assert!(queue.kick.read().is_err(), "the notification is spent");
}

#[test]
fn a_worker_lets_a_paused_queue_be() {
    let (queue, (_, interrupt)) = (queue(), interrupt());
    let calls = Arc::new(AtomicU32::new(0));
    let seen = calls.clone();
    let mut worker = worker(&queue, &interrupt, move || {
        seen.fetch_add(1, Ordering::SeqCst);
        Ok(Progress::Idle)
    });
    queue.queue.pause();
    queue.kick.write(1).unwrap();
    assert!(worker.notified(0));
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    queue.queue.resume();
    queue.kick.write(1).unwrap();
    assert!(worker.notified(0));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no level-triggered epoll")]
fn a_paused_queue_keeps_a_busy_worker_out_until_it_goes_on() {
    let (queue, (_, interrupt)) = (queue(), interrupt());
    let (lease, looks) = (queue.queue.clone(), Arc::new(AtomicU32::new(0)));
    let seen = looks.clone();
    // As fast as a driver could ever make it.
    let script = worker(&queue, &interrupt, move || {
        lease.with(|_| seen.fetch_add(1, Ordering::SeqCst));
        Ok(Progress::More)
    });
    let mut thread = WorkerThread::named("test");
    let running = thread.start(script).unwrap();
    queue.kick.write(1).unwrap();
    for _ in 0..20 {
        let before = looks.load(Ordering::SeqCst);
        wait_until("a look", || looks.load(Ordering::SeqCst) != before);
        let asked = Instant::now();
        queue.queue.pause();
        assert!(asked.elapsed() < SOON);
        let at_rest = looks.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(looks.load(Ordering::SeqCst), at_rest);
        queue.queue.resume();
        queue.kick.write(1).unwrap();
    }
    // A worker that waits at the gate ends when the queue is taken back.
    queue.queue.pause();
    drop(running);
    assert!(queue.queue.revoke().is_some());
    let idle = worker(&queue, &interrupt, || Ok(Progress::Idle));
    let _running = thread.start(idle).unwrap();
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no level-triggered epoll")]
fn pausing_does_not_wait_for_a_backend() {
    let (queue, (_, interrupt)) = (queue(), interrupt());
    queue.kick.write(1).unwrap();
    let (script, inside, release) = stuck(&queue, &interrupt);
    let _running = WorkerThread::named("test").start(script).unwrap();
    inside.recv_timeout(SOON).unwrap();
    let asked = Instant::now();
    queue.queue.pause();
    assert!(asked.elapsed() < SOON);
    drop(release);
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no level-triggered epoll")]
fn a_request_that_was_half_done_goes_on_after_a_pause() {
    let (queue, (_, interrupt)) = (queue(), interrupt());
    let lease = queue.queue.clone();
    let (entered, inside) = channel();
    let (release, released) = channel::<()>();
    let released = Mutex::new(released);
    let script = worker(&queue, &interrupt, move || {
        entered.send(None).unwrap();
        released.lock().unwrap().recv().unwrap();
        // The second half: the queue is paused by now, and this waits.
        entered.send(lease.with(|queue| queue.size())).unwrap();
        Ok(Progress::Idle)
    });
    let _running = WorkerThread::named("test").start(script).unwrap();
    queue.kick.write(1).unwrap();
    assert_eq!(inside.recv_timeout(SOON).unwrap(), None);
    queue.queue.pause();
    release.send(()).unwrap();
    inside.recv_timeout(Duration::from_millis(50)).unwrap_err();
    assert_eq!(queue.queue.inspect(|queue| queue.size()), Some(4));
    queue.queue.resume();
    assert_eq!(inside.recv_timeout(SOON).unwrap(), Some(4));
}

#[test]
fn a_queue_that_was_taken_back_is_neither_paused_nor_resumed() {
    let queue = queue();
    assert!(queue.queue.revoke().is_some());
    queue.queue.pause();
    assert!(queue.queue.is_revoked() && !queue.queue.is_paused());
    queue.queue.resume();
    assert!(queue.queue.is_revoked());
    assert_eq!(queue.queue.inspect(|queue| queue.size()), None);
}

/// Does what the test's closure says, and may wait.
struct Waiter<F>(F);

impl<F: FnMut() -> Result<Progress, DeviceFault> + Send> QueueHandler for Waiter<F> {
    fn process(&mut self, _index: u16) -> Result<Progress, DeviceFault> {
        self.0()
    }

    fn needs_timer(&self) -> bool {
        true
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no level-triggered epoll")]
fn a_handler_that_waits_is_called_again_when_the_time_has_come() {
    let (queue, (_, interrupt)) = (queue(), interrupt());
    let (sender, calls) = channel();
    let mut waits = vec![Duration::ZERO, Duration::from_millis(20)].into_iter();
    let handler = Waiter(move || {
        sender.send(Instant::now()).unwrap();
        Ok(waits.next().map_or(Progress::Idle, Progress::After))
    });
    let worker = Worker::new(Box::new(handler), vec![queue.clone()], interrupt.clone());
    let _running = WorkerThread::named("test").start(worker).unwrap();
    queue.kick.write(1).unwrap();
    let times = [(); 3].map(|()| calls.recv_timeout(SOON).unwrap());
    assert!(times[2] - times[1] >= Duration::from_millis(20));
    // The timer goes off once for each wait.
    calls.recv_timeout(Duration::from_millis(50)).unwrap_err();
    assert!(!interrupt.is_broken());
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no level-triggered epoll")]
fn a_notification_ends_a_wait() {
    let (queue, (_, interrupt)) = (queue(), interrupt());
    let mut waits = vec![Duration::from_millis(20)].into_iter();
    let (sender, calls) = channel();
    let handler = Waiter(move || {
        sender.send(()).unwrap();
        Ok(waits.next().map_or(Progress::Idle, Progress::After))
    });
    let worker = Worker::new(Box::new(handler), vec![queue.clone()], interrupt);
    let _running = WorkerThread::named("test").start(worker).unwrap();
    for _ in 0..2 {
        queue.kick.write(1).unwrap();
        calls.recv_timeout(SOON).unwrap();
    }
    calls.recv_timeout(Duration::from_millis(50)).unwrap_err();
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no level-triggered epoll")]
fn a_wait_that_nobody_times_is_a_failure() {
    let (queue, (_, interrupt)) = (queue(), interrupt());
    queue.kick.write(1).unwrap();
    let script = worker(&queue, &interrupt, || {
        Ok(Progress::After(Duration::from_millis(1)))
    });
    let _running = WorkerThread::named("test").start(script).unwrap();
    wait_until("failure", || interrupt.is_broken());
}

#[test]
fn a_worker_without_a_loop_tells_how_long_it_waits() {
    let (queue, (_, interrupt)) = (queue(), interrupt());
    let mut left = 2u64;
    let handler = Waiter(move || {
        left = left.saturating_sub(1);
        Ok(match left {
            0 => Progress::Idle,
            left => Progress::After(Duration::from_secs(left)),
        })
    });
    let mut worker = Worker::new(Box::new(handler), vec![queue.clone()], interrupt.clone());
    assert!(worker.needs_timer());
    assert_eq!(worker.wait(), None);
    assert!(worker.notified(0));
    assert_eq!(worker.wait(), Some(Duration::from_secs(1)));
    assert!(worker.expired());
    assert_eq!(worker.wait(), None);
    // A queue that was taken back is left alone, and a reset of the device ends the worker.
    assert!(queue.queue.revoke().is_some());
    assert!(worker.expired());
    interrupt.revoke();
    assert!(!worker.expired());
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An event-manager loop on a thread of its own for each worker.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use crate::device::ActiveQueue;
use crate::interrupt::InterruptHandle;
use crate::worker::{DeviceFault, Executor, RunningWorker, Worker};

/// What the events of a worker's timer carry: no queue has this index.
const TIMER: u32 = 1 << 16;

/// A worker's timer, by which it waits without holding up its loop.
#[derive(Debug)]
pub(crate) struct Timer {
    fd: TimerFd,
    armed: bool,
}

impl Timer {
    fn new() -> io::Result<Self> {
        let fd = TimerFd::new()?;
        Ok(Self { fd, armed: false })
    }

    /// Sets the timer, or stops it; either way it is not readable any more.
    fn set(&mut self, wait: Option<Duration>) -> io::Result<()> {
        match wait {
            // 0 would stop it.
            Some(wait) => self.fd.reset(wait.max(Duration::from_nanos(1)), None)?,
            None if self.armed => self.fd.clear()?,
            None => {}
        }
        self.armed = wait.is_some();
        Ok(())
    }

    fn events(&self) -> Events {
        Events::with_data(&self.fd, TIMER, EventSet::IN)
    }
}

/// A worker in any event-manager loop: each queue's event fd, with the queue's index as its data,
/// and its timer, if it needs one.
impl MutEventSubscriber for Worker {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let lives = match u16::try_from(events.data()) {
            Ok(index) => self.notified(index),
            Err(_) => self.expired(),
        };
        if !(lives && self.set_timer()) {
            // An error means that it is not waited for: just what is wanted.
            for active in self.queues() {
                let _ = ops.remove(readable(active));
            }
            if let Some(timer) = self.timer.take() {
                let _ = ops.remove(timer.events());
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        // Without one of these the device would stay silent for ever: say so instead.
        for active in self.queues() {
            if let Err(error) = ops.add(readable(active)) {
                self.fail(&DeviceFault::Loop(to_io(&error)));
                return;
            }
        }
        if self.needs_timer() {
            if let Err(error) = self.add_timer(ops) {
                self.fail(&DeviceFault::Loop(error));
            }
        }
    }
}

impl Worker {
    fn add_timer(&mut self, ops: &mut EventOps<'_>) -> io::Result<()> {
        let timer = Timer::new()?;
        ops.add(timer.events()).map_err(|error| to_io(&error))?;
        self.timer = Some(timer);
        Ok(())
    }

    /// Sets the timer to what the handler waits for. A wait that cannot be timed would never end,
    /// and is a failure.
    fn set_timer(&mut self) -> bool {
        let wait = self.wait();
        let set = match (&mut self.timer, wait) {
            (Some(timer), _) => timer.set(wait),
            (None, None) => Ok(()),
            (None, Some(_)) => Err(io::ErrorKind::Unsupported.into()),
        };
        match set {
            Ok(()) => true,
            Err(error) => {
                self.fail(&DeviceFault::Loop(error));
                false
            }
        }
    }
}

fn readable(active: &ActiveQueue) -> Events {
    Events::with_data(&*active.kick, active.index.into(), EventSet::IN)
}

/// Gives every worker a thread of its own, with an event-manager loop on it.
///
/// A handler that panics ends its thread and leaves the device failed, as the driver is told;
/// nothing else is touched.
///
/// One such value runs one worker at a time. A worker that was told to stop while it is stuck in
/// its device's backend keeps the next one from starting, so that a driver which resets the device
/// over and over cannot pile up threads.
#[derive(Debug)]
pub struct WorkerThread {
    name: String,
    last: Option<JoinHandle<()>>,
}

/// How long a worker that was told to stop may take to end before the next one is refused: far
/// more than it needs, and short enough for a vCPU to wait.
const GRACE: Duration = Duration::from_millis(100);

impl WorkerThread {
    /// Names the threads; at most 15 bytes of the name are seen by the system's tools.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            last: None,
        }
    }

    /// Waits for the last thread to end.
    fn reap(&mut self) -> io::Result<()> {
        let Some(last) = self.last.take() else {
            return Ok(());
        };
        let deadline = Instant::now() + GRACE;
        while !last.is_finished() {
            if Instant::now() >= deadline {
                self.last = Some(last);
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "the last worker has not ended",
                ));
            }
            thread::sleep(Duration::from_micros(50));
        }
        // Its panic, if any, was caught and told to the driver.
        let _ = last.join();
        Ok(())
    }
}

impl Executor for WorkerThread {
    fn start(&mut self, worker: Worker) -> io::Result<Box<dyn RunningWorker>> {
        self.reap()?;
        let stop = Arc::new(Stop {
            asked: AtomicBool::new(false),
            event: EventFd::new(EFD_NONBLOCK)?,
        });
        let interrupt = worker.interrupt().clone();
        let mut manager = EventManager::<Box<dyn MutEventSubscriber + Send>>::new()
            .map_err(|error| to_io(&error))?;
        manager.add_subscriber(Box::new(worker));
        manager.add_subscriber(Box::new(StopSubscriber(stop.clone())));
        let asked = stop.clone();
        let body = move || run(manager, &asked, &interrupt);
        self.last = Some(thread::Builder::new().name(self.name.clone()).spawn(body)?);
        Ok(Box::new(RunningThread { stop }))
    }
}

fn run(
    mut manager: EventManager<Box<dyn MutEventSubscriber + Send>>,
    stop: &Stop,
    interrupt: &InterruptHandle,
) {
    // The handler is dropped after a panic and never looked at again.
    let ended = catch_unwind(AssertUnwindSafe(|| {
        while !stop.asked.load(Ordering::Acquire) {
            manager.run()?;
        }
        Ok::<(), event_manager::Error>(())
    }));
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => interrupt.device_failed(&DeviceFault::Loop(to_io(&error))),
        Err(_) => interrupt.device_failed(&DeviceFault::Panicked),
    }
}

fn to_io(error: &event_manager::Error) -> io::Error {
    io::Error::other(error.to_string())
}

#[derive(Debug)]
struct Stop {
    asked: AtomicBool,
    event: EventFd,
}

/// Wakes the loop when the thread is asked to stop.
struct StopSubscriber(Arc<Stop>);

impl MutEventSubscriber for StopSubscriber {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {}

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if ops.add(Events::new(&self.0.event, EventSet::IN)).is_err() {
            // A loop that could not be stopped must not start.
            self.0.asked.store(true, Ordering::Release);
        }
    }
}

/// A thread that runs a worker's loop until told otherwise.
#[derive(Debug)]
struct RunningThread {
    stop: Arc<Stop>,
}

impl RunningWorker for RunningThread {
    fn stop(&mut self) {
        self.stop.asked.store(true, Ordering::Release);
        // A full counter wakes the loop just as well.
        let _ = self.stop.event.write(1);
    }
}

impl Drop for RunningThread {
    fn drop(&mut self) {
        self.stop();
    }
}

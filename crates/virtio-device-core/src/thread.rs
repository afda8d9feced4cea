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

use crate::device::ActiveQueue;
use crate::interrupt::InterruptHandle;
use crate::worker::{DeviceFault, Executor, RunningWorker, Worker};

/// A worker in any event-manager loop: each queue's event fd, with the queue's index as its data.
impl MutEventSubscriber for Worker {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let Ok(index) = u16::try_from(events.data()) else {
            return;
        };
        if !self.notified(index) {
            for active in self.queues() {
                // An error means that it is not waited for: just what is wanted.
                let _ = ops.remove(readable(active));
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for active in self.queues() {
            if let Err(error) = ops.add(readable(active)) {
                // Without this event fd the queue would stay silent for ever: say so instead.
                self.fail(&DeviceFault::Loop(to_io(&error)));
                return;
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

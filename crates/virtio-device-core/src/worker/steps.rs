// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A loop without a system call of its own that runs when it is told to.

use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::epoll::EventSet;

use crate::worker::Worker;
use crate::worker::event_loop::{LoopHandle, Mailbox};
use crate::worker::local::Workers;
use crate::worker::running::{Life, Reason, Running};
use crate::worker::sources::Poller;

/// Serves workers on the calling thread, when it is told to: the same in every run, for tests,
/// fuzzers and benchmarks.
///
/// Host descriptors cannot be watched here, and nobody wakes it: [`StepLoop::step`] looks at every
/// queue.
///
/// ```
/// use virtio_device_core::StepLoop;
///
/// let mut workers = StepLoop::new()?;
/// let executor = workers.handle(); // for the devices
/// assert!(!workers.step(), "there is nothing to do");
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct StepLoop {
    mailbox: Arc<Mailbox>,
    workers: Rc<Workers>,
}

/// What a worker is told of its surroundings: there is nothing to wait for.
const NOWHERE: Poller<'_> = Poller {
    epoll: None,
    key: 0,
    round: 0,
};

impl StepLoop {
    /// Makes a loop without workers.
    ///
    /// # Errors
    ///
    /// If an event fd cannot be made.
    pub fn new() -> io::Result<Self> {
        let mailbox = Arc::new(Mailbox::new()?);
        Ok(Self {
            workers: Workers::new(None, mailbox.clone()),
            mailbox,
        })
    }

    /// An executor that starts workers in this loop, at its next step.
    #[must_use]
    pub fn handle(&self) -> LoopHandle {
        LoopHandle::new(self.mailbox.clone())
    }

    /// Has each worker serve its queues that were notified, and what it has been waiting for since
    /// the last step, however long it meant to wait. Returns whether there was anything to do.
    pub fn step(&mut self) -> bool {
        let woken = self.mailbox.clear();
        let mut done = woken && self.clean_up();
        self.workers.take_new();
        while let Some(worker) = self.workers.next_new() {
            if let Some(worker) = Running::start(worker, &NOWHERE) {
                self.workers.add(worker);
            }
            done = true;
        }
        self.for_each_worker(|worker| {
            let (served, life) = serve(worker);
            done |= served;
            life
        });
        done
    }

    /// Has each worker look at all of its queues, notified or not. No event fd is read, and nothing else
    /// done that [`StepLoop::step`] does: for benchmarks, which want to see the device alone.
    pub fn look(&mut self) {
        self.for_each_worker(|worker| worker.look(&NOWHERE));
    }

    fn for_each_worker(&mut self, mut call: impl FnMut(&mut Running) -> Life) {
        self.workers.for_each(0, |worker, _| call(worker));
    }

    /// Drops workers whose activation has ended; returns whether there were any.
    fn clean_up(&mut self) -> bool {
        let before = self.workers.len();
        self.for_each_worker(|worker| match worker.has_ended() {
            true => Life::Ended,
            false => Life::GoesOn,
        });
        self.workers.len() != before
    }
}

fn serve(worker: &mut Running) -> (bool, Life) {
    let mut served = worker.expire_all();
    let mut life = worker.come_round(&NOWHERE, Instant::now());
    for place in 0..worker.queues().len() {
        let Some(queue) = worker.queues().get(place) else {
            break;
        };
        if life == Life::GoesOn && queue.kick.read().is_ok() {
            let reason = Reason::Queue(queue.index);
            life = worker.event(&NOWHERE, reason, EventSet::empty());
            served = true;
        }
    }
    (served, life)
}

/// Workers are refused from now on, and those that wait are let go, as are those that have started.
impl Drop for StepLoop {
    fn drop(&mut self) {
        self.handle().stop();
        self.for_each_worker(|_| Life::Ended);
        self.mailbox
            .take_new()
            .into_iter()
            .for_each(Worker::discard);
    }
}

impl fmt::Debug for StepLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepLoop")
            .field("workers", &self.workers.len())
            .finish_non_exhaustive()
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Workers without threads.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Executor, RunningWorker, Worker};

/// Runs workers on the thread of the test, when the test says so: the same in every run, and without
/// an event loop.
///
/// A worker that is stopped looks at its queues one last time, as one on a thread of its own may
/// that has not noticed yet.
#[derive(Clone, Debug, Default)]
pub struct StepExecutor {
    workers: Arc<Mutex<Workers>>,
}

#[derive(Debug, Default)]
struct Workers {
    /// By number; none for one that has ended.
    all: Vec<Option<Worker>>,
    started: bool,
}

impl StepExecutor {
    /// Lets each worker serve its queues that were notified, once each, and whatever it has been
    /// waiting for. Returns whether there was anything to do.
    pub fn step(&self) -> bool {
        let count = self.lock().all.len();
        let mut done = false;
        for number in 0..count {
            done |= self.step_one(number);
        }
        done
    }

    /// Whether a worker was ever started: if not, the device works somewhere else.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.lock().started
    }

    fn lock(&self) -> MutexGuard<'_, Workers> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock is not held while the worker works.
    fn step_one(&self, number: usize) -> bool {
        let Some(mut worker) = self.take(number) else {
            return false;
        };
        let (done, lives) = step(&mut worker);
        if lives {
            if let Some(place) = self.lock().all.get_mut(number) {
                *place = Some(worker);
            }
        }
        done
    }

    fn take(&self, number: usize) -> Option<Worker> {
        self.lock().all.get_mut(number)?.take()
    }
}

/// Returns whether there was anything to do, and whether the worker lives.
fn step(worker: &mut Worker) -> (bool, bool) {
    let mut done = false;
    for place in 0..worker.queues().len() {
        let Some(active) = worker.queues().get(place) else {
            break;
        };
        let (index, notified) = (active.index, active.kick.read());
        if notified.is_err() {
            continue;
        }
        // Whoever serves the queue reads it.
        let _ = active.kick.write(1);
        done = true;
        if !worker.notified(index) {
            return (true, false);
        }
    }
    if worker.wait().is_some() {
        return (true, worker.expired());
    }
    (done, true)
}

impl Executor for StepExecutor {
    fn start(&mut self, worker: Worker) -> io::Result<Box<dyn RunningWorker>> {
        let mut workers = self.lock();
        workers.started = true;
        // Places are used again, so that starting over and over needs no more memory.
        let free = workers.all.iter().position(Option::is_none);
        let number = free.unwrap_or(workers.all.len());
        match workers.all.get_mut(number) {
            Some(place) => *place = Some(worker),
            None => workers.all.push(Some(worker)),
        }
        let executor = self.clone();
        drop(workers);
        Ok(Box::new(RunningStep {
            executor,
            number: Some(number),
        }))
    }
}

#[derive(Debug)]
struct RunningStep {
    executor: StepExecutor,
    number: Option<usize>,
}

impl RunningWorker for RunningStep {
    fn stop(&mut self) {
        if let Some(mut worker) = self.number.take().and_then(|it| self.executor.take(it)) {
            step(&mut worker);
        }
    }
}

impl Drop for RunningStep {
    fn drop(&mut self) {
        self.stop();
    }
}

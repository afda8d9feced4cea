// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where a device's queues are served.
//!
//! A device makes a [`Worker`] of a [`QueueHandler`] when it is activated, and gives it to an
//! [`Executor`] that the VMM has made before the guest runs: [`WorkerThread`], several of them, or a
//! [`WorkerLoop`] inside a loop of the VMM's own. The worker ends when its activation does.

mod event_loop;
mod handler;
mod local;
mod running;
mod sources;
mod steps;
mod thread;

use std::fmt;

use crate::device::ActiveQueue;
use crate::fault::DeviceFault;
use crate::interrupt::{Expected, InterruptHandle};
use crate::panics::discard;

pub use event_loop::{LoopHandle, WorkerLoop};
pub use handler::{Context, Progress, QueueHandler};
pub(crate) use local::let_go;
pub use steps::StepLoop;
pub use thread::WorkerThread;

/// Makes the handler, on the thread that is going to call it.
type Build = Box<dyn FnOnce() -> Result<Box<dyn QueueHandler>, DeviceFault> + Send>;

/// A device's work, ready to be started by an [`Executor`].
#[must_use = "a worker does nothing until an executor starts it"]
pub struct Worker {
    build: Build,
    queues: Vec<ActiveQueue>,
    interrupt: InterruptHandle,
    expected: Expected,
}

impl Worker {
    /// A worker that serves `queues` by `handler`, for the activation that `interrupt` belongs to.
    pub fn new(
        handler: impl QueueHandler + Send + 'static,
        queues: Vec<ActiveQueue>,
        interrupt: InterruptHandle,
    ) -> Self {
        Self::build(queues, interrupt, move || Ok(Box::new(handler)))
    }

    /// A worker whose handler is made on the worker's thread, and so need not be [`Send`].
    ///
    /// If `build` fails, the driver sees `DEVICE_NEEDS_RESET`.
    pub fn build(
        queues: Vec<ActiveQueue>,
        interrupt: InterruptHandle,
        build: impl FnOnce() -> Result<Box<dyn QueueHandler>, DeviceFault> + Send + 'static,
    ) -> Self {
        Self {
            build: Box::new(build),
            queues,
            expected: interrupt.expect_start(),
            interrupt,
        }
    }

    /// Drops a worker that is not needed any more; a panic of its handler's `drop` ends here.
    fn discard(self) {
        discard(self);
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

/// Decides on which thread or loop workers run: how a VMM lends its threads to a device.
///
/// A device may start any number of workers, a queue each, say. They all end with their activation:
/// when the device is reset, and when one of them fails.
pub trait Executor: Send {
    /// Starts `worker`, without waiting for one that was started before.
    ///
    /// Called on a vCPU's thread as a rule. The executors of this crate write one event fd and make
    /// no other system call, unless a lock is contended: threads, epoll instances and timers exist
    /// before.
    ///
    /// # Errors
    ///
    /// What kept it from starting; the worker is dropped then. What goes wrong later, on the worker's
    /// own thread, reaches the driver as `DEVICE_NEEDS_RESET`.
    fn start(&mut self, worker: Worker) -> Result<(), DeviceFault>;
}

impl<E: Executor + ?Sized> Executor for Box<E> {
    fn start(&mut self, worker: Worker) -> Result<(), DeviceFault> {
        (**self).start(worker)
    }
}

/// Each worker has its place by its first queue and by how many it has: a thread a worker, if a device
/// starts a worker for each queue, or each pair of queues, and there are as many threads.
///
/// ```
/// use virtio_device_core::WorkerThread;
///
/// let threads = (0..2).map(|n| WorkerThread::named(format!("disk{n}")));
/// let executor = threads.collect::<Result<Vec<_>, _>>()?;
/// # Ok::<(), std::io::Error>(())
/// ```
impl<E: Executor> Executor for Vec<E> {
    fn start(&mut self, worker: Worker) -> Result<(), DeviceFault> {
        let first = worker.queues.first().map_or(0, |queue| queue.index);
        let place = usize::from(first) / worker.queues.len().max(1) % self.len().max(1);
        match self.get_mut(place) {
            Some(executor) => executor.start(worker),
            None => {
                worker.discard();
                Err(DeviceFault::device("there is no thread for workers"))
            }
        }
    }
}

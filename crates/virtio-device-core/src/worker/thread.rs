// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Loops on threads of their own.

use std::io;
use std::sync::mpsc;
use std::thread;

use crate::fault::DeviceFault;
use crate::panics::caught;
use crate::worker::event_loop::{LoopHandle, LoopParts, WorkerLoop};
use crate::worker::{Executor, Worker};

/// A thread that serves workers, ready before the guest runs.
///
/// The thread inherits from whoever makes this, and nothing from the vCPU that activates a device:
/// affinity, scheduling policy, nice value, signal mask and seccomp filter are those of the making
/// thread, and what a [hook](WorkerThread::with_hook) does.
///
/// A handler that panics or waits for ever leaves this thread's other workers out of luck only as
/// long as it waits. When this is dropped the thread ends, as soon as no handler is being called; it
/// is not waited for.
///
/// Thread and loop make these system calls: `epoll_wait`, `epoll_ctl`, `read` and `write` of event
/// fds, `timerfd_settime`, `fcntl` (to duplicate watched descriptors), `close`, `futex`, those of the
/// allocator, and at the end `sigaltstack`, `munmap`, `madvise`, `rseq` and `exit`.
///
/// ```
/// use virtio_device_core::WorkerThread;
///
/// // Made before the guest runs, and given to the device.
/// let executor = WorkerThread::named("virtio-net")?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct WorkerThread {
    handle: LoopHandle,
}

impl WorkerThread {
    /// Makes the thread; at most 15 bytes of its name are seen by the system's tools.
    ///
    /// # Errors
    ///
    /// If the thread, or its loop, cannot be made.
    ///
    /// # Panics
    ///
    /// If `name` contains a null byte.
    pub fn named(name: impl Into<String>) -> io::Result<Self> {
        Self::with_hook(name, || Ok(()))
    }

    /// As [`WorkerThread::named`]; `hook` runs first on the new thread: to set its affinity or its
    /// scheduling policy, to install a seccomp filter.
    ///
    /// # Errors
    ///
    /// As [`WorkerThread::named`], and whatever the hook returns.
    ///
    /// # Panics
    ///
    /// If `name` contains a null byte.
    pub fn with_hook(
        name: impl Into<String>,
        hook: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let parts = LoopParts::new()?;
        let handle = parts.handle();
        let (report, prepared) = mpsc::sync_channel(1);
        let body = move || {
            // After a panic nothing is reported, which says so.
            let Some(result) = caught(hook) else { return };
            let failed = result.is_err();
            let _ = report.send(result);
            drop(report);
            if !failed {
                // The devices were told of an error, which is all that can be done here.
                let _ = WorkerLoop::from(parts).run();
            }
        };
        thread::Builder::new().name(name.into()).spawn(body)?;
        match prepared.recv() {
            Ok(result) => result?,
            Err(_) => return Err(io::Error::other("the worker thread's hook panicked")),
        }
        Ok(Self { handle })
    }
}

impl Executor for WorkerThread {
    fn start(&mut self, worker: Worker) -> Result<(), DeviceFault> {
        self.handle.start(worker)
    }
}

impl Drop for WorkerThread {
    fn drop(&mut self) {
        self.handle.stop();
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A loop that serves workers: one epoll instance, one timer, one mailbox.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use crate::fault::DeviceFault;
use crate::worker::local::Workers;
use crate::worker::running::{Life, Reason, Running};
use crate::worker::sources::{Poller, readiness};
use crate::worker::{Executor, Worker};

/// Events taken from the kernel at once.
const BATCH: usize = 32;

/// What events of the loop itself carry in their upper half; workers have keys from [`FIRST_KEY`].
const MAILBOX: u64 = 0;
const TIMER: u64 = 1;
const FIRST_KEY: u32 = 1;

/// A loop that any number of workers, of any number of devices, run in.
///
/// [`WorkerThread`](crate::WorkerThread) has one on a thread of its own. A VMM with a loop of its
/// own watches this loop's one file descriptor there, and calls [`WorkerLoop::dispatch`] when it is
/// readable. Workers come and go inside.
///
/// ```
/// use virtio_device_core::WorkerLoop;
///
/// let mut workers = WorkerLoop::new()?;
/// let executor = workers.handle(); // for the devices
/// // In the VMM's loop: wait until `workers` is readable: it has a descriptor, then
/// workers.dispatch()?;
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// It stays on the thread that made it, because its handlers do. The [handle](WorkerLoop::handle) can
/// be sent anywhere.
pub struct WorkerLoop {
    epoll: Rc<Epoll>,
    timer: TimerFd,
    mailbox: Arc<Mailbox>,
    /// What the timer is set to.
    armed: Option<Instant>,
    workers: Rc<Workers>,
    next_key: u32,
    /// How often events were taken from the epoll instance.
    round: u64,
}

/// What a loop is made of before it has workers: still free to be sent to another thread.
pub(crate) struct LoopParts {
    epoll: Epoll,
    timer: TimerFd,
    mailbox: Arc<Mailbox>,
}

/// Starts workers in a [`WorkerLoop`]; clones start them in the same one.
#[derive(Clone)]
pub struct LoopHandle {
    mailbox: Arc<Mailbox>,
}

/// What reaches the loop from other threads.
pub(crate) struct Mailbox {
    new: Mutex<Vec<Worker>>,
    stop: AtomicBool,
    /// Wakes the loop: there are new workers, some have ended, or a pause is over.
    wake: Arc<EventFd>,
}

impl Mailbox {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            new: Mutex::new(Vec::with_capacity(8)),
            stop: AtomicBool::new(false),
            wake: Arc::new(EventFd::new(EFD_NONBLOCK)?),
        })
    }

    pub(crate) fn take_new(&self) -> Vec<Worker> {
        std::mem::take(&mut *self.new_workers())
    }

    /// Takes those whose activation has ended before they have started.
    pub(crate) fn take_ended(&self) -> Vec<Worker> {
        take_ended(&mut self.new_workers())
    }

    /// Consumes a wake-up; returns whether there was one.
    pub(crate) fn clear(&self) -> bool {
        self.wake.read().is_ok()
    }

    fn new_workers(&self) -> MutexGuard<'_, Vec<Worker>> {
        self.new.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // An error means that the counter is full, and then the fd is readable already.
        let _ = self.wake.write(1);
    }
}

pub(crate) fn take_ended(workers: &mut Vec<Worker>) -> Vec<Worker> {
    let all = std::mem::take(workers).into_iter();
    let (ended, live) = all.partition(|worker| worker.interrupt.has_ended());
    *workers = live;
    ended
}

impl LoopParts {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let timer = TimerFd::new()?;
        let mailbox = Arc::new(Mailbox::new()?);
        let wake = mailbox.wake.as_raw_fd();
        for (fd, data) in [(wake, MAILBOX), (timer.as_raw_fd(), TIMER)] {
            epoll.ctl(
                ControlOperation::Add,
                fd,
                EpollEvent::new(EventSet::IN, data),
            )?;
        }
        Ok(Self {
            epoll,
            timer,
            mailbox,
        })
    }

    pub(crate) fn handle(&self) -> LoopHandle {
        LoopHandle::new(self.mailbox.clone())
    }
}

impl From<LoopParts> for WorkerLoop {
    fn from(parts: LoopParts) -> Self {
        let LoopParts {
            epoll,
            timer,
            mailbox,
        } = parts;
        let epoll = Rc::new(epoll);
        Self {
            workers: Workers::new(Some(epoll.clone()), mailbox.clone()),
            epoll,
            timer,
            mailbox,
            armed: None,
            next_key: FIRST_KEY,
            round: 0,
        }
    }
}

impl WorkerLoop {
    /// Makes a loop without workers.
    ///
    /// # Errors
    ///
    /// If epoll instance, timer or event fd cannot be made.
    pub fn new() -> io::Result<Self> {
        LoopParts::new().map(Self::from)
    }

    /// An executor that starts workers in this loop. Those started before the loop first runs wait
    /// for it; those started after the loop is gone are refused.
    #[must_use]
    pub fn handle(&self) -> LoopHandle {
        LoopHandle::new(self.mailbox.clone())
    }

    /// Number of workers in the loop; one whose activation has ended may still be counted until the
    /// loop comes round.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Serves workers until [`LoopHandle::stop`] is called.
    ///
    /// # Errors
    ///
    /// If the kernel refuses to wait; all devices in the loop are marked as broken then.
    pub fn run(&mut self) -> io::Result<()> {
        while !self.mailbox.stop.load(Ordering::Acquire) {
            self.round(-1)?;
        }
        Ok(())
    }

    /// Serves whatever is ready, once, and does not wait.
    ///
    /// # Errors
    ///
    /// As for [`WorkerLoop::run`].
    pub fn dispatch(&mut self) -> io::Result<()> {
        self.round(0)
    }

    fn round(&mut self, timeout: i32) -> io::Result<()> {
        let mut events = [EpollEvent::default(); BATCH];
        self.round += 1;
        let count = match self.epoll.wait(timeout, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(self.fail_all(error)),
        };
        let (mut come_round, mut start_new) = (false, false);
        for event in events.iter().take(count) {
            match event.data() {
                MAILBOX => {
                    self.mailbox.clear();
                    (come_round, start_new) = (true, true);
                }
                TIMER => {
                    // A timer that has expired stays readable until it is read.
                    self.timer
                        .clear()
                        .map_err(|error| self.fail_all(error.into()))?;
                    self.armed = None;
                    come_round = true;
                }
                data => self.event(data, event.event_set()),
            }
        }
        // Taken before the others come round. A worker waits for the same descriptors as its
        // predecessor, whose activation ended before the new one was sent here; so the predecessor
        // leaves the loop in this round, and the new one starts after that.
        if start_new {
            self.workers.take_new();
        }
        if come_round {
            let now = Instant::now();
            self.for_each_worker(|worker, poller| worker.come_round(poller, now));
        }
        while let Some(worker) = self.workers.next_new() {
            self.start(worker);
        }
        if self.workers.any(Running::is_due) {
            self.mailbox.wake();
        }
        self.arm().map_err(|error| self.fail_all(error))
    }

    fn start(&mut self, worker: Worker) {
        // Keys repeat only after four billion others, so a late event meets no wrong worker.
        self.next_key = self.next_key.checked_add(1).unwrap_or(FIRST_KEY + 1);
        let poller = self.workers.poller(self.next_key, self.round);
        if let Some(worker) = Running::start(worker, &poller) {
            self.workers.add(worker);
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the halves are meant")]
    fn event(&mut self, data: u64, events: EventSet) {
        let (key, reason) = ((data >> 32) as u32, Reason::from_bits(data as u32));
        let readiness = readiness(events);
        // One that has ended in this round is not there any more.
        self.for_each_worker(|worker, poller| {
            if worker.key() != key {
                return Life::GoesOn;
            }
            worker.event(poller, reason, readiness)
        });
    }

    fn for_each_worker(&mut self, call: impl FnMut(&mut Running, &Poller<'_>) -> Life) {
        self.workers.for_each(self.round, call);
    }

    /// Sets the timer to the first moment that any worker waits for.
    fn arm(&mut self) -> io::Result<()> {
        let first = self.workers.deadline();
        if first == self.armed {
            return Ok(());
        }
        match first {
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                // 0 would stop it; beyond what the kernel takes, it wakes early and is set again.
                let left = left.clamp(Duration::from_nanos(1), Duration::from_secs(1 << 30));
                self.timer.reset(left, None)?;
            }
            None => self.timer.clear()?,
        }
        self.armed = first;
        Ok(())
    }

    /// Marks all devices in the loop as broken, for the same reason.
    fn fail_all(&mut self, error: io::Error) -> io::Error {
        let kind = error.kind();
        let fault = |error: &io::Error| match error.raw_os_error() {
            Some(code) => DeviceFault::Loop(io::Error::from_raw_os_error(code)),
            None => DeviceFault::Loop(kind.into()),
        };
        self.for_each_worker(|worker, _| worker.fail(fault(&error)));
        error
    }
}

impl AsRawFd for WorkerLoop {
    /// Readable when [`WorkerLoop::dispatch`] has something to do.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

/// The workers of a loop that goes away are told to their drivers as failed.
impl Drop for WorkerLoop {
    fn drop(&mut self) {
        self.mailbox.stop.store(true, Ordering::Release);
        let gone = || DeviceFault::Loop(io::ErrorKind::BrokenPipe.into());
        self.for_each_worker(|worker, _| {
            if worker.has_ended() {
                return Life::Ended;
            }
            worker.fail(gone())
        });
        // Not under the lock: a handler may do anything when it is dropped.
        for worker in self.mailbox.take_new() {
            worker.interrupt.device_failed(&gone());
            worker.discard();
        }
    }
}

impl LoopHandle {
    pub(crate) const fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { mailbox }
    }

    /// Has [`WorkerLoop::run`] return as soon as no handler is being called, and refuses further
    /// workers.
    pub fn stop(&self) {
        self.mailbox.stop.store(true, Ordering::Release);
        self.mailbox.wake();
    }
}

impl Executor for LoopHandle {
    fn start(&mut self, worker: Worker) -> Result<(), DeviceFault> {
        worker.interrupt.add_loop(&self.mailbox.wake);
        let mut new = self.mailbox.new_workers();
        if self.mailbox.stop.load(Ordering::Acquire) {
            // Not under the lock: a handler may do anything when it is dropped.
            drop(new);
            worker.discard();
            return Err(DeviceFault::Worker(io::ErrorKind::BrokenPipe.into()));
        }
        // If a handler is stuck, workers that have ended meanwhile do not pile up behind it.
        let ended = take_ended(&mut new);
        new.push(worker);
        drop(new);
        self.mailbox.wake();
        ended.into_iter().for_each(Worker::discard);
        Ok(())
    }
}

impl fmt::Debug for WorkerLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerLoop")
            .field("workers", &self.workers.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for LoopHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopHandle").finish_non_exhaustive()
    }
}

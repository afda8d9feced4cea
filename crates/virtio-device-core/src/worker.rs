// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where a device's queues are served: a handler, and the loops that drive it.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::device::{ActivateError, ActiveQueue};
use crate::fault::RingFault;
use crate::interrupt::InterruptHandle;
use crate::sync::{clear_kick, write_kick};

/// Whether a handler has more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The queue is empty, or gone; the next notification wakes the handler.
    Idle,
    /// The handler has used up its share and wants to be called again without a notification.
    More,
    /// The handler waits for time to pass, and wants to be called again after at least this long,
    /// notified or not. Its [`QueueHandler::needs_timer`] must say so from the start.
    After(Duration),
}

/// Why a device cannot go on.
#[derive(Debug)]
#[non_exhaustive]
pub enum DeviceFault {
    /// The driver has broken a ring.
    Ring(RingFault),
    /// The device's backend does not work any more.
    Backend(io::Error),
    /// The device could not be activated, or not with a queue that was enabled later.
    Activation(ActivateError),
    /// The loop that drives the device's worker does not work any more.
    Loop(io::Error),
    /// The device's handler panicked.
    Panicked,
}

impl From<ActivateError> for DeviceFault {
    fn from(error: ActivateError) -> Self {
        Self::Activation(error)
    }
}

impl From<RingFault> for DeviceFault {
    fn from(fault: RingFault) -> Self {
        Self::Ring(fault)
    }
}

impl fmt::Display for DeviceFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(fault) => write!(f, "driver broke the ring: {fault}"),
            Self::Backend(error) => write!(f, "device backend failed: {error}"),
            Self::Activation(error) => write!(f, "device could not be activated: {error}"),
            Self::Loop(error) => write!(f, "worker's loop failed: {error}"),
            Self::Panicked => f.write_str("device panicked"),
        }
    }
}

impl std::error::Error for DeviceFault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Ring(fault) => Some(fault),
            Self::Backend(error) | Self::Loop(error) => Some(error),
            Self::Activation(error) => Some(error),
            Self::Panicked => None,
        }
    }
}

/// A device's work on its queues: a plain object that any loop can drive.
pub trait QueueHandler: Send {
    /// Serves queue `index`, for at most one queue-length of requests.
    ///
    /// # Errors
    ///
    /// Why the device cannot go on. The handler is not called again.
    fn process(&mut self, index: u16) -> Result<Progress, DeviceFault>;

    /// Whether this handler may ever return [`Progress::After`]: then a timer is made for it before
    /// the driver can ask for anything.
    fn needs_timer(&self) -> bool {
        false
    }
}

/// A handler together with the notifications that wake it.
///
/// A VMM with a loop of its own calls [`Worker::notified`], and [`Worker::expired`] once
/// [`Worker::wait`] is over; with the feature `worker`, a `Worker` is an event-manager subscriber.
pub struct Worker {
    handler: Box<dyn QueueHandler>,
    queues: Vec<ActiveQueue>,
    interrupt: InterruptHandle,
    wait: Option<Duration>,
    #[cfg(feature = "worker")]
    pub(crate) timer: Option<crate::thread::Timer>,
}

impl Worker {
    /// Makes a worker that serves `queues` by `handler`.
    #[must_use]
    pub fn new(
        handler: Box<dyn QueueHandler>,
        queues: Vec<ActiveQueue>,
        interrupt: InterruptHandle,
    ) -> Self {
        Self {
            handler,
            queues,
            interrupt,
            wait: None,
            #[cfg(feature = "worker")]
            timer: None,
        }
    }

    /// The queues, whose event fds are to be waited for.
    #[must_use]
    pub fn queues(&self) -> &[ActiveQueue] {
        &self.queues
    }

    /// Serves queue `index`, whose event fd has become readable. Returns whether the worker lives:
    /// a device that failed has told its driver so, and one that was reset has nothing to do any
    /// more. Neither must be waited for again.
    ///
    /// A queue that is not empty yet is notified again, so that whatever else the loop waits for
    /// gets its turn in between.
    #[must_use]
    pub fn notified(&mut self, index: u16) -> bool {
        let Some(active) = self.queues.iter().find(|active| active.index == index) else {
            return true;
        };
        // A spurious wake-up finds an empty ring.
        clear_kick(&active.kick);
        if active.queue.is_revoked() {
            if !self.interrupt.is_revoked() {
                // This queue alone was reset; it is notified again if it comes back.
                return true;
            }
            // The device was reset, and the notification may be for the worker that comes next.
            write_kick(&active.kick);
            return false;
        }
        if active.queue.is_paused() {
            // It is notified again when it goes on.
            return true;
        }
        // Whatever the handler waits for, it says so again if it still does.
        self.wait = None;
        self.serve(index)
    }

    /// How long after the last call the handler wants [`Worker::expired`] to be called, if it waits
    /// for anything but notifications.
    #[must_use]
    pub const fn wait(&self) -> Option<Duration> {
        self.wait
    }

    /// Serves all queues, because the handler's wait is over; too early does no harm. Returns
    /// whether the worker lives, as [`Worker::notified`].
    #[must_use]
    pub fn expired(&mut self) -> bool {
        self.wait = None;
        if self.interrupt.is_revoked() {
            return false;
        }
        for place in 0..self.queues.len() {
            let Some(active) = self.queues.get(place) else {
                break;
            };
            // A queue that was taken back or is paused is notified if it goes on.
            let away = active.queue.is_revoked() || active.queue.is_paused();
            let index = active.index;
            if !away && !self.serve(index) {
                return false;
            }
        }
        true
    }

    /// Has the handler serve queue `index`.
    fn serve(&mut self, index: u16) -> bool {
        match self.handler.process(index) {
            Ok(Progress::Idle) => true,
            Ok(Progress::More) => {
                if let Some(active) = self.queues.iter().find(|active| active.index == index) {
                    write_kick(&active.kick);
                }
                true
            }
            Ok(Progress::After(wait)) => {
                self.wait = Some(self.wait.map_or(wait, |other| other.min(wait)));
                true
            }
            Err(fault) => {
                self.fail(&fault);
                false
            }
        }
    }

    /// Whether the handler may wait for time to pass.
    #[must_use]
    pub fn needs_timer(&self) -> bool {
        self.handler.needs_timer()
    }

    /// Tells the driver that the device does not work any more, and the VMM why.
    pub fn fail(&self, fault: &DeviceFault) {
        self.interrupt.device_failed(fault);
    }

    #[cfg(feature = "worker")]
    pub(crate) const fn interrupt(&self) -> &InterruptHandle {
        &self.interrupt
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
pub trait Executor: Send {
    /// Starts `worker`. The one that was started before for the same device, if any, was told to
    /// stop and must not run any more: it would take notifications that are not for it.
    ///
    /// # Errors
    ///
    /// What kept it from starting; the worker is dropped then.
    fn start(&mut self, worker: Worker) -> io::Result<Box<dyn RunningWorker>>;
}

/// A worker that has been started. Dropping it stops it, too.
pub trait RunningWorker: Send {
    /// Tells the worker to end. Nothing to do if it has ended.
    ///
    /// Does not wait for a handler that is stuck: what it may touch is decided by the leases on its
    /// queues, not by the life of its thread.
    fn stop(&mut self);
}

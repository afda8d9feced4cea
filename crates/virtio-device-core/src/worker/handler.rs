// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device author writes: a handler, called when there is something to do.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use vmm_sys_util::epoll::EventSet;

use crate::device::ActiveQueue;
use crate::fault::DeviceFault;
use crate::interrupt::InterruptHandle;
use crate::worker::sources::{Poller, Sources};

/// Whether a handler has more to do for the queue or the source that it was called for.
///
/// ```
/// use std::time::Duration;
/// use virtio_device_core::Progress;
///
/// /// What a handler returns after at most `turn` requests.
/// fn after(served: usize, turn: usize, wait: Option<Duration>) -> Progress {
///     match wait {
///         Some(time) => Progress::After(time), // a rate limit: call again then
///         None if served == turn => Progress::More, // others first
///         None => Progress::Idle, // until the next notification
///     }
/// }
/// assert_eq!(after(3, 64, None), Progress::Idle);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing: the queue is empty, paused or gone. The next notification or event wakes the handler.
    /// After an empty queue a driver may notify only if
    /// [`enable_notification`](crate::Virtqueue::enable_notification) has asked it to.
    Idle,
    /// The handler has used up its share, and is called again without a notification, after whatever
    /// else its loop has to do.
    More,
    /// The handler waits for time to pass, and is called again after this long, or earlier by a
    /// notification. Each queue and each source has a wait of its own. [`Duration::MAX`] waits for
    /// a notification alone.
    After(Duration),
}

/// A device's work on its queues. It is called on one thread, and need not be [`Send`] if it is
/// [built](crate::Worker::build) there.
///
/// A call may come without need: look at the ring, and find it empty. Only
/// [`start`](QueueHandler::start) comes while the device is paused, if that was restored and not resumed
/// yet, and what [ends requests in flight](Context::watch_in_flight). Another call that is under way finds its queues [paused](crate::Unavailable::Paused), returns
/// [`Progress::Idle`], and is repeated on resume.
///
/// ```
/// use virtio_device_core::{Context, DeviceFault, Progress, QueueHandler};
///
/// /// Gives every request back unserved.
/// struct Nothing<M> {
///     memory: M,
///     chain: virtio_device_core::Chain,
/// }
///
/// impl<M: vm_memory::GuestAddressSpace> QueueHandler for Nothing<M> {
///     fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
///         let memory = self.memory.memory();
///         let Some(active) = cx.queue(queue) else { return Ok(Progress::Idle) };
///         let looked = active.lease.with(|ring| {
///             let Some(head) = ring.take(&*memory, &mut self.chain)? else {
///                 // The driver is to notify of the next one, which may have come meanwhile.
///                 let more = ring.enable_notification(&*memory)?;
///                 return Ok(if more { Progress::More } else { Progress::Idle });
///             };
///             ring.complete(&*memory, head, 0)?;
///             if ring.needs_interrupt(&*memory)? {
///                 active.signal_used();
///             }
///             Ok(Progress::More)
///         });
///         looked.unwrap_or(Ok(Progress::Idle)) // paused, or reset
///     }
/// }
/// ```
pub trait QueueHandler {
    /// Serves queue `queue`, for at most one queue-length of requests.
    ///
    /// # Errors
    ///
    /// Why the device cannot go on. The driver sees `DEVICE_NEEDS_RESET`, and all workers of this
    /// activation end.
    fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault>;

    /// The first call: watch the file descriptors of the host here.
    ///
    /// # Errors
    ///
    /// Why the device cannot start, as for [`QueueHandler::process`].
    fn start(&mut self, cx: &mut Context<'_>) -> Result<(), DeviceFault> {
        let _ = cx;
        Ok(())
    }

    /// The watched file descriptor `source` is ready. It is level-triggered: the call is repeated
    /// until the descriptor is not ready any more, or its interest has changed.
    ///
    /// With [`EventSet::IN`] a read does not block, and gives nothing at the end of a stream; with
    /// [`EventSet::OUT`] a write does not block. With [`EventSet::HANG_UP`] the peer has hung up, or the
    /// descriptor has an error: that comes whatever the interest is, unless that is empty, again and
    /// again, until the descriptor is not watched any more. It comes once, with nothing else, for a
    /// descriptor that the kernel refuses to wait for again after a pause; its interest is empty then.
    ///
    /// Also called, with nothing ready, when what a call for this source has asked for is due: more,
    /// or the end of a wait.
    ///
    /// # Errors
    ///
    /// As for [`QueueHandler::process`].
    fn ready(
        &mut self,
        source: u32,
        readiness: EventSet,
        cx: &mut Context<'_>,
    ) -> Result<Progress, DeviceFault> {
        let _ = (source, readiness, cx);
        Ok(Progress::Idle)
    }
}

/// What a handler finds around itself: its queues, and the file descriptors that wake it.
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use virtio_device_core::vmm_sys_util::epoll::EventSet;
/// use virtio_device_core::{Context, DeviceFault};
///
/// const HOST: u32 = 0;
///
/// /// Called by a handler that has found no room in its queue, or room again.
/// fn listen(cx: &mut Context<'_>, has_room: bool) -> Result<(), DeviceFault> {
///     let interest = if has_room { EventSet::IN } else { EventSet::empty() };
///     cx.set_interest(HOST, interest).map_err(DeviceFault::Backend)
/// }
///
/// /// Called by its `start`.
/// fn begin(cx: &mut Context<'_>, host: &UnixStream) -> Result<(), DeviceFault> {
///     cx.watch(HOST, host, EventSet::empty()).map_err(DeviceFault::Backend)
/// }
/// ```
pub struct Context<'a> {
    pub(crate) queues: &'a [ActiveQueue],
    pub(crate) sources: &'a mut Sources,
    pub(crate) poller: &'a Poller<'a>,
    pub(crate) interrupt: &'a InterruptHandle,
}

impl Context<'_> {
    /// Queue `index`, if it is one of the worker's. If it was reset by itself and enabled again, this
    /// is the new one.
    #[must_use]
    #[inline]
    pub fn queue(&self, index: u16) -> Option<&ActiveQueue> {
        self.queues.iter().find(|queue| queue.index == index)
    }

    /// The worker's queues.
    #[must_use]
    pub const fn queues(&self) -> &[ActiveQueue] {
        self.queues
    }

    /// The way to the driver for the device as a whole.
    #[must_use]
    pub const fn interrupt(&self) -> &InterruptHandle {
        self.interrupt
    }

    /// Watches `fd`, under a number of the handler's choice, until it is unwatched or the worker
    /// ends. It is waited for being readable ([`EventSet::IN`]), writable ([`EventSet::OUT`]), either, or
    /// nothing; other events are left out. A duplicate is watched, so `fd` itself may be closed. Replaces what was watched under
    /// this number before.
    ///
    /// Events are held back while the device is paused.
    ///
    /// # Errors
    ///
    /// If `fd` cannot be duplicated or watched: `EPERM` for regular files, which are always ready.
    pub fn watch(&mut self, source: u32, fd: impl AsFd, interest: EventSet) -> io::Result<()> {
        self.sources.watch(self.poller, source, fd, interest, false)
    }

    /// Watches `fd`, which becomes readable when requests in flight are done, as
    /// [`watch`](Self::watch) does, but while the device is paused as well: a pause waits for every
    /// [`InFlight`](crate::InFlight), so what ends those must not wait for the pause.
    ///
    /// During a pause [`QueueHandler::ready`] finds its queues
    /// [paused](crate::Unavailable::Paused), and [`InFlight::with`](crate::InFlight::with) works. What
    /// it and [`QueueHandler::process`] have asked for by [`Progress::More`] and [`Progress::After`]
    /// goes on as well.
    ///
    /// # Errors
    ///
    /// As for [`watch`](Self::watch).
    pub fn watch_in_flight(&mut self, source: u32, fd: impl AsFd) -> io::Result<()> {
        self.sources
            .watch(self.poller, source, fd, EventSet::IN, true)
    }

    /// Changes what a watched descriptor is waited for: with an empty set it wakes nobody, not
    /// even when its peer hangs up. Nothing to do if `source` is not watched.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn set_interest(&mut self, source: u32, interest: EventSet) -> io::Result<()> {
        self.sources.set_interest(self.poller, source, interest)
    }

    /// Does not watch `source` any more: [`QueueHandler::ready`] is not called for it, whatever a call
    /// has asked for.
    pub fn unwatch(&mut self, source: u32) {
        self.sources.unwatch(self.poller, source);
    }
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

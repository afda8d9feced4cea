// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The transport's half of one activation: what was lent, and how it is taken back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use crate::device::{Activation, ActiveQueue, QueueSlot};
use crate::fault::DeviceFault;
use crate::interrupt::{ConfigNotifier, InterruptHandle, QueueInterrupt};
use crate::negotiation::Features;
use crate::queue::{Lease, Lent, Virtqueue};
use crate::sync::write_kick;
use crate::worker::let_go;

/// Everything that a transport lends to its device between activation and reset.
///
/// It keeps the one order in which that can be taken back: interrupts first, then guest memory, then
/// the workers are told to end; memory is at rest once [`Session::wait_idle`] says so. A transport
/// shows a reset as complete only then.
///
/// ```
/// use std::sync::Arc;
/// use virtio_device_core::ConfigNotifier;
/// use virtio_device_core::transport::{Interrupt, Session};
/// use virtio_device_core::Features;
/// use virtio_device_core::vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// struct Deaf;
/// impl Interrupt for Deaf {
///     fn used_buffers(&self, _queue: u16) {}
///     fn config_interrupt(&self) {}
/// }
///
/// let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
/// let config = ConfigNotifier::new(Arc::new(Deaf));
/// // DRIVER_OK: lend it all. A real driver has enabled queues.
/// let (session, activation) = Session::new(&config, Arc::new(memory), Features::NONE, [], false);
/// // ... `device.activate(activation)` ...
/// # drop(activation);
/// // Reset: take it back, and wait until memory is at rest.
/// session.revoke();
/// assert!(session.wait_idle(None));
/// ```
#[derive(Debug)]
pub struct Session {
    config: ConfigNotifier,
    handle: InterruptHandle,
    device: Lent<()>,
    queues: Vec<LentQueue>,
}

#[derive(Debug)]
struct LentQueue {
    index: u16,
    kick: Arc<EventFd>,
    lent: Lent<Virtqueue>,
    interrupt: QueueInterrupt,
    slot: Arc<QueueSlot>,
}

impl Session {
    /// Lends `memory` and `queues` to a device whose driver has agreed on `features`. The driver is
    /// reached through `config`, which the device was [connected](crate::VirtioDevice::connect) to.
    ///
    /// A queue is an index, the event fd where the driver's notifications arrive, and the queue itself;
    /// `None` for one that the driver had enabled and has taken back since, as a saved state may say. Its
    /// lease is revoked from the start, and it can be restarted.
    ///
    /// If `paused`, everything is paused from the start.
    pub fn new<M>(
        config: &ConfigNotifier,
        memory: M,
        features: Features,
        queues: impl IntoIterator<Item = (u16, Arc<EventFd>, Option<Virtqueue>)>,
        paused: bool,
    ) -> (Self, Activation<M>) {
        let handle = InterruptHandle::new(config.interrupt().clone(), features, paused);
        let (device, lease) = Lent::new(Some(()));
        let (queues, active) = queues
            .into_iter()
            .map(|(index, kick, queue)| {
                let interrupt = queue.as_ref().map(|_| config.interrupt().clone());
                let interrupt = QueueInterrupt::new(index, interrupt);
                let (lent, lease) = Lent::new(queue);
                let active = ActiveQueue::new(index, kick.clone(), lease, interrupt.clone());
                let lent = LentQueue {
                    index,
                    kick,
                    lent,
                    interrupt,
                    slot: active.slot.clone(),
                };
                (lent, active)
            })
            .unzip();
        let session = Self {
            config: config.clone(),
            handle: handle.clone(),
            device,
            queues,
        };
        if paused {
            session.pause_leases();
        }
        config.set_live(true);
        let activation = Activation {
            memory,
            queues: active,
            features,
            lease,
            interrupt: handle,
        };
        (session, activation)
    }

    /// A session of a device that was broken when it was saved: nothing is lent.
    #[must_use]
    pub fn broken(config: &ConfigNotifier) -> Self {
        let (session, _) = Self::new(config, (), Features::NONE, [], false);
        session.handle.set_broken();
        session
    }

    /// The device's `activate` has returned `Ok`. The VMM's observer hears that the device is live
    /// as soon as all of its workers have started.
    pub fn activated(&self) {
        self.handle.started();
    }

    /// Marks the device as broken; see [`InterruptHandle::device_failed`].
    pub fn device_failed(&self, cause: &DeviceFault) {
        self.handle.device_failed(cause);
    }

    /// Whether the device is broken, and the driver was told.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.handle.is_broken()
    }

    /// Whether a ring was broken by the driver, be it that nobody has told so far.
    #[must_use]
    pub fn has_ring_fault(&self) -> bool {
        let faulty = |queue: &Virtqueue| queue.fault().is_some();
        let mut queues = self.queues.iter();
        queues.any(|queue| queue.lent.inspect(faulty) == Some(true))
    }

    /// Keeps the device from guest memory until [`Session::resume`].
    ///
    /// Waits for at most one critical section of the device on each queue. Memory is at rest, and
    /// every request that was in flight complete, once [`Session::wait_idle`] says so.
    pub fn pause(&self) {
        self.handle.set_paused(true);
        self.pause_leases();
    }

    fn pause_leases(&self) {
        self.device.pause();
        self.queues.iter().for_each(|queue| queue.lent.pause());
    }

    /// Lets the device go on, and look at all of its queues without waiting for a notification.
    pub fn resume(&self) {
        self.resume_and(|| ());
    }

    /// As [`resume`](Self::resume); before the device looks at its queues it is told by `resumed`.
    pub fn resume_and(&self, resumed: impl FnOnce()) {
        self.device.resume();
        self.queues.iter().for_each(|queue| queue.lent.resume());
        self.handle.set_paused(false);
        self.handle.wake_loops();
        resumed();
        self.kick_all();
    }

    /// Has the device look at all of its queues.
    pub fn kick_all(&self) {
        self.queues.iter().for_each(|queue| write_kick(&queue.kick));
    }

    /// Takes everything back for good: when this returns no interrupt is raised any more, and no
    /// critical section of the device goes on. Requests in flight are waited for by
    /// [`Session::wait_idle`]. Nothing to do the second time.
    pub fn revoke(&self) {
        // The interrupt handle first: that is how a worker learns that the whole device ends, and not
        // one queue.
        self.handle.revoke();
        self.config.set_live(false);
        let _ = self.device.revoke();
        self.queues.iter().for_each(LentQueue::revoke);
        self.handle.wake_loops();
    }

    /// Waits until no request is in flight, but not longer than `bound`, if there is one. Returns
    /// whether guest memory is at rest.
    ///
    /// What a handler holds whose loop runs on the calling thread is let go first.
    #[must_use]
    pub fn wait_idle(&self, bound: Option<Duration>) -> bool {
        let_go();
        let deadline = deadline(bound);
        self.device.wait_idle(deadline)
            && (self.queues.iter()).all(|queue| queue.lent.wait_idle(deadline))
    }

    /// Whether no request is in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.device.is_idle() && self.queues.iter().all(|queue| queue.lent.is_idle())
    }

    /// Whether queue `index` was enabled when the device was activated.
    #[must_use]
    pub fn has_queue(&self, index: u16) -> bool {
        self.queue(index).is_some()
    }

    /// Takes queue `index` back alone; the others go on. Requests in flight are waited for by
    /// [`Session::wait_queue_idle`], and its worker is woken, to cancel them.
    pub fn revoke_queue(&self, index: u16) {
        if let Some(queue) = self.queue(index) {
            queue.revoke();
            write_kick(&queue.kick);
        }
    }

    /// As [`Session::wait_idle`], for queue `index` alone.
    #[must_use]
    pub fn wait_queue_idle(&self, index: u16, bound: Option<Duration>) -> bool {
        let queue = self.queue(index);
        queue.is_none_or(|queue| queue.lent.wait_idle(deadline(bound)))
    }

    /// Lends queue `index` again after it was taken back and is idle (`VIRTIO_F_RING_RESET`): its
    /// worker goes on with the new one. Returns whether the device has such a queue.
    pub fn restart_queue(&mut self, index: u16, queue: Virtqueue) -> bool {
        let paused = self.handle.is_paused();
        let target = self.config.interrupt().clone();
        let mut queues = self.queues.iter_mut();
        let Some(slot) = queues.find(|slot| slot.index == index) else {
            return false;
        };
        let lease: Lease;
        (slot.lent, lease) = Lent::new(Some(queue));
        if paused {
            slot.lent.pause();
        }
        slot.interrupt = QueueInterrupt::new(index, Some(target));
        slot.slot.replace(lease, slot.interrupt.clone());
        write_kick(&slot.kick);
        true
    }

    /// Looks at queue `index`; `None` if it was not enabled or has been taken back.
    pub fn inspect<R>(&self, index: u16, look: impl FnOnce(&Virtqueue) -> R) -> Option<R> {
        self.queue(index)?.lent.inspect(look)
    }

    fn queue(&self, index: u16) -> Option<&LentQueue> {
        self.queues.iter().find(|queue| queue.index == index)
    }
}

impl LentQueue {
    fn revoke(&self) {
        self.interrupt.revoke();
        let _ = self.lent.revoke();
    }
}

/// A bound that no clock can tell the end of is none.
fn deadline(bound: Option<Duration>) -> Option<Instant> {
    bound.and_then(|bound| Instant::now().checked_add(bound))
}

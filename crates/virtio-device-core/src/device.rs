// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a virtio device implements, and what it is given to work with.

use std::sync::{Arc, PoisonError};

use vm_memory::{GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::EventFd;

use crate::fault::DeviceFault;
use crate::interrupt::{ConfigNotifier, InterruptHandle, QueueInterrupt};
use crate::negotiation::Features;
use crate::queue::Lease;
use crate::state::DeviceState;
use crate::sync::{AtomicU32, Mutex, MutexGuard, Ordering};
use crate::worker::{Executor, QueueHandler, Worker};

/// A virtio device, whatever transport it sits behind.
///
/// `M` is the view of guest memory that the VMM hands to its devices: an `Arc<GuestMemoryMmap>`,
/// a `GuestMemoryAtomic`, or the memory behind an IOMMU.
///
/// The defaults describe a device without features, configuration space or state of its own; an
/// entropy device implements the three methods that have none. All calls come from the transport,
/// one at a time, mostly on a vCPU's thread: none may wait.
///
/// ```
/// use virtio_device_core::{Activation, DeviceFault, VirtioDevice, vm_memory::GuestAddressSpace};
///
/// /// An entropy device that never answers.
/// struct Deaf;
///
/// impl<M: GuestAddressSpace> VirtioDevice<M> for Deaf {
///     fn device_type(&self) -> u32 {
///         4
///     }
///
///     fn queue_max_sizes(&self) -> &[u16] {
///         &[256]
///     }
///
///     fn activate(&mut self, _activation: Activation<M>) -> Result<(), DeviceFault> {
///         Ok(())
///     }
/// }
/// ```
pub trait VirtioDevice<M: GuestAddressSpace>: Send {
    /// The device type of VIRTIO 1.3, section 5: 4 is an entropy device.
    fn device_type(&self) -> u32;

    /// The largest size of each queue, in the order of their indices; powers of two.
    fn queue_max_sizes(&self) -> &[u16];

    /// The features of its device type that the device offers (section 5). Those of the queues and of
    /// the transport are none of its business.
    fn features(&self) -> Features {
        Features::NONE
    }

    /// The features of queues that the device can serve. The queues of this crate have all of
    /// [`Features::QUEUE`]; a device whose queues are served elsewhere says what is possible there.
    fn queue_features(&self) -> Features {
        Features::QUEUE
    }

    /// Length of the configuration space in bytes.
    fn config_size(&self) -> u32 {
        0
    }

    /// Reads the configuration space; `offset` and `data` lie within [`config_size`].
    ///
    /// [`config_size`]: VirtioDevice::config_size
    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let _ = offset;
        data.fill(0);
    }

    /// Writes the configuration space; `offset` and `data` lie within [`config_size`].
    ///
    /// [`config_size`]: VirtioDevice::config_size
    fn write_config(&mut self, offset: u32, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Whether the driver may write the configuration field at `offset` in every state, also before
    /// it has agreed on features: a console's emergency write (section 5.3.4). Nothing else may be
    /// written that early (section 3.1.1).
    fn takes_early_write(&self, offset: u32) -> bool {
        let _ = offset;
        false
    }

    /// Takes the means to announce changes of the configuration space that come from the host.
    ///
    /// Called once, when the device is put behind its transport.
    fn connect(&mut self, config: ConfigNotifier) {
        let _ = config;
    }

    /// Receives the features that both sides have agreed on: the driver has set `FEATURES_OK`, and may
    /// read and write the configuration space from now on (section 3.1.1). A restored device is told before
    /// [`VirtioDevice::restore`].
    fn negotiated(&mut self, features: Features) {
        let _ = features;
    }

    /// Goes to work: the driver has set `DRIVER_OK`.
    ///
    /// Called on the thread of the vCPU that wrote the status. Every queue is notified afterwards,
    /// whatever came before.
    ///
    /// # Errors
    ///
    /// What kept the device from starting. The driver then sees `DEVICE_NEEDS_RESET`.
    fn activate(&mut self, activation: Activation<M>) -> Result<(), DeviceFault>;

    /// Stops touching guest memory; only for a device whose queues are served elsewhere.
    ///
    /// Called after the leases were paused, and after [`VirtioDevice::activate`] if that comes during a
    /// pause. The pause is complete when every
    /// [`InFlight`](crate::InFlight) of the device is gone, which need not be before this returns.
    fn pause(&mut self) {}

    /// Goes on after [`VirtioDevice::pause`]; all queues are notified afterwards.
    fn resume(&mut self) {}

    /// Base and length in bytes of the shared memory region `id`, if the device has one (section 2.10).
    /// The VMM has placed it in the guest's address space, outside of its RAM.
    fn shared_memory(&self, id: u8) -> Option<(GuestAddress, u64)> {
        let _ = id;
        None
    }

    /// What the device itself has to remember, beside what transport and queues save. Called while
    /// the device is paused or not active.
    fn save(&self) -> DeviceState {
        DeviceState::default()
    }

    /// Puts back what [`VirtioDevice::save`] gave; [`VirtioDevice::activate`] follows if the device
    /// was live. The state may come from anywhere, so its bytes are not to be trusted.
    ///
    /// # Errors
    ///
    /// What is wrong with `state`; nothing has changed then.
    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceFault> {
        state.expect_empty()
    }

    /// Lets go of queue `index`, which its driver has reset by itself (`VIRTIO_F_RING_RESET`, section 2.6.1).
    ///
    /// When this is called the queue's lease and interrupt are revoked, and its worker is woken, so most
    /// devices have nothing to do. One whose queues are served elsewhere stops that server: the reset is
    /// complete when every [`InFlight`](crate::InFlight) of the queue is gone.
    fn reset_queue(&mut self, index: u16) {
        let _ = index;
    }

    /// Forgets what the driver has set up, and requests in flight. Called at each reset, whether there
    /// was an activation or not, and when the driver of a live device has given up (`FAILED`).
    ///
    /// When this is called all leases and interrupts are revoked, and workers end by themselves, so
    /// most devices have nothing to do. One that has I/O in flight cancels it: the reset is complete
    /// when every [`InFlight`](crate::InFlight) is gone.
    fn reset(&mut self) {}
}

impl<M: GuestAddressSpace, T: VirtioDevice<M> + ?Sized> VirtioDevice<M> for Box<T> {
    fn device_type(&self) -> u32 {
        (**self).device_type()
    }

    fn queue_max_sizes(&self) -> &[u16] {
        (**self).queue_max_sizes()
    }

    fn features(&self) -> Features {
        (**self).features()
    }

    fn queue_features(&self) -> Features {
        (**self).queue_features()
    }

    fn config_size(&self) -> u32 {
        (**self).config_size()
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        (**self).read_config(offset, data);
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        (**self).write_config(offset, data);
    }

    fn takes_early_write(&self, offset: u32) -> bool {
        (**self).takes_early_write(offset)
    }

    fn connect(&mut self, config: ConfigNotifier) {
        (**self).connect(config);
    }

    fn negotiated(&mut self, features: Features) {
        (**self).negotiated(features);
    }

    fn activate(&mut self, activation: Activation<M>) -> Result<(), DeviceFault> {
        (**self).activate(activation)
    }

    fn pause(&mut self) {
        (**self).pause();
    }

    fn resume(&mut self) {
        (**self).resume();
    }

    fn shared_memory(&self, id: u8) -> Option<(GuestAddress, u64)> {
        (**self).shared_memory(id)
    }

    fn save(&self) -> DeviceState {
        (**self).save()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceFault> {
        (**self).restore(state)
    }

    fn reset_queue(&mut self, index: u16) {
        (**self).reset_queue(index);
    }

    fn reset(&mut self) {
        (**self).reset();
    }
}

/// What a device is given when its driver is ready; made by [`Session`](crate::transport::Session).
///
/// ```
/// use virtio_device_core::{Activation, DeviceFault, Executor, Worker};
///
/// /// Two queues, one worker: `handler` is called for both.
/// fn start<M, H>(activation: Activation<M>, handler: H, executor: &mut dyn Executor) -> Result<(), DeviceFault>
/// where
///     H: virtio_device_core::QueueHandler + Send + 'static,
/// {
///     activation.queue(0)?; // the driver must have enabled these
///     activation.queue(1)?;
///     executor.start(Worker::new(handler, activation.queues, activation.interrupt))
/// }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Activation<M> {
    /// Guest memory, to be touched under one of the leases only.
    pub memory: M,
    /// The queues that the driver has enabled, by rising index. There may be none.
    pub queues: Vec<ActiveQueue>,
    /// The features that both sides have agreed on.
    pub features: Features,
    /// For guest memory that is touched outside of every queue.
    pub lease: Lease<()>,
    /// The way to the driver for the device as a whole, also for failures.
    pub interrupt: InterruptHandle,
}

impl<M> Activation<M> {
    /// Queue `index`, out of [`Activation::queues`].
    ///
    /// # Errors
    ///
    /// [`DeviceFault::QueueMissing`] if the driver has not enabled it.
    pub fn queue(&self, index: u16) -> Result<&ActiveQueue, DeviceFault> {
        let mut queues = self.queues.iter();
        let queue = queues.find(|queue| queue.index == index);
        queue.ok_or(DeviceFault::QueueMissing(index))
    }

    /// Has `executor` serve all queues by one handler, which `make` makes of guest memory here: all
    /// that [`VirtioDevice::activate`] does for most devices. Others make their [`Worker`]s themselves.
    ///
    /// # Errors
    ///
    /// What kept the executor from starting the worker.
    pub fn serve<H: QueueHandler + Send + 'static>(
        self,
        executor: &mut impl Executor,
        make: impl FnOnce(M) -> H,
    ) -> Result<(), DeviceFault> {
        executor.start(Worker::new(make(self.memory), self.queues, self.interrupt))
    }
}

/// A queue that the driver has enabled.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ActiveQueue {
    /// Index of the queue.
    pub index: u16,
    /// The queue, until the transport takes it back.
    pub lease: Lease,
    /// Counts the driver's notifications since it was last read.
    pub kick: Arc<EventFd>,
    interrupt: QueueInterrupt,
    pub(crate) slot: Arc<QueueSlot>,
    /// Which of the slot's changes this value shows.
    seen: u32,
}

impl ActiveQueue {
    pub(crate) fn new(
        index: u16,
        kick: Arc<EventFd>,
        lease: Lease,
        interrupt: QueueInterrupt,
    ) -> Self {
        Self {
            index,
            lease: lease.clone(),
            kick,
            interrupt: interrupt.clone(),
            slot: Arc::new(QueueSlot {
                changes: AtomicU32::new(0),
                current: Mutex::new((lease, interrupt)),
            }),
            seen: 0,
        }
    }

    /// Tells the driver that the queue holds used buffers; good until the queue or the device is reset.
    #[inline]
    pub fn signal_used(&self) {
        self.interrupt.trigger();
    }

    /// An event fd that does the same as [`signal_used`](Self::signal_used) when it is written, for a
    /// foreign server; `None` if the interrupt line has none: then watch an event fd of your own, and
    /// signal by hand.
    ///
    /// The transport cannot revoke it. Hand it out only while you have an
    /// [`InFlight`](crate::InFlight) for the queue, and drop that once the server has stopped.
    #[must_use]
    pub fn interrupt_fd(&self) -> Option<Arc<EventFd>> {
        self.interrupt.event_fd()
    }

    /// Takes over the lease and the interrupt of a queue that was reset by itself and enabled again
    /// (`VIRTIO_F_RING_RESET`). A [`Worker`](crate::Worker) does this at each wake-up.
    #[inline]
    pub fn refresh(&mut self) {
        let changes = self.slot.changes.load(Ordering::Acquire);
        if changes != self.seen {
            (self.lease, self.interrupt) = self.slot.lock().clone();
            self.seen = changes;
        }
    }
}

/// Where a queue that is enabled again reaches whoever served it before.
#[derive(Debug)]
pub(crate) struct QueueSlot {
    changes: AtomicU32,
    current: Mutex<(Lease, QueueInterrupt)>,
}

impl QueueSlot {
    /// Shows a new lease and interrupt. Notify the queue afterwards.
    pub(crate) fn replace(&self, lease: Lease, interrupt: QueueInterrupt) {
        *self.lock() = (lease, interrupt);
        self.changes.fetch_add(1, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, (Lease, QueueInterrupt)> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

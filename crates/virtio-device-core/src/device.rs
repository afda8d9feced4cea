// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a virtio device implements, and what it is given to work with.

use std::sync::{Arc, PoisonError};

use vm_memory::{GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::EventFd;

use crate::fault::ActivateError;
use crate::interrupt::{ConfigNotifier, InterruptHandle, QueueInterrupt};
use crate::negotiation::Features;
use crate::queue::{DeviceLease, QueueLease};
use crate::state::{DeviceState, DeviceStateError};
use crate::sync::{AtomicU32, Mutex, MutexGuard, Ordering};

/// A virtio device, whatever transport it sits behind.
///
/// `M` is the view of guest memory that the VMM hands to its devices: an `Arc<GuestMemoryMmap>`,
/// a `GuestMemoryAtomic`, or the memory behind an IOMMU.
///
/// The defaults describe a device without features, configuration space or state of its own; an
/// entropy device implements the three methods that have none. All calls come from the transport,
/// one at a time, mostly on a vCPU's thread: none may wait.
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

    /// Goes to work: the driver has set `DRIVER_OK`.
    ///
    /// Called on the thread of the vCPU that wrote the status. Every queue is notified afterwards,
    /// whatever came before.
    ///
    /// # Errors
    ///
    /// What kept the device from starting. The driver then sees `DEVICE_NEEDS_RESET`.
    fn activate(&mut self, activation: Activation<M>) -> Result<(), ActivateError>;

    /// Stops touching guest memory; only for a device whose queues are served elsewhere.
    ///
    /// Called after the leases were paused. The pause is complete when every
    /// [`InFlight`](crate::InFlight) of the device is gone, which need not be before this returns.
    fn pause(&mut self) {}

    /// Goes on after a pause; all queues are notified afterwards.
    fn resume(&mut self) {}

    /// The device's shared memory regions (section 2.10), which the VMM has placed in the guest's
    /// address space.
    fn shared_memory(&self) -> &[SharedMemoryRegion] {
        &[]
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
    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        state.expect_empty()
    }

    /// Forgets the activation: what the driver has set up, requests in flight. Also called when a
    /// device is reset that was restored.
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

    fn activate(&mut self, activation: Activation<M>) -> Result<(), ActivateError> {
        (**self).activate(activation)
    }

    fn pause(&mut self) {
        (**self).pause();
    }

    fn resume(&mut self) {
        (**self).resume();
    }

    fn shared_memory(&self) -> &[SharedMemoryRegion] {
        (**self).shared_memory()
    }

    fn save(&self) -> DeviceState {
        (**self).save()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        (**self).restore(state)
    }

    fn reset(&mut self) {
        (**self).reset();
    }
}

/// Memory that a device shares with its driver outside of the guest's RAM (VIRTIO 1.3, section
/// 2.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedMemoryRegion {
    /// The region's identifier, which the device type gives a meaning to.
    pub id: u8,
    /// Where the region begins.
    pub base: GuestAddress,
    /// Its length in bytes.
    pub len: u64,
}

/// What a device is given when its driver is ready; made by [`Session`](crate::Session).
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
    pub lease: DeviceLease,
    /// The way to the driver for the device as a whole, also for failures.
    pub interrupt: InterruptHandle,
}

impl<M> Activation<M> {
    /// Queue `index`, out of [`Activation::queues`].
    ///
    /// # Errors
    ///
    /// [`ActivateError::QueueMissing`] if the driver has not enabled it.
    pub fn queue(&self, index: u16) -> Result<&ActiveQueue, ActivateError> {
        let mut queues = self.queues.iter();
        let queue = queues.find(|queue| queue.index == index);
        queue.ok_or(ActivateError::QueueMissing(index))
    }
}

/// A queue that the driver has enabled.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ActiveQueue {
    /// Index of the queue.
    pub index: u16,
    /// The queue, until the transport takes it back.
    pub lease: QueueLease,
    /// Counts the driver's notifications since it was last read.
    pub kick: Arc<EventFd>,
    /// Tells the driver of used buffers in this queue.
    pub interrupt: QueueInterrupt,
    pub(crate) slot: Arc<QueueSlot>,
    /// Which of the slot's changes this value shows.
    seen: u32,
}

impl ActiveQueue {
    pub(crate) fn new(
        index: u16,
        kick: Arc<EventFd>,
        lease: QueueLease,
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
    current: Mutex<(QueueLease, QueueInterrupt)>,
}

impl QueueSlot {
    /// Shows a new lease and interrupt. Notify the queue afterwards.
    pub(crate) fn replace(&self, lease: QueueLease, interrupt: QueueInterrupt) {
        *self.lock() = (lease, interrupt);
        self.changes.fetch_add(1, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, (QueueLease, QueueInterrupt)> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a virtio device implements, and what it is given to work with.

use std::fmt;
use std::io;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::EventFd;

use crate::interrupt::InterruptHandle;
use crate::negotiation::Features;
use crate::queue::QueueLease;

/// A virtio device, whatever transport it sits behind.
///
/// `M` is the view of guest memory that the VMM hands to its devices: an `Arc<GuestMemoryMmap>`,
/// a `GuestMemoryAtomic`, or the memory behind an IOMMU.
///
/// The defaults describe a device without features and without configuration space; an entropy
/// device implements the four methods that have none.
pub trait VirtioDevice<M: GuestAddressSpace>: Send {
    /// The device type of VIRTIO 1.3, section 5: 4 is an entropy device.
    fn device_type(&self) -> u32;

    /// The largest size of each queue, in the order of their indices; powers of two.
    fn queue_max_sizes(&self) -> &[u16];

    /// The features that the device offers. `VIRTIO_F_VERSION_1` is offered in any case.
    fn features(&self) -> Features {
        Features::NONE
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

    /// Goes to work: the driver has set `DRIVER_OK`.
    ///
    /// Called on the thread of the vCPU that wrote the status, so it must not wait. Kicks that came
    /// in before are still in the event fds.
    ///
    /// # Errors
    ///
    /// What kept the device from starting. The driver then sees `DEVICE_NEEDS_RESET`.
    fn activate(&mut self, activation: Activation<M>) -> Result<(), ActivateError>;

    /// Takes over a queue that the driver has reset and enabled again, maybe with another size and
    /// elsewhere in memory (`VIRTIO_F_RING_RESET`, section 2.6.1).
    ///
    /// Called while the device is active, and only if both sides have agreed on the feature, so only
    /// a device that offers it implements this. The reset itself needs no call: the lease on the
    /// queue is revoked. The new one has the old index and event fd.
    ///
    /// # Errors
    ///
    /// What kept the device from taking the queue. The driver then sees `DEVICE_NEEDS_RESET`.
    fn restart_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        Err(ActivateError::NoRestart(queue.index))
    }

    /// The device's shared memory regions (section 2.10), which the VMM has placed in the guest's
    /// address space.
    fn shared_memory(&self) -> &[SharedMemoryRegion] {
        &[]
    }

    /// Stops work and forgets the activation; nothing to do if there is none.
    ///
    /// The queues are revoked and the interrupt is cut off when this is called, so guest memory is
    /// out of reach already. Called on a vCPU's thread, it must not wait for a source or a backend
    /// that may never answer.
    fn reset(&mut self);
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

    fn config_size(&self) -> u32 {
        (**self).config_size()
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        (**self).read_config(offset, data);
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        (**self).write_config(offset, data);
    }

    fn activate(&mut self, activation: Activation<M>) -> Result<(), ActivateError> {
        (**self).activate(activation)
    }

    fn restart_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        (**self).restart_queue(queue)
    }

    fn shared_memory(&self) -> &[SharedMemoryRegion] {
        (**self).shared_memory()
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

/// What a device is given when its driver is ready.
#[derive(Debug)]
#[non_exhaustive]
pub struct Activation<M> {
    /// Guest memory.
    pub memory: M,
    /// The queues that the driver has enabled, by rising index. There may be none.
    pub queues: Vec<ActiveQueue>,
    /// The features that both sides have agreed on.
    pub features: Features,
    /// The way to the driver, also for failures.
    pub interrupt: InterruptHandle,
}

impl<M> Activation<M> {
    /// Puts an activation together; for transports.
    #[must_use]
    pub const fn new(
        memory: M,
        queues: Vec<ActiveQueue>,
        features: Features,
        interrupt: InterruptHandle,
    ) -> Self {
        Self {
            memory,
            queues,
            features,
            interrupt,
        }
    }
}

/// A queue that the driver has enabled.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ActiveQueue {
    /// Index of the queue.
    pub index: u16,
    /// The queue, until the transport takes it back.
    pub queue: QueueLease,
    /// Counts the driver's notifications since it was last read.
    pub kick: Arc<EventFd>,
}

impl ActiveQueue {
    /// Puts a queue together; for transports.
    #[must_use]
    pub const fn new(index: u16, queue: QueueLease, kick: Arc<EventFd>) -> Self {
        Self { index, queue, kick }
    }
}

/// Why a device could not be activated.
#[derive(Debug)]
#[non_exhaustive]
pub enum ActivateError {
    /// The device cannot work without a queue that the driver has left disabled.
    QueueMissing(u16),
    /// The device is active already.
    AlreadyActive,
    /// The device does not take queues that come back after a reset of their own.
    NoRestart(u16),
    /// The worker could not be started.
    Worker(io::Error),
}

impl fmt::Display for ActivateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QueueMissing(index) => write!(f, "queue {index} is needed and not enabled"),
            Self::AlreadyActive => f.write_str("device is active already"),
            Self::NoRestart(index) => write!(f, "queue {index} cannot be enabled again"),
            Self::Worker(_) => f.write_str("worker could not be started"),
        }
    }
}

impl std::error::Error for ActivateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Worker(error) => Some(error),
            _ => None,
        }
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the driver has written: everything that a reset puts back to the start.

use virtio_device_core::{
    Features, VIRTIO_F_RING_RESET, VirtioDevice,
    transport::{DeviceStatus, Negotiation, QueueLayout, QueueSetup},
};
use vm_memory::GuestAddressSpace;

#[derive(Debug)]
pub(crate) struct Registers {
    pub(crate) status: DeviceStatus,
    pub(crate) features: Negotiation,
    pub(crate) device_features_sel: u32,
    pub(crate) driver_features_sel: u32,
    pub(crate) queue_sel: u32,
    pub(crate) shm_sel: u32,
    pub(crate) queues: Vec<QueueRegisters>,
}

#[derive(Debug)]
pub(crate) struct QueueRegisters {
    pub(crate) max_size: u16,
    pub(crate) setup: QueueSetup,
    /// Set while `QueueReady` is 1; the setup is frozen then.
    pub(crate) ready: Option<QueueLayout>,
    /// The driver has reset this queue alone, and may enable it again.
    pub(crate) reset: bool,
}

impl Registers {
    /// The registers of `device` after reset.
    ///
    /// They offer what the device has of its own, and `offered` as far as its queues have it.
    pub(crate) fn new<M: GuestAddressSpace>(
        device: &impl VirtioDevice<M>,
        offered: Features,
    ) -> Self {
        let queue = |&max_size| QueueRegisters {
            max_size,
            setup: QueueSetup::default(),
            ready: None,
            reset: false,
        };
        let offered = offered - (Features::QUEUE - device.queue_features());
        let features = device.features() & Features::DEVICE_TYPE | offered;
        Self {
            status: DeviceStatus::RESET,
            features: Negotiation::new(device.device_type(), features),
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            shm_sel: 0,
            queues: device.queue_max_sizes().iter().map(queue).collect(),
        }
    }

    pub(crate) fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    /// Whether the selected queue is enabled.
    pub(crate) fn queue_is_enabled(&self) -> bool {
        self.queue().is_some_and(|queue| queue.ready.is_some())
    }

    pub(crate) fn queue_mut(&mut self) -> Option<&mut QueueRegisters> {
        self.queues.get_mut(usize::try_from(self.queue_sel).ok()?)
    }

    /// Whether both sides have agreed on `feature`.
    pub(crate) fn agreed(&self, feature: u32) -> bool {
        self.status.features_ok() && self.features.accepted().has(feature)
    }

    /// The selected queue, if a driver may set it up now: features agreed on and device not live, or
    /// the queue was reset by itself; and not while it is enabled (sections 3.1.1, 2.6.1 and
    /// 4.2.2.2).
    pub(crate) fn queue_to_set_up(&mut self) -> Option<&mut QueueRegisters> {
        let configuring = self.status.configuring_queues();
        let live = self.status.live();
        self.queue_mut()
            .filter(|queue| queue.ready.is_none() && (configuring || live && queue.reset))
    }

    /// Whether the selected queue can be reset by itself.
    pub(crate) fn queue_can_reset(&self) -> bool {
        self.agreed(VIRTIO_F_RING_RESET) && !self.status.failed() && self.queue().is_some()
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device between activation and reset: what it is lent, and how that is taken back.

use virtio_device_core::{
    ActivateError, Activation, ActiveQueue, DeviceFault, Event, InterruptHandle, QueueLayout,
    QueueLease, QueueSetup, StatusWrite, VirtioDevice, Virtqueue,
};
use vm_memory::GuestAddressSpace;

use crate::register::Register;
use crate::registers::{QueueRegisters, Registers};
use crate::sync::wake;
use crate::transport::MmioTransport;

/// What the device holds between activation and reset.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) interrupt: InterruptHandle,
    /// By queue index; none for a queue that is not enabled.
    pub(crate) leases: Vec<Option<QueueLease>>,
}

impl Live {
    /// Takes the queues and the interrupt back from the device.
    pub(crate) fn take_back(&self) {
        // The interrupt first: it tells a worker that this is not about one queue alone.
        self.interrupt.revoke();
        for lease in self.leases.iter().flatten() {
            let _ = lease.revoke();
        }
    }

    fn lease_mut(&mut self, queue: u32) -> Option<&mut Option<QueueLease>> {
        self.leases.get_mut(usize::try_from(queue).ok()?)
    }
}

impl<M: GuestAddressSpace, D: VirtioDevice<M>> MmioTransport<M, D> {
    pub(crate) fn write_status(&mut self, value: u32) {
        let status = self.registers.status;
        match status.after_write(value, self.broken()) {
            // A driver may write again what it has read.
            StatusWrite::Ignored if value == self.status() => {}
            StatusWrite::Ignored => self.event(&Event::StatusRefused { status, value }),
            StatusWrite::Reset => self.reset(),
            StatusWrite::Step(status) => {
                self.registers.status = status;
                if status.failed() {
                    // The driver has given up, if the device ever was live: leave its memory alone.
                    self.live.iter().for_each(Live::take_back);
                    self.event(&Event::DriverFailed);
                }
            }
            StatusWrite::CheckFeatures(status) => match self.registers.features.check() {
                Ok(_) => self.registers.status = status,
                Err(error) => self.event(&Event::FeaturesRefused(error)),
            },
            StatusWrite::Activate(status) => {
                self.registers.status = status;
                let features = self.registers.features.accepted();
                let lend = |queue: &QueueRegisters| {
                    let layout = queue.ready?;
                    Some(QueueLease::new(Virtqueue::new(layout, features)))
                };
                let leases = self.registers.queues.iter().map(lend).collect();
                if let Err(error) = self.activate(leases) {
                    self.fail(error);
                }
            }
        }
    }

    /// Has the device go to work on `leases`.
    pub(crate) fn activate(
        &mut self,
        leases: Vec<Option<QueueLease>>,
    ) -> Result<(), ActivateError> {
        let features = self.registers.features.accepted();
        let interrupt = InterruptHandle::new(self.interrupt.clone());
        if self.paused {
            leases.iter().flatten().for_each(QueueLease::pause);
        }
        let queues = (0..=u16::MAX)
            .zip(leases.iter().zip(&self.kicks))
            .filter_map(|(index, (lease, kick))| {
                Some(ActiveQueue::new(index, lease.clone()?, kick.clone()))
            })
            .collect();
        self.live = Some(Live {
            interrupt: interrupt.clone(),
            leases,
        });
        let activation = Activation::new(self.memory.clone(), queues, features, interrupt);
        self.device.activate(activation)?;
        self.event(&Event::Activated { features });
        Ok(())
    }

    fn fail(&self, error: ActivateError) {
        if let Some(live) = &self.live {
            live.interrupt.device_failed(&DeviceFault::from(error));
        }
    }

    /// Enables the selected queue if it is well-formed: if not, `QueueReady` goes on reading 0.
    /// Disables it in any state; when this returns the device can reach it no more.
    pub(crate) fn write_queue_ready(&mut self, value: u32) {
        match value {
            0 => self.take_queue_back(),
            1 => self.enable_queue(),
            _ => self.wrong_state(Register::QueueReady),
        }
    }

    /// Resets the selected queue by itself (sections 2.6.1 and 4.2.2.1): its set-up and both its
    /// indices are gone. That is done when this returns, so `QueueReset` always reads 0.
    pub(crate) fn write_queue_reset(&mut self, value: u32) {
        if value != 1 || !self.registers.queue_can_reset() {
            return self.wrong_state(Register::QueueReset);
        }
        self.take_queue_back();
        let index = self.registers.queue_sel;
        if let Some(queue) = self.registers.queue_mut() {
            queue.setup = QueueSetup::default();
            queue.reset = true;
        }
        if let Ok(index) = u16::try_from(index) {
            self.event(&Event::QueueReset(index));
        }
    }

    fn take_queue_back(&mut self) {
        let index = self.registers.queue_sel;
        if let Some(queue) = self.registers.queue_mut() {
            queue.ready = None;
        }
        let live = self.live.as_mut();
        let lease = live.and_then(|live| live.lease_mut(index)?.take());
        let _ = lease.and_then(|lease| lease.revoke());
    }

    fn enable_queue(&mut self) {
        let queue = self.registers.queue_sel;
        if self.broken() {
            return self.wrong_state(Register::QueueReady);
        }
        let Some(registers) = self.registers.queue_to_set_up() else {
            return self.wrong_state(Register::QueueReady);
        };
        let memory = self.memory.memory();
        match QueueLayout::check(&registers.setup, registers.max_size, &*memory) {
            Ok(layout) => {
                registers.ready = Some(layout);
                registers.reset = false;
                let features = self.registers.features.accepted();
                self.restart_queue(Virtqueue::new(layout, features));
            }
            Err(error) => self.event(&Event::QueueRefused { queue, error }),
        }
    }

    /// Gives a live device the selected queue back.
    fn restart_queue(&mut self, queue: Virtqueue) {
        let index = self.registers.queue_sel;
        let Some(slot) = self.live.as_mut().and_then(|live| live.lease_mut(index)) else {
            return;
        };
        let lease = QueueLease::new(queue);
        if self.paused {
            lease.pause();
        }
        *slot = Some(lease.clone());
        let kick = usize::try_from(index).ok().and_then(|i| self.kicks.get(i));
        let (Ok(index), Some(kick)) = (u16::try_from(index), kick.cloned()) else {
            return;
        };
        match self
            .device
            .restart_queue(ActiveQueue::new(index, lease, kick.clone()))
        {
            Ok(()) => {
                // A notification that came meanwhile may have met the old worker.
                wake(&kick);
                self.event(&Event::QueueRestarted(index));
            }
            Err(error) => self.fail(error),
        }
    }

    /// Keeps the device from its queues, and so from guest memory, until [`resume`].
    ///
    /// Waits for at most one critical section of the device on each queue, whatever its worker is
    /// stuck in and however fast the driver makes requests. A request that is being served is either
    /// complete then or goes on later. The registers go on working: a driver may even reset the
    /// device and start it again, and it stays paused.
    ///
    /// [`resume`]: MmioTransport::resume
    pub fn pause(&mut self) {
        self.paused = true;
        self.leases().for_each(QueueLease::pause);
    }

    /// Lets the device go on, and look at its queues without waiting for a notification.
    pub fn resume(&mut self) {
        self.paused = false;
        self.leases().for_each(QueueLease::resume);
        self.kick_all();
    }

    /// Whether [`pause`](MmioTransport::pause) was called last, and not
    /// [`resume`](MmioTransport::resume).
    pub const fn is_paused(&self) -> bool {
        self.paused
    }

    /// Has the device look at all of its queues.
    pub(crate) fn kick_all(&self) {
        let leases = self.live.iter().flat_map(|live| &live.leases);
        for (_, kick) in leases.zip(&self.kicks).filter(|(lease, _)| lease.is_some()) {
            wake(kick);
        }
    }

    fn leases(&self) -> impl Iterator<Item = &QueueLease> {
        self.live
            .iter()
            .flat_map(|live| live.leases.iter().flatten())
    }

    /// Puts everything but the configuration generation back to the start, from every state. When
    /// this returns, no guest memory is touched and no interrupt raised on behalf of what was before
    /// (section 2.4.1).
    pub fn reset(&mut self) {
        if let Some(live) = self.live.take() {
            live.take_back();
            self.device.reset();
        }
        self.interrupt.acknowledge(u32::MAX);
        self.registers = Registers::new(&self.device);
        self.event(&Event::Reset);
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's life: activation, reset of a queue and of everything, pause.

use std::time::Duration;

use thiserror::Error;
use virtio_device_core::{
    DeviceFault, Event, VirtioDevice, Virtqueue,
    transport::{DeviceStatus, QueueLayout, QueueSetup, Session, discard},
};
use vm_memory::GuestAddressSpace;

use crate::register::Register;
use crate::registers::QueueRegisters;
use crate::transport::MmioTransport;

/// How long a reset waits for I/O in flight, unless the VMM says otherwise. A busy host is not a
/// stuck one, so this is seconds.
pub(crate) const RESET_BOUND: Duration = Duration::from_secs(2);

/// I/O of the device stayed in flight beyond the bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the device still has I/O in flight")]
pub struct StillBusy;

impl<M: GuestAddressSpace, D: VirtioDevice<M>> MmioTransport<M, D> {
    pub(crate) fn write_status(&mut self, value: u32) {
        let status = self.registers.status;
        if self.reset_is_pending() {
            // Nothing starts before the reset is complete, which a driver sees by polling the status.
            if value != 0 {
                self.event(&Event::StatusRefused { status, value });
            }
            return;
        }
        if status == DeviceStatus::RESET {
            self.config.begin();
        }
        match status.after_write(value, self.broken()) {
            // A driver may write again what it has read.
            None if value == self.status() => {}
            None => self.event(&Event::StatusRefused { status, value }),
            Some(DeviceStatus::RESET) => self.reset(),
            Some(status) if status.failed() => {
                self.registers.status = status;
                // The driver has given up, if the device ever was live: leave its memory alone.
                if let Some(session) = &self.session {
                    session.revoke();
                    self.device.reset();
                    self.active = false;
                }
                self.event(&Event::DriverFailed);
            }
            Some(status) if status.configuring_queues() => match self.registers.features.check() {
                Ok(features) => {
                    self.registers.status = status;
                    self.device.negotiated(features);
                }
                Err(error) => self.event(&Event::FeaturesRefused(error)),
            },
            Some(status) if status.live() => {
                self.registers.status = status;
                let features = self.registers.features.accepted();
                let queues = (0..=u16::MAX).zip(&self.registers.queues);
                let lend = |(index, queue): (u16, &QueueRegisters)| {
                    Some((index, Some(Virtqueue::new(queue.ready?, features))))
                };
                let queues = queues.filter_map(lend).collect();
                if let Err(fault) = self.activate(queues) {
                    self.session
                        .iter()
                        .for_each(|session| session.device_failed(&fault));
                    discard(fault);
                }
            }
            Some(status) => self.registers.status = status,
        }
    }

    /// Has the device go to work on `queues`, and look at each of them: the driver may have notified
    /// it already, before there was anybody to hear.
    pub(crate) fn activate(
        &mut self,
        queues: Vec<(u16, Option<Virtqueue>)>,
    ) -> Result<(), DeviceFault> {
        let queues = queues.into_iter().filter_map(|(index, queue)| {
            let kick = self.kicks.get(usize::from(index))?.clone();
            Some((index, kick, queue))
        });
        let (session, activation) = Session::new(
            &self.config,
            self.memory.clone(),
            self.registers.features.accepted(),
            queues,
            self.paused,
        );
        let session = self.session.insert(session);
        self.device.activate(activation)?;
        self.active = true;
        if self.paused {
            self.device.pause();
        }
        session.activated();
        session.kick_all();
        Ok(())
    }

    /// Enables the selected queue if it is well-formed: if not, `QueueReady` goes on reading 0.
    /// Disables it in any state; when it reads 0 the device can reach it no more.
    pub(crate) fn write_queue_ready(&mut self, value: u32) {
        match value {
            0 => {
                self.take_queue_back();
            }
            1 => self.enable_queue(),
            _ => self.wrong_state(Register::QueueReady),
        }
    }

    /// Resets the selected queue by itself (sections 2.6.1 and 4.2.2.1): its set-up and both its
    /// indices are gone. `QueueReset` reads 1 until the device has no I/O of that queue in flight.
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
        let queue = self.registers.queue_mut();
        let enabled = queue.and_then(|queue| queue.ready.take()).is_some();
        let Ok(index) = u16::try_from(self.registers.queue_sel) else {
            return;
        };
        if let Some(session) = self.session.as_ref().filter(|_| enabled) {
            session.revoke_queue(index);
            if self.active {
                self.device.reset_queue(index);
            }
            // If I/O is still in flight then, `QueueReset` reads 1 until it has ended.
            let _ = session.wait_queue_idle(index, Some(self.reset_bound));
        }
    }

    /// Whether the selected queue was taken back, and the device still has I/O of it in flight.
    pub(crate) fn queue_is_busy(&self) -> bool {
        let index = u16::try_from(self.registers.queue_sel);
        let busy = |(session, index): (&Session, u16)| {
            !session.wait_queue_idle(index, Some(Duration::ZERO))
        };
        let enabled = self.registers.queue_is_enabled();
        !enabled && self.session.as_ref().zip(index.ok()).is_some_and(busy)
    }

    /// Whether there is a live device that was not given `queue` when it was activated: it never will
    /// be.
    fn is_unknown_to_live_device(&self, queue: u32) -> bool {
        let has =
            |session: &Session| u16::try_from(queue).is_ok_and(|queue| session.has_queue(queue));
        self.session.as_ref().is_some_and(|session| !has(session))
    }

    fn enable_queue(&mut self) {
        let queue = self.registers.queue_sel;
        if self.broken() || self.queue_is_busy() || self.is_unknown_to_live_device(queue) {
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
        let index = u16::try_from(self.registers.queue_sel);
        if let (Some(session), Ok(index)) = (&mut self.session, index) {
            if session.restart_queue(index, queue) {
                self.event(&Event::QueueRestarted(index));
            }
        }
    }

    /// Keeps the device from its queues, and so from guest memory, until [`resume`].
    ///
    /// Waits for at most one critical section of the device on each queue, and for I/O that is in
    /// flight straight into guest memory, up to the bound of
    /// [`with_reset_bound`](MmioTransport::with_reset_bound). A request that is being served is either
    /// complete then or goes on later. The registers go on working: a driver may even reset the
    /// device and start it again, and it stays paused.
    ///
    /// # Errors
    ///
    /// [`StillBusy`] if I/O is still in flight. No more is begun; call again to go on waiting.
    ///
    /// [`resume`]: MmioTransport::resume
    pub fn pause(&mut self) -> Result<(), StillBusy> {
        if let Some(session) = &self.session {
            session.pause();
            if self.active && !self.paused {
                self.device.pause();
            }
        }
        self.paused = true;
        let idle = |session: &Session| session.wait_idle(Some(self.reset_bound));
        if self.session.iter().chain(&self.resetting).all(idle) {
            self.resetting = None;
            Ok(())
        } else {
            Err(StillBusy)
        }
    }

    /// Lets the device go on, and look at its queues without waiting for a notification.
    pub fn resume(&mut self) {
        if !self.paused {
            return;
        }
        self.paused = false;
        if let Some(session) = &self.session {
            session.resume_and(|| {
                if self.active {
                    self.device.resume();
                }
            });
        }
    }

    /// Whether [`pause`](MmioTransport::pause) was called last, and not
    /// [`resume`](MmioTransport::resume).
    pub const fn is_paused(&self) -> bool {
        self.paused
    }

    /// Puts everything but the configuration generation back to the start, from every state (section
    /// 2.4.1).
    ///
    /// Once it is complete no guest memory is touched and no interrupt raised on behalf of what was
    /// before. If the device still has I/O in flight after the bound of
    /// [`with_reset_bound`](MmioTransport::with_reset_bound), the reset stays
    /// [pending](MmioTransport::reset_is_pending).
    pub fn reset(&mut self) {
        if self.reset_is_pending() {
            return;
        }
        let session = self.session.take();
        session.iter().for_each(Session::revoke);
        // One that is not live may remember what was negotiated, configured or restored.
        self.device.reset();
        self.active = false;
        self.resetting = session.filter(|session| !session.wait_idle(Some(self.reset_bound)));
        self.interrupt.reset();
        self.registers = self.fresh_registers();
        self.event(&Event::Reset);
    }

    /// Whether the device was reset and still has I/O in flight from before. Until it has not, the
    /// driver reads `DEVICE_NEEDS_RESET` alone from Status, and no write to Status but 0 does anything.
    /// So neither features nor queues can be set up.
    pub fn reset_is_pending(&mut self) -> bool {
        if self.resetting.as_ref().is_some_and(Session::is_idle) {
            self.resetting = None;
        }
        self.resetting.is_some()
    }
}

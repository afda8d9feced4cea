// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The register file.

use std::fmt;
use std::io;
use std::sync::Arc;

use bus::{AccessError, BusDevice};
use virtio_device_core::{
    Activation, ActiveQueue, DEVICE_NEEDS_RESET, DeviceStatus, InterruptHandle, InterruptLine,
    Negotiation, QueueLayout, QueueLease, QueueSetup, StatusWrite, VirtioDevice, Virtqueue,
};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::interrupt::MmioInterrupt;
use crate::register::{CONFIG, MAGIC, Register, VERSION};

/// `VendorID` of a transport that was given none: "RVMM" in little-endian order.
const DEFAULT_VENDOR_ID: u32 = 0x4d4d_5652;

/// A virtio device behind the registers of virtio-mmio version 2 (VIRTIO 1.3, section 4.2.2).
///
/// The transport takes [`REGION_SIZE`](crate::REGION_SIZE) bytes on the bus. Control registers are
/// accessed as aligned 32-bit words; any other access to them reads zeros or is ignored, like the
/// access to a register that does not exist. The configuration space takes every width.
///
/// The driver's notifications arrive in event fds, one for each queue. They are written when the
/// driver's write to `QueueNotify` comes over the bus, and a VMM can have the kernel do it without
/// an exit: see [`MmioTransport::kicks`].
pub struct MmioTransport<M, D> {
    device: D,
    memory: M,
    vendor_id: u32,
    interrupt: Arc<MmioInterrupt>,
    kicks: Vec<Arc<EventFd>>,
    registers: Registers,
    live: Option<Live>,
}

/// Everything that a reset puts back to the start.
#[derive(Debug)]
struct Registers {
    status: DeviceStatus,
    features: Negotiation,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    queues: Vec<QueueRegisters>,
}

#[derive(Debug)]
struct QueueRegisters {
    max_size: u16,
    setup: QueueSetup,
    /// Set while `QueueReady` is 1; the setup is frozen then.
    ready: Option<QueueLayout>,
}

/// What the device holds between activation and reset.
#[derive(Debug)]
struct Live {
    interrupt: InterruptHandle,
    /// By queue index; none for a queue that was not enabled.
    leases: Vec<Option<QueueLease>>,
}

impl Live {
    /// Takes the queues and the interrupt back from the device.
    fn take_back(&self) {
        for lease in self.leases.iter().flatten() {
            let _ = lease.revoke();
        }
        self.interrupt.revoke();
    }
}

impl Registers {
    fn new(features: u64, max_sizes: &[u16]) -> Self {
        let queue = |&max_size| QueueRegisters {
            max_size,
            setup: QueueSetup::default(),
            ready: None,
        };
        Self {
            status: DeviceStatus::RESET,
            features: Negotiation::new(features),
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            queues: max_sizes.iter().map(queue).collect(),
        }
    }

    fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    fn queue_mut(&mut self) -> Option<&mut QueueRegisters> {
        self.queues.get_mut(usize::try_from(self.queue_sel).ok()?)
    }

    /// Changes the selected queue's setup, in the one state in which a driver may: features agreed
    /// on, device not live, queue not enabled (sections 3.1.1 and 4.2.2.2).
    fn set_up_queue(&mut self, change: impl FnOnce(&mut QueueSetup)) {
        let configuring = self.status.configuring_queues();
        if let Some(QueueRegisters {
            setup, ready: None, ..
        }) = self.queue_mut()
        {
            if configuring {
                change(setup);
            }
        }
    }
}

impl<M: GuestAddressSpace, D: VirtioDevice<M>> MmioTransport<M, D> {
    /// Puts `device` behind registers. It sees `memory`, and interrupts the guest through `line`.
    ///
    /// # Errors
    ///
    /// If the event fds for the device's queues cannot be made.
    pub fn new(device: D, memory: M, line: impl InterruptLine + 'static) -> io::Result<Self> {
        let max_sizes = device.queue_max_sizes();
        let kick = |_: &u16| EventFd::new(EFD_NONBLOCK).map(Arc::new);
        Ok(Self {
            memory,
            vendor_id: DEFAULT_VENDOR_ID,
            interrupt: Arc::new(MmioInterrupt::new(Box::new(line))),
            kicks: max_sizes.iter().map(kick).collect::<io::Result<_>>()?,
            registers: Registers::new(device.features(), max_sizes),
            live: None,
            device,
        })
    }

    /// Sets what the driver reads from `VendorID`.
    #[must_use]
    pub const fn with_vendor_id(mut self, vendor_id: u32) -> Self {
        self.vendor_id = vendor_id;
        self
    }

    /// The queues' event fds, by queue index.
    ///
    /// A VMM registers each as an ioeventfd: 4 bytes at the transport's base plus
    /// [`QUEUE_NOTIFY`](crate::QUEUE_NOTIFY), with the queue's index as the value to match. They
    /// stay the same over resets.
    pub fn kicks(&self) -> impl Iterator<Item = (u16, &EventFd)> {
        (0..=u16::MAX).zip(self.kicks.iter().map(|kick| &**kick))
    }

    /// The device.
    pub const fn device(&self) -> &D {
        &self.device
    }

    fn broken(&self) -> bool {
        self.live
            .as_ref()
            .is_some_and(|live| live.interrupt.is_broken())
    }

    fn read_register(&self, register: Register) -> u32 {
        let registers = &self.registers;
        match register {
            Register::MagicValue => MAGIC,
            Register::Version => VERSION,
            Register::DeviceId => self.device.device_type(),
            Register::VendorId => self.vendor_id,
            Register::DeviceFeatures => registers
                .features
                .offered_word(registers.device_features_sel),
            Register::QueueSizeMax => registers.queue().map_or(0, |queue| queue.max_size.into()),
            Register::QueueReady => registers
                .queue()
                .is_some_and(|queue| queue.ready.is_some())
                .into(),
            Register::InterruptStatus => self.interrupt.status(),
            Register::Status => {
                let broken = if self.broken() { DEVICE_NEEDS_RESET } else { 0 };
                (registers.status.bits() | broken).into()
            }
            // There is no shared memory region, whichever is selected.
            Register::ShmLenLow
            | Register::ShmLenHigh
            | Register::ShmBaseLow
            | Register::ShmBaseHigh => u32::MAX,
            Register::ConfigGeneration => self.interrupt.generation(),
            // Write-only, or, for QueueReset, a feature that is not offered.
            _ => 0,
        }
    }

    fn write_register(&mut self, register: Register, value: u32) {
        let registers = &mut self.registers;
        match register {
            Register::DeviceFeaturesSel => registers.device_features_sel = value,
            Register::DriverFeatures if registers.status.negotiating() => {
                registers
                    .features
                    .accept_word(registers.driver_features_sel, value);
            }
            Register::DriverFeaturesSel => registers.driver_features_sel = value,
            Register::QueueSel => registers.queue_sel = value,
            Register::QueueSize => registers.set_up_queue(|setup| setup.size = value),
            Register::QueueReady => self.write_queue_ready(value),
            Register::QueueNotify => self.notify(value),
            Register::InterruptAck => self.interrupt.acknowledge(value),
            Register::Status => self.write_status(value),
            Register::QueueDescLow => {
                registers.set_up_queue(|setup| set_low(&mut setup.desc_table, value));
            }
            Register::QueueDescHigh => {
                registers.set_up_queue(|setup| set_high(&mut setup.desc_table, value));
            }
            Register::QueueDriverLow => {
                registers.set_up_queue(|setup| set_low(&mut setup.avail_ring, value));
            }
            Register::QueueDriverHigh => {
                registers.set_up_queue(|setup| set_high(&mut setup.avail_ring, value));
            }
            Register::QueueDeviceLow => {
                registers.set_up_queue(|setup| set_low(&mut setup.used_ring, value));
            }
            Register::QueueDeviceHigh => {
                registers.set_up_queue(|setup| set_high(&mut setup.used_ring, value));
            }
            // Read-only, or without effect here: no shared memory, no queue reset.
            _ => {}
        }
    }

    /// Enables the selected queue if it is well-formed: if not, `QueueReady` goes on reading 0.
    /// Disables it in any state; when this returns the device can reach it no more.
    fn write_queue_ready(&mut self, value: u32) {
        let configuring = self.registers.status.configuring_queues();
        let index = usize::try_from(self.registers.queue_sel).ok();
        let Some(queue) = self.registers.queue_mut() else {
            return;
        };
        match value {
            1 if configuring && queue.ready.is_none() => {
                let memory = self.memory.memory();
                queue.ready = QueueLayout::check(&queue.setup, queue.max_size, &*memory).ok();
            }
            0 => {
                queue.ready = None;
                let live = self.live.as_mut().zip(index);
                let lease = live.and_then(|(live, index)| live.leases.get_mut(index)?.take());
                let _ = lease.and_then(|lease| lease.revoke());
            }
            _ => {}
        }
    }

    fn notify(&self, queue: u32) {
        let leases = self.live.iter().flat_map(|live| &live.leases);
        let enabled = leases
            .zip(&self.kicks)
            .zip(0..)
            .find(|(_, index)| *index == queue);
        if let Some(((Some(_), kick), _)) = enabled {
            // A counter that is full wakes the worker as well as one more.
            let _ = kick.write(1);
        }
    }

    fn write_status(&mut self, value: u32) {
        match self.registers.status.after_write(value, self.broken()) {
            StatusWrite::Ignored => {}
            StatusWrite::Reset => self.reset(),
            StatusWrite::Step(status) => {
                self.registers.status = status;
                if !status.live() {
                    // The driver has given up, if the device ever was live: leave its memory alone.
                    self.live.iter().for_each(Live::take_back);
                }
            }
            StatusWrite::CheckFeatures(status) => {
                if self.registers.features.check().is_ok() {
                    self.registers.status = status;
                }
            }
            StatusWrite::Activate(status) => {
                self.registers.status = status;
                self.activate();
            }
        }
    }

    fn activate(&mut self) {
        let features = self.registers.features.check().unwrap_or_default();
        let interrupt = InterruptHandle::new(self.interrupt.clone());
        let lend = |queue: &QueueRegisters| {
            queue
                .ready
                .map(|layout| QueueLease::new(Virtqueue::new(layout, features)))
        };
        let leases: Vec<_> = self.registers.queues.iter().map(lend).collect();
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
        let activation = Activation::new(self.memory.clone(), queues, features, interrupt.clone());
        if self.device.activate(activation).is_err() {
            interrupt.device_failed();
        }
    }

    /// Puts everything back to the start, from every state. When this returns, no guest memory is
    /// touched and no interrupt raised on behalf of what was before (section 2.4.1).
    pub fn reset(&mut self) {
        if let Some(live) = self.live.take() {
            live.take_back();
            self.device.reset();
        }
        self.interrupt.acknowledge(u32::MAX);
        self.registers = Registers::new(self.device.features(), self.device.queue_max_sizes());
    }

    /// `offset` as an offset into the configuration space, if `len` bytes of it are there.
    fn config_offset(&self, offset: u64, len: usize) -> Option<u32> {
        let offset = u32::try_from(offset.checked_sub(CONFIG)?).ok()?;
        let end = offset.checked_add(u32::try_from(len).ok()?)?;
        (end <= self.device.config_size()).then_some(offset)
    }
}

impl<M, D> BusDevice for MmioTransport<M, D>
where
    M: GuestAddressSpace + Send,
    D: VirtioDevice<M>,
{
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        data.fill(0);
        if offset >= CONFIG {
            if let Some(offset) = self.config_offset(offset, data.len()) {
                self.device.read_config(offset, data);
            }
        } else if let (Some(register), Ok(word)) =
            (Register::at(offset), <&mut [u8; 4]>::try_from(data))
        {
            *word = self.read_register(register).to_le_bytes();
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        if offset >= CONFIG {
            // Not before features are agreed on (section 3.1.1), and not after giving up.
            let status = self.registers.status;
            let writable = status.configuring_queues() || status.live();
            if let (true, Some(offset)) = (writable, self.config_offset(offset, data.len())) {
                self.device.write_config(offset, data);
            }
        } else if let (Some(register), Ok(word)) = (Register::at(offset), <[u8; 4]>::try_from(data))
        {
            self.write_register(register, u32::from_le_bytes(word));
        }
        Ok(())
    }
}

/// A transport that goes away takes its device's hands off guest memory.
impl<M, D> Drop for MmioTransport<M, D> {
    fn drop(&mut self) {
        self.live.iter().for_each(Live::take_back);
    }
}

impl<M, D: fmt::Debug> fmt::Debug for MmioTransport<M, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device", &self.device)
            .field("registers", &self.registers)
            .field("interrupt", &self.interrupt)
            .field("live", &self.live)
            .finish_non_exhaustive()
    }
}

fn set_low(address: &mut u64, half: u32) {
    *address = *address & !0xffff_ffff | u64::from(half);
}

fn set_high(address: &mut u64, half: u32) {
    *address = *address & 0xffff_ffff | u64::from(half) << 32;
}

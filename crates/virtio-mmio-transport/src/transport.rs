// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The register file.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bus::{AccessError, BusDevice, OnRemoval};
use virtio_device_core::{
    ConfigNotifier, Event, Features, InterruptLine, Observer, VIRTIO_F_ACCESS_PLATFORM,
    VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_NOTIFICATION_DATA, VIRTIO_F_RING_RESET,
    VirtioDevice,
    transport::{DEVICE_NEEDS_RESET, QueueSetup, Session},
};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::interrupt::MmioInterrupt;
use crate::lifecycle::RESET_BOUND;
use crate::register::{CONFIG, MAGIC, Register, VERSION};
use crate::registers::Registers;
use crate::sync::wake;

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
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use virtio_conformance::ramdisk::RamDisk;
/// use virtio_device_core::{WorkerThread, edge_line};
/// use virtio_mmio_transport::{MmioTransport};
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)])?);
/// let new = || {
///     let disk = RamDisk::new(Arc::new(Mutex::new(vec![0; 512])), WorkerThread::named("disk")?);
///     MmioTransport::new(disk, memory.clone(), edge_line(|| Ok(())))
/// };
/// let mut transport = new()?.with_vendor_id(0x1234);
/// assert_eq!(transport.kicks().count(), 1); // one event fd a queue
/// transport.pause()?; // returns within one critical section of the device
/// transport.resume();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct MmioTransport<M: GuestAddressSpace, D: VirtioDevice<M>> {
    pub(crate) device: D,
    pub(crate) memory: M,
    vendor_id: u32,
    /// Features of queues and transport that the VMM wants to be offered.
    offered: Features,
    pub(crate) interrupt: Arc<MmioInterrupt>,
    pub(crate) config: ConfigNotifier,
    pub(crate) kicks: Vec<Arc<EventFd>>,
    pub(crate) registers: Registers,
    /// What the device holds between activation and reset.
    pub(crate) session: Option<Session>,
    /// What it held before a reset that is pending.
    pub(crate) resetting: Option<Session>,
    pub(crate) reset_bound: Duration,
    pub(crate) paused: bool,
    /// The device was activated, and not reset since.
    pub(crate) active: bool,
}

/// Features that this transport has, and a VMM may have it offer.
const TRANSPORT_FEATURES: Features = Features::of(&[
    VIRTIO_F_RING_RESET,
    VIRTIO_F_NOTIFICATION_DATA,
    VIRTIO_F_ACCESS_PLATFORM,
]);

/// What is offered unless the VMM says otherwise.
const OFFERED: Features = Features::of(&[
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_RING_RESET,
]);

impl<M: GuestAddressSpace, D: VirtioDevice<M>> MmioTransport<M, D> {
    /// Puts `device` behind registers. It sees `memory`, and interrupts the guest through `line`.
    ///
    /// # Errors
    ///
    /// If the event fds for the device's queues cannot be made.
    pub fn new(mut device: D, memory: M, line: impl InterruptLine + 'static) -> io::Result<Self> {
        let kick = |_: &u16| EventFd::new(EFD_NONBLOCK).map(Arc::new);
        let kicks = device.queue_max_sizes().iter().map(kick);
        let kicks = kicks.collect::<io::Result<_>>()?;
        let interrupt = Arc::new(MmioInterrupt::new(Box::new(line)));
        let config = ConfigNotifier::new(interrupt.clone());
        device.connect(config.clone());
        Ok(Self {
            memory,
            vendor_id: DEFAULT_VENDOR_ID,
            offered: OFFERED,
            interrupt,
            config,
            kicks,
            registers: Registers::new(&device, OFFERED),
            session: None,
            resetting: None,
            reset_bound: RESET_BOUND,
            paused: false,
            active: false,
            device,
        })
    }

    /// Sets which features of queues and transport are offered, beside the device's own.
    ///
    /// Without this they are `VIRTIO_F_INDIRECT_DESC`, `VIRTIO_F_EVENT_IDX` and
    /// `VIRTIO_F_RING_RESET`. A VMM may add `VIRTIO_F_NOTIFICATION_DATA` (see
    /// [`kicks`](MmioTransport::kicks)), and `VIRTIO_F_ACCESS_PLATFORM` if `memory` is the memory
    /// behind an IOMMU. `VIRTIO_F_VERSION_1` is offered in any case, and nothing that this transport
    /// or the device's queues do not have.
    #[must_use]
    pub fn with_features(mut self, features: Features) -> Self {
        self.offered = features & (TRANSPORT_FEATURES | Features::QUEUE);
        self.registers = self.fresh_registers();
        self
    }

    /// Sets how long reset, reset of a queue and pause wait for I/O that the device has in flight
    /// straight into guest memory; without this, two seconds. A device that copies has none.
    #[must_use]
    pub const fn with_reset_bound(mut self, bound: Duration) -> Self {
        self.reset_bound = bound;
        self
    }

    pub(crate) fn fresh_registers(&self) -> Registers {
        Registers::new(&self.device, self.offered)
    }

    /// Sets what the driver reads from `VendorID`.
    #[must_use]
    pub const fn with_vendor_id(mut self, vendor_id: u32) -> Self {
        self.vendor_id = vendor_id;
        self
    }

    /// Sets who is told of the driver's errors and of the device's life. Once: whoever comes later
    /// is told nothing.
    #[must_use]
    pub fn with_observer(self, observer: impl Observer + 'static) -> Self {
        self.interrupt.set_observer(Box::new(observer));
        self
    }

    /// The queues' event fds, by queue index.
    ///
    /// A VMM registers each as an ioeventfd: 4 bytes at the transport's base plus
    /// [`QUEUE_NOTIFY`](crate::QUEUE_NOTIFY), with the queue's index as the value to match. They
    /// stay the same over resets.
    ///
    /// With `VIRTIO_F_NOTIFICATION_DATA` the driver writes more than the index, so that most of its
    /// notifications match no ioeventfd. They then come over the bus, which is slower but just as
    /// right; a VMM that minds offers the feature only with a single queue, and registers that
    /// queue's event fd without a value to match.
    pub fn kicks(&self) -> impl Iterator<Item = (u16, &EventFd)> {
        (0..=u16::MAX).zip(self.kicks.iter().map(|kick| &**kick))
    }

    /// The device.
    pub const fn device(&self) -> &D {
        &self.device
    }

    /// Changes the configuration space from outside of the device, and tells the driver if there is
    /// one; see [`ConfigNotifier::update`].
    ///
    /// `change` must leave the number of queues and the features as they are.
    pub fn update_config<T>(&mut self, change: impl FnOnce(&mut D) -> T) -> T {
        self.config.update(|| change(&mut self.device))
    }

    /// Tells the observer. Out of line: no register access of a driver that does nothing wrong gets
    /// here.
    #[cold]
    #[inline(never)]
    pub(crate) fn event(&self, event: &Event<'_>) {
        self.interrupt.event(event);
    }

    pub(crate) fn broken(&self) -> bool {
        self.session.as_ref().is_some_and(Session::is_broken)
    }

    /// What the driver reads from Status.
    pub(crate) fn status(&mut self) -> u32 {
        if self.reset_is_pending() {
            return DEVICE_NEEDS_RESET.into();
        }
        let broken = if self.broken() { DEVICE_NEEDS_RESET } else { 0 };
        (self.registers.status.bits() | broken).into()
    }

    pub(crate) fn wrong_state(&self, register: Register) {
        self.event(&Event::WrongState {
            offset: register.offset(),
            status: self.registers.status,
        });
    }

    /// Length and base of the selected shared memory region: all ones if there is none.
    fn shared_memory(&self) -> (u64, u64) {
        let region = u8::try_from(self.registers.shm_sel)
            .ok()
            .and_then(|id| self.device.shared_memory(id));
        region.map_or((u64::MAX, u64::MAX), |(base, len)| (len, base.0))
    }

    #[inline]
    fn read_register(&mut self, register: Register) -> u32 {
        match register {
            Register::MagicValue => MAGIC,
            Register::Version => VERSION,
            Register::QueueReady if self.registers.queue_is_enabled() => 1,
            Register::InterruptStatus => self.interrupt.status(),
            Register::Status => self.status(),
            Register::ConfigGeneration => self.interrupt.generation(),
            _ => self.read_setup_register(register),
        }
    }

    /// Reads one of the registers that a driver reads when it sets the device up. Out of line, for the
    /// sake of the others.
    #[inline(never)]
    fn read_setup_register(&self, register: Register) -> u32 {
        let registers = &self.registers;
        match register {
            Register::DeviceId => self.device.device_type(),
            Register::VendorId => self.vendor_id,
            Register::DeviceFeatures => registers
                .features
                .offered()
                .word(registers.device_features_sel),
            Register::QueueSizeMax => registers.queue().map_or(0, |queue| queue.max_size.into()),
            Register::ShmLenLow => low(self.shared_memory().0),
            Register::ShmLenHigh => high(self.shared_memory().0),
            Register::ShmBaseLow => low(self.shared_memory().1),
            Register::ShmBaseHigh => high(self.shared_memory().1),
            Register::QueueReady | Register::QueueReset => self.queue_is_busy().into(),
            _ => {
                let offset = register.offset();
                self.event(&Event::WrongDirection { offset });
                0
            }
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
            Register::DriverFeatures => self.wrong_state(register),
            Register::DriverFeaturesSel => registers.driver_features_sel = value,
            Register::QueueSel => registers.queue_sel = value,
            Register::ShmSel => registers.shm_sel = value,
            Register::QueueReady => self.write_queue_ready(value),
            Register::QueueReset => self.write_queue_reset(value),
            Register::QueueNotify => self.notify(value),
            Register::InterruptAck => self.interrupt.acknowledge(value),
            Register::Status => self.write_status(value),
            Register::QueueSize
            | Register::QueueDescLow
            | Register::QueueDescHigh
            | Register::QueueDriverLow
            | Register::QueueDriverHigh
            | Register::QueueDeviceLow
            | Register::QueueDeviceHigh => match registers.queue_to_set_up() {
                Some(queue) => set_up(&mut queue.setup, register, value),
                None => self.wrong_state(register),
            },
            _ => {
                let offset = register.offset();
                self.event(&Event::WrongDirection { offset });
            }
        }
    }

    fn notify(&self, value: u32) {
        // With notification data, the upper half says how far the driver is (section 4.2.3.3).
        // That is a hint: the device looks at the ring in any case.
        let queue = if self.registers.agreed(VIRTIO_F_NOTIFICATION_DATA) {
            value & 0xffff
        } else {
            value
        };
        // In every state, as by ioeventfd: what comes before the device is live waits for it.
        let kick = usize::try_from(queue)
            .ok()
            .and_then(|queue| self.kicks.get(queue));
        match kick {
            Some(kick) => wake(kick),
            None => self.event(&Event::NotificationIgnored { value }),
        }
    }

    /// `offset` as an offset into the configuration space, if `len` bytes of it are there.
    fn config_offset(&self, offset: u64, len: usize) -> Option<u32> {
        let offset = u32::try_from(offset.checked_sub(CONFIG)?).ok()?;
        let end = offset.checked_add(u32::try_from(len).ok()?)?;
        (end <= self.device.config_size()).then_some(offset)
    }

    /// The control register that an access is for: an aligned word, and nothing else.
    #[inline]
    fn control_register(&self, offset: u64, width: usize) -> Option<Register> {
        if width != size_of::<u32>() || offset % 4 != 0 {
            self.event(&Event::BadWidth { offset, width });
            return None;
        }
        let register = Register::at(offset);
        if register.is_none() {
            self.event(&Event::UnknownRegister { offset });
        }
        register
    }
}

impl<M, D> BusDevice for MmioTransport<M, D>
where
    M: GuestAddressSpace + Send,
    D: VirtioDevice<M>,
{
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        if offset < CONFIG {
            let register = self.control_register(offset, data.len());
            let value = register.map_or(0, |register| self.read_register(register));
            match <&mut [u8; 4]>::try_from(&mut *data) {
                Ok(word) => *word = value.to_le_bytes(),
                Err(_) => data.fill(0),
            }
        } else {
            data.fill(0);
            match self.config_offset(offset, data.len()) {
                Some(offset) => self.device.read_config(offset, data),
                None => self.event(&Event::UnknownRegister { offset }),
            }
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        if offset >= CONFIG {
            // Not before features are agreed on (section 3.1.1), and not after giving up.
            let status = self.registers.status;
            let in_time = status.configuring_queues() || status.live();
            match self.config_offset(offset, data.len()) {
                Some(offset) if in_time || self.device.takes_early_write(offset) => {
                    self.device.write_config(offset, data);
                }
                Some(_) => self.event(&Event::WrongState { offset, status }),
                None => self.event(&Event::UnknownRegister { offset }),
            }
        } else if let (Some(register), Ok(word)) = (
            self.control_register(offset, data.len()),
            <[u8; 4]>::try_from(data),
        ) {
            self.write_register(register, u32::from_le_bytes(word));
        }
        Ok(())
    }

    /// Without a region the driver can acknowledge nothing any more, so a level-triggered line is low
    /// until the transport is put back.
    fn on_removal(&mut self) -> Result<Option<OnRemoval>, AccessError> {
        self.interrupt.inserted();
        let interrupt = self.interrupt.clone();
        Ok(Some(Box::new(move || interrupt.removed())))
    }
}

/// A transport that goes away takes its device's hands off guest memory.
///
/// It waits until the device has no I/O in flight any more, however long that takes. A VMM that does
/// not want to wait calls [`MmioTransport::reset`] before, and keeps a transport whose reset is
/// [pending](MmioTransport::reset_is_pending).
impl<M: GuestAddressSpace, D: VirtioDevice<M>> Drop for MmioTransport<M, D> {
    fn drop(&mut self) {
        if let Some(session) = &self.session {
            session.revoke();
            self.device.reset();
        }
        for session in self.session.iter().chain(&self.resetting) {
            let _ = session.wait_idle(None);
        }
        self.interrupt.reset();
    }
}

impl<M, D> fmt::Debug for MmioTransport<M, D>
where
    M: GuestAddressSpace,
    D: VirtioDevice<M> + fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device", &self.device)
            .field("registers", &self.registers)
            .field("interrupt", &self.interrupt)
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

/// Writes one of the registers that set a queue up.
fn set_up(setup: &mut QueueSetup, register: Register, value: u32) {
    match register {
        Register::QueueDescLow => set_low(&mut setup.desc_table, value),
        Register::QueueDescHigh => set_high(&mut setup.desc_table, value),
        Register::QueueDriverLow => set_low(&mut setup.avail_ring, value),
        Register::QueueDriverHigh => set_high(&mut setup.avail_ring, value),
        Register::QueueDeviceLow => set_low(&mut setup.used_ring, value),
        Register::QueueDeviceHigh => set_high(&mut setup.used_ring, value),
        _ => setup.size = value,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
const fn low(value: u64) -> u32 {
    value as u32
}

const fn high(value: u64) -> u32 {
    low(value >> 32)
}

fn set_low(address: &mut u64, half: u32) {
    *address = *address & !0xffff_ffff | u64::from(half);
}

fn set_high(address: &mut u64, half: u32) {
    *address = *address & 0xffff_ffff | u64::from(half) << 32;
}

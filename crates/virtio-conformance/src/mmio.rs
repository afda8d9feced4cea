// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver's hands on the registers of virtio-mmio (VIRTIO 1.3, section 4.2.2), whoever shows them.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use virtio_device_core::transport::{
    ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FEATURES_OK, QueueSetup,
};
use virtio_device_core::{Features, VIRTIO_F_VERSION_1};

use crate::port::Port;
use crate::reg;

/// Offsets of the registers that are read, and not only written.
pub const READABLE: [u64; 15] = [
    reg::MAGIC_VALUE,
    reg::VERSION,
    reg::DEVICE_ID,
    reg::VENDOR_ID,
    reg::DEVICE_FEATURES,
    reg::QUEUE_SIZE_MAX,
    reg::QUEUE_READY,
    reg::INTERRUPT_STATUS,
    reg::STATUS,
    reg::SHM_LEN_LOW,
    reg::SHM_LEN_HIGH,
    reg::SHM_BASE_LOW,
    reg::SHM_BASE_HIGH,
    reg::QUEUE_RESET,
    reg::CONFIG_GENERATION,
];

/// Offsets of the registers that are only written. Not `SHMSel`, which has an effect on others.
const WRITE_ONLY: [u64; 13] = [
    reg::DEVICE_FEATURES_SEL,
    reg::DRIVER_FEATURES,
    reg::DRIVER_FEATURES_SEL,
    reg::QUEUE_SEL,
    reg::QUEUE_SIZE,
    reg::QUEUE_NOTIFY,
    reg::INTERRUPT_ACK,
    reg::QUEUE_DESC_LOW,
    reg::QUEUE_DESC_HIGH,
    reg::QUEUE_DRIVER_LOW,
    reg::QUEUE_DRIVER_HIGH,
    reg::QUEUE_DEVICE_LOW,
    reg::QUEUE_DEVICE_HIGH,
];

/// How long a reset may take on a host that may be busy.
const SOON: Duration = Duration::from_secs(60);

/// The virtio-mmio registers of `T`, reached by two functions that read and write at an offset.
///
/// ```
/// use virtio_conformance::{MmioPort, reg};
///
/// /// Whatever a VMM calls its transport.
/// struct Registers([u8; 0x200]);
///
/// let mut port = MmioPort::new(
///     Registers([0; 0x200]),
///     |it, offset, data| data.copy_from_slice(&it.0[offset as usize..][..data.len()]),
///     |it, offset, data| it.0[offset as usize..][..data.len()].copy_from_slice(data),
/// );
/// port.set(reg::QUEUE_SEL, 7);
/// assert_eq!(port.get(reg::QUEUE_SEL), 7);
/// ```
#[derive(Clone)]
pub struct MmioPort<T> {
    device: T,
    read: fn(&mut T, u64, &mut [u8]),
    write: fn(&mut T, u64, &[u8]),
    visible: fn(&T) -> String,
    /// The statuses in which the widths were checked.
    checked: Vec<u32>,
}

#[expect(clippy::unwrap_used, reason = "a transport takes every access")]
impl<T> MmioPort<T> {
    /// Drives `device`, through `read` and `write` at an offset from its first register.
    pub const fn new(
        device: T,
        read: fn(&mut T, u64, &mut [u8]),
        write: fn(&mut T, u64, &[u8]),
    ) -> Self {
        Self {
            device,
            read,
            write,
            visible: |_| String::new(),
            checked: Vec::new(),
        }
    }

    /// Sets what [`Port::visible`] returns.
    #[must_use]
    pub const fn showing(mut self, visible: fn(&T) -> String) -> Self {
        self.visible = visible;
        self
    }

    /// The transport, or whatever `T` is.
    pub const fn device_mut(&mut self) -> &mut T {
        &mut self.device
    }

    /// Reads `data.len()` bytes at `offset`.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        (self.read)(&mut self.device, offset, data);
    }

    /// Writes `data` at `offset`.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        (self.write)(&mut self.device, offset, data);
    }

    /// Reads the word at `offset`.
    pub fn get(&mut self, offset: u64) -> u32 {
        let mut word = [0xa5; 4];
        self.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    /// Writes the word at `offset`.
    pub fn set(&mut self, offset: u64, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    /// Does a driver's first steps (VIRTIO 1.3, section 3.1.1): resets the device, waits until that is
    /// complete, and goes up to `FEATURES_OK` with `features` and `VIRTIO_F_VERSION_1`. Returns whether
    /// the device has accepted them.
    ///
    /// The queues are next ([`Port::enable`]), and then [`set_driver_ok`](Self::set_driver_ok).
    ///
    /// ```
    /// # use std::sync::{Arc, Mutex};
    /// # use bus::BusDevice;
    /// # use virtio_conformance::ramdisk::RamDisk;
    /// # use virtio_conformance::CountingLine;
    /// # use virtio_device_core::WorkerLoop;
    /// # use virtio_mmio_transport::MmioTransport;
    /// use virtio_conformance::{DriverQueue, MmioPort, Port};
    /// use virtio_device_core::Features;
    /// use vm_memory::{GuestAddress, GuestMemoryMmap};
    ///
    /// # let worker = WorkerLoop::new().unwrap();
    /// # let disk = RamDisk::new(Arc::new(Mutex::new(vec![0; 512])), worker.handle());
    /// let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap());
    /// # let transport = MmioTransport::new(disk, memory.clone(), CountingLine::default()).unwrap();
    /// # let mut port = MmioPort::new(
    /// #     transport,
    /// #     |it, offset, data| it.read(offset, data).unwrap(),
    /// #     |it, offset, data| it.write(offset, data).unwrap(),
    /// # );
    /// // With `port`, which drives a device by its registers:
    /// assert!(port.negotiate(Features::NONE));
    /// let queue = DriverQueue::new(&*memory, 0x1000, 8);
    /// assert!(port.enable(0, queue.setup()));
    /// assert_eq!(port.set_driver_ok(), 0xf);
    /// ```
    ///
    /// # Panics
    ///
    /// If the reset takes longer than a minute. A device whose worker runs on the caller's thread may
    /// need that: run the worker, and reset the device, before.
    pub fn negotiate(&mut self, features: Features) -> bool {
        self.set(reg::STATUS, 0);
        let deadline = Instant::now() + SOON;
        while self.get(reg::STATUS) != 0 {
            assert!(Instant::now() < deadline, "the reset does not end");
            thread::yield_now();
        }
        let features = features | Features::of(&[VIRTIO_F_VERSION_1]);
        let mut status = ACKNOWLEDGE;
        self.set(reg::STATUS, status.into());
        status |= DRIVER;
        self.set(reg::STATUS, status.into());
        for word in 0..4 {
            self.accept(word, features.word(word));
        }
        status |= FEATURES_OK;
        self.set(reg::STATUS, status.into());
        self.get(reg::STATUS) == u32::from(status)
    }

    /// Sets `DRIVER_OK`, once the queues are enabled, and returns the status afterwards.
    pub fn set_driver_ok(&mut self) -> u32 {
        let status = self.get(reg::STATUS) | u32::from(DRIVER_OK);
        self.set(reg::STATUS, status);
        self.get(reg::STATUS)
    }

    /// Checks every control register at every width and alignment in the present state: only
    /// aligned words have an effect or an answer, and read-only registers keep their value.
    ///
    /// # Panics
    ///
    /// If one answers differently.
    pub fn check_widths(&mut self) {
        let before = READABLE.map(|offset| self.get(offset));
        // Miri takes its time.
        for offset in (0..reg::CONFIG).step_by(if cfg!(miri) { 0x55 } else { 1 }) {
            for width in [1, 2, 3, 4, 5, 8, 16] {
                let exists = is_register(offset);
                if width == 4 && exists {
                    continue;
                }
                let mut data = vec![0xa5; width];
                self.read(offset, &mut data);
                assert!(data.iter().all(|&byte| byte == 0), "{offset:#x} {width}");
                for fill in [0, 1, 0xff] {
                    self.write(offset, &vec![fill; width]);
                }
            }
            if is_register(offset) && !READABLE.contains(&offset) {
                assert_eq!(self.get(offset), 0, "{offset:#x} is write-only");
            }
        }
        let read_only = READABLE
            .iter()
            .filter(|offset| ![reg::QUEUE_READY, reg::STATUS, reg::QUEUE_RESET].contains(offset));
        for &offset in read_only {
            for value in [0, 1, u32::MAX] {
                self.set(offset, value);
            }
        }
        assert_eq!(READABLE.map(|offset| self.get(offset)), before);
    }

    pub(crate) fn set_address(&mut self, offset: u64, address: u64) {
        let half = |half: u64| u32::try_from(half & 0xffff_ffff).unwrap();
        self.set(offset, half(address));
        self.set(offset + 4, half(address >> 32));
    }
}

fn is_register(offset: u64) -> bool {
    offset == reg::SHM_SEL || READABLE.contains(&offset) || WRITE_ONLY.contains(&offset)
}

impl<T> Port for MmioPort<T> {
    fn status(&mut self) -> u32 {
        self.get(reg::STATUS)
    }

    fn set_status(&mut self, status: u32) {
        self.set(reg::STATUS, status);
        let status = self.get(reg::STATUS);
        // While a reset is pending the registers may change at any moment.
        let pending = status == u32::from(DEVICE_NEEDS_RESET);
        if !pending && !self.checked.contains(&status) {
            self.checked.push(status);
            self.check_widths();
        }
    }

    fn offered(&mut self, word: u32) -> u32 {
        self.set(reg::DEVICE_FEATURES_SEL, word);
        self.get(reg::DEVICE_FEATURES)
    }

    fn accept(&mut self, word: u32, features: u32) {
        self.set(reg::DRIVER_FEATURES_SEL, word);
        self.set(reg::DRIVER_FEATURES, features);
    }

    fn max_size(&mut self, queue: u32) -> u32 {
        self.set(reg::QUEUE_SEL, queue);
        self.get(reg::QUEUE_SIZE_MAX)
    }

    fn enable(&mut self, queue: u32, setup: &QueueSetup) -> bool {
        self.set(reg::QUEUE_SEL, queue);
        self.set(reg::QUEUE_SIZE, setup.size);
        self.set_address(reg::QUEUE_DESC_LOW, setup.desc_table);
        self.set_address(reg::QUEUE_DRIVER_LOW, setup.avail_ring);
        self.set_address(reg::QUEUE_DEVICE_LOW, setup.used_ring);
        self.set(reg::QUEUE_READY, 1);
        self.get(reg::QUEUE_READY) == 1
    }

    fn is_enabled(&mut self, queue: u32) -> bool {
        self.set(reg::QUEUE_SEL, queue);
        self.get(reg::QUEUE_READY) == 1
    }

    fn reset_queue(&mut self, queue: u32) {
        self.set(reg::QUEUE_SEL, queue);
        self.set(reg::QUEUE_RESET, 1);
        let deadline = Instant::now() + SOON;
        while self.get(reg::QUEUE_RESET) != 0 {
            assert!(Instant::now() < deadline, "the queue's reset does not end");
        }
    }

    fn notify(&mut self, queue: u32) {
        self.set(reg::QUEUE_NOTIFY, queue);
    }

    fn interrupt_status(&mut self) -> u32 {
        self.get(reg::INTERRUPT_STATUS)
    }

    fn acknowledge(&mut self, causes: u32) {
        self.set(reg::INTERRUPT_ACK, causes);
    }

    fn read_config(&mut self, offset: u32, data: &mut [u8]) {
        self.read(reg::CONFIG + u64::from(offset), data);
    }

    fn generation(&mut self) -> u32 {
        self.get(reg::CONFIG_GENERATION)
    }

    fn visible(&self) -> String {
        (self.visible)(&self.device)
    }
}

impl<T: fmt::Debug> fmt::Debug for MmioPort<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioPort")
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

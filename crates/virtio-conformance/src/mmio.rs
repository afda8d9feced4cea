// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver's hands on the registers of virtio-mmio (VIRTIO 1.3, section 4.2.2), whoever shows them.

use std::fmt;
use std::time::{Duration, Instant};

use virtio_device_core::transport::{DEVICE_NEEDS_RESET, QueueSetup};

use crate::port::Port;

/// Offset of the device's configuration space.
const CONFIG: u64 = 0x100;

/// Offsets of the registers that are read, and not only written.
pub const READABLE: [u64; 15] = [
    0x000, 0x004, 0x008, 0x00c, 0x010, 0x034, 0x044, 0x060, 0x070, 0x0b0, 0x0b4, 0x0b8, 0x0bc,
    0x0c0, 0x0fc,
];

/// Offsets of the registers that are only written.
const WRITE_ONLY: [u64; 13] = [
    0x014, 0x020, 0x024, 0x030, 0x038, 0x050, 0x064, 0x080, 0x084, 0x090, 0x094, 0x0a0, 0x0a4,
];

/// `SHMSel`, which is only written as well, and has an effect on registers that are read.
const SHM_SEL: u64 = 0x0ac;

/// How long a reset may take on a host that may be busy.
const SOON: Duration = Duration::from_secs(60);

/// The virtio-mmio registers of `T`, reached by two functions that read and write at an offset.
///
/// ```
/// use virtio_conformance::MmioPort;
///
/// /// Whatever a VMM calls its transport.
/// struct Registers([u8; 0x200]);
///
/// let mut port = MmioPort::new(
///     Registers([0; 0x200]),
///     |it, offset, data| data.copy_from_slice(&it.0[offset as usize..][..data.len()]),
///     |it, offset, data| it.0[offset as usize..][..data.len()].copy_from_slice(data),
/// );
/// port.set(0x30, 7);
/// assert_eq!(port.get(0x30), 7);
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

    /// Sets what the transport says of itself: see [`Port::visible`].
    #[must_use]
    pub const fn showing(mut self, visible: fn(&T) -> String) -> Self {
        self.visible = visible;
        self
    }

    /// What is driven.
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

    /// Checks every control register at every width and alignment in the present state: only
    /// aligned words have an effect or an answer, and read-only registers keep their value.
    ///
    /// # Panics
    ///
    /// If one answers differently.
    pub fn check_widths(&mut self) {
        let before = READABLE.map(|offset| self.get(offset));
        // Miri takes its time.
        for offset in (0..CONFIG).step_by(if cfg!(miri) { 0x55 } else { 1 }) {
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
        for offset in [0x00, 0x04, 0x08, 0x0c, 0x10, 0x34, 0x60, 0xb0, 0xbc, 0xfc] {
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
    offset == SHM_SEL || READABLE.contains(&offset) || WRITE_ONLY.contains(&offset)
}

impl<T> Port for MmioPort<T> {
    fn status(&mut self) -> u32 {
        self.get(0x70)
    }

    fn set_status(&mut self, status: u32) {
        self.set(0x70, status);
        let status = self.get(0x70);
        // While a reset is pending the registers may change at any moment.
        let pending = status == u32::from(DEVICE_NEEDS_RESET);
        if !pending && !self.checked.contains(&status) {
            self.checked.push(status);
            self.check_widths();
        }
    }

    fn offered(&mut self, word: u32) -> u32 {
        self.set(0x14, word);
        self.get(0x10)
    }

    fn accept(&mut self, word: u32, features: u32) {
        self.set(0x24, word);
        self.set(0x20, features);
    }

    fn max_size(&mut self, queue: u32) -> u32 {
        self.set(0x30, queue);
        self.get(0x34)
    }

    fn enable(&mut self, queue: u32, setup: &QueueSetup) -> bool {
        self.set(0x30, queue);
        self.set(0x38, setup.size);
        self.set_address(0x80, setup.desc_table);
        self.set_address(0x90, setup.avail_ring);
        self.set_address(0xa0, setup.used_ring);
        self.set(0x44, 1);
        self.get(0x44) == 1
    }

    fn is_enabled(&mut self, queue: u32) -> bool {
        self.set(0x30, queue);
        self.get(0x44) == 1
    }

    fn reset_queue(&mut self, queue: u32) {
        self.set(0x30, queue);
        self.set(0xc0, 1);
        let deadline = Instant::now() + SOON;
        while self.get(0xc0) != 0 {
            assert!(Instant::now() < deadline, "the queue's reset does not end");
        }
    }

    fn notify(&mut self, queue: u32) {
        self.set(0x50, queue);
    }

    fn interrupt_status(&mut self) -> u32 {
        self.get(0x60)
    }

    fn acknowledge(&mut self, causes: u32) {
        self.set(0x64, causes);
    }

    fn read_config(&mut self, offset: u32, data: &mut [u8]) {
        self.read(CONFIG + u64::from(offset), data);
    }

    fn generation(&mut self) -> u32 {
        self.get(0xfc)
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

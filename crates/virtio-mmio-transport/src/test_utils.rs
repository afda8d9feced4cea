// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! For tests: a driver's hands on the registers, and what every register does at every width.

use bus::{AccessError, BusDevice};
use virtio_device_core::QueueSetup;
use virtio_device_core::test_utils::conformance::Port;

use crate::register::{CONFIG, Register};

/// Offsets of the registers that are read, and not only written.
pub const READABLE: [u64; 15] = [
    0x000, 0x004, 0x008, 0x00c, 0x010, 0x034, 0x044, 0x060, 0x070, 0x0b0, 0x0b4, 0x0b8, 0x0bc,
    0x0c0, 0x0fc,
];

/// Drives the registers of a transport, or of whatever else answers like one.
#[derive(Debug)]
pub struct RegisterPort<T> {
    transport: T,
    /// The statuses in which the widths were checked.
    checked: Vec<u32>,
    visible: fn(&T) -> String,
}

#[expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a transport takes every access"
)]
impl<T: BusDevice> RegisterPort<T> {
    /// Drives `transport`.
    pub const fn new(transport: T) -> Self {
        Self {
            transport,
            checked: Vec::new(),
            visible: |_| String::new(),
        }
    }

    /// Sets what the transport says of itself: see [`Port::visible`].
    #[must_use]
    pub const fn showing(mut self, visible: fn(&T) -> String) -> Self {
        self.visible = visible;
        self
    }

    /// What is driven.
    pub const fn transport_mut(&mut self) -> &mut T {
        &mut self.transport
    }

    /// Reads the word at `offset`.
    pub fn get(&mut self, offset: u64) -> u32 {
        let mut word = [0xa5; 4];
        self.transport.read(offset, &mut word).unwrap();
        u32::from_le_bytes(word)
    }

    /// Writes the word at `offset`.
    pub fn set(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes()).unwrap();
    }

    /// Checks every control register at every width and alignment in the present state: only
    /// aligned words have an effect or an answer, and read-only registers keep their value.
    ///
    /// # Panics
    ///
    /// If one answers differently.
    pub fn check_widths(&mut self) {
        let before = READABLE.map(|offset| self.get(offset));
        for offset in 0..CONFIG {
            for width in [1, 2, 3, 4, 5, 8, 16] {
                let exists = Register::at(offset).is_some();
                if width == 4 && exists {
                    continue;
                }
                let mut data = vec![0xa5; width];
                self.transport.read(offset, &mut data).unwrap();
                assert!(data.iter().all(|&byte| byte == 0), "{offset:#x} {width}");
                for fill in [0, 1, 0xff] {
                    self.transport.write(offset, &vec![fill; width]).unwrap();
                }
            }
            if Register::at(offset).is_some() && !READABLE.contains(&offset) {
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

    fn set_address(&mut self, offset: u64, address: u64) {
        let half = |half: u64| u32::try_from(half & 0xffff_ffff).unwrap();
        self.set(offset, half(address));
        self.set(offset + 4, half(address >> 32));
    }
}

impl<T: BusDevice> BusDevice for RegisterPort<T> {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        self.transport.read(offset, data)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        self.transport.write(offset, data)
    }
}

impl<T: BusDevice> Port for RegisterPort<T> {
    fn status(&mut self) -> u32 {
        self.get(0x70)
    }

    fn set_status(&mut self, status: u32) {
        self.set(0x70, status);
        let status = self.get(0x70);
        if !self.checked.contains(&status) {
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
        while self.get(0xc0) != 0 {}
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
        let read = self.transport.read(CONFIG + u64::from(offset), data);
        assert_eq!(read, Ok(()));
    }

    fn generation(&mut self) -> u32 {
        self.get(0xfc)
    }

    fn visible(&self) -> String {
        (self.visible)(&self.transport)
    }
}

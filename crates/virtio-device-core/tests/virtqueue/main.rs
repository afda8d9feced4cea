// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a driver may and may not do to a virtqueue.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

mod broken;
mod buffers;
mod chains;
mod notifications;
mod progress;
#[cfg(feature = "vectored-io")]
mod vectors;

use std::io::{Read, Write};

use virtio_conformance::{
    DriverQueue, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE,
};
use virtio_device_core::{
    BadRequest, Chain, Features, Head, RingFault, Rings, VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC, Virtqueue,
    transport::{QueueProgress, SetupError},
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

type Memory = GuestMemoryMmap<()>;

const SIZE: u16 = 16;
const TABLE: u64 = 0x4000;
const BUFFER: u64 = 0x8000;
const RAM: u64 = 0x1_0000;
/// A second region that follows the first, then a hole.
const RAM_END: u64 = 0x2_0000;

fn memory() -> Memory {
    let ranges = [(GuestAddress(0), 0x1_0000), (GuestAddress(RAM), 0x1_0000)];
    Memory::from_ranges(&ranges).unwrap()
}

/// A driver's and a device's view of one queue.
struct Pair<'m> {
    memory: &'m Memory,
    driver: DriverQueue<'m, Memory>,
    device: Virtqueue,
    chain: Chain,
}

impl<'m> Pair<'m> {
    fn new(memory: &'m Memory, features: Features) -> Self {
        let driver = DriverQueue::new(memory, 0x1000, SIZE);
        let device = Virtqueue::new(driver.layout(), features);
        Self {
            memory,
            driver,
            device,
            chain: Chain::with_capacity(SIZE),
        }
    }

    fn take(&mut self) -> Result<Option<Head>, RingFault> {
        self.device.take(self.memory, &mut self.chain)
    }

    /// Takes a chain that must fault, and sees that the fault is latched.
    fn fault(&mut self) -> RingFault {
        let fault = self.take().unwrap_err();
        assert!(self.chain.is_empty());
        assert_eq!(self.take(), Err(fault));
        assert_eq!(self.device.needs_interrupt(self.memory), Err(fault));
        assert_eq!(self.device.enable_notification(self.memory), Err(fault));
        assert_eq!(self.driver.used_index(), 0);
        fault
    }
}

/// Descriptor 0 points to a table of `entries` chained one-byte buffers.
fn indirect(driver: &DriverQueue<'_, Memory>, entries: u16) {
    driver.descriptor(0, TABLE, 16 * u32::from(entries), VIRTQ_DESC_F_INDIRECT, 0);
    for index in 0..entries {
        let flags = if index + 1 == entries {
            0
        } else {
            VIRTQ_DESC_F_NEXT
        };
        driver.descriptor_at(TABLE, index, BUFFER, 1, flags, index + 1);
    }
}

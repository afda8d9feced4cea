// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The driver's side of a split virtqueue.

use std::sync::atomic::Ordering;

use virtio_device_core::transport::{QueueLayout, QueueSetup};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// Descriptor flag: the chain goes on at `next`.
pub const VIRTQ_DESC_F_NEXT: u16 = 1;
/// Descriptor flag: the buffer is for the device to write.
pub const VIRTQ_DESC_F_WRITE: u16 = 2;
/// Descriptor flag: the buffer is a table of descriptors.
pub const VIRTQ_DESC_F_INDIRECT: u16 = 4;

/// A driver's queue: descriptor table, available ring and used ring, one after the other.
///
/// Unlike a real driver it writes whatever it is told to, legal or not.
///
/// ```
/// use virtio_conformance::DriverQueue;
/// use virtio_device_core::{Chain, Features, Virtqueue};
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
/// let mut driver = DriverQueue::new(&memory, 0, 8);
/// driver.offer_writable(0, 0x8000, 64);
///
/// // The device's side.
/// let mut queue = Virtqueue::new(driver.layout(), Features::NONE);
/// let mut chain = Chain::with_capacity(8);
/// let head = queue.take(&memory, &mut chain).unwrap().unwrap();
/// queue.complete(&memory, head, 64).unwrap();
///
/// assert_eq!(driver.take_used(), [(0, 64)]);
/// ```
#[derive(Debug)]
pub struct DriverQueue<'m, M> {
    memory: &'m M,
    setup: QueueSetup,
    avail_index: u16,
    used_index: u16,
}

#[expect(
    clippy::unwrap_used,
    reason = "a test that leaves guest memory should fail there"
)]
impl<'m, M: GuestMemory> DriverQueue<'m, M> {
    /// Lays out a queue of `size` descriptors from `base`, a multiple of 16, and zeroes both rings.
    ///
    /// # Panics
    ///
    /// If the queue does not fit into `memory`; so do all methods for what they touch.
    #[must_use]
    pub fn new(memory: &'m M, base: u64, size: u16) -> Self {
        let entries = u64::from(size);
        let avail_ring = base + 16 * entries;
        let used_ring = (avail_ring + 6 + 2 * entries).next_multiple_of(4);
        let setup = QueueSetup::new(size.into())
            .with_desc_table(base)
            .with_avail_ring(avail_ring)
            .with_used_ring(used_ring);
        let len = usize::try_from(used_ring + 6 + 8 * entries - base).unwrap();
        memory
            .write_slice(&vec![0; len], GuestAddress(base))
            .unwrap();
        Self {
            memory,
            setup,
            avail_index: 0,
            used_index: 0,
        }
    }

    /// What the driver tells the device about the queue.
    #[must_use]
    pub const fn setup(&self) -> &QueueSetup {
        &self.setup
    }

    /// Where the used ring is, which is the device's to write.
    #[must_use]
    pub const fn used_ring(&self) -> std::ops::Range<u64> {
        let from = self.setup.used_ring;
        from..from + 6 + 8 * self.setup.size as u64
    }

    /// The checked layout.
    #[must_use]
    pub fn layout(&self) -> QueueLayout {
        QueueLayout::check(
            &self.setup,
            u16::try_from(self.setup.size).unwrap(),
            self.memory,
        )
        .unwrap()
    }

    /// Writes descriptor `index` of the queue's table.
    pub fn descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.descriptor_at(self.setup.desc_table, index, addr, len, flags, next);
    }

    /// Writes descriptor `index` of a table at `table`.
    pub fn descriptor_at(
        &self,
        table: u64,
        index: u16,
        addr: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let mut bytes = [0; 16];
        let fields = [
            &addr.to_le_bytes()[..],
            &len.to_le_bytes(),
            &flags.to_le_bytes(),
            &next.to_le_bytes(),
        ];
        bytes.copy_from_slice(&fields.concat());
        self.memory
            .write_slice(&bytes, GuestAddress(table + 16 * u64::from(index)))
            .unwrap();
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, head: u16) {
        self.stage(head);
        self.set_avail_index(self.avail_index.wrapping_add(1));
    }

    /// Writes `head` into the next entry of the available ring, without making it available.
    pub fn stage(&self, head: u16) {
        let slot = u64::from(self.avail_index) % u64::from(self.setup.size);
        let addr = GuestAddress(self.setup.avail_ring + 4 + 2 * slot);
        self.memory.write_slice(&head.to_le_bytes(), addr).unwrap();
    }

    /// Writes a single device-writable descriptor and makes it available.
    pub fn offer_writable(&mut self, index: u16, addr: u64, len: u32) {
        self.descriptor(index, addr, len, VIRTQ_DESC_F_WRITE, 0);
        self.offer(index);
    }

    /// The available index as the driver has written it last.
    #[must_use]
    pub const fn avail_index(&self) -> u16 {
        self.avail_index
    }

    /// Sets the available index to any value.
    pub fn set_avail_index(&mut self, index: u16) {
        self.avail_index = index;
        self.store(self.setup.avail_ring + 2, index);
    }

    /// Sets the flags of the available ring.
    pub fn set_avail_flags(&self, flags: u16) {
        self.store(self.setup.avail_ring, flags);
    }

    /// Sets the used index at which the driver wants the next interrupt (`VIRTIO_F_EVENT_IDX`).
    pub fn set_used_event(&self, index: u16) {
        let addr = self.setup.avail_ring + 4 + 2 * u64::from(self.setup.size);
        self.store(addr, index);
    }

    /// The available index at which the device wants the next notification.
    #[must_use]
    pub fn avail_event(&self) -> u16 {
        self.load(self.setup.used_ring + 4 + 8 * u64::from(self.setup.size))
    }

    /// The flags of the used ring.
    #[must_use]
    pub fn used_flags(&self) -> u16 {
        self.load(self.setup.used_ring)
    }

    /// The used index as the device has written it.
    #[must_use]
    pub fn used_index(&self) -> u16 {
        self.load(self.setup.used_ring + 2)
    }

    /// Reads a field that the device may be writing.
    fn load(&self, addr: u64) -> u16 {
        let field = self.memory.load(GuestAddress(addr), Ordering::Acquire);
        u16::from_le(field.unwrap())
    }

    /// Writes a field that the device may be reading.
    fn store(&self, addr: u64, value: u16) {
        let (value, addr) = (value.to_le(), GuestAddress(addr));
        self.memory.store(value, addr, Ordering::Release).unwrap();
    }

    /// Takes the used elements that are new since the last call, as (head, length).
    pub fn take_used(&mut self) -> Vec<(u32, u32)> {
        let mut used = Vec::new();
        while self.used_index != self.used_index() {
            let slot = u64::from(self.used_index) % u64::from(self.setup.size);
            let addr = self.setup.used_ring + 4 + 8 * slot;
            let word = |addr| u32::from_le(self.memory.read_obj(GuestAddress(addr)).unwrap());
            used.push((word(addr), word(addr + 4)));
            self.used_index = self.used_index.wrapping_add(1);
        }
        used
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rings whose memory changes, overlaps, or holds anything at all.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

use std::io::Write;
use std::sync::Mutex;

use virtio_conformance::{
    DriverQueue, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE,
};
use virtio_device_core::{
    BadRequest, Chain, Features, VIRTIO_F_INDIRECT_DESC, Virtqueue,
    transport::{QueueLayout, QueueSetup},
};
use vm_memory::guest_memory::{GuestMemorySliceIterator, Result};
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestRegionCollection, GuestRegionMmap, MemoryRegionAddress, Permissions, VolatileSlice,
};

type Plain = GuestMemoryMmap<()>;

fn memory() -> Plain {
    Plain::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()
}

/// Memory that keeps a list of what is accessed, but for checks.
struct Watched<'m> {
    inner: &'m Plain,
    accesses: Mutex<Vec<(u64, usize)>>,
}

impl GuestMemory for Watched<'_> {
    type PhysicalMemory = Plain;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        GuestMemory::check_range(self.inner, addr, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>> {
        self.accesses.lock().unwrap().push((addr.0, count));
        GuestMemory::get_slices(self.inner, addr, count, access)
    }
}

#[test]
fn every_field_of_a_chain_is_read_once() {
    let plain = memory();
    let mut driver = DriverQueue::new(&plain, 0x1000, 16);
    driver.descriptor(4, 0x8000, 8, VIRTQ_DESC_F_NEXT, 9);
    driver.descriptor(9, 0x4000, 48, VIRTQ_DESC_F_INDIRECT, 0);
    for (index, next) in [(0, 2), (2, 1), (1, 0)] {
        let flags = if next == 0 { 0 } else { VIRTQ_DESC_F_NEXT };
        driver.descriptor_at(0x4000, index, 0x8000, 4, flags, next);
    }
    driver.offer(4);
    let watched = Watched {
        inner: &plain,
        accesses: Mutex::default(),
    };
    let mut queue = Virtqueue::new(driver.layout(), Features::of(&[VIRTIO_F_INDIRECT_DESC]));
    let mut chain = Chain::with_capacity(16);
    let head = queue.take(&watched, &mut chain).unwrap().unwrap();
    assert_eq!(chain.len(), 4);
    let accesses = std::mem::take(&mut *watched.accesses.lock().unwrap());
    let avail = driver.setup().avail_ring;
    let expected = [
        (avail + 2, 2),
        (avail + 4, 2),
        (0x1000 + 16 * 4, 16),
        (0x1000 + 16 * 9, 16),
        (0x4000, 16),
        (0x4020, 16),
        (0x4010, 16),
    ];
    assert_eq!(accesses, expected);
    // And the device writes where the used ring is, and nowhere else.
    queue.complete(&watched, head, 4).unwrap();
    let used = driver.setup().used_ring..driver.setup().used_ring + 4 + 8 * 16;
    let accesses = watched.accesses.lock().unwrap();
    assert!(
        accesses.iter().all(|(at, _)| used.contains(at)),
        "{accesses:x?}"
    );
}

/// A region whose slices end early.
struct Short(GuestRegionMmap);

impl GuestMemoryRegion for Short {
    type B = ();

    fn len(&self) -> u64 {
        self.0.len()
    }

    fn start_addr(&self) -> GuestAddress {
        self.0.start_addr()
    }

    fn bitmap(&self) {}

    fn get_slice(&self, offset: MemoryRegionAddress, len: usize) -> Result<VolatileSlice<'_>> {
        self.0.get_slice(offset, len.min(4))
    }
}

impl GuestMemoryRegionBytes for Short {}

#[test]
fn no_piece_is_longer_than_the_slice_that_a_region_gives() {
    let plain = memory();
    let mut driver = DriverQueue::new(&plain, 0x1000, 4);
    driver.descriptor(0, 0x8000, 4, VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_NEXT, 1);
    driver.descriptor(1, 0x9000, 6, VIRTQ_DESC_F_WRITE, 0);
    driver.offer(0);
    let mut queue = Virtqueue::new(driver.layout(), Features::NONE);
    let mut chain = Chain::with_capacity(4);
    let _head = queue.take(&plain, &mut chain).unwrap().unwrap();

    let region = GuestRegionMmap::from_range(GuestAddress(0), 0x1_0000, None).unwrap();
    let memory = GuestRegionCollection::from_regions(vec![Short(region)]).unwrap();
    let (addr, len) = (0x9000, 6);
    let bad = BadRequest::BufferMemory { addr, len };
    let mut lens = Vec::new();
    let pieces = chain
        .writer(&memory)
        .pieces(u64::MAX, |_, len| lens.push(len));
    assert_eq!((pieces, lens), (Err(bad), vec![4, 4]));
    let mut writer = chain.writer(&memory);
    writer.write_all(&[7; 10]).unwrap_err();
    assert_eq!(writer.written(), 4);
}

/// Numbers without a pattern, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        self.0 >> 33
    }
}

#[test]
fn any_bytes_at_all_end_in_chains_or_a_fault() {
    let memory = memory();
    let mut numbers = Numbers(1);
    let (mut chains, mut faults) = (0, 0);
    for round in 0..if cfg!(miri) { 8 } else { 400 } {
        // The rings of every other queue overlap each other.
        let step = if round % 2 == 0 { 0x1000 } else { 8 };
        let setup = QueueSetup::new(1 << (numbers.next() % 5))
            .with_desc_table(0x1000)
            .with_avail_ring(0x1000 + step)
            .with_used_ring(0x1000 + 2 * step);
        let layout = QueueLayout::check(&setup, 16, &memory).unwrap();
        // Mostly small numbers, so that some of it makes sense.
        let mut word = || {
            let small = numbers.next() % 4 != 0;
            let word = numbers.next() % if small { 4 } else { 0x1_0000 };
            u16::try_from(word).unwrap().to_le_bytes()
        };
        // Miri takes its time: there, the rings alone.
        let len = if cfg!(miri) { 0x100 } else { 0x1000 };
        for page in [0x1000, 0x2000, 0x3000] {
            let bytes: Vec<u8> = (0..len).step_by(2).flat_map(|_| word()).collect();
            memory.write_slice(&bytes, GuestAddress(page)).unwrap();
        }
        let features = [Features::NONE, Features::QUEUE];
        let mut queue = Virtqueue::new(layout, features[round / 2 % 2]);
        let mut chain = Chain::with_capacity(16);
        for _ in 0..if cfg!(miri) { 8 } else { 64 } {
            match queue.take(&memory, &mut chain) {
                Ok(Some(head)) => {
                    chains += 1;
                    assert!(head.index() < layout.size());
                    assert!(chain.len() <= usize::from(layout.size()));
                    let _ = chain.check(&memory);
                    let _ = queue.complete(&memory, head, 1);
                    let _ = queue.needs_interrupt(&memory);
                }
                Ok(None) => {
                    let _ = queue.enable_notification(&memory);
                }
                Err(fault) => {
                    faults += 1;
                    assert_eq!(queue.fault(), Some(fault));
                    assert!(chain.is_empty());
                    break;
                }
            }
        }
    }
    assert!(cfg!(miri) || chains > 0 && faults > 0, "{chains} {faults}");
}

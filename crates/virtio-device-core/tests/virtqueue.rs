// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a driver may and may not do to a virtqueue.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

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

#[test]
fn an_empty_ring_has_nothing_to_take() {
    let memory = memory();
    let mut pair = Pair::new(&memory, Features::NONE);
    assert_eq!(pair.take(), Ok(None));
    assert_eq!(pair.take(), Ok(None));
}

#[test]
fn chains_are_taken_in_order_and_given_back_with_their_length() {
    let memory = memory();
    let mut pair = Pair::new(&memory, Features::NONE);
    pair.driver.offer_writable(3, BUFFER, 8);
    pair.driver.offer_writable(5, BUFFER + 8, 8);
    for (head, len) in [(3, 7), (5, 8)] {
        let taken = pair.take().unwrap().unwrap();
        assert_eq!(taken.index(), head);
        pair.device.complete(&memory, taken, len).unwrap();
    }
    assert_eq!(pair.take(), Ok(None));
    assert_eq!(pair.driver.take_used(), [(3, 7), (5, 8)]);
}

#[test]
fn rings_looked_up_before_are_the_same_rings() {
    let memory = memory();
    // Inside of one region, and with each part over the seam of two.
    for base in [0x1000, RAM - 0x80, RAM - 0x110, RAM - 0x130] {
        for features in [Features::NONE, Features::of(&[VIRTIO_F_EVENT_IDX])] {
            let mut driver = DriverQueue::new(&memory, base, SIZE);
            let mut device = Virtqueue::new(driver.layout(), features);
            let mut chain = Chain::with_capacity(SIZE);
            let rings = Rings::new(&memory, device.layout());
            let rounds = if cfg!(miri) { 17 } else { 40_u16 };
            for round in 0..u32::from(rounds) {
                let index = u16::try_from(round % 16).unwrap();
                device.disable_notification(&rings).unwrap();
                driver.offer_writable(index, BUFFER, 4);
                let head = device.take(&rings, &mut chain).unwrap().unwrap();
                assert_eq!(chain.writable_len(), 4);
                device.complete(&rings, head, round).unwrap();
                driver.set_used_event(u16::try_from(round).unwrap());
                assert!(device.needs_interrupt(&rings).unwrap());
                assert_eq!(device.take(&rings, &mut chain), Ok(None));
                assert!(!device.enable_notification(&rings).unwrap());
                assert_eq!(driver.take_used(), [(index.into(), round)]);
            }
            if features != Features::NONE {
                assert_eq!(driver.avail_event(), rounds);
            }
        }
    }
}

#[test]
fn a_chain_that_was_put_back_is_taken_again() {
    let memory = memory();
    let mut pair = Pair::new(&memory, Features::NONE);
    pair.driver.offer_writable(3, BUFFER, 8);
    for _ in 0..2 {
        let taken = pair.take().unwrap().unwrap();
        pair.device.put_back(taken);
        assert_eq!(pair.driver.used_index(), 0);
    }
    let taken = pair.take().unwrap().unwrap();
    assert_eq!(taken.index(), 3);
    pair.device.complete(&memory, taken, 8).unwrap();
    assert_eq!(pair.driver.take_used(), [(3, 8)]);
}

#[test]
fn indices_wrap_without_losing_a_chain() {
    let memory = memory();
    for features in [Features::NONE, Features::of(&[VIRTIO_F_EVENT_IDX])] {
        let mut pair = Pair::new(&memory, features);
        let rounds = if cfg!(miri) { 20 } else { 70_000 };
        for round in 0..rounds {
            let index = u16::try_from(round % u32::from(SIZE)).unwrap();
            pair.driver.offer_writable(index, BUFFER, 4);
            let head = pair.take().unwrap().unwrap();
            pair.device.complete(&memory, head, round).unwrap();
            assert_eq!(pair.driver.take_used(), [(index.into(), round)]);
        }
    }
}

#[test]
fn buffers_keep_their_order_and_direction() {
    let memory = memory();
    let mut pair = Pair::new(&memory, Features::NONE);
    pair.driver
        .descriptor(0, BUFFER, 4, VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE, 9);
    pair.driver
        .descriptor(9, BUFFER + 0x10, 5, VIRTQ_DESC_F_NEXT, 2);
    pair.driver.descriptor(
        2,
        BUFFER + 0x20,
        0,
        VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE,
        1,
    );
    pair.driver
        .descriptor(1, BUFFER + 0x30, 6, VIRTQ_DESC_F_WRITE, 0);
    pair.driver.offer(0);
    let _head = pair.take().unwrap().unwrap();
    let writable: Vec<_> = pair.chain.writable().map(|(at, len)| (at.0, len)).collect();
    let readable: Vec<_> = pair.chain.readable().map(|(at, len)| (at.0, len)).collect();
    let (a, b, c, d) = (BUFFER, BUFFER + 0x10, BUFFER + 0x20, BUFFER + 0x30);
    assert_eq!(writable, [(a, 4), (c, 0), (d, 6)]);
    assert_eq!(readable, [(b, 5)]);
    assert_eq!(pair.chain.writable_len(), 10);

    // Writable bytes are filled in order, and nothing else is touched.
    assert_eq!(pair.chain.write(&memory, b"abcdefg"), Ok(7));
    let mut bytes = [0; 0x40];
    memory.read_slice(&mut bytes, GuestAddress(BUFFER)).unwrap();
    let mut want = [0; 0x40];
    want[..4].copy_from_slice(b"abcd");
    want[0x30..0x33].copy_from_slice(b"efg");
    assert_eq!(bytes, want);
    // What does not fit is not written.
    assert_eq!(pair.chain.write(&memory, b"0123456789abc"), Ok(10));
}

#[test]
fn a_chain_of_queue_size_is_taken_and_one_more_is_not() {
    let memory = memory();
    let mut pair = Pair::new(&memory, Features::NONE);
    for index in 0..SIZE {
        let flags = if index + 1 == SIZE {
            0
        } else {
            VIRTQ_DESC_F_NEXT
        };
        pair.driver.descriptor(index, BUFFER, 1, flags, index + 1);
    }
    pair.driver.offer(0);
    let head = pair.take().unwrap().unwrap();
    assert_eq!(pair.chain.len(), usize::from(SIZE));
    pair.device.complete(&memory, head, 0).unwrap();

    let mut pair = Pair::new(&memory, Features::of(&[VIRTIO_F_INDIRECT_DESC]));
    indirect(&pair.driver, SIZE);
    pair.driver.offer(0);
    let _head = pair.take().unwrap().unwrap();
    let mut pair = Pair::new(&memory, Features::of(&[VIRTIO_F_INDIRECT_DESC]));
    indirect(&pair.driver, SIZE + 1);
    pair.driver.offer(0);
    assert_eq!(pair.fault(), RingFault::ChainTooLong);
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

#[test]
fn loops_are_faults() {
    let memory = memory();
    for (first, second) in [(0, 0), (1, 0), (1, 1)] {
        let mut pair = Pair::new(&memory, Features::NONE);
        pair.driver
            .descriptor(0, BUFFER, 1, VIRTQ_DESC_F_NEXT, first);
        pair.driver
            .descriptor(1, BUFFER, 1, VIRTQ_DESC_F_NEXT, second);
        pair.driver.offer(0);
        assert_eq!(pair.fault(), RingFault::ChainTooLong);
    }
}

#[test]
fn indices_outside_of_the_table_are_faults() {
    let memory = memory();
    for index in [SIZE, SIZE + 1, 0xffff] {
        let mut pair = Pair::new(&memory, Features::NONE);
        pair.driver.offer(index);
        assert_eq!(
            pair.fault(),
            RingFault::DescriptorIndex { index, size: SIZE }
        );

        let mut pair = Pair::new(&memory, Features::NONE);
        pair.driver
            .descriptor(0, BUFFER, 1, VIRTQ_DESC_F_NEXT, index);
        pair.driver.offer(0);
        assert_eq!(
            pair.fault(),
            RingFault::DescriptorIndex { index, size: SIZE }
        );
    }
}

#[test]
fn an_available_index_too_far_ahead_is_a_fault() {
    let memory = memory();
    for index in [SIZE + 1, 0x8000, 0xffff] {
        let mut pair = Pair::new(&memory, Features::NONE);
        pair.driver.set_avail_index(index);
        assert_eq!(pair.fault(), RingFault::AvailIndex { next: 0, index });
    }
    // A full queue is not too far.
    let mut pair = Pair::new(&memory, Features::NONE);
    pair.driver.set_avail_index(SIZE);
    let _head = pair.take().unwrap().unwrap();
}

#[test]
fn indirect_tables_need_the_feature() {
    let memory = memory();
    let mut pair = Pair::new(&memory, Features::NONE);
    indirect(&pair.driver, 2);
    pair.driver.offer(0);
    assert_eq!(pair.fault(), RingFault::IndirectNotNegotiated);
}

#[test]
fn misshapen_indirect_tables_are_faults() {
    let memory = memory();
    let next = VIRTQ_DESC_F_INDIRECT | VIRTQ_DESC_F_NEXT;
    let past_end = RAM_END - 16;
    let cases = [
        (
            TABLE,
            0,
            VIRTQ_DESC_F_INDIRECT,
            RingFault::IndirectLength(0),
        ),
        (
            TABLE,
            15,
            VIRTQ_DESC_F_INDIRECT,
            RingFault::IndirectLength(15),
        ),
        (
            TABLE,
            24,
            VIRTQ_DESC_F_INDIRECT,
            RingFault::IndirectLength(24),
        ),
        (TABLE, 16, next, RingFault::IndirectWithNext),
        (
            past_end,
            32,
            VIRTQ_DESC_F_INDIRECT,
            RingFault::IndirectMemory(past_end),
        ),
        (
            TABLE,
            u32::MAX - 15,
            VIRTQ_DESC_F_INDIRECT,
            RingFault::IndirectMemory(TABLE),
        ),
        (
            u64::MAX - 15,
            32,
            VIRTQ_DESC_F_INDIRECT,
            RingFault::IndirectMemory(u64::MAX - 15),
        ),
    ];
    for (addr, len, flags, fault) in cases {
        let mut pair = Pair::new(&memory, Features::of(&[VIRTIO_F_INDIRECT_DESC]));
        pair.driver.descriptor(0, addr, len, flags, 0);
        pair.driver.offer(0);
        assert_eq!(pair.fault(), fault);
    }
}

#[test]
fn an_indirect_table_inside_a_table_is_a_fault() {
    let memory = memory();
    let mut pair = Pair::new(&memory, Features::of(&[VIRTIO_F_INDIRECT_DESC]));
    indirect(&pair.driver, 1);
    pair.driver
        .descriptor_at(TABLE, 0, TABLE, 16, VIRTQ_DESC_F_INDIRECT, 0);
    pair.driver.offer(0);
    assert_eq!(pair.fault(), RingFault::IndirectNested);
}

#[test]
fn an_index_outside_of_an_indirect_table_is_a_fault() {
    let memory = memory();
    let mut pair = Pair::new(&memory, Features::of(&[VIRTIO_F_INDIRECT_DESC]));
    indirect(&pair.driver, 2);
    pair.driver
        .descriptor_at(TABLE, 0, BUFFER, 1, VIRTQ_DESC_F_NEXT, 2);
    pair.driver.offer(0);
    assert_eq!(
        pair.fault(),
        RingFault::DescriptorIndex { index: 2, size: 2 }
    );
}

#[test]
fn what_section_2_7_5_3_allows_is_served() {
    let memory = memory();
    // WRITE on the indirect descriptor means nothing.
    let mut pair = Pair::new(&memory, Features::of(&[VIRTIO_F_INDIRECT_DESC]));
    indirect(&pair.driver, 2);
    pair.driver
        .descriptor(0, TABLE, 32, VIRTQ_DESC_F_INDIRECT | VIRTQ_DESC_F_WRITE, 0);
    pair.driver.offer(0);
    let _head = pair.take().unwrap().unwrap();
    assert_eq!(pair.chain.writable().count(), 0);

    // A table needs no alignment.
    let mut pair = Pair::new(&memory, Features::of(&[VIRTIO_F_INDIRECT_DESC]));
    pair.driver
        .descriptor(0, TABLE + 1, 16, VIRTQ_DESC_F_INDIRECT, 0);
    pair.driver
        .descriptor_at(TABLE + 1, 0, BUFFER, 7, VIRTQ_DESC_F_WRITE, 0);
    pair.driver.offer(0);
    let _head = pair.take().unwrap().unwrap();
    assert_eq!(pair.chain.writable_len(), 7);

    // Direct descriptors may come before one indirect one.
    let mut pair = Pair::new(&memory, Features::of(&[VIRTIO_F_INDIRECT_DESC]));
    pair.driver.descriptor(1, BUFFER, 3, VIRTQ_DESC_F_NEXT, 0);
    indirect(&pair.driver, 2);
    pair.driver.offer(1);
    let _head = pair.take().unwrap().unwrap();
    assert_eq!(pair.chain.len(), 3);
}

#[test]
fn a_request_is_checked_before_a_byte_moves() {
    let memory = memory();
    let bad = [
        (RAM_END - 4, 5),
        (RAM_END, 1),
        (RAM_END + 0x1000, 1),
        (u64::MAX, 2),
        (u64::MAX - 1, u32::MAX),
        (BUFFER, u32::MAX),
    ];
    for (addr, len) in bad {
        let mut pair = Pair::new(&memory, Features::NONE);
        pair.driver
            .descriptor(0, BUFFER, 4, VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_NEXT, 1);
        pair.driver.descriptor(1, addr, len, VIRTQ_DESC_F_WRITE, 0);
        pair.driver.offer(0);
        let _head = pair.take().unwrap().unwrap();
        assert_eq!(
            pair.chain.check(&memory),
            Err(BadRequest::BufferMemory { addr, len })
        );
    }
    // The last byte of memory, a buffer over two regions, and an empty one anywhere are fine.
    for (addr, len) in [(RAM_END - 4, 4), (RAM - 2, 4), (RAM_END + 0x1000, 0)] {
        let mut pair = Pair::new(&memory, Features::NONE);
        pair.driver.offer_writable(0, addr, len);
        let _head = pair.take().unwrap().unwrap();
        assert_eq!(pair.chain.check(&memory), Ok(()));
        assert_eq!(pair.chain.write(&memory, b"1234"), Ok(len));
        let mut written = [0; 4];
        let written = written.get_mut(..len as usize).unwrap();
        if len != 0 {
            memory.read_slice(written, GuestAddress(addr)).unwrap();
        }
        assert!(b"1234".starts_with(written), "{written:?}");
    }
    // Without the check, a write still stops at the buffer that is not there.
    let mut pair = Pair::new(&memory, Features::NONE);
    pair.driver.offer_writable(0, RAM_END - 2, 4);
    let _head = pair.take().unwrap().unwrap();
    let (addr, len) = (RAM_END - 2, 4);
    assert_eq!(
        pair.chain.write(&memory, b"1234"),
        Err(BadRequest::BufferMemory { addr, len })
    );
}

#[test]
fn lengths_beyond_32_bits_do_not_wrap() {
    let memory = memory();
    let mut pair = Pair::new(&memory, Features::NONE);
    let flags = VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_NEXT;
    pair.driver.descriptor(0, BUFFER, u32::MAX, flags, 1);
    pair.driver.descriptor(1, BUFFER, 2, VIRTQ_DESC_F_WRITE, 0);
    pair.driver.offer(0);
    let _head = pair.take().unwrap().unwrap();
    assert_eq!(pair.chain.writable_len(), 0x1_0000_0001);
}

#[test]
fn the_driver_can_switch_interrupts_off_by_flag() {
    let memory = memory();
    let mut pair = Pair::new(&memory, Features::NONE);
    for (flags, wanted) in [(0, true), (1, false), (0xfffe, true), (3, false)] {
        pair.driver.set_avail_flags(flags);
        pair.driver.offer_writable(0, BUFFER, 1);
        let head = pair.take().unwrap().unwrap();
        pair.device.complete(&memory, head, 1).unwrap();
        assert_eq!(pair.device.needs_interrupt(&memory), Ok(wanted), "{flags}");
        // It was asked, and nothing has come back since.
        assert_eq!(pair.device.needs_interrupt(&memory), Ok(false));
    }
}

#[test]
fn event_index_decides_on_the_whole_batch() {
    let memory = memory();
    // (used index the driver waits for, number completed, interrupt wanted)
    for (event, count, wanted) in [
        (0, 1, true),
        (1, 1, false),
        (1, 2, true),
        (2, 4, true),
        (9, 4, false),
    ] {
        let mut pair = Pair::new(&memory, Features::of(&[VIRTIO_F_EVENT_IDX]));
        pair.driver.set_used_event(event);
        for index in 0..count {
            pair.driver.offer_writable(index, BUFFER, 1);
            let head = pair.take().unwrap().unwrap();
            pair.device.complete(&memory, head, 1).unwrap();
        }
        assert_eq!(
            pair.device.needs_interrupt(&memory),
            Ok(wanted),
            "{event} {count}"
        );
    }
}

#[test]
fn an_event_that_was_passed_before_the_batch_is_over() {
    let memory = memory();
    // (used index the driver waits for, interrupt wanted for the third request alone)
    for (event, wanted) in [(0, false), (1, false), (2, true), (3, false)] {
        let mut pair = Pair::new(&memory, Features::of(&[VIRTIO_F_EVENT_IDX]));
        for index in 0..3 {
            pair.driver.set_used_event(event);
            pair.driver.offer_writable(index, BUFFER, 1);
            let head = pair.take().unwrap().unwrap();
            pair.device.complete(&memory, head, 1).unwrap();
            if index == 1 {
                pair.device.needs_interrupt(&memory).unwrap();
            }
        }
        let needs = pair.device.needs_interrupt(&memory);
        assert_eq!(needs, Ok(wanted), "{event}");
    }
}

#[test]
fn the_device_can_switch_notifications_off() {
    let memory = memory();
    for (features, off) in [
        (Features::NONE, 1),
        (Features::of(&[VIRTIO_F_EVENT_IDX]), 0),
    ] {
        let mut pair = Pair::new(&memory, features);
        pair.device.disable_notification(&memory).unwrap();
        assert_eq!(pair.driver.used_flags(), off);
        pair.device.enable_notification(&memory).unwrap();
        assert_eq!(pair.driver.used_flags(), 0);
    }
}

#[test]
fn enabling_notifications_sees_what_came_in_between() {
    let memory = memory();
    for features in [Features::NONE, Features::of(&[VIRTIO_F_EVENT_IDX])] {
        let mut pair = Pair::new(&memory, features);
        pair.device.disable_notification(&memory).unwrap();
        assert_eq!(pair.device.enable_notification(&memory), Ok(false));
        pair.device.disable_notification(&memory).unwrap();
        pair.driver.offer_writable(0, BUFFER, 1);
        assert_eq!(pair.device.enable_notification(&memory), Ok(true));
        let _head = pair.take().unwrap().unwrap();
        assert_eq!(pair.device.enable_notification(&memory), Ok(false));
        if features != Features::NONE {
            assert_eq!(pair.driver.avail_event(), 1);
        }
    }
}

#[test]
fn a_chain_that_is_available_twice_is_a_fault_only_while_it_is_taken() {
    let memory = memory();
    let mut pair = Pair::new(&memory, Features::NONE);
    for _ in 0..2 {
        pair.driver.offer_writable(3, BUFFER, 4);
        let head = pair.take().unwrap().unwrap();
        pair.device.complete(&memory, head, 4).unwrap();
    }
    pair.driver.offer_writable(3, BUFFER, 4);
    let _head = pair.take().unwrap().unwrap();
    pair.driver.offer(3);
    assert_eq!(pair.take(), Err(RingFault::HeadInUse(3)));
}

#[test]
fn a_chain_is_given_back_to_the_queue_it_came_from() {
    let memory = memory();
    let mut pair = Pair::new(&memory, Features::NONE);
    pair.driver.offer_writable(3, BUFFER, 4);
    let head = pair.take().unwrap().unwrap();
    let mut other = Virtqueue::new(pair.driver.layout(), Features::NONE);
    assert_eq!(
        other.complete(&memory, head, 4),
        Err(RingFault::HeadNotTaken(3))
    );
    assert_eq!(pair.driver.used_index(), 0);
}

#[test]
fn a_queue_goes_on_where_it_was_and_serves_each_chain_once() {
    let memory = memory();
    let mut pair = Pair::new(&memory, Features::NONE);
    for index in [7, 2, 9, 4] {
        pair.driver.offer_writable(index, BUFFER, 4);
    }
    let mut heads: Vec<_> = (0..3).map(|_| pair.take().unwrap().unwrap()).collect();
    pair.device.complete(&memory, heads.remove(1), 4).unwrap();
    let progress = pair.device.progress();
    assert_eq!((progress.next_avail, progress.next_used), (3, 1));
    assert_eq!(progress.taken, [7, 9]);

    pair.device = Virtqueue::resume(pair.driver.layout(), Features::NONE, &progress).unwrap();
    assert_eq!(pair.device.progress(), progress);
    let mut served = Vec::new();
    while let Some(head) = pair.take().unwrap() {
        served.push(head.index());
        assert_eq!(pair.chain.writable_len(), 4);
        pair.device.complete(&memory, head, 4).unwrap();
    }
    assert_eq!(served, [7, 9, 4]);
    assert_eq!(pair.driver.take_used(), [(2, 4), (7, 4), (9, 4), (4, 4)]);
}

#[test]
fn progress_that_contradicts_itself_is_refused() {
    let memory = memory();
    let layout = Pair::new(&memory, Features::NONE).driver.layout();
    let resume = |next_avail: u16, next_used, taken: &[u16]| {
        let taken = taken.to_vec();
        let progress = QueueProgress::new(next_avail, next_used, taken);
        Virtqueue::resume(layout, Features::NONE, &progress)
            .map(|queue| queue.progress() == progress)
    };
    let all: Vec<u16> = (0..SIZE).collect();
    assert_eq!(resume(8, 0xfff8, &all), Ok(true));
    let mut too_many = all.clone();
    too_many.push(0);
    let count = |expected, taken| Err(SetupError::InFlightCount { expected, taken });
    assert_eq!(resume(9, 0xfff8, &too_many), count(17, 17));
    assert_eq!(resume(2, 1, &[]), count(1, 0));
    assert_eq!(resume(1, 1, &[0]), count(0, 1));
    assert_eq!(resume(0, 1, &[0]), count(0xffff, 1));
    assert_eq!(resume(2, 0, &[5, 5]), Err(SetupError::InFlightHead(5)));
    assert_eq!(resume(1, 0, &[SIZE]), Err(SetupError::InFlightHead(SIZE)));
}

/// A chain of (address, length, writable) buffers.
fn chain_of(memory: &Memory, buffers: &[(u64, u32, bool)]) -> Chain {
    let mut pair = Pair::new(memory, Features::NONE);
    for (index, &(addr, len, writable)) in (0u16..).zip(buffers) {
        let last = usize::from(index) + 1 == buffers.len();
        let flags = if last { 0 } else { VIRTQ_DESC_F_NEXT };
        let flags = flags | if writable { VIRTQ_DESC_F_WRITE } else { 0 };
        pair.driver.descriptor(index, addr, len, flags, index + 1);
    }
    pair.driver.offer(0);
    let _head = pair.take().unwrap().unwrap();
    pair.chain
}

/// Serves as a vhost back end does: `taken` chains taken, the first `given_back` of them completed.
fn serve_elsewhere(pair: &mut Pair<'_>, taken: usize, given_back: usize) -> u16 {
    let mut server = Virtqueue::new(pair.driver.layout(), Features::NONE);
    let mut chain = Chain::with_capacity(SIZE);
    let heads: Vec<Head> = (0..taken)
        .map(|_| server.take(pair.memory, &mut chain).unwrap().unwrap())
        .collect();
    for head in heads.into_iter().take(given_back) {
        server.complete(pair.memory, head, 1).unwrap();
    }
    server.progress().next_avail
}

#[test]
fn a_queue_goes_on_where_a_foreign_server_has_stopped() {
    let memory = memory();
    for (taken, given_back) in [(0, 0), (5, 5), (5, 2), (5, 0)] {
        let mut pair = Pair::new(&memory, Features::NONE);
        (0..7).for_each(|index| pair.driver.offer_writable(index, BUFFER, 4));
        let next_avail = serve_elsewhere(&mut pair, taken, given_back);
        pair.device.handed_back(&memory, next_avail).unwrap();
        let progress = pair.device.progress();
        assert_eq!(usize::from(progress.next_avail), taken);
        assert_eq!(usize::from(progress.next_used), given_back);
        let in_flight: Vec<u16> = (0..7).take(taken).skip(given_back).collect();
        assert_eq!(progress.taken, in_flight);
        // It can be saved and restored, too.
        let layout = pair.driver.layout();
        pair.device = Virtqueue::resume(layout, Features::NONE, &progress).unwrap();
        while let Some(head) = pair.take().unwrap() {
            pair.device.complete(&memory, head, 1).unwrap();
        }
        let used: Vec<(u32, u32)> = (0..7).map(|index| (index, 1)).collect();
        assert_eq!(pair.driver.take_used(), used, "each is served once");
    }
}

#[test]
fn progress_that_the_rings_contradict_is_a_fault() {
    let memory = memory();
    let used_index = |pair: &Pair<'_>, index: u16| {
        let addr = GuestAddress(pair.driver.setup().used_ring + 2);
        memory.write_obj(index.to_le(), addr).unwrap();
    };
    // The driver has moved the used index.
    for (next, index) in [(0, 1), (3, 4), (SIZE + 1, 0), (2, 0x8000)] {
        let mut pair = Pair::new(&memory, Features::NONE);
        used_index(&pair, index);
        let fault = RingFault::UsedIndex { next, index };
        assert_eq!(pair.device.handed_back(&memory, next), Err(fault));
        assert_eq!(pair.take(), Err(fault), "it is latched");
    }
    // A chain in flight twice, and one that does not exist.
    for (heads, fault) in [
        ([2, 2], RingFault::HeadInUse(2)),
        (
            [2, SIZE],
            RingFault::DescriptorIndex {
                index: SIZE,
                size: SIZE,
            },
        ),
    ] {
        let mut pair = Pair::new(&memory, Features::NONE);
        (heads.iter()).for_each(|&head| pair.driver.offer(head));
        assert_eq!(pair.device.handed_back(&memory, 2), Err(fault));
    }
}

#[test]
fn slices_cover_what_streams_cover() {
    let memory = memory();
    // Side by side in two regions, so this buffer gives two slices; empty ones give none.
    let chain = chain_of(
        &memory,
        &[
            (BUFFER, 3, false),
            (BUFFER + 8, 0, false),
            (RAM - 2, 5, false),
            (BUFFER + 0x10, 4, true),
            (RAM - 1, 2, true),
        ],
    );
    memory.write_slice(b"abc", GuestAddress(BUFFER)).unwrap();
    memory.write_slice(b"defgh", GuestAddress(RAM - 2)).unwrap();
    let slices = chain.readable_slices(&memory);
    let slices: Vec<_> = slices.collect::<Result<_, _>>().unwrap();
    let parts: Vec<Vec<u8>> = slices
        .iter()
        .map(|slice| {
            let mut bytes = vec![0; slice.len()];
            slice.copy_to(&mut bytes[..]);
            bytes
        })
        .collect();
    assert_eq!(parts, [&b"abc"[..], b"de", b"fgh"]);
    let slices = chain.writable_slices(&memory);
    let slices: Vec<_> = slices.collect::<Result<_, _>>().unwrap();
    let lens: Vec<usize> = slices.iter().map(|slice| slice.len()).collect();
    assert_eq!(lens, [4, 1, 1]);
    for (slice, bytes) in slices.iter().zip([&b"wxyz"[..], b"1", b"2"]) {
        slice.copy_from(bytes);
    }
    let mut bytes = [0; 4];
    memory
        .read_slice(&mut bytes, GuestAddress(BUFFER + 0x10))
        .unwrap();
    assert_eq!(&bytes, b"wxyz");
    memory
        .read_slice(&mut bytes[..2], GuestAddress(RAM - 1))
        .unwrap();
    assert_eq!(&bytes[..2], b"12");
}

#[test]
fn slices_outside_of_memory_are_bad_requests() {
    let memory = memory();
    for (addr, len) in [
        (RAM_END, 1),
        (RAM_END - 4, 5),
        (0, u32::MAX),
        (u64::MAX - 3, 4),
        (u64::MAX - 3, 16),
        (u64::MAX, u32::MAX),
    ] {
        for writable in [false, true] {
            let chain = chain_of(&memory, &[(BUFFER, 4, writable), (addr, len, writable)]);
            let bad = BadRequest::BufferMemory { addr, len };
            let slices = if writable {
                chain
                    .writable_slices(&memory)
                    .collect::<Result<Vec<_>, _>>()
            } else {
                chain
                    .readable_slices(&memory)
                    .collect::<Result<Vec<_>, _>>()
            };
            assert_eq!(slices.err(), Some(bad));
        }
    }
}

#[test]
fn readers_and_writers_do_not_see_the_seams() {
    let memory = memory();
    memory.write_slice(b"abcdef", GuestAddress(BUFFER)).unwrap();
    let chain = chain_of(
        &memory,
        &[
            (BUFFER, 2, false),
            (BUFFER + 2, 0, false),
            (BUFFER + 0x100, 3, true),
            (BUFFER + 2, 4, false),
            (BUFFER + 0x200, 5, true),
        ],
    );
    assert_eq!((chain.readable_len(), chain.writable_len()), (6, 8));
    let mut reader = chain.reader(&memory);
    assert_eq!(reader.remaining(), 6);
    assert_eq!(reader.read_array(), Ok(*b"abc"));
    assert_eq!(reader.remaining(), 3);
    let mut rest = [0; 8];
    assert_eq!(reader.read(&mut rest).unwrap(), 3);
    assert_eq!(&rest, b"def\0\0\0\0\0");
    assert_eq!(reader.read(&mut rest).unwrap(), 0);
    assert_eq!(reader.read_array::<1>(), Err(BadRequest::Layout));

    let mut writer = chain.writer(&memory);
    writer.write_all(b"12").unwrap();
    assert_eq!((writer.written(), writer.remaining()), (2, 6));
    writer.write_all(b"3456").unwrap();
    assert_eq!(writer.write(b"789").unwrap(), 2);
    assert_eq!((writer.written(), writer.remaining()), (8, 0));
    writer.write_all(b"x").unwrap_err();
    let bytes = |addr, len: usize| {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    };
    assert_eq!(bytes(BUFFER + 0x100, 4), b"123\0");
    assert_eq!(bytes(BUFFER + 0x200, 6), b"45678\0");

    let mut writer = chain.writer(&memory);
    writer.skip(2);
    assert_eq!(writer.remaining(), 6);
    writer.skip(3);
    writer.write_all(b"!").unwrap();
    assert_eq!((writer.written(), writer.remaining()), (1, 2));
    writer.skip(100);
    assert_eq!(writer.remaining(), 0);
    assert_eq!(bytes(BUFFER + 0x100, 3), b"123");
    assert_eq!(bytes(BUFFER + 0x200, 5), b"45!78");
}

#[test]
fn readers_and_writers_stop_at_what_is_not_memory() {
    let memory = memory();
    for (addr, len) in [(RAM_END - 1, 2), (RAM_END, 4), (u64::MAX, 4)] {
        let chain = chain_of(&memory, &[(addr, len, false), (addr, len, true)]);
        let error = BadRequest::BufferMemory { addr, len };
        let mut reader = chain.reader(&memory);
        assert_eq!(reader.read_array::<2>(), Err(error));
        reader.read(&mut [0; 2]).unwrap_err();
        let mut writer = chain.writer(&memory);
        writer.write_all(&[0; 2]).unwrap_err();
        assert_eq!(writer.written(), 0);
    }
    // An address that would wrap does not come out at the other end.
    let chain = chain_of(&memory, &[(u64::MAX, 4, true)]);
    let mut writer = chain.writer(&memory);
    writer.skip(1);
    writer.write_all(&[0; 2]).unwrap_err();
}

#[test]
fn messages_carry_the_numbers() {
    let faults = [
        (RingFault::RingMemory, "not in guest memory"),
        (
            RingFault::UsedIndex { next: 3, index: 9 },
            "used index 9 is too far behind 3",
        ),
        (RingFault::AvailIndex { next: 3, index: 77 }, "77"),
        (
            RingFault::DescriptorIndex {
                index: 99,
                size: 16,
            },
            "99",
        ),
        (RingFault::ChainTooLong, "longer"),
        (RingFault::IndirectNotNegotiated, "INDIRECT_DESC"),
        (RingFault::IndirectNested, "in an indirect"),
        (RingFault::IndirectWithNext, "next"),
        (RingFault::IndirectLength(24), "24"),
        (RingFault::IndirectMemory(0xabc0), "0xabc0"),
        (RingFault::HeadInUse(5), "5"),
        (RingFault::HeadNotTaken(6), "6"),
    ];
    for (fault, part) in faults {
        assert!(fault.to_string().contains(part), "{fault}");
    }
    let bad = BadRequest::BufferMemory {
        addr: 0xabc,
        len: 9,
    };
    assert_eq!(
        bad.to_string(),
        "buffer of 9 bytes at 0xabc is not all in memory"
    );
    assert!(BadRequest::Layout.to_string().contains("laid out"));
    let count = SetupError::InFlightCount {
        expected: 4,
        taken: 5,
    };
    assert!(count.to_string().contains('4') && count.to_string().contains('5'));
    assert!(SetupError::InFlightHead(7).to_string().contains('7'));
}

#[test]
fn debug_output_says_where_a_queue_is_and_no_more() {
    let memory = memory();
    let mut pair = Pair::new(&memory, Features::NONE);
    pair.driver.offer_writable(3, BUFFER, 4);
    let head = pair.take().unwrap().unwrap();
    assert_eq!(pair.device.fault(), None);
    let text = format!("{:?}", pair.device);
    assert!(
        text.contains("next_avail: 1") && text.contains("next_used: 0"),
        "{text}"
    );
    let reader = format!("{:?}", pair.chain.reader(&memory));
    let writer = format!("{:?}", pair.chain.writer(&memory));
    assert!(reader.starts_with("ChainStream(Cursor") && writer.starts_with("ChainStream(Cursor"));
    pair.device.complete(&memory, head, 4).unwrap();
    pair.driver.offer(SIZE);
    pair.take().unwrap_err();
    assert!(pair.device.fault().is_some());
}

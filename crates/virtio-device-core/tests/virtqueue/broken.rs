// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a driver may not do to a ring or a table, and what it may.

use super::*;

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

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Chains on their way to the device and back.

use super::*;

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
fn a_chain_of_another_queue_is_not_put_back() {
    let memory = memory();
    let (mut pair, mut other) = (
        Pair::new(&memory, Features::NONE),
        Pair::new(&memory, Features::NONE),
    );
    pair.driver.offer_writable(3, BUFFER, 8);
    let foreign = other.take().unwrap().unwrap();
    pair.device.put_back(foreign);
    let taken = pair.take().unwrap().unwrap();
    pair.device.complete(&memory, taken, 8).unwrap();
    assert_eq!(pair.take(), Ok(None), "the chain is served once");
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

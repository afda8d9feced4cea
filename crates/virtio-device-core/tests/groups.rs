// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Chains given back as a group, and what is saved of a queue after a fault.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use virtio_conformance::DriverQueue;
use virtio_device_core::{
    Chain, Features, Head, RingFault, RingMemory, Rings, Virtqueue, transport::QueueProgress,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

type Memory = GuestMemoryMmap<()>;

/// Enough for three words of 64 descriptors in the set of chains in flight.
const SIZE: u16 = 256;
const BUFFER: u64 = 0x8000;

fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()
}

fn pair(memory: &Memory) -> (DriverQueue<'_, Memory>, Virtqueue) {
    let driver = DriverQueue::new(memory, 0x1000, SIZE);
    let device = Virtqueue::new(driver.layout(), Features::QUEUE);
    (driver, device)
}

fn take_all<M: RingMemory>(device: &mut Virtqueue, memory: &M) -> Vec<Head> {
    let mut chain = Chain::with_capacity(SIZE);
    std::iter::from_fn(|| device.take(memory, &mut chain).unwrap()).collect()
}

/// What was saved can be restored, and nothing is lost by that.
fn progress(device: &Virtqueue) -> QueueProgress {
    let progress = device.progress();
    let again = Virtqueue::resume(*device.layout(), Features::QUEUE, &progress).unwrap();
    assert_eq!(again.progress(), progress);
    progress
}

/// Both ways to reach a queue: rings that were looked up before, and those that were not.
fn both_ways(test: impl Fn(&Memory, &mut DriverQueue<'_, Memory>, &mut Virtqueue, bool)) {
    for looked_up in [false, true] {
        let memory = memory();
        let (mut driver, mut device) = pair(&memory);
        test(&memory, &mut driver, &mut device, looked_up);
    }
}

fn complete_all(
    device: &mut Virtqueue,
    memory: &Memory,
    looked_up: bool,
    group: impl IntoIterator<Item = (Head, u32)>,
) -> Result<(), RingFault> {
    if looked_up {
        let rings = Rings::new(memory, device.layout());
        return device.complete_all(&rings, group);
    }
    device.complete_all(memory, group)
}

#[test]
fn a_group_is_seen_all_at_once() {
    both_ways(|memory, driver, device, looked_up| {
        // Over the end of the ring, too, and over the end of the index.
        for round in 0..700_u16 {
            let before = driver.used_index();
            // Heads of one word of the set, of several, and back.
            let heads = [3, 2, 65, 200, 66, 255, 0, 127, 128, 64].map(|head| head ^ (round & 31));
            heads
                .iter()
                .for_each(|&head| driver.offer_writable(head, BUFFER, 4));
            let taken = take_all(device, memory);
            let group = taken.into_iter().rev().map(|head| {
                assert_eq!(driver.used_index(), before);
                let len = 1000 * u32::from(round) + u32::from(head.index());
                (head, len)
            });
            complete_all(device, memory, looked_up, group).unwrap();
            let expected = heads
                .iter()
                .rev()
                .map(|&head| (head.into(), 1000 * u32::from(round) + u32::from(head)));
            assert_eq!(driver.take_used(), expected.collect::<Vec<_>>());
            // The whole group counts when the driver is asked what it wants.
            driver.set_used_event(before.wrapping_add(2));
            assert!(device.needs_interrupt(memory).unwrap());
            assert!(!device.needs_interrupt(memory).unwrap());
            assert!(progress(device).taken.is_empty());
        }
        // Of nothing there is nothing to see.
        complete_all(device, memory, looked_up, []).unwrap();
        assert!(!device.needs_interrupt(memory).unwrap());
        assert!(driver.take_used().is_empty());
    });
}

#[test]
fn a_group_as_long_as_the_queue_leaves_the_event_index_alone() {
    both_ways(|memory, driver, device, looked_up| {
        for offset in [0, 100] {
            (0..SIZE).for_each(|head| driver.offer_writable(head, BUFFER, 4));
            let heads = take_all(device, memory);
            assert!(!device.enable_notification(memory).unwrap());
            let event = driver.avail_event();
            let group = heads.into_iter().map(|head| (head, u32::MAX));
            complete_all(device, memory, looked_up, group).unwrap();
            assert_eq!(driver.take_used().len(), usize::from(SIZE));
            assert_eq!(driver.avail_event(), event);
            // From the middle of the ring the next time.
            (0..offset).for_each(|head| driver.offer_writable(head, BUFFER, 4));
            for head in take_all(device, memory) {
                device.complete(memory, head, 0).unwrap();
            }
            driver.take_used();
        }
    });
}

#[test]
fn a_group_with_a_chain_that_was_not_taken_is_not_seen() {
    both_ways(|memory, driver, device, looked_up| {
        let (_, mut other) = pair(memory);
        for head in [3, 130, 4] {
            driver.offer_writable(head, BUFFER, 4);
        }
        let mut heads = take_all(&mut other, memory);
        let foreign = heads.pop().unwrap();
        let mut chain = Chain::with_capacity(SIZE);
        let own = [0, 1].map(|_| device.take(memory, &mut chain).unwrap().unwrap());
        let fault = Err(RingFault::HeadNotTaken(4));
        let group = own.into_iter().chain([foreign]).map(|head| (head, 1));
        assert_eq!(complete_all(device, memory, looked_up, group), fault);
        assert!(driver.take_used().is_empty());
        assert_eq!(complete_all(device, memory, looked_up, []), fault);
        progress(device);
    });
}

#[test]
fn a_caller_that_panics_within_a_group_loses_only_what_it_held() {
    both_ways(|memory, driver, device, looked_up| {
        for head in [3, 70, 140, 5] {
            driver.offer_writable(head, BUFFER, 4);
        }
        let mut heads = take_all(device, memory);
        let last = heads.pop().unwrap();
        let mut served = 0;
        let group = heads.into_iter().map(|head| {
            served += 1;
            assert!(served < 3, "a bug in the device");
            (head, 1)
        });
        let panic = || complete_all(device, memory, looked_up, group);
        catch_unwind(AssertUnwindSafe(panic)).unwrap_err();
        assert!(driver.take_used().is_empty());
        assert_eq!(progress(device).taken, [5, 140]);
        // What was complete before is seen with the next chain.
        device.complete(memory, last, 2).unwrap();
        assert_eq!(driver.take_used(), [(3, 1), (70, 1), (5, 2)]);
        assert_eq!(progress(device).taken, [140]);
    });
}

#[test]
fn a_chain_that_is_available_twice_leaves_a_state_that_can_be_restored() {
    let memory = memory();
    let (mut driver, mut device) = pair(&memory);
    driver.offer_writable(7, BUFFER, 4);
    driver.offer(7);
    let mut chain = Chain::with_capacity(SIZE);
    let _in_flight = device.take(&memory, &mut chain).unwrap().unwrap();
    let fault = Err(RingFault::HeadInUse(7));
    assert_eq!(device.take(&memory, &mut chain), fault);
    let progress = progress(&device);
    assert_eq!((progress.next_avail, progress.taken), (1, vec![7]));
}

#[test]
fn a_broken_chain_leaves_a_state_that_can_be_restored() {
    let memory = memory();
    let (mut driver, mut device) = pair(&memory);
    // A loop.
    driver.descriptor(7, BUFFER, 4, 1, 7);
    driver.offer(7);
    let mut chain = Chain::with_capacity(SIZE);
    let fault = Err(RingFault::ChainTooLong);
    assert_eq!(device.take(&memory, &mut chain), fault);
    assert_eq!(progress(&device).taken, [7]);
}

#[test]
fn a_server_that_hands_back_nonsense_leaves_a_state_that_can_be_restored() {
    let memory = memory();
    let (mut driver, mut device) = pair(&memory);
    for head in [9, 2, 2] {
        driver.offer_writable(head, BUFFER, 4);
    }
    let mut chain = Chain::with_capacity(SIZE);
    let _in_flight = device.take(&memory, &mut chain).unwrap().unwrap();
    let before = progress(&device);
    let fault = Err(RingFault::HeadInUse(2));
    assert_eq!(device.handed_back(&memory, 3), fault);
    assert_eq!(progress(&device), before);
}

#[test]
fn a_used_ring_that_is_gone_leaves_a_state_that_can_be_restored() {
    let memory = memory();
    let (mut driver, mut device) = pair(&memory);
    for head in [9, 2, 70] {
        driver.offer_writable(head, BUFFER, 4);
    }
    let mut heads = take_all(&mut device, &memory);
    // The VMM has taken the memory away.
    let gone = Memory::from_ranges(&[(GuestAddress(0x10_0000), 0x1000)]).unwrap();
    let fault = Err(RingFault::RingMemory);
    assert_eq!(device.complete(&gone, heads.remove(0), 4), fault);
    progress(&device);

    let (mut driver, mut device) = pair(&memory);
    for head in [9, 2, 70] {
        driver.offer_writable(head, BUFFER, 4);
    }
    let group = take_all(&mut device, &memory)
        .into_iter()
        .map(|head| (head, 4));
    assert_eq!(device.complete_all(&gone, group), fault);
    progress(&device);
    let used: u16 = memory
        .read_obj(GuestAddress(driver.used_ring().start + 2))
        .unwrap();
    assert_eq!(used, 0);
}

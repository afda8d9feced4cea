// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Queues lent to devices that are written against the crate `virtio-queue`.
#![cfg(feature = "virtio-queue")]
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

use virtio_conformance::DriverQueue;
use virtio_device_core::{Chain, Features, RingFault, Virtqueue};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

type Memory = GuestMemoryMmap<()>;

const SIZE: u16 = 16;
const BUFFER: u64 = 0x8000;

fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()
}

fn pair(memory: &Memory, features: Features) -> (DriverQueue<'_, Memory>, Virtqueue) {
    let driver = DriverQueue::new(memory, 0x1000, SIZE);
    let device = Virtqueue::new(driver.layout(), features);
    (driver, device)
}

/// A device of another crate: completes what is there, or up to `limit`, with the head as length.
fn serve<Q: QueueT>(queue: &mut Q, memory: &Memory, limit: usize) -> Vec<u16> {
    let mut heads = Vec::new();
    while heads.len() < limit {
        let Some(chain) = queue.pop_descriptor_chain(memory) else {
            break;
        };
        let head = chain.head_index();
        queue.add_used(memory, head, head.into()).unwrap();
        heads.push(head);
    }
    heads
}

fn pop(queue: &mut Queue, memory: &Memory) -> Option<u16> {
    let chain = queue.pop_descriptor_chain(memory)?;
    Some(chain.head_index())
}

fn restored(queue: &Virtqueue) -> Virtqueue {
    Virtqueue::resume(*queue.layout(), Features::NONE, &queue.progress()).unwrap()
}

#[test]
fn a_device_written_against_queue_t_serves_requests_unchanged() {
    let memory = memory();
    let (mut driver, mut device) = pair(&memory, Features::NONE);
    let mut chain = Chain::with_capacity(SIZE);
    for round in 0..3 * SIZE {
        (0..5).for_each(|index| driver.offer_writable(index, BUFFER, 4));
        let served = device.as_queue(&memory, |queue| serve(queue, &memory, 3));
        assert_eq!(served.unwrap(), [0, 1, 2], "{round}");
        assert_eq!(driver.take_used(), [(0, 0), (1, 1), (2, 2)]);
        let progress = device.progress();
        assert_eq!(progress.next_avail, 5 * round + 3);
        assert_eq!(progress.next_used, 5 * round + 3);
        assert!(progress.taken.is_empty());
        // The queue's own methods go on where it was.
        for index in 3..5 {
            let head = device.take(&memory, &mut chain).unwrap().unwrap();
            assert_eq!(head.index(), index);
            device.complete(&memory, head, 7).unwrap();
        }
        assert_eq!(driver.take_used(), [(3, 7), (4, 7)]);
    }
}

#[test]
fn more_requests_than_the_queue_is_long_are_served_in_one_call() {
    let memory = memory();
    let (mut driver, mut device) = pair(&memory, Features::NONE);
    for in_flight in [0, 3] {
        let mut kept = Vec::new();
        let served = device.as_queue(&memory, |queue| {
            for index in (0..SIZE).cycle().take(100) {
                driver.offer_writable(index, BUFFER, 4);
                kept.push(pop(queue, &memory).unwrap());
                if kept.len() > in_flight {
                    queue.add_used(&memory, kept.remove(0), 0).unwrap();
                }
            }
        });
        served.unwrap();
        assert_eq!(driver.take_used().len(), 100 - in_flight);
        let mut taken = device.progress().taken;
        taken.sort_unstable();
        kept.sort_unstable();
        assert_eq!(taken, kept);
    }
}

#[test]
fn requests_in_flight_are_known_and_complete_out_of_order() {
    let memory = memory();
    let (mut driver, mut device) = pair(&memory, Features::NONE);
    (0..6).for_each(|index| driver.offer_writable(index, BUFFER, 4));
    device
        .as_queue(&memory, |queue| {
            (0..4).for_each(|index| assert_eq!(pop(queue, &memory), Some(index)));
            queue.add_used(&memory, 2, 0).unwrap();
        })
        .unwrap();
    assert_eq!(device.progress().taken, [0, 1, 3]);
    // A chain that comes again in the same call.
    device
        .as_queue(&memory, |queue| {
            driver.offer_writable(2, BUFFER, 4);
            for index in [4, 5, 2] {
                assert_eq!(pop(queue, &memory), Some(index));
            }
            queue.add_used(&memory, 2, 0).unwrap();
            driver.offer_writable(2, BUFFER, 4);
            assert_eq!(pop(queue, &memory), Some(2));
            queue.add_used(&memory, 0, 0).unwrap();
        })
        .unwrap();
    assert_eq!(device.progress().taken, [1, 2, 3, 4, 5]);
    device
        .as_queue(&memory, |queue| {
            for head in [5, 1, 4, 2, 3] {
                queue.add_used(&memory, head, 0).unwrap();
            }
        })
        .unwrap();
    let progress = device.progress();
    assert_eq!((progress.next_avail, progress.next_used), (8, 8));
    assert!(progress.taken.is_empty());
}

#[test]
fn a_device_that_goes_back_takes_its_chain_again() {
    let memory = memory();
    let (mut driver, mut device) = pair(&memory, Features::NONE);
    (0..3).for_each(|index| driver.offer_writable(index, BUFFER, 4));
    device
        .as_queue(&memory, |queue| {
            (0..2).for_each(|index| assert_eq!(pop(queue, &memory), Some(index)));
            queue.go_to_previous_position();
        })
        .unwrap();
    assert_eq!(device.progress().taken, [0]);
    device
        .as_queue(&memory, |queue| assert_eq!(pop(queue, &memory), Some(1)))
        .unwrap();
    // Back by one that was taken in an earlier call.
    device
        .as_queue(&memory, QueueOwnedT::go_to_previous_position)
        .unwrap();
    assert_eq!(device.progress().taken, [0]);
    device
        .as_queue(&memory, |queue| queue.add_used(&memory, 0, 0).unwrap())
        .unwrap();
    let served = device.as_queue(&memory, |queue| serve(queue, &memory, 9));
    assert_eq!(served.unwrap(), [1, 2]);
    assert_eq!(driver.take_used(), [(0, 0), (1, 1), (2, 2)]);
}

#[test]
fn requests_in_flight_are_served_again_after_a_restore() {
    let memory = memory();
    let (mut driver, mut device) = pair(&memory, Features::NONE);
    for index in [7, 3, 5, 4] {
        driver.offer_writable(index, BUFFER, 4);
    }
    device
        .as_queue(&memory, |queue| {
            (0..3).for_each(|_| assert!(pop(queue, &memory).is_some()));
            queue.add_used(&memory, 7, 0).unwrap();
        })
        .unwrap();
    assert_eq!(driver.take_used(), [(7, 0)]);
    let mut twin = restored(&device);
    let served = twin.as_queue(&memory, |queue| serve(queue, &memory, 9));
    assert_eq!(served.unwrap(), [3, 5, 4]);
    assert_eq!(driver.take_used(), [(3, 3), (5, 5), (4, 4)]);
    // The ring does not lead to what was completed out of order.
    for index in [7, 3, 5] {
        driver.offer_writable(index, BUFFER, 4);
    }
    twin.as_queue(&memory, |queue| {
        (0..3).for_each(|_| assert!(pop(queue, &memory).is_some()));
        queue.add_used(&memory, 5, 0).unwrap();
    })
    .unwrap();
    let lost = restored(&twin).as_queue(&memory, |_| ());
    assert_eq!(lost, Err(RingFault::HeadNotTaken(5)));
}

#[test]
fn interrupts_count_what_was_completed_in_earlier_calls() {
    let memory = memory();
    let (mut driver, mut device) = pair(&memory, Features::of(&[29]));
    driver.set_used_event(0);
    for index in 0..3 {
        driver.offer_writable(index, BUFFER, 4);
        let served = device.as_queue(&memory, |queue| serve(queue, &memory, 9));
        assert_eq!(served.unwrap(), [index]);
    }
    let needed = device.as_queue(&memory, |queue| queue.needs_notification(&memory));
    assert!(needed.unwrap().unwrap());
    let needed = device.as_queue(&memory, |queue| queue.needs_notification(&memory));
    assert!(!needed.unwrap().unwrap());
}

#[test]
fn what_a_driver_breaks_is_latched() {
    let memory = memory();
    // A head that the table does not have, in flight.
    let (mut driver, mut device) = pair(&memory, Features::NONE);
    driver.offer(SIZE);
    let size = SIZE;
    let fault = RingFault::DescriptorIndex { index: SIZE, size };
    let popped = device.as_queue(&memory, |queue| pop(queue, &memory));
    assert_eq!(popped, Err(fault));
    assert_eq!(device.as_queue(&memory, |_| ()), Err(fault));
    // A chain that is available twice.
    let (mut driver, mut device) = pair(&memory, Features::NONE);
    for index in [1, 1] {
        driver.offer_writable(index, BUFFER, 4);
    }
    let popped = device.as_queue(&memory, |queue| (pop(queue, &memory), pop(queue, &memory)));
    popped.unwrap_err();
    // The used ring is not the driver's to write.
    let (mut driver, mut device) = pair(&memory, Features::NONE);
    for index in [1, 2] {
        driver.offer_writable(index, BUFFER, 4);
    }
    let element = GuestAddress(driver.setup().used_ring + 4);
    let served = device.as_queue(&memory, |queue| {
        let _ = (pop(queue, &memory), pop(queue, &memory));
        queue.add_used(&memory, 1, 0).unwrap();
        memory.write_obj(9_u32.to_le(), element).unwrap();
    });
    served.unwrap_err();
}

#[test]
fn a_queue_that_its_device_resets_stays_where_it_was() {
    let memory = memory();
    let (mut driver, mut device) = pair(&memory, Features::NONE);
    driver.offer_writable(0, BUFFER, 4);
    device.as_queue(&memory, QueueT::reset).unwrap();
    let served = device.as_queue(&memory, |queue| serve(queue, &memory, 9));
    assert_eq!(served.unwrap(), [0]);
    // What it did before it did so is lost with it.
    driver.offer_writable(0, BUFFER, 4);
    let progress = device.progress();
    device.as_queue(&memory, QueueT::reset).unwrap();
    assert_eq!(device.progress(), progress);
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's memory, whatever the guest asks for.

use std::time::Instant;

use crate::support::{BUFFER, Fixture, Memory, RAM, counter, memory};
use allocation_counter::measure;
use virtio_conformance::{VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use virtio_device_core::{Features, VIRTIO_F_INDIRECT_DESC};
use virtio_rng_device::{QUEUE_SIZE, RateLimit, RngCounters};

#[test]
fn no_request_allocates() {
    let memory = memory();
    for prompt in [false, true] {
        serve_everything(&memory, prompt);
    }
}

fn serve_everything(memory: &Memory, prompt: bool) {
    let mut fixture = Fixture::made(
        memory,
        Features::of(&[VIRTIO_F_INDIRECT_DESC]),
        prompt,
        counter(usize::MAX),
        RngCounters::default(),
    );
    let mut allocations = 0;
    // The first round starts the worker, which makes room for itself.
    for round in 0..9 {
        for index in 0..QUEUE_SIZE {
            let driver = &mut fixture.driver;
            match (index + round) % 4 {
                0 => driver.offer_writable(index, BUFFER, 64),
                1 => driver.offer_writable(index, RAM - 8, 9),
                2 => driver.offer_writable(index, BUFFER, 0),
                // Every descriptor of the table, all of them the same memory.
                _ if index == 255 => {
                    for link in 0..QUEUE_SIZE {
                        let flags = VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_NEXT;
                        let next = (link + 1) % QUEUE_SIZE;
                        let flags = if link == 254 {
                            VIRTQ_DESC_F_WRITE
                        } else {
                            flags
                        };
                        driver.descriptor(link, BUFFER, 0x1_0000, flags, next);
                    }
                    driver.offer(255);
                }
                _ => driver.offer_writable(index, BUFFER, 0x1_0000),
            }
        }
        let allocated = measure(|| assert!(fixture.notify())).count_total;
        allocations += if round == 0 { 0 } else { allocated };
        assert_eq!(fixture.driver.take_used().len(), usize::from(QUEUE_SIZE));
    }
    assert_eq!(allocations, 0);
}

#[test]
fn waiting_does_not_allocate() {
    let memory = memory();
    let mut fixture = Fixture::new(&memory, Features::NONE, counter(usize::MAX));
    fixture
        .limits
        .set(RateLimit::new(1, 1), RateLimit::new(1, 1));
    fixture.driver.offer_writable(0, BUFFER, 1);
    fixture.driver.offer_writable(1, BUFFER, 1);
    let began = Instant::now();
    assert!(fixture.notify());
    let allocated = measure(|| (0..1000).for_each(|_| assert!(fixture.notify())));
    assert_eq!(allocated.count_total, 0);
    // One more for each second that this took.
    let most = 1 + began.elapsed().as_secs();
    let served = fixture.driver.take_used().len() as u64;
    assert!((1..=most).contains(&served), "{served} of {most}");
}

#[test]
fn resets_leave_nothing_behind() {
    let memory = memory();
    let mut fixture = Fixture::new(&memory, Features::NONE, counter(usize::MAX));
    fixture.reset_and_serve();
    let allocated = measure(|| (0..20).for_each(|_| fixture.reset_and_serve()));
    assert_eq!(allocated.count_current, 0);
    assert_eq!(allocated.bytes_current, 0);
}

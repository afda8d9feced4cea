// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Limits, and drivers that try to get round them.

use std::sync::Arc;

use virtio_device_core::Features;
use virtio_rng_device::{QUEUE_SIZE, RateLimit, RngCounters};

use crate::support::{BUFFER, Counter, Fixture, RAM, counter, memory};

fn slow(burst: u64) -> Option<RateLimit> {
    RateLimit::new(1, burst)
}

fn offer(fixture: &mut Fixture<'_, Counter, Arc<RngCounters>>, lens: &[u32]) {
    for (index, &len) in (0..).zip(lens) {
        fixture.driver.offer_writable(index, BUFFER, len);
    }
}

#[test]
#[cfg_attr(miri, ignore = "slower than the limits are")]
fn a_request_waits_for_bytes_and_is_then_served() {
    let memory = memory();
    let counters = Arc::new(RngCounters::default());
    let mut fixture = Fixture::observed(
        &memory,
        Features::NONE,
        counter(usize::MAX),
        counters.clone(),
    );
    // What the second overdraws takes a second, so that a busy host does not pay it back too early.
    fixture.limits.set(RateLimit::new(20, 100), None);
    offer(&mut fixture, &[60, 60, 60]);
    assert!(fixture.notify());
    // The second overdraws the bucket, the third waits until it is filled again.
    assert_eq!(fixture.driver.take_used(), [(0, 60), (1, 60)]);
    assert_eq!(fixture.used_interrupts(), 1);
    fixture.step_until(|fixture| fixture.driver.used_index() == 3);
    assert_eq!(fixture.driver.take_used(), [(2, 60)]);
    assert!(!fixture.waits());
    assert_eq!((counters.served(), counters.bytes()), (3, 180));
    assert_eq!(counters.throttled(), 1);
}

#[test]
#[cfg_attr(miri, ignore = "slower than the limits are")]
fn malformed_and_empty_requests_cost_an_operation() {
    let memory = memory();
    let counters = Arc::new(RngCounters::default());
    let mut fixture = Fixture::observed(
        &memory,
        Features::NONE,
        counter(usize::MAX),
        counters.clone(),
    );
    fixture.limits.set(None, slow(3));
    fixture.driver.offer_writable(0, BUFFER, 0);
    fixture.driver.offer_writable(1, RAM - 1, 2);
    fixture.driver.offer_writable(2, BUFFER, 4);
    fixture.driver.offer_writable(3, BUFFER, 0);
    for _ in 0..10 {
        assert!(fixture.notify());
    }
    assert_eq!(fixture.driver.take_used(), [(0, 0), (1, 0), (2, 4)]);
    assert!(fixture.waits());
    assert_eq!((counters.malformed(), counters.throttled()), (2, 1));
}

#[test]
#[cfg_attr(miri, ignore = "slower than the limits are")]
fn a_request_larger_than_the_bucket_is_cut_and_does_not_wait_for_ever() {
    let memory = memory();
    let counters = Arc::new(RngCounters::default());
    let mut fixture = Fixture::observed(&memory, Features::NONE, counter(usize::MAX), counters);
    fixture.limits.set(slow(10), None);
    offer(&mut fixture, &[4096, 4096]);
    assert!(fixture.notify());
    assert_eq!(fixture.driver.take_used(), [(0, 10)]);
    fixture.step_until(|fixture| fixture.driver.used_index() == 2);
    assert_eq!(fixture.driver.take_used(), [(1, 10)]);
}

#[test]
#[cfg_attr(miri, ignore = "slower than the limits are")]
fn what_was_served_is_charged_not_what_was_asked_for() {
    let memory = memory();
    let counters = Arc::new(RngCounters::default());
    let mut fixture = Fixture::observed(&memory, Features::NONE, counter(3), counters);
    fixture.limits.set(slow(100), slow(100));
    offer(&mut fixture, &[4096; 5]);
    assert!(fixture.notify());
    let (bytes, operations) = fixture.limits.save();
    assert_eq!(fixture.driver.take_used().len(), 5);
    assert_eq!(bytes.unwrap().left(), 85);
    assert_eq!(operations.unwrap().left(), 95);
}

#[test]
#[cfg_attr(miri, ignore = "slower than the limits are")]
fn neither_reset_nor_restore_fills_a_bucket() {
    let memory = memory();
    let counters = Arc::new(RngCounters::default());
    let mut fixture = Fixture::observed(
        &memory,
        Features::NONE,
        counter(usize::MAX),
        counters.clone(),
    );
    fixture.limits.set(slow(68), None);
    offer(&mut fixture, &[64]);
    assert!(fixture.notify());
    fixture.reset_and_serve();
    offer(&mut fixture, &[1]);
    assert!(fixture.notify());
    assert_eq!(fixture.driver.take_used(), []);
    assert_eq!(fixture.limits.save().0.unwrap().left(), 0);

    let (bytes, operations) = fixture.limits.save();
    let mut other = Fixture::observed(&memory, Features::NONE, counter(usize::MAX), counters);
    other.limits.restore(bytes, operations);
    assert_eq!(other.limits.save(), (bytes, operations));
    offer(&mut other, &[1]);
    assert!(other.notify());
    assert_eq!(other.driver.take_used(), []);
}

#[test]
#[cfg_attr(miri, ignore = "slower than the limits are")]
fn a_new_limit_reaches_a_request_that_waits() {
    let memory = memory();
    let counters = Arc::new(RngCounters::default());
    let mut fixture = Fixture::observed(&memory, Features::NONE, counter(usize::MAX), counters);
    fixture.limits.set(None, slow(1));
    offer(&mut fixture, &[4, 4]);
    assert!(fixture.notify());
    assert_eq!(fixture.driver.take_used(), [(0, 4)]);
    let other = fixture.limits.clone();
    other.set(None, None);
    // The worker has been notified by the handle.
    let kick = &fixture.queue.kick;
    assert_eq!(kick.read().unwrap(), 1);
    kick.write(1).unwrap();
    assert!(fixture.workers.step());
    assert!(!fixture.waits());
    assert_eq!(fixture.driver.take_used(), [(1, 4)]);
}

#[test]
#[cfg_attr(miri, ignore = "slower than the limits are")]
fn a_changed_limit_is_no_gift() {
    let memory = memory();
    let counters = Arc::new(RngCounters::default());
    let mut fixture = Fixture::observed(&memory, Features::NONE, counter(usize::MAX), counters);
    fixture.limits.set(slow(64), None);
    offer(&mut fixture, &[64]);
    assert!(fixture.notify());
    fixture.limits.set(slow(1000), None);
    assert!(fixture.limits.save().0.unwrap().left() <= 1);
}

#[test]
#[cfg_attr(miri, ignore = "slower than the limits are")]
fn a_full_queue_waits_as_a_whole_and_costs_one_look_at_a_time() {
    let memory = memory();
    let counters = Arc::new(RngCounters::default());
    let mut fixture = Fixture::observed(
        &memory,
        Features::NONE,
        counter(usize::MAX),
        counters.clone(),
    );
    fixture.limits.set(slow(1), None);
    offer(&mut fixture, &[1; QUEUE_SIZE as usize]);
    assert!(fixture.notify());
    assert_eq!(fixture.driver.take_used(), [(0, 1)]);
    assert!(fixture.waits());
    // And a reset takes the rest back.
    fixture.reset();
    assert_eq!(fixture.driver.take_used(), []);
    assert_eq!(counters.served(), 1);
}

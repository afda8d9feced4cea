// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Resets, pauses and removals of a device that has I/O in flight straight into guest memory.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use bus::BusDevice;
use support::Fixture;
use virtio_conformance::reg;
use virtio_device_core::{Features, Unavailable, VIRTIO_F_RING_RESET};
use virtio_mmio_transport::{SaveError, StillBusy};

const PENDING: u32 = 64;

/// A live device whose transport waits for next to nothing.
fn live() -> Fixture {
    let mut fixture = Fixture::live_with(Features::of(&[VIRTIO_F_RING_RESET]));
    fixture.transport = fixture.transport.with_reset_bound(Duration::from_millis(1));
    fixture
}

#[test]
fn a_reset_is_pending_until_the_last_byte_has_moved() {
    let mut fixture = live();
    let requests = [
        fixture.lease(0).hold().unwrap(),
        fixture.lease(0).hold().unwrap(),
    ];
    let queue = fixture.queue(0);
    fixture.set(reg::STATUS, 0);
    assert_eq!(fixture.status(), PENDING);
    assert!(fixture.transport.reset_is_pending());
    // Nothing changes until then, and nobody is interrupted.
    queue.signal_used();
    for status in [1, 3, 11, 15, 64, 128, 255] {
        fixture.set(reg::STATUS, status);
        assert_eq!(fixture.status(), PENDING);
    }
    fixture.set(reg::STATUS, 0);
    fixture.enable_queue(0, 0x1000, 16);
    assert_eq!((fixture.status(), fixture.raised()), (PENDING, 0));
    assert_eq!(fixture.transport.save(), Err(SaveError::NotPaused));
    for request in requests {
        assert_eq!(fixture.status(), PENDING);
        assert!(request.is_revoked());
        assert_eq!(request.with(|_| ()), Err(Unavailable::Revoked));
    }
    assert_eq!((fixture.status(), fixture.get(reg::QUEUE_READY)), (0, 0));
    assert_eq!(fixture.events().reset, 2);
    // And the next life is like the first.
    fixture.negotiate();
    fixture.enable_queue(0, 0x1000, 16);
    fixture.set(reg::STATUS, 15);
    assert_eq!(fixture.status(), 15);
}

#[test]
fn memory_outside_of_every_queue_keeps_a_reset_pending_as_well() {
    let mut fixture = live();
    let request = {
        let activation = fixture.probe.activation.lock().unwrap();
        activation.as_ref().unwrap().lease.hold().unwrap()
    };
    fixture.set(reg::STATUS, 0);
    assert_eq!(fixture.status(), PENDING);
    drop(request);
    assert_eq!(fixture.status(), 0);
}

#[test]
fn a_reset_waits_for_what_ends_in_time() {
    let mut fixture = live();
    fixture.transport = fixture.transport.with_reset_bound(Duration::from_secs(60));
    let request = fixture.lease(0).hold().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            drop(request);
        });
        fixture.set(reg::STATUS, 0);
        assert_eq!(fixture.status(), 0);
    });
}

#[test]
fn a_queue_reads_busy_until_its_own_io_has_ended() {
    // (register, value) that takes queue 0 back.
    for (offset, value) in [(reg::QUEUE_RESET, 1), (reg::QUEUE_READY, 0)] {
        let mut fixture = live();
        let request = fixture.lease(0).hold().unwrap();
        fixture.set(offset, value);
        assert_eq!(
            (fixture.get(reg::QUEUE_RESET), fixture.get(reg::QUEUE_READY)),
            (1, 1)
        );
        // It cannot be enabled meanwhile, and the device goes on otherwise.
        fixture.enable_queue(0, 0x2000, 8);
        assert!(fixture.lease(0).is_revoked());
        assert_eq!(fixture.status(), 15);
        drop(request);
        assert_eq!(
            (fixture.get(reg::QUEUE_RESET), fixture.get(reg::QUEUE_READY)),
            (0, 0)
        );
        if offset == reg::QUEUE_RESET {
            fixture.enable_queue(0, 0x2000, 8);
            assert_eq!(fixture.lease(0).with(|queue| queue.size()), Ok(8));
        }
    }
}

#[test]
fn a_pause_lets_what_is_in_flight_complete() {
    let mut fixture = live();
    let request = fixture.lease(0).hold().unwrap();
    assert_eq!(fixture.transport.pause(), Err(StillBusy));
    assert_eq!(fixture.transport.save(), Err(SaveError::NotPaused));
    assert_eq!(fixture.lease(0).hold().err(), Some(Unavailable::Paused));
    assert_eq!(request.with(|queue| queue.size()), Ok(16));
    drop(request);
    fixture.transport.pause().unwrap();
    fixture.transport.save().unwrap();
    fixture.transport.resume();
    fixture.lease(0).hold().unwrap();
    assert_eq!(fixture.probe.pauses.load(Ordering::SeqCst), 0);
}

#[test]
fn a_transport_that_goes_away_waits_for_what_is_in_flight() {
    // Also for what was in flight before a reset that is pending.
    for reset in [false, true] {
        let mut fixture = live();
        let request = fixture.lease(0).hold().unwrap();
        if reset {
            fixture.set(reg::STATUS, 0);
            assert_eq!(fixture.status(), PENDING);
        }
        let ended = AtomicBool::new(false);
        let begun = Arc::new(Barrier::new(2));
        std::thread::scope(|scope| {
            let (ended, waiting) = (&ended, begun.clone());
            scope.spawn(move || {
                waiting.wait();
                std::thread::sleep(Duration::from_millis(20));
                ended.store(true, Ordering::SeqCst);
                drop(request);
            });
            let Fixture { transport, .. } = fixture;
            begun.wait();
            drop(transport);
            assert!(ended.load(Ordering::SeqCst));
        });
    }
}

#[test]
fn the_registers_go_on_while_a_reset_is_pending() {
    let mut fixture = live();
    let request = fixture.lease(0).hold().unwrap();
    fixture.set(reg::STATUS, 0);
    assert_eq!(fixture.get(reg::MAGIC_VALUE), u32::from_le_bytes(*b"virt"));
    assert_eq!(fixture.get(reg::INTERRUPT_STATUS), 0);
    fixture.set(reg::QUEUE_NOTIFY, 0);
    let mut config = [0; 6];
    fixture.transport.read(reg::CONFIG, &mut config).unwrap();
    assert_eq!(config, support::CONFIG);
    drop(request);
}

#[test]
fn a_reset_that_is_complete_holds_nobody_up_though_no_driver_has_looked() {
    let mut fixture = live();
    let request = fixture.lease(0).hold().unwrap();
    fixture.set(reg::STATUS, 0);
    assert_eq!(fixture.transport.save(), Err(SaveError::NotPaused));
    drop(request);
    let state = fixture.transport.save().unwrap();
    fixture.transport.restore(&state).unwrap();
}

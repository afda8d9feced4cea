// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device is told of its transport's life, and a driver of its device's.

mod support;

use std::sync::atomic::Ordering;

use support::{Fixture, Probe};
use virtio_conformance::reg;
use virtio_device_core::DeviceFault;
use virtio_mmio_transport::{INT_CONFIG, RestoreError};

fn pauses(fixture: &Fixture) -> u32 {
    fixture.probe.pauses.load(Ordering::SeqCst)
}

fn resets(fixture: &Fixture) -> u32 {
    fixture.probe.resets.load(Ordering::SeqCst)
}

fn set_up(fixture: &mut Fixture) {
    fixture.negotiate();
    fixture.enable_queue(0, 0x1000, 16);
}

#[test]
fn a_device_that_is_activated_during_a_pause_is_paused() {
    let mut fixture = Fixture::new();
    fixture.transport.pause().unwrap();
    assert_eq!(pauses(&fixture), 0, "there is nothing to pause yet");
    set_up(&mut fixture);
    fixture.set(reg::STATUS, 15);
    assert_eq!(pauses(&fixture), 1);
    fixture.transport.pause().unwrap();
    assert_eq!(pauses(&fixture), 1);
    fixture.transport.resume();
    assert_eq!(pauses(&fixture), 0);
}

#[test]
fn a_device_that_goes_on_from_a_state_is_paused_as_its_transport_is() {
    let fixture = Fixture::live();
    let mut from = fixture;
    from.transport.pause().unwrap();
    let state = from.transport.save().unwrap();
    let mut twin = Fixture::in_memory(Probe::default(), from.memory.clone());
    twin.transport.pause().unwrap();
    twin.transport.restore(&state).unwrap();
    assert_eq!(pauses(&twin), 1);
    twin.transport.resume();
    assert_eq!(pauses(&twin), 0);
}

#[test]
fn a_device_that_was_never_activated_is_neither_paused_nor_resumed() {
    let mut fixture = Fixture::with(Probe {
        fail: true,
        ..Probe::default()
    });
    set_up(&mut fixture);
    fixture.set(reg::STATUS, 15);
    assert_eq!(fixture.status(), 15 | 64);
    fixture.transport.pause().unwrap();
    assert_eq!(pauses(&fixture), 0);
    fixture.transport.resume();
    assert_eq!(pauses(&fixture), 0);
    let before = resets(&fixture);
    fixture.set(reg::STATUS, 0);
    assert_eq!(resets(&fixture), before + 1, "what it has begun is over");
}

#[test]
fn a_driver_that_gives_up_has_the_device_reset_at_once() {
    let mut fixture = Fixture::live();
    let before = resets(&fixture);
    fixture.set(reg::STATUS, 15 | 128);
    assert_eq!(resets(&fixture), before + 1);
    // Before it was live there is nothing to stop.
    set_up(&mut fixture);
    let before = resets(&fixture);
    fixture.set(reg::STATUS, 11 | 128);
    assert_eq!(resets(&fixture), before);
}

#[test]
fn a_change_on_the_drivers_way_up_is_told_when_the_device_lives() {
    let mut fixture = Fixture::new();
    let notifier = fixture.notifier();
    // A driver that has not begun finds it by itself.
    notifier.update(|| ());
    set_up(&mut fixture);
    fixture.set(reg::STATUS, 15);
    assert_eq!(
        (fixture.get(reg::INTERRUPT_STATUS), fixture.raised()),
        (0, 0)
    );
    fixture.set(reg::STATUS, 0);
    set_up(&mut fixture);
    notifier.update(|| ());
    // Nobody is interrupted before DRIVER_OK (section 3.1.1).
    assert_eq!(
        (fixture.get(reg::INTERRUPT_STATUS), fixture.raised()),
        (0, 0)
    );
    fixture.set(reg::STATUS, 15);
    assert_eq!(
        (fixture.get(reg::INTERRUPT_STATUS), fixture.raised()),
        (INT_CONFIG, 1)
    );
}

#[test]
fn a_change_on_the_drivers_way_up_outlives_a_move() {
    for (status, expected) in [(1, INT_CONFIG), (3, INT_CONFIG), (11, INT_CONFIG), (0, 0)] {
        let mut fixture = Fixture::new();
        let steps = [0, 1, 3].into_iter().filter(|step| *step <= status);
        steps.for_each(|step| fixture.set(reg::STATUS, step));
        if status == 11 {
            set_up(&mut fixture);
        }
        fixture.notifier().update(|| ());
        let state = fixture.transport.save().unwrap();
        assert_eq!(state.config_changed, expected != 0);
        let mut twin = Fixture::in_memory(Probe::default(), fixture.memory.clone());
        twin.transport.restore(&state).unwrap();
        assert_eq!(twin.transport.save().unwrap(), state);
        assert_eq!((twin.get(reg::INTERRUPT_STATUS), twin.raised()), (0, 0));
        if status != 11 {
            for step in [1, 3].into_iter().filter(|step| *step > status) {
                twin.set(reg::STATUS, step);
            }
            twin.set(reg::DRIVER_FEATURES_SEL, 1);
            twin.set(reg::DRIVER_FEATURES, 1);
            twin.set(reg::STATUS, 11);
            twin.enable_queue(0, 0x1000, 16);
        }
        twin.set(reg::STATUS, 15);
        assert_eq!(twin.status(), 15);
        assert_eq!(
            twin.get(reg::INTERRUPT_STATUS),
            expected,
            "saved at {status}"
        );
        // Told by now.
        twin.transport.pause().unwrap();
        let mut state = twin.transport.save().unwrap();
        assert!(!state.config_changed);
        state.config_changed = true;
        let refused = Fixture::new().transport.restore(&state);
        assert!(matches!(refused, Err(RestoreError::ConfigChanged)));
    }
}

#[test]
fn a_driver_hears_after_restore_that_its_device_is_broken_whenever_it_was_saved() {
    let mut fixture = Fixture::live();
    fixture.interrupt().device_failed(&DeviceFault::Panicked);
    fixture.transport.pause().unwrap();
    let mut state = fixture.transport.save().unwrap();
    // As it is between the fault and its interrupt.
    state.interrupt_status = 0;
    let mut twin = Fixture::in_memory(Probe::default(), fixture.memory.clone());
    twin.transport.restore(&state).unwrap();
    assert_eq!(
        (twin.status(), twin.get(reg::INTERRUPT_STATUS)),
        (15 | 64, INT_CONFIG)
    );
    assert_eq!(twin.raised(), 1);
}

#[test]
fn a_driver_that_has_given_up_can_be_saved_without_a_pause() {
    let mut fixture = Fixture::live();
    fixture.transport.save().unwrap_err();
    fixture.set(reg::STATUS, 15 | 128);
    let state = fixture.transport.save().unwrap();
    let mut twin = Fixture::in_memory(Probe::default(), fixture.memory.clone());
    twin.transport.restore(&state).unwrap();
    assert_eq!(twin.transport.save().unwrap(), state);
}

#[test]
fn a_change_while_the_device_is_saved_is_told_after_the_move() {
    for live in [true, false] {
        let mut fixture = Fixture::new();
        set_up(&mut fixture);
        if live {
            fixture.set(reg::STATUS, 15);
        }
        fixture.transport.pause().unwrap();
        let notifier = fixture.notifier();
        *fixture.probe.saving.lock().unwrap() = Some(Box::new(move || notifier.update(|| ())));
        let state = fixture.transport.save().unwrap();
        let mut twin = Fixture::in_memory(Probe::default(), fixture.memory.clone());
        twin.transport.restore(&state).unwrap();
        assert_eq!(
            twin.get(reg::CONFIG_GENERATION),
            fixture.get(reg::CONFIG_GENERATION)
        );
        twin.set(reg::STATUS, 15);
        assert_eq!(twin.status(), 15);
        assert_eq!(
            twin.get(reg::INTERRUPT_STATUS) & INT_CONFIG,
            INT_CONFIG,
            "live: {live}"
        );
    }
}

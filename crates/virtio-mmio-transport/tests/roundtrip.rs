// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is saved is restored, at every moment of every program.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

mod support;

use proptest::collection::vec;
use proptest::prelude::*;
use support::programs::{Run, Step, steps};
use support::{Fixture, Probe};
use virtio_conformance::reg;
use virtio_device_core::{Features, VIRTIO_F_NOTIFICATION_DATA};
use virtio_mmio_transport::{INT_CONFIG, INT_VRING, TransportState};

fn offering(fixture: Fixture) -> Fixture {
    fixture.offering(Features::of(&[VIRTIO_F_NOTIFICATION_DATA]))
}

/// Saves, and has a fresh transport in the same memory go on from there.
fn moves(run: &mut Run) {
    let from = &mut run.real;
    from.transport.pause().unwrap();
    let state = from.transport.save().unwrap();
    let twin = Fixture::in_memory(Probe::default(), from.memory.clone());
    let mut twin = offering(twin);
    twin.transport.pause().unwrap();
    twin.transport.restore(&state).unwrap();
    assert_eq!(twin.transport.save().unwrap(), announced(&state));

    // The driver finds the same registers, but for a fault that had not been told.
    let broken = if state.needs_reset { 64 } else { 0 };
    for offset in (0..0x100).step_by(4) {
        let expected = match offset {
            0x60 => announced(&state).interrupt_status,
            0x70 => u32::from(state.status) | broken,
            0xfc => state.config_generation,
            _ => from.get(offset),
        };
        assert_eq!(twin.get(offset), expected, "{offset:#x}");
    }
    // Whoever is broken after the move has been told, by an interrupt.
    assert_eq!(twin.raised() > 0, announced(&state).interrupt_status != 0);
    if state.needs_reset && from.status() & 64 == 0 {
        assert_ne!(state.interrupt_status & INT_CONFIG, 0);
    }
    let _ = [0, 1].map(|queue| from.kicks(queue));
    from.transport.resume();
    twin.transport.resume();
    if state.status == 15 && !state.needs_reset {
        // Both look at the same queues.
        assert_eq!(
            [0, 1].map(|queue| from.kicks(queue) > 0),
            [0, 1].map(|queue| twin.kicks(queue) > 0)
        );
    }
}

/// A device that goes on may have used buffers whose interrupt was lost, and one that is broken may not
/// have said so.
fn announced(state: &TransportState) -> TransportState {
    let mut state = state.clone();
    if state.status == 15 && !state.needs_reset {
        state.interrupt_status |= INT_VRING;
    } else if state.needs_reset && state.status & 128 == 0 {
        state.interrupt_status |= INT_CONFIG;
    }
    state
}

fn run(program: &[Step]) {
    let mut run = Run::new(offering(Fixture::new()));
    moves(&mut run);
    for step in program {
        run.step(step);
        moves(&mut run);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 200 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_saved_is_restored_and_saved_again(program in vec(steps(), 1..if cfg!(miri) { 8 } else { 60 })) {
        run(&program);
    }
}

#[test]
fn a_queue_that_a_live_driver_has_disabled_can_be_moved() {
    let mut run = Run::new(offering(Fixture::new()));
    for step in [
        Step::Start,
        Step::Write(reg::QUEUE_READY, 0),
        Step::Write(reg::QUEUE_SIZE, 8),
        Step::Write(reg::QUEUE_READY, 1),
        Step::ResetQueue(0),
        Step::SetUp(0, 4),
        Step::ResetQueue(1),
        Step::SetUp(1, 4),
    ] {
        run.step(&step);
        moves(&mut run);
    }
}

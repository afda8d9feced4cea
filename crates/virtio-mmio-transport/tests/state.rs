// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pausing, saving and restoring.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

mod support;

use std::sync::atomic::Ordering;

use bus::BusDevice;
use support::{Fixture, Probe};
use virtio_conformance::{DriverQueue, reg};
use virtio_device_core::{
    Chain, DeviceFault, DeviceState, Features, RingFault, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1,
    Virtqueue,
    transport::{QueueProgress, SetupError},
};
use virtio_mmio_transport::{INT_CONFIG, RestoreError, SaveError, TransportState};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// The state of a live device whose driver has made two requests, one of them taken.
fn saved() -> (Fixture, TransportState) {
    let mut fixture = Fixture::live_with(Features::of(&[VIRTIO_F_RING_RESET]));
    {
        let memory = fixture.memory.clone();
        let mut driver = DriverQueue::new(&*memory, 0x1000, 16);
        driver.offer_writable(4, 0x5000, 8);
        driver.offer_writable(6, 0x5000, 8);
        let mut chain = Chain::with_capacity(16);
        let take = fixture.lease(0).with(|queue| {
            let head = queue.take(&*memory, &mut chain).unwrap().unwrap();
            head.index()
        });
        assert_eq!(take, Ok(4));
        fixture.notifier().update(|| ());
    }
    let own = DeviceState::new(1, b"own".to_vec()).unwrap();
    *fixture.probe.state.lock().unwrap() = own;
    fixture.set(reg::QUEUE_SEL, 1);
    fixture.transport.pause().unwrap();
    let state = fixture.transport.save().unwrap();
    (fixture, state)
}

/// A transport at the start, over the memory of `fixture`, with a device like its.
fn twin(fixture: &Fixture) -> Fixture {
    twin_in(fixture, fixture.memory.clone())
}

fn twin_in(fixture: &Fixture, memory: support::Memory) -> Fixture {
    let probe = Probe {
        features: fixture.probe.features,
        ..Probe::default()
    };
    Fixture::in_memory(probe, memory)
}

fn restore(state: &TransportState) -> Result<(), RestoreError> {
    let (fixture, _) = saved();
    let mut twin = twin(&fixture);
    let result = twin.transport.restore(state);
    if result.is_err() {
        assert_eq!(twin.status(), 0);
        assert_eq!(twin.get(reg::INTERRUPT_STATUS), 0);
        assert_eq!((twin.get(reg::QUEUE_READY), twin.raised()), (0, 0));
        assert!(twin.probe.activation.lock().unwrap().is_none());
        twin.negotiate();
    }
    result
}

#[test]
fn a_live_device_goes_on_elsewhere() {
    let (fixture, state) = saved();
    let mut twin = twin(&fixture);
    twin.transport.restore(&state).unwrap();
    assert_eq!(twin.status(), 15);
    assert_eq!(twin.get(reg::QUEUE_SIZE_MAX), 8, "queue 1 is selected");
    twin.set(reg::QUEUE_SEL, 0);
    assert_eq!(twin.get(reg::QUEUE_READY), 1);
    // The configuration interrupt is still there, the driver is told to look at its queues, and the
    // device looks without a notification.
    assert_eq!((twin.get(reg::INTERRUPT_STATUS), twin.raised()), (3, 1));
    assert_eq!(twin.get(reg::CONFIG_GENERATION), state.config_generation);
    assert_eq!(twin.kicks(0), 1);
    assert_eq!(twin.kicks(1), 0);
    twin.set(reg::QUEUE_NOTIFY, 0);
    assert_eq!(twin.kicks(0), 1);

    let own = twin.probe.state.lock().unwrap().clone();
    assert_eq!(own.data(1).unwrap(), b"own");

    // The request that was taken comes again, then the one that was not.
    let lease = twin.lease(0);
    let activation = twin.probe.activation.lock().unwrap();
    let activation = activation.as_ref().unwrap();
    assert_eq!(
        activation.features,
        Features::of(&[VIRTIO_F_VERSION_1, VIRTIO_F_RING_RESET])
    );
    let mut chain = Chain::with_capacity(16);
    let heads = lease.with(|queue| {
        std::iter::from_fn(|| queue.take(&*twin.memory, &mut chain).unwrap())
            .map(|head| head.index())
            .collect::<Vec<_>>()
    });
    assert_eq!(heads.unwrap(), [4, 6]);
}

#[test]
fn what_is_restored_is_saved_again() {
    let (fixture, mut state) = saved();
    let mut twin = twin(&fixture);
    twin.transport.restore(&state).unwrap();
    twin.transport.pause().unwrap();
    state.interrupt_status = 3;
    assert_eq!(twin.transport.save().unwrap(), state);

    // And every state on the way there.
    let steps: [fn(&mut Fixture); 6] = [
        |_| {},
        |fixture| fixture.set(reg::STATUS, 1),
        |fixture| {
            fixture.set(reg::STATUS, 3);
            fixture.set(reg::DRIVER_FEATURES_SEL, 7);
            fixture.set(reg::DRIVER_FEATURES, 9);
            fixture.set(reg::DEVICE_FEATURES_SEL, 5);
            fixture.set(reg::SHM_SEL, 6);
        },
        |fixture| fixture.negotiate_with(Features::of(&[VIRTIO_F_RING_RESET])),
        |fixture| {
            fixture.negotiate_with(Features::of(&[VIRTIO_F_RING_RESET]));
            fixture.enable_queue(1, 0x2000, 4);
        },
        |fixture| {
            fixture.negotiate_with(Features::of(&[VIRTIO_F_RING_RESET]));
            fixture.enable_queue(1, 0x2000, 4);
            fixture.set(reg::STATUS, 15 | 128);
            fixture.set(reg::STATUS, 11 | 128);
        },
    ];
    for step in steps {
        let mut from = self::twin(&fixture);
        step(&mut from);
        let state = from.transport.save().unwrap();
        let mut to = self::twin(&fixture);
        to.transport.restore(&state).unwrap();
        assert_eq!(to.transport.save().unwrap(), state);
        assert_eq!((to.status(), to.raised()), (from.status(), 0));
        assert!(to.probe.activation.lock().unwrap().is_none());
    }
}

#[test]
fn queue_reset_is_saved() {
    let mut fixture = Fixture::live_with(Features::of(&[VIRTIO_F_RING_RESET]));
    fixture.set(reg::QUEUE_RESET, 1);
    fixture.transport.pause().unwrap();
    let state = fixture.transport.save().unwrap();
    let mut twin = twin(&fixture);
    twin.transport.restore(&state).unwrap();
    assert_eq!(twin.get(reg::QUEUE_READY), 0);
    assert!(twin.lease(0).is_revoked());
    let _ = twin.kicks(0);
    twin.enable_queue(0, 0x2000, 8);
    assert_eq!(twin.get(reg::QUEUE_READY), 1);
    assert_eq!(twin.lease(0).with(|queue| queue.size()), Ok(8));
    assert_eq!((twin.kicks(0), twin.events().queue_restarted), (1, 1));
}

#[test]
fn a_live_device_is_saved_while_it_is_paused_only() {
    let mut fixture = Fixture::live();
    assert_eq!(fixture.transport.save(), Err(SaveError::NotPaused));
    assert!(SaveError::NotPaused.to_string().contains("not paused"));
    let _ = fixture.kicks(0);
    fixture.transport.pause().unwrap();
    assert!(fixture.transport.is_paused());
    fixture.transport.save().unwrap();
    assert_eq!(fixture.kicks(0), 0);
    fixture.transport.resume();
    assert!(!fixture.transport.is_paused());
    assert_ne!(
        fixture.kicks(0),
        0,
        "the queue is looked at without a notification"
    );
    assert_eq!(fixture.kicks(1), 0);
    assert_eq!(fixture.transport.save(), Err(SaveError::NotPaused));
    let fixture = Fixture::new();
    fixture.transport.save().unwrap();
}

#[test]
fn a_pause_outlasts_a_new_start() {
    let mut fixture = Fixture::live_with(Features::of(&[VIRTIO_F_RING_RESET]));
    fixture.transport.pause().unwrap();
    fixture.set(reg::QUEUE_RESET, 1);
    fixture.enable_queue(0, 0x1000, 16);
    assert!(fixture.lease(0).is_paused());
    fixture.set(reg::STATUS, 0);
    fixture.negotiate();
    fixture.enable_queue(0, 0x1000, 16);
    fixture.set(reg::STATUS, 15);
    let lease = fixture.lease(0);
    assert!(lease.is_paused() && fixture.interrupt().is_paused());
    fixture.transport.resume();
    assert!(!lease.is_paused());
}

#[test]
fn a_transport_in_use_is_not_restored() {
    let (fixture, state) = saved();
    let mut twin = twin(&fixture);
    twin.transport.restore(&state).unwrap();
    let again = twin.transport.restore(&state);
    assert!(matches!(again, Err(RestoreError::InUse)));
    assert_eq!(twin.status(), 15);
    let mut begun = self::twin(&fixture);
    begun.set(reg::STATUS, 1);
    let over = begun.transport.restore(&state);
    assert!(matches!(over, Err(RestoreError::InUse)));
    // After a reset it is at the start again.
    twin.set(reg::STATUS, 0);
    twin.transport.restore(&state).unwrap();
}

#[test]
fn a_restored_device_that_gave_up_is_reset_with_its_transport() {
    let (mut fixture, _) = saved();
    fixture.set(reg::STATUS, 0x8f);
    let state = fixture.transport.save().unwrap();
    let mut twin = twin(&fixture);
    twin.transport.restore(&state).unwrap();
    assert_eq!(twin.probe.resets.load(Ordering::SeqCst), 0);
    twin.set(reg::STATUS, 0);
    assert_eq!(twin.probe.resets.load(Ordering::SeqCst), 1);
}

#[test]
fn a_broken_device_stays_broken() {
    let (fixture, _) = saved();
    let ring_fault = |fixture: &Fixture| {
        let mut chain = Chain::with_capacity(16);
        DriverQueue::new(&*fixture.memory, 0x1000, 16).set_avail_index(100);
        let take = |queue: &mut Virtqueue| queue.take(&*fixture.memory, &mut chain);
        let taken = fixture.lease(0).with(take).unwrap();
        assert!(matches!(taken, Err(RingFault::AvailIndex { .. })));
    };
    let told = |fixture: &Fixture| fixture.interrupt().device_failed(&DeviceFault::Panicked);
    for (break_it, interrupts) in [(&ring_fault as &dyn Fn(&Fixture), 0), (&told, 1)] {
        let (mut broken, _) = saved();
        broken.transport.resume();
        let before = broken.raised();
        break_it(&broken);
        assert_eq!(broken.raised(), before + interrupts);
        broken.transport.pause().unwrap();
        let state = broken.transport.save().unwrap();
        assert!(state.needs_reset);
        // Told before or not, the driver finds the reason of its interrupt.
        assert_eq!(state.interrupt_status & INT_CONFIG, INT_CONFIG);
        let mut twin = twin(&fixture);
        twin.transport.restore(&state).unwrap();
        assert_eq!((twin.status(), twin.raised()), (15 | 64, 1));
        assert!(twin.probe.activation.lock().unwrap().is_none());
        twin.set(reg::QUEUE_NOTIFY, 0);
        assert_eq!(twin.status(), 15 | 64);
        twin.set(reg::STATUS, 0);
        assert_eq!(twin.status(), 0);
        twin.negotiate();
    }
}

#[test]
fn impossible_states_are_refused_by_name() {
    use RestoreError as E;

    type Change = fn(&mut TransportState);
    type Is = fn(&RestoreError) -> bool;
    const QUEUE_0: Is = |error| matches!(error, E::QueueState(0));
    let cases: [(Change, Is); 31] = [
        (|s| s.version = 0, |e| matches!(e, E::Version(0))),
        (|s| s.version = 1, |e| matches!(e, E::Version(1))),
        (|s| s.version = 3, |e| matches!(e, E::Version(3))),
        (|s| s.queues[0].active = false, QUEUE_0),
        (
            |s| {
                (s.status, s.interrupt_status) = (11, 0);
                s.queues[0].progress = None;
            },
            QUEUE_0,
        ),
        (
            |s| s.device = DeviceState::new(2, vec![]).unwrap(),
            |e| matches!(e, E::Device(DeviceFault::StateVersion(2))),
        ),
        (|s| s.device_type = 4, |e| matches!(e, E::DeviceType(4))),
        (|s| s.status = 16, |e| matches!(e, E::Status(16))),
        // DRIVER_OK without FEATURES_OK, and a bit that only the device sets.
        (|s| s.status = 7, |e| matches!(e, E::Status(7))),
        (|s| s.status = 15 | 64, |e| matches!(e, E::Status(79))),
        (|s| (s.status, s.interrupt_status) = (11, 0), QUEUE_0),
        (|s| s.status = 11, |e| matches!(e, E::InterruptStatus(2))),
        (
            |s| s.interrupt_status = 4,
            |e| matches!(e, E::InterruptStatus(4)),
        ),
        (
            |s| (s.status, s.needs_reset, s.interrupt_status) = (11, true, 0),
            |e| matches!(e, E::NeedsReset),
        ),
        // Enabled queues without FEATURES_OK.
        (
            |s| {
                (s.status, s.interrupt_status) = (3, 0);
                s.queues[0].progress = None;
            },
            QUEUE_0,
        ),
        (
            |s| {
                (s.status, s.interrupt_status) = (3, 0);
                s.queues[0].progress = None;
                s.queues[0].ready = false;
            },
            QUEUE_0,
        ),
        (
            |s| s.driver_features.extend([(0, 1)]),
            |e| matches!(e, E::Features(SetupError::NotOffered(_))),
        ),
        (
            |s| s.driver_features.clear(),
            |e| matches!(e, E::Features(SetupError::NoVersion1)),
        ),
        (
            |s| s.driver_features.extend([(9, 1)]),
            |e| matches!(e, E::Features(SetupError::NoSuchWord(9))),
        ),
        (|s| drop(s.queues.pop()), |e| matches!(e, E::QueueCount(1))),
        (
            |s| s.queues.push(Default::default()),
            |e| matches!(e, E::QueueCount(3)),
        ),
        (
            |s| s.queues[0].setup.size = 32,
            |e| matches!(e, E::QueueSetup(0, SetupError::QueueSize { size: 32, .. })),
        ),
        (
            |s| s.queues[0].setup.used_ring += 2,
            |e| matches!(e, E::QueueSetup(0, SetupError::Alignment(..))),
        ),
        (
            |s| s.queues[0].setup.desc_table = 0x10_0000,
            |e| matches!(e, E::QueueSetup(0, SetupError::Memory(..))),
        ),
        (|s| s.queues[0].reset = true, QUEUE_0),
        (
            |s| {
                s.queues[1].reset = true;
                s.driver_features = [(1, 1)].into();
            },
            |e| matches!(e, E::QueueState(1)),
        ),
        (|s| s.queues[0].ready = false, QUEUE_0),
        (|s| s.queues[0].progress = None, QUEUE_0),
        (
            |s| s.queues[1].progress = Some(QueueProgress::default()),
            |e| matches!(e, E::QueueState(1)),
        ),
        (
            |s| s.queues[0].progress.as_mut().unwrap().next_used = 0x8000,
            |e| matches!(e, E::Progress(0, _)),
        ),
        (|s| s.needs_reset = true, QUEUE_0),
    ];
    let (_, good) = saved();
    restore(&good).unwrap();
    for (number, (change, is)) in cases.into_iter().enumerate() {
        let mut state = good.clone();
        change(&mut state);
        let error = restore(&state).unwrap_err();
        assert!(is(&error), "case {number}: {error:?}");
        assert!(!error.to_string().is_empty());
        // What lies beneath is passed on.
        let caused = matches!(
            error,
            E::Features(_) | E::QueueSetup(..) | E::Progress(..) | E::Device(_)
        );
        assert_eq!(std::error::Error::source(&error).is_some(), caused);
    }
}

#[test]
fn memory_that_has_shrunk_is_refused() {
    let (fixture, state) = saved();
    let small = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let mut twin = twin_in(&fixture, std::sync::Arc::new(small));
    let result = twin.transport.restore(&state);
    let is = |error| matches!(error, RestoreError::QueueSetup(0, SetupError::Memory(..)));
    assert!(result.is_err_and(is));
}

#[test]
fn a_device_that_cannot_go_on_is_left_at_the_start() {
    let (fixture, state) = saved();
    let mut twin = twin(&fixture);
    twin.transport
        .update_config(|device| device.probe.fail = true);
    let result = twin.transport.restore(&state);
    let error = result.unwrap_err();
    assert!(matches!(error, RestoreError::Activate(_)));
    assert!(std::error::Error::source(&error).is_some());
    assert_eq!(
        (
            twin.status(),
            twin.get(reg::INTERRUPT_STATUS),
            twin.raised()
        ),
        (0, 0, 0)
    );
    twin.transport
        .update_config(|device| device.probe.fail = false);
    twin.transport.restore(&state).unwrap();
}

#[test]
fn a_ring_that_does_not_fit_its_state_is_a_fault() {
    let (fixture, state) = saved();
    DriverQueue::new(&*fixture.memory, 0x1000, 16).set_avail_index(0x7000);
    let mut twin = twin(&fixture);
    twin.transport.restore(&state).unwrap();
    let mut chain = Chain::with_capacity(16);
    let fault = twin.lease(0).with(|queue| {
        let _again = queue.take(&*twin.memory, &mut chain).unwrap().unwrap();
        queue.take(&*twin.memory, &mut chain).unwrap_err()
    });
    assert_eq!(
        fault,
        Ok(RingFault::AvailIndex {
            next: 1,
            index: 0x7000
        })
    );
}

#[test]
fn a_configuration_access_still_works_while_paused() {
    let (mut fixture, _) = saved();
    fixture.transport.write(reg::CONFIG, &[9]).unwrap();
    let mut byte = [0];
    fixture.transport.read(reg::CONFIG, &mut byte).unwrap();
    assert_eq!(byte, [9]);
}

#[cfg(feature = "serde")]
#[test]
fn a_state_survives_being_written_down_and_anything_else_is_an_error() {
    let (_, state) = saved();
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(
        serde_json::from_str::<TransportState>(&text).unwrap(),
        state
    );
    for len in (0..text.len()).step_by(if cfg!(miri) { 50 } else { 1 }) {
        serde_json::from_str::<TransportState>(&text[..len]).unwrap_err();
    }
}

#[cfg(feature = "serde")]
#[test]
fn a_state_with_any_byte_changed_is_refused_or_restored() {
    let (_, state) = saved();
    let text = serde_json::to_vec(&state).unwrap();
    let (mut parsed, mut refused) = (0, 0);
    for at in (0..text.len()).step_by(if cfg!(miri) { 100 } else { 1 }) {
        for byte in *b"09,-[}et\"\xff" {
            let mut changed = text.clone();
            changed[at] = byte;
            if let Ok(state) = serde_json::from_slice::<TransportState>(&changed) {
                parsed += 1;
                refused += u32::from(restore(&state).is_err());
            }
        }
    }
    assert!(
        cfg!(miri) || parsed > 100 && refused > 50,
        "{parsed} {refused}"
    );
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Queue reset, notification data, shared memory, and interrupts by level.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

mod support;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bus::BusDevice;
use support::{Bomb, Fixture, Probe};
use virtio_conformance::reg;
use virtio_device_core::{
    DeviceFault, Features, InterruptLine, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC, VIRTIO_F_NOTIFICATION_DATA, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1,
    edge_line, level_line,
};
use virtio_mmio_transport::{INT_CONFIG, INT_VRING};

#[test]
fn a_queue_is_reset_and_comes_back_with_another_size() {
    let mut fixture = Fixture::live_with(Features::of(&[VIRTIO_F_RING_RESET]));
    let old = fixture.lease(0);
    fixture.set(reg::QUEUE_RESET, 1);
    assert_eq!(
        (fixture.get(reg::QUEUE_RESET), fixture.get(reg::QUEUE_READY)),
        (0, 0)
    );
    assert!(old.is_revoked());
    let events = fixture.events();
    assert_eq!((events.queue_reset, events.wrong_direction), (1, 0));
    // The old set-up is gone.
    fixture.set(reg::QUEUE_READY, 1);
    assert_eq!(fixture.get(reg::QUEUE_READY), 0);
    let _ = fixture.kicks(0);

    fixture.enable_queue(0, 0x3000, 8);
    assert_eq!(
        (fixture.get(reg::QUEUE_RESET), fixture.get(reg::QUEUE_READY)),
        (0, 1)
    );
    let restarted = fixture.queue(0);
    assert_eq!(restarted.index, 0);
    let layout = restarted.lease.with(|queue| *queue.layout()).unwrap();
    assert_eq!((layout.size(), layout.desc_table().0), (8, 0x3000));
    let next = restarted.lease.with(|queue| queue.progress().next_avail);
    assert_eq!(next, Ok(0));
    assert_eq!(
        fixture.kicks(0),
        1,
        "it is looked at without a notification"
    );
    fixture.set(reg::QUEUE_NOTIFY, 0);
    assert_eq!(fixture.kicks(0), 1);
    assert_eq!(fixture.events().queue_restarted, 1);

    // And a second time; enabled, it is frozen again.
    fixture.set(reg::QUEUE_SIZE, 16);
    fixture.set(reg::QUEUE_READY, 1);
    assert_eq!(restarted.lease.with(|queue| queue.size()), Ok(8));
    fixture.set(reg::QUEUE_RESET, 1);
    assert!(restarted.lease.is_revoked());
    // A reset of the device ends it all.
    fixture.set(reg::STATUS, 0);
    assert_eq!(fixture.status(), 0);
}

#[test]
fn queue_reset_needs_the_feature_the_value_and_a_queue() {
    for offered in [Features::NONE, Features::of(&[VIRTIO_F_RING_RESET])] {
        let mut fixture = Fixture::new();
        fixture.transport = fixture.transport.with_features(offered);
        fixture.negotiate_with(Features::NONE);
        fixture.enable_queue(0, 0x1000, 16);
        fixture.set(reg::STATUS, 15);
        fixture.set(reg::QUEUE_RESET, 1);
        assert!(!fixture.lease(0).is_revoked());
        assert_eq!(fixture.get(reg::QUEUE_READY), 1);
        assert_eq!(fixture.events().wrong_state, 1);
        // A queue that was only disabled does not come back either.
        fixture.set(reg::QUEUE_READY, 0);
        fixture.enable_queue(0, 0x1000, 16);
        assert_eq!(fixture.get(reg::QUEUE_READY), 0);
    }
    let mut fixture = Fixture::live_with(Features::of(&[VIRTIO_F_RING_RESET]));
    for value in [0, 2, 3, u32::MAX] {
        fixture.set(reg::QUEUE_RESET, value);
    }
    for select in [2, 0x1_0000, u32::MAX] {
        fixture.set(reg::QUEUE_SEL, select);
        fixture.set(reg::QUEUE_RESET, 1);
    }
    assert!(!fixture.lease(0).is_revoked());
    assert_eq!(fixture.events().queue_reset, 0);
    // Not before the features are agreed on.
    fixture.set(reg::STATUS, 0);
    fixture.set(reg::QUEUE_RESET, 1);
    assert_eq!(fixture.events().queue_reset, 0);
}

#[test]
fn a_queue_reset_before_driver_ok_is_set_up_anew() {
    let mut fixture = Fixture::new();
    fixture.negotiate_with(Features::of(&[VIRTIO_F_RING_RESET]));
    fixture.enable_queue(0, 0x1000, 16);
    fixture.set(reg::QUEUE_RESET, 1);
    assert_eq!(fixture.get(reg::QUEUE_READY), 0);
    fixture.set(reg::QUEUE_READY, 1);
    assert_eq!(fixture.get(reg::QUEUE_READY), 0, "its set-up is gone");
    fixture.enable_queue(0, 0x3000, 4);
    fixture.set(reg::STATUS, 15);
    assert_eq!(fixture.lease(0).with(|queue| queue.size()), Ok(4));
    assert_eq!(fixture.events().queue_restarted, 0);
}

#[test]
fn a_broken_device_is_given_no_queue_back() {
    let mut fixture = Fixture::live_with(Features::of(&[VIRTIO_F_RING_RESET]));
    fixture.set(reg::QUEUE_RESET, 1);
    fixture.interrupt().device_failed(&DeviceFault::Panicked);
    fixture.enable_queue(0, 0x1000, 16);
    assert_eq!(
        (fixture.status(), fixture.get(reg::QUEUE_READY)),
        (15 | 64, 0)
    );
    assert!(fixture.lease(0).is_revoked());
    assert_eq!(fixture.events().queue_restarted, 0);
}

#[test]
fn notification_data_is_no_part_of_the_index() {
    let mut fixture = Fixture::live_with(Features::of(&[VIRTIO_F_NOTIFICATION_DATA]));
    let _ = fixture.kicks(0);
    for value in [0, 0x1_0000, 0xffff_0000, 0x8000_0000] {
        fixture.set(reg::QUEUE_NOTIFY, value);
        assert_eq!(fixture.kicks(0), 1, "{value:#x}");
    }
    fixture.set(reg::QUEUE_NOTIFY, 0x1_0002);
    assert_eq!(fixture.events().notification_ignored, 1);
    let mut fixture = Fixture::live();
    let _ = fixture.kicks(0);
    fixture.set(reg::QUEUE_NOTIFY, 0x1_0000);
    assert_eq!(fixture.kicks(0), 0);
    assert_eq!(fixture.events().notification_ignored, 1);
}

fn offered(fixture: &mut Fixture) -> Features {
    Features::from_words([0, 1, 2, 3].map(|select| {
        fixture.set(reg::DEVICE_FEATURES_SEL, select);
        fixture.get(reg::DEVICE_FEATURES)
    }))
}

#[test]
fn a_device_offers_what_is_of_its_type_and_the_transport_the_rest() {
    let all = Features::from_words([u32::MAX; 4]);
    let mut fixture = Fixture::with(Probe {
        features: all,
        ..Probe::default()
    });
    let usual = Features::of(&[
        VIRTIO_F_INDIRECT_DESC,
        VIRTIO_F_EVENT_IDX,
        VIRTIO_F_VERSION_1,
        VIRTIO_F_RING_RESET,
    ]);
    assert_eq!(offered(&mut fixture), Features::DEVICE_TYPE | usual);
    // The VMM switches what is not the device's, and gets nothing that there is not.
    fixture.transport = fixture.transport.with_features(Features::NONE);
    let version_1 = Features::of(&[VIRTIO_F_VERSION_1]);
    assert_eq!(offered(&mut fixture), Features::DEVICE_TYPE | version_1);
    fixture.transport = fixture.transport.with_features(all);
    let switched = Features::of(&[VIRTIO_F_NOTIFICATION_DATA, VIRTIO_F_ACCESS_PLATFORM]);
    assert_eq!(
        offered(&mut fixture),
        Features::DEVICE_TYPE | usual | switched
    );
}

#[test]
fn shared_memory_regions_are_found_by_their_identifier() {
    let mut fixture = Fixture::new();
    let all_ones = (u64::MAX, u64::MAX);
    for (id, expected) in [
        (0, (0x1000, 0x8000_0000)),
        (1, all_ones),
        (3, (0x2_3456_789a, 0x1_2345_6789)),
        (0x103, all_ones),
        (u32::MAX, all_ones),
    ] {
        fixture.set(reg::SHM_SEL, id);
        let pair = |fixture: &mut Fixture, offset| {
            u64::from(fixture.get(offset)) | u64::from(fixture.get(offset + 4)) << 32
        };
        let region = (
            pair(&mut fixture, reg::SHM_LEN_LOW),
            pair(&mut fixture, reg::SHM_BASE_LOW),
        );
        assert_eq!(region, expected, "{id:#x}");
    }
    fixture.set(reg::STATUS, 0);
    assert_eq!(
        fixture.get(reg::SHM_LEN_LOW),
        0x1000,
        "region 0 is selected after reset"
    );
}

/// A live device behind a level-triggered line, with the line's changes.
fn by_level(fail: &Arc<AtomicBool>) -> (Fixture, Arc<Mutex<Vec<bool>>>) {
    let changes = Arc::new(Mutex::new(Vec::new()));
    let (wire, failing) = (changes.clone(), fail.clone());
    let line = level_line(move |level| {
        if failing.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        wire.lock().unwrap().push(level);
        Ok(())
    });
    let mut fixture = Fixture::behind_line(line);
    fixture.negotiate();
    fixture.enable_queue(0, 0x1000, 16);
    fixture.set(reg::STATUS, 15);
    (fixture, changes)
}

#[test]
fn a_level_is_held_until_the_last_cause_is_acknowledged() {
    let (mut fixture, changes) = by_level(&Arc::default());
    let queue = fixture.queue(0);
    queue.signal_used();
    queue.signal_used();
    fixture.notifier().update(|| ());
    assert_eq!(*changes.lock().unwrap(), [true]);
    fixture.set(reg::INTERRUPT_ACK, INT_VRING);
    assert_eq!(*changes.lock().unwrap(), [true]);
    fixture.set(reg::INTERRUPT_ACK, INT_CONFIG);
    assert_eq!(*changes.lock().unwrap(), [true, false]);
    fixture.set(reg::INTERRUPT_ACK, u32::MAX);
    assert_eq!(*changes.lock().unwrap(), [true, false]);
    queue.signal_used();
    fixture.set(reg::STATUS, 0);
    assert_eq!(*changes.lock().unwrap(), [true, false, true, false]);
}

#[test]
fn a_level_is_low_once_the_transport_is_gone() {
    for acknowledged in [false, true] {
        for broken in [false, true] {
            let (mut fixture, changes) = by_level(&Arc::default());
            fixture.queue(0).signal_used();
            if broken {
                fixture.interrupt().device_failed(&DeviceFault::Panicked);
            }
            if acknowledged {
                fixture.set(reg::INTERRUPT_ACK, u32::MAX);
            }
            let late = fixture.queue(0);
            drop(fixture);
            late.signal_used();
            assert_eq!(*changes.lock().unwrap(), [true, false]);
        }
    }
}

#[test]
fn a_level_is_low_while_the_transport_is_at_no_region() {
    let (fixture, changes) = by_level(&Arc::default());
    let queue = fixture.queue(0);
    queue.signal_used();
    let Fixture { transport, .. } = fixture;
    let bus = bus::MmioBus::new();
    let transport = Arc::new(Mutex::new(transport));
    let id = bus.insert(transport.clone(), 0x1000, 0x1000).unwrap();
    let elsewhere = bus.insert(transport.clone(), 0x3000, 0x1000).unwrap();
    // It fails, and is forgotten.
    bus.insert(transport.clone(), 0x3000, 0x1000).unwrap_err();
    bus.remove(elsewhere).unwrap();
    assert_eq!(*changes.lock().unwrap(), [true]);
    bus.remove(id).unwrap();
    // Although the transport itself is still there, and so is its worker.
    assert_eq!(*changes.lock().unwrap(), [true, false]);
    queue.signal_used();
    assert_eq!(*changes.lock().unwrap(), [true, false]);
    // A driver that has not heard of it hears of it now.
    let id = bus.insert(transport.clone(), 0x1000, 0x1000).unwrap();
    assert_eq!(*changes.lock().unwrap(), [true, false, true]);
    bus.remove(id).unwrap();
    drop(transport);
    assert_eq!(*changes.lock().unwrap(), [true, false, true, false]);
}

#[test]
fn a_level_that_could_not_be_set_is_tried_again() {
    let fail = Arc::new(AtomicBool::new(true));
    let (mut fixture, changes) = by_level(&fail);
    let queue = fixture.queue(0);
    queue.signal_used();
    assert_eq!(fixture.events().line_failed, 1);
    fail.store(false, Ordering::SeqCst);
    queue.signal_used();
    assert_eq!(*changes.lock().unwrap(), [true]);
    fail.store(true, Ordering::SeqCst);
    fixture.set(reg::INTERRUPT_ACK, INT_VRING);
    fail.store(false, Ordering::SeqCst);
    fixture.set(reg::INTERRUPT_ACK, INT_VRING);
    assert_eq!(*changes.lock().unwrap(), [true, false]);
}

#[test]
fn a_level_follows_the_causes_however_they_race() {
    let (mut fixture, changes) = by_level(&Arc::default());
    let queue = fixture.queue(0);
    let rounds = if cfg!(miri) { 50 } else { 20_000 };
    std::thread::scope(|scope| {
        scope.spawn(|| (0..rounds).for_each(|_| queue.signal_used()));
        (0..rounds).for_each(|_| fixture.set(reg::INTERRUPT_ACK, INT_VRING));
    });
    let pending = fixture.get(reg::INTERRUPT_STATUS) != 0;
    assert_eq!(
        changes.lock().unwrap().last().copied().unwrap_or(false),
        pending
    );
    fixture.set(reg::INTERRUPT_ACK, INT_VRING);
    let changes = changes.lock().unwrap();
    assert_eq!(changes.last(), Some(&false));
    assert!(changes.windows(2).all(|pair| pair[0] != pair[1]));
}

/// An interrupt by `line` fails, and its cause stays.
fn assert_fails(line: impl InterruptLine + 'static) {
    let mut fixture = Fixture::behind_line(line);
    fixture.negotiate();
    fixture.enable_queue(0, 0x1000, 16);
    fixture.set(reg::STATUS, 15);
    fixture.queue(0).signal_used();
    assert_eq!(fixture.events().line_failed, 1);
    assert_eq!(fixture.get(reg::INTERRUPT_STATUS), INT_VRING);
}

#[test]
fn a_line_that_panics_is_a_line_that_fails() {
    assert_fails(edge_line(|| -> io::Result<()> {
        panic!("a bug in the line")
    }));
}

#[test]
#[cfg_attr(miri, ignore = "leaks what the payload panicked with")]
fn a_line_is_one_that_fails_whatever_it_panics_with() {
    assert_fails(edge_line(|| -> io::Result<()> {
        std::panic::panic_any(Bomb)
    }));
}

#[test]
#[cfg_attr(miri, ignore = "leaks what the error panicked with")]
fn a_line_is_one_that_fails_whatever_its_error_does() {
    assert_fails(edge_line(|| Err(io::Error::other(Bomb))));
}

#[test]
fn every_error_of_the_driver_has_its_counter() {
    let mut fixture = Fixture::new();
    type Step = (&'static str, fn(&mut Fixture));
    let steps: [Step; 9] = [
        ("bad_width", |fixture| {
            fixture.transport.write(reg::STATUS, &[0]).unwrap()
        }),
        ("unknown_register", |fixture| fixture.set(0x68, 0)),
        ("unknown_register", |fixture| fixture.set(0x104, 0)),
        ("wrong_direction", |fixture| {
            fixture.set(reg::MAGIC_VALUE, 0)
        }),
        ("wrong_direction", |fixture| {
            assert_eq!(fixture.get(reg::QUEUE_SEL), 0)
        }),
        ("wrong_state", |fixture| {
            fixture.set(reg::DRIVER_FEATURES, 1)
        }),
        ("wrong_state", |fixture| {
            fixture.transport.write(reg::CONFIG, &[0]).unwrap()
        }),
        ("status_refused", |fixture| fixture.set(reg::STATUS, 15)),
        ("notification_ignored", |fixture| {
            fixture.set(reg::QUEUE_NOTIFY, 2)
        }),
    ];
    for (name, step) in steps {
        let before = format!("{:?}", fixture.events());
        step(&mut fixture);
        let after = format!("{:?}", fixture.events());
        let changed: Vec<_> = before
            .split(", ")
            .zip(after.split(", "))
            .filter(|(before, after)| before != after)
            .collect();
        assert_eq!(changed.len(), 1, "{changed:?}");
        assert!(changed[0].1.contains(name), "{changed:?} is not {name}");
    }
    fixture.set(reg::STATUS, 3);
    fixture.set(reg::STATUS, 11);
    assert_eq!(fixture.events().features_refused, 1);
    fixture.negotiate();
    fixture.set(reg::QUEUE_READY, 1);
    assert_eq!(fixture.events().queue_refused, 1);
    fixture.set(reg::STATUS, 15);
    fixture.set(reg::STATUS, 15);
    fixture.set(reg::STATUS, 15 | 128);
    let events = fixture.events();
    assert_eq!(
        (events.activated, events.driver_failed, events.reset),
        (1, 1, 1)
    );
    assert_eq!(events.status_refused, 1);
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Queue reset, notification data, shared memory, interrupts by level, and the generation.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

mod support;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bus::BusDevice;
use support::{Fixture, Probe};
use virtio_device_core::{
    DeviceFault, Features, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_NOTIFICATION_DATA, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1, edge_line, level_line,
};
use virtio_mmio_transport::{INT_CONFIG, INT_VRING};

const READY: u64 = 0x44;
const NOTIFY: u64 = 0x50;
const RESET: u64 = 0xc0;

#[test]
fn a_queue_is_reset_and_comes_back_with_another_size() {
    let mut fixture = Fixture::live_with(Features::of(&[VIRTIO_F_RING_RESET]));
    let old = fixture.lease(0);
    fixture.set(RESET, 1);
    assert_eq!((fixture.get(RESET), fixture.get(READY)), (0, 0));
    assert!(old.is_revoked());
    let events = fixture.events();
    assert_eq!((events.queue_reset, events.wrong_direction), (1, 0));
    // The old set-up is gone.
    fixture.set(READY, 1);
    assert_eq!(fixture.get(READY), 0);
    let _ = fixture.kicks(0);

    fixture.enable_queue(0, 0x3000, 8);
    assert_eq!((fixture.get(RESET), fixture.get(READY)), (0, 1));
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
    fixture.set(NOTIFY, 0);
    assert_eq!(fixture.kicks(0), 1);
    assert_eq!(fixture.events().queue_restarted, 1);

    // And a second time; enabled, it is frozen again.
    fixture.set(0x38, 16);
    fixture.set(READY, 1);
    assert_eq!(restarted.lease.with(|queue| queue.size()), Ok(8));
    fixture.set(RESET, 1);
    assert!(restarted.lease.is_revoked());
    // A reset of the device ends it all.
    fixture.set(0x70, 0);
    assert_eq!(fixture.status(), 0);
}

#[test]
fn queue_reset_needs_the_feature_the_value_and_a_queue() {
    for offered in [Features::NONE, Features::of(&[VIRTIO_F_RING_RESET])] {
        let mut fixture = Fixture::new();
        fixture.transport = fixture.transport.with_features(offered);
        fixture.negotiate_with(Features::NONE);
        fixture.enable_queue(0, 0x1000, 16);
        fixture.set(0x70, 15);
        fixture.set(RESET, 1);
        assert!(!fixture.lease(0).is_revoked());
        assert_eq!(fixture.get(READY), 1);
        assert_eq!(fixture.events().wrong_state, 1);
        // A queue that was only disabled does not come back either.
        fixture.set(READY, 0);
        fixture.enable_queue(0, 0x1000, 16);
        assert_eq!(fixture.get(READY), 0);
    }
    let mut fixture = Fixture::live_with(Features::of(&[VIRTIO_F_RING_RESET]));
    for value in [0, 2, 3, u32::MAX] {
        fixture.set(RESET, value);
    }
    for select in [2, 0x1_0000, u32::MAX] {
        fixture.set(0x30, select);
        fixture.set(RESET, 1);
    }
    assert!(!fixture.lease(0).is_revoked());
    assert_eq!(fixture.events().queue_reset, 0);
    // Not before the features are agreed on.
    fixture.set(0x70, 0);
    fixture.set(RESET, 1);
    assert_eq!(fixture.events().queue_reset, 0);
}

#[test]
fn a_queue_reset_before_driver_ok_is_set_up_anew() {
    let mut fixture = Fixture::new();
    fixture.negotiate_with(Features::of(&[VIRTIO_F_RING_RESET]));
    fixture.enable_queue(0, 0x1000, 16);
    fixture.set(RESET, 1);
    assert_eq!(fixture.get(READY), 0);
    fixture.set(READY, 1);
    assert_eq!(fixture.get(READY), 0, "its set-up is gone");
    fixture.enable_queue(0, 0x3000, 4);
    fixture.set(0x70, 15);
    assert_eq!(fixture.lease(0).with(|queue| queue.size()), Ok(4));
    assert_eq!(fixture.events().queue_restarted, 0);
}

#[test]
fn a_broken_device_is_given_no_queue_back() {
    let mut fixture = Fixture::live_with(Features::of(&[VIRTIO_F_RING_RESET]));
    fixture.set(RESET, 1);
    fixture.interrupt().device_failed(&DeviceFault::Panicked);
    fixture.enable_queue(0, 0x1000, 16);
    assert_eq!((fixture.status(), fixture.get(READY)), (15 | 64, 0));
    assert!(fixture.lease(0).is_revoked());
    assert_eq!(fixture.events().queue_restarted, 0);
}

#[test]
fn notification_data_is_no_part_of_the_index() {
    let mut fixture = Fixture::live_with(Features::of(&[VIRTIO_F_NOTIFICATION_DATA]));
    let _ = fixture.kicks(0);
    for value in [0, 0x1_0000, 0xffff_0000, 0x8000_0000] {
        fixture.set(NOTIFY, value);
        assert_eq!(fixture.kicks(0), 1, "{value:#x}");
    }
    fixture.set(NOTIFY, 0x1_0002);
    assert_eq!(fixture.events().notification_ignored, 1);
    let mut fixture = Fixture::live();
    let _ = fixture.kicks(0);
    fixture.set(NOTIFY, 0x1_0000);
    assert_eq!(fixture.kicks(0), 0);
    assert_eq!(fixture.events().notification_ignored, 1);
}

fn offered(fixture: &mut Fixture) -> Features {
    Features::from_words([0, 1, 2, 3].map(|select| {
        fixture.set(0x14, select);
        fixture.get(0x10)
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
        fixture.set(0xac, id);
        let pair = |fixture: &mut Fixture, offset| {
            u64::from(fixture.get(offset)) | u64::from(fixture.get(offset + 4)) << 32
        };
        let region = (pair(&mut fixture, 0xb0), pair(&mut fixture, 0xb8));
        assert_eq!(region, expected, "{id:#x}");
    }
    fixture.set(0x70, 0);
    assert_eq!(
        fixture.get(0xb0),
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
    fixture.set(0x70, 15);
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
    fixture.set(0x64, INT_VRING);
    assert_eq!(*changes.lock().unwrap(), [true]);
    fixture.set(0x64, INT_CONFIG);
    assert_eq!(*changes.lock().unwrap(), [true, false]);
    fixture.set(0x64, u32::MAX);
    assert_eq!(*changes.lock().unwrap(), [true, false]);
    queue.signal_used();
    fixture.set(0x70, 0);
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
                fixture.set(0x64, u32::MAX);
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
    fixture.set(0x64, INT_VRING);
    fail.store(false, Ordering::SeqCst);
    fixture.set(0x64, INT_VRING);
    assert_eq!(*changes.lock().unwrap(), [true, false]);
}

#[test]
fn a_level_follows_the_causes_however_they_race() {
    let (mut fixture, changes) = by_level(&Arc::default());
    let queue = fixture.queue(0);
    let rounds = if cfg!(miri) { 50 } else { 20_000 };
    std::thread::scope(|scope| {
        scope.spawn(|| (0..rounds).for_each(|_| queue.signal_used()));
        (0..rounds).for_each(|_| fixture.set(0x64, INT_VRING));
    });
    let pending = fixture.get(0x60) != 0;
    assert_eq!(
        changes.lock().unwrap().last().copied().unwrap_or(false),
        pending
    );
    fixture.set(0x64, INT_VRING);
    let changes = changes.lock().unwrap();
    assert_eq!(changes.last(), Some(&false));
    assert!(changes.windows(2).all(|pair| pair[0] != pair[1]));
}

#[test]
fn a_line_that_panics_is_a_line_that_fails() {
    let line = edge_line(|| -> io::Result<()> { panic!("a bug in the line") });
    let mut fixture = Fixture::behind_line(line);
    fixture.negotiate();
    fixture.enable_queue(0, 0x1000, 16);
    fixture.set(0x70, 15);
    fixture.queue(0).signal_used();
    assert_eq!(fixture.events().line_failed, 1);
    assert_eq!(fixture.get(0x60), INT_VRING);
}

#[test]
fn fields_that_change_while_they_are_read_are_read_again() {
    let mut fixture = Fixture::live();
    // As section 2.5.1 tells a driver to do it, with a change in every possible place.
    let read = |fixture: &mut Fixture, change_before: u32| {
        let mut step = 0;
        loop {
            let mut turn = |fixture: &mut Fixture| {
                if step == change_before {
                    fixture.transport.update_config(|device| {
                        device.config.iter_mut().for_each(|byte| *byte += 10);
                    });
                }
                step += 1;
            };
            turn(fixture);
            let before = fixture.get(0xfc);
            turn(fixture);
            let mut fields = [0; 6];
            fixture.transport.read(0x100, &mut fields[..4]).unwrap();
            turn(fixture);
            fixture.transport.read(0x104, &mut fields[4..]).unwrap();
            turn(fixture);
            if fixture.get(0xfc) == before {
                return fields;
            }
        }
    };
    for change_before in 0..4 {
        let fields = read(&mut fixture, change_before);
        assert!(
            fields.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "{fields:?}"
        );
        assert_eq!(fixture.get(0x60), INT_CONFIG);
        fixture.set(0x64, INT_CONFIG);
    }
}

#[test]
fn the_configuration_changes_without_an_interrupt_before_the_driver_is_ready() {
    let mut fixture = Fixture::new();
    let generation = fixture.get(0xfc);
    fixture
        .transport
        .update_config(|device| device.config[0] = 9);
    assert_ne!(fixture.get(0xfc), generation);
    assert_eq!((fixture.get(0x60), fixture.raised()), (0, 0));
    // Nor does a reset set it back, nor giving up hide a change.
    fixture.negotiate();
    fixture.set(0x70, 15);
    fixture.set(0x70, 15 | 128);
    let generation = fixture.get(0xfc);
    fixture
        .transport
        .update_config(|device| device.config[0] = 8);
    let changed = fixture.get(0xfc);
    assert_ne!(changed, generation);
    fixture.set(0x70, 0);
    assert_eq!(fixture.get(0xfc), changed);
    assert_eq!((fixture.get(0x60), fixture.raised()), (0, 0));
}

#[test]
fn every_error_of_the_driver_has_its_counter() {
    let mut fixture = Fixture::new();
    type Step = (&'static str, fn(&mut Fixture));
    let steps: [Step; 9] = [
        ("bad_width", |fixture| {
            fixture.transport.write(0x70, &[0]).unwrap()
        }),
        ("unknown_register", |fixture| fixture.set(0x68, 0)),
        ("unknown_register", |fixture| fixture.set(0x104, 0)),
        ("wrong_direction", |fixture| fixture.set(0x00, 0)),
        ("wrong_direction", |fixture| {
            assert_eq!(fixture.get(0x30), 0)
        }),
        ("wrong_state", |fixture| fixture.set(0x20, 1)),
        ("wrong_state", |fixture| {
            fixture.transport.write(0x100, &[0]).unwrap()
        }),
        ("status_refused", |fixture| fixture.set(0x70, 15)),
        ("notification_ignored", |fixture| fixture.set(NOTIFY, 2)),
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
    fixture.set(0x70, 3);
    fixture.set(0x70, 11);
    assert_eq!(fixture.events().features_refused, 1);
    fixture.negotiate();
    fixture.set(READY, 1);
    assert_eq!(fixture.events().queue_refused, 1);
    fixture.set(0x70, 15);
    fixture.set(0x70, 15);
    fixture.set(0x70, 15 | 128);
    let events = fixture.events();
    assert_eq!(
        (events.activated, events.driver_failed, events.reset),
        (1, 1, 1)
    );
    assert_eq!(events.status_refused, 1);
}

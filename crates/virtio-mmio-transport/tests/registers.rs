// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The register file as a driver meets it, in and out of order.

mod support;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bus::BusDevice;
use support::{Fixture, Probe};
use virtio_conformance::{READABLE, reg};
use virtio_device_core::{
    DeviceFault, Features, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_RING_RESET,
    VIRTIO_F_VERSION_1, edge_line,
};
use virtio_mmio_transport::{INT_CONFIG, INT_VRING};

/// What is offered when neither device nor VMM says anything.
const OFFERED: Features = Features::of(&[
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_VERSION_1,
    VIRTIO_F_RING_RESET,
]);

#[test]
fn identification_is_constant() {
    let mut fixture = Fixture::live();
    for _ in 0..2 {
        assert_eq!(fixture.get(reg::MAGIC_VALUE), u32::from_le_bytes(*b"virt"));
        assert_eq!(fixture.get(reg::VERSION), 2);
        assert_eq!(fixture.get(reg::DEVICE_ID), 42);
        assert_eq!(fixture.get(reg::VENDOR_ID), u32::from_le_bytes(*b"RVMM"));
        for offset in [
            reg::MAGIC_VALUE,
            reg::VERSION,
            reg::DEVICE_ID,
            reg::VENDOR_ID,
            reg::DEVICE_FEATURES,
            reg::QUEUE_SIZE_MAX,
            reg::INTERRUPT_STATUS,
            reg::CONFIG_GENERATION,
        ] {
            fixture.set(offset, 0xffff_ffff);
        }
        fixture.set(reg::STATUS, 0);
    }
}

#[test]
fn control_registers_take_aligned_words_only() {
    let mut fixture = Fixture::live();
    for offset in 0..0x100u64 {
        for width in [1usize, 2, 3, 4, 8] {
            if width == 4 && offset % 4 == 0 {
                continue;
            }
            let mut data = vec![0xa5; width];
            fixture.transport.read(offset, &mut data).unwrap();
            assert!(data.iter().all(|&byte| byte == 0), "{offset:#x} {width}");
            fixture.transport.write(offset, &vec![0; width]).unwrap();
        }
    }
    // Nothing of it was a write of 0 to the status.
    assert_eq!(fixture.status(), 15);
}

#[test]
fn registers_that_do_not_exist_or_are_write_only_read_zero() {
    let mut fixture = Fixture::live();
    fixture.set(reg::QUEUE_SEL, 0);
    for offset in (0..0x100u64)
        .step_by(4)
        .filter(|offset| !READABLE.contains(offset))
    {
        assert_eq!(fixture.get(offset), 0, "{offset:#x}");
    }
    for offset in [0x200, 0x1000, u64::MAX - 3] {
        assert_eq!(fixture.get(offset), 0, "{offset:#x}");
        fixture.set(offset, u32::MAX);
    }
    for select in [1, 2, 0x100, 0x103, u32::MAX] {
        fixture.set(reg::SHM_SEL, select);
        for offset in [
            reg::SHM_LEN_LOW,
            reg::SHM_LEN_HIGH,
            reg::SHM_BASE_LOW,
            reg::SHM_BASE_HIGH,
        ] {
            assert_eq!(fixture.get(offset), u32::MAX);
        }
    }
}

#[test]
fn features_are_offered_by_word() {
    let mut fixture = Fixture::new();
    for (select, word) in [
        (0, OFFERED.word(0)),
        (1, OFFERED.word(1)),
        (2, 0),
        (u32::MAX, 0),
    ] {
        fixture.set(reg::DEVICE_FEATURES_SEL, select);
        assert_eq!(fixture.get(reg::DEVICE_FEATURES), word);
    }
}

#[test]
fn features_never_offered_or_without_version_1_are_refused() {
    for (select, word, agreed) in [
        (1, 1, true),
        (1, 3, false),
        (0, 1 << 29, false),
        (2, 1, false),
    ] {
        let mut fixture = Fixture::new();
        fixture.set(reg::STATUS, 1);
        fixture.set(reg::STATUS, 3);
        if select == 2 {
            fixture.set(reg::DRIVER_FEATURES_SEL, 1);
            fixture.set(reg::DRIVER_FEATURES, 1);
        }
        fixture.set(reg::DRIVER_FEATURES_SEL, select);
        fixture.set(reg::DRIVER_FEATURES, word);
        fixture.set(reg::STATUS, 11);
        assert_eq!(
            fixture.status(),
            if agreed { 11 } else { 3 },
            "{select} {word:#x}"
        );
    }
}

#[test]
fn features_are_taken_between_driver_and_features_ok_only() {
    let mut fixture = Fixture::new();
    fixture.set(reg::DRIVER_FEATURES_SEL, 1);
    fixture.set(reg::DRIVER_FEATURES, 1);
    fixture.set(reg::STATUS, 3);
    fixture.set(reg::STATUS, 11);
    assert_eq!(fixture.status(), 3, "features were written before DRIVER");

    let mut fixture = Fixture::new();
    fixture.negotiate();
    fixture.set(reg::DRIVER_FEATURES_SEL, 0);
    fixture.set(reg::DRIVER_FEATURES, 1 << 29);
    fixture.enable_queue(0, 0x1000, 16);
    fixture.set(reg::STATUS, 15);
    let activation = fixture.probe.activation.lock().unwrap();
    assert_eq!(
        activation.as_ref().unwrap().features,
        Features::of(&[VIRTIO_F_VERSION_1])
    );
}

#[test]
fn the_device_gets_the_enabled_queues_and_the_features() {
    let mut fixture = Fixture::new();
    fixture.negotiate();
    fixture.enable_queue(1, 0x2000, 8);
    fixture.set(reg::STATUS, 15);
    let activation = fixture.probe.activation.lock().unwrap();
    let activation = activation.as_ref().unwrap();
    assert_eq!(activation.features, Features::of(&[VIRTIO_F_VERSION_1]));
    let queues: Vec<_> = activation.queues.iter().map(|queue| queue.index).collect();
    assert_eq!(queues, [1]);
    assert_eq!(
        activation.queues[0]
            .lease
            .with(|queue| queue.layout().desc_table().0),
        Ok(0x2000)
    );
}

#[test]
fn a_device_may_be_started_without_queues() {
    let mut fixture = Fixture::new();
    fixture.negotiate();
    fixture.set(reg::STATUS, 15);
    assert_eq!(fixture.status(), 15);
    fixture.set(reg::QUEUE_NOTIFY, 0);
    assert_eq!(fixture.status(), 15);
}

#[test]
fn selectors_are_not_cut_to_16_bits() {
    let mut fixture = Fixture::new();
    fixture.negotiate();
    for (select, max) in [
        (0, 16),
        (1, 8),
        (2, 0),
        (0xffff, 0),
        (0x1_0000, 0),
        (u32::MAX, 0),
    ] {
        fixture.set(reg::QUEUE_SEL, select);
        assert_eq!(fixture.get(reg::QUEUE_SIZE_MAX), max);
    }
    fixture.enable_queue(0x1_0000, 0x1000, 16);
    for select in [0, 1, 0x1_0000] {
        fixture.set(reg::QUEUE_SEL, select);
        assert_eq!(fixture.get(reg::QUEUE_READY), 0);
    }
}

#[test]
fn a_queue_that_is_not_well_formed_does_not_get_ready() {
    let mut fixture = Fixture::new();
    fixture.negotiate();
    // (register, value) on top of a good set-up
    let bad = [
        (reg::QUEUE_SIZE, 0),
        (reg::QUEUE_SIZE, 3),
        (reg::QUEUE_SIZE, 32),
        (reg::QUEUE_SIZE, 0x1_0010),
        (reg::QUEUE_DESC_LOW, 0x1008),
        (reg::QUEUE_DESC_HIGH, 1),
        (reg::QUEUE_DRIVER_LOW, 0x1001),
        (reg::QUEUE_DRIVER_HIGH, 0xffff_ffff),
        (reg::QUEUE_DEVICE_LOW, 0x1002),
        (reg::QUEUE_DEVICE_LOW, 0xfff0),
    ];
    for (offset, value) in bad {
        fixture.set_up_queue(0, 0x1000, 16);
        fixture.set(offset, value);
        fixture.set(reg::QUEUE_READY, 1);
        assert_eq!(fixture.get(reg::QUEUE_READY), 0, "{offset:#x} = {value:#x}");
    }
    fixture.set_up_queue(0, 0x1000, 16);
    fixture.set(reg::QUEUE_READY, 2);
    assert_eq!(fixture.get(reg::QUEUE_READY), 0, "only 1 enables a queue");
    fixture.set(reg::QUEUE_READY, 1);
    assert_eq!(fixture.get(reg::QUEUE_READY), 1);
}

#[test]
fn queues_are_set_up_between_features_ok_and_driver_ok_only() {
    let mut fixture = Fixture::new();
    for status in [1, 3] {
        fixture.set(reg::STATUS, status);
        fixture.enable_queue(0, 0x1000, 16);
        assert_eq!(fixture.get(reg::QUEUE_READY), 0);
    }
    let mut fixture = Fixture::live();
    fixture.enable_queue(1, 0x2000, 8);
    assert_eq!(fixture.get(reg::QUEUE_READY), 0);
}

#[test]
fn an_enabled_queue_is_frozen() {
    let mut fixture = Fixture::new();
    fixture.negotiate();
    fixture.enable_queue(0, 0x1000, 16);
    // Not while it is ready, and not when the device is live: neither now nor after the next step.
    for live in [false, true] {
        if live {
            fixture.set(reg::STATUS, 15);
        }
        for (offset, value) in [
            (reg::QUEUE_SIZE, 8),
            (reg::QUEUE_DESC_LOW, 0x4000),
            (reg::QUEUE_DRIVER_LOW, 0x5000),
            (reg::QUEUE_DEVICE_LOW, 0x6000),
        ] {
            fixture.set(offset, value);
        }
        fixture.set(reg::QUEUE_READY, 1);
        assert_eq!(fixture.get(reg::QUEUE_READY), 1);
    }
    let activation = fixture.probe.activation.lock().unwrap();
    let queue = &activation.as_ref().unwrap().queues[0].lease;
    let layout = queue.with(|queue| *queue.layout()).unwrap();
    assert_eq!((layout.size(), layout.desc_table().0), (16, 0x1000));
}

#[test]
fn a_queue_can_be_disabled_and_is_out_of_reach_then() {
    let mut fixture = Fixture::live();
    let queue = fixture.lease(0);
    assert!(!queue.is_revoked());
    fixture.set(reg::QUEUE_SEL, 0);
    fixture.set(reg::QUEUE_READY, 0);
    assert_eq!(fixture.get(reg::QUEUE_READY), 0);
    assert!(queue.is_revoked());
}

#[test]
fn notifications_reach_every_queue_that_exists_at_every_moment() {
    // By ioeventfd they do in any case.
    let mut fixture = Fixture::new();
    fixture.set(reg::QUEUE_NOTIFY, 0);
    assert_eq!(fixture.kicks(0), 1);
    fixture.negotiate();
    fixture.enable_queue(0, 0x1000, 16);
    fixture.set(reg::QUEUE_NOTIFY, 0);
    assert_eq!(fixture.kicks(0), 1);
    fixture.set(reg::STATUS, 15);
    assert_eq!(fixture.kicks(0), 1, "it is looked at in any case");
    for queue in [0, 0, 1, 2, 0xffff, 0x1_0000, u32::MAX] {
        fixture.set(reg::QUEUE_NOTIFY, queue);
    }
    assert_eq!(fixture.kicks(0), 2);
    assert_eq!(fixture.kicks(1), 1);
    assert_eq!(fixture.events().notification_ignored, 4);
}

#[test]
fn interrupt_causes_stay_until_acknowledged() {
    let mut fixture = Fixture::live();
    let generation = fixture.get(reg::CONFIG_GENERATION);
    fixture.queue(0).signal_used();
    assert_eq!(fixture.get(reg::CONFIG_GENERATION), generation);
    fixture.notifier().update(|| ());
    assert_ne!(fixture.get(reg::CONFIG_GENERATION), generation);
    assert_eq!(fixture.raised(), 2);
    for _ in 0..2 {
        assert_eq!(fixture.get(reg::INTERRUPT_STATUS), INT_VRING | INT_CONFIG);
    }
    fixture.set(reg::INTERRUPT_ACK, !INT_VRING);
    assert_eq!(fixture.get(reg::INTERRUPT_STATUS), INT_VRING);
    fixture.set(reg::INTERRUPT_ACK, INT_VRING);
    assert_eq!(fixture.get(reg::INTERRUPT_STATUS), 0);
}

#[test]
fn a_device_that_cannot_be_activated_asks_for_a_reset() {
    for _ in 0..2 {
        let mut fixture = Fixture::with(Probe {
            fail: true,
            ..Probe::default()
        });
        fixture.negotiate();
        fixture.enable_queue(0, 0x1000, 16);
        fixture.set(reg::STATUS, 15);
        assert_eq!(fixture.status(), 15 | 64);
        assert_eq!(fixture.get(reg::INTERRUPT_STATUS), INT_CONFIG);
        assert_eq!(fixture.raised(), 1);
        assert_eq!(
            fixture.get(reg::CONFIG_GENERATION),
            0,
            "the configuration has not changed"
        );
        fixture.set(reg::STATUS, 0);
        assert_eq!(
            (fixture.status(), fixture.get(reg::INTERRUPT_STATUS)),
            (0, 0)
        );
    }
}

#[test]
fn a_driver_that_gives_up_is_left_alone_until_it_resets() {
    let mut fixture = Fixture::live();
    let activation = fixture.probe.activation.lock().unwrap().take().unwrap();
    fixture.set(reg::STATUS, 15 | 128);
    assert_eq!(fixture.status(), 15 | 128);
    assert!(activation.queues[0].lease.is_revoked());
    activation.queues[0].signal_used();
    assert_eq!(fixture.raised(), 0);
    fixture.set(reg::STATUS, 15);
    assert_eq!(fixture.status(), 15 | 128);
    fixture.set(reg::STATUS, 0);
    assert_eq!(fixture.status(), 0);
}

#[test]
fn reset_from_every_state_starts_anew() {
    let steps: [fn(&mut Fixture); 7] = [
        |_| {},
        |fixture| fixture.set(reg::STATUS, 1),
        |fixture| fixture.set(reg::STATUS, 3),
        Fixture::negotiate,
        |fixture| {
            fixture.negotiate();
            fixture.enable_queue(0, 0x1000, 16);
        },
        |fixture| *fixture = Fixture::live(),
        |fixture| {
            *fixture = Fixture::live();
            fixture.set(reg::STATUS, 15 | 128);
        },
    ];
    for step in steps {
        let mut fixture = Fixture::new();
        step(&mut fixture);
        let late = fixture.probe.activation.lock().unwrap().take();
        if let Some(activation) = &late {
            activation.queues[0].signal_used();
        }
        let resets = fixture.probe.resets.load(Ordering::SeqCst);
        let raised = fixture.raised();
        fixture.set(reg::DEVICE_FEATURES_SEL, 1);
        fixture.set(reg::QUEUE_SEL, 1);
        fixture.set(reg::STATUS, 0);
        if let Some(activation) = late {
            assert!(activation.queues[0].lease.is_revoked());
            activation.queues[0].signal_used();
            activation.interrupt.device_failed(&DeviceFault::Panicked);
        }
        assert_eq!(fixture.raised(), raised);
        assert_eq!(fixture.probe.resets.load(Ordering::SeqCst), resets + 1);
        assert_eq!(fixture.status(), 0);
        assert_eq!(fixture.get(reg::INTERRUPT_STATUS), 0);
        assert_eq!(
            fixture.get(reg::DEVICE_FEATURES),
            OFFERED.word(0),
            "feature word 0 is selected"
        );
        assert_eq!(fixture.get(reg::QUEUE_SIZE_MAX), 16, "queue 0 is selected");
        assert_eq!(fixture.get(reg::QUEUE_READY), 0);
        // Nothing of the old set-up is left: an all-zero queue is not well-formed.
        fixture.negotiate();
        fixture.set(reg::QUEUE_READY, 1);
        assert_eq!(fixture.get(reg::QUEUE_READY), 0);
        fixture.enable_queue(0, 0x1000, 16);
        fixture.set(reg::STATUS, 15);
        assert_eq!(fixture.status(), 15);
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri does not print event fds")]
fn debug_output_says_what_is_live() {
    let text = format!("{:?}", Fixture::live().transport);
    assert!(
        text.contains("MmioTransport") && text.contains("session: Some"),
        "{text}"
    );
}

#[test]
fn a_transport_that_goes_away_takes_everything_back() {
    let fixture = Fixture::live();
    let Fixture {
        transport,
        probe,
        raised,
        ..
    } = fixture;
    let activation = probe.activation.lock().unwrap().take().unwrap();
    let resets = probe.resets.load(Ordering::SeqCst);
    drop(transport);
    assert_eq!(probe.resets.load(Ordering::SeqCst), resets + 1);
    assert!(activation.queues[0].lease.is_revoked());
    activation.queues[0].signal_used();
    assert_eq!(raised.load(Ordering::SeqCst), 0);
}

#[test]
fn driver_ok_twice_activates_once() {
    let mut fixture = Fixture::live();
    fixture.set(reg::STATUS, 15);
    fixture.set(reg::STATUS, 11);
    assert_eq!(fixture.status(), 15);
}

#[test]
fn a_line_that_fails_leaves_the_cause_and_is_tried_again() {
    let tries = Arc::new(AtomicU32::new(0));
    let counter = tries.clone();
    let mut fixture = Fixture::behind_line(edge_line(move || {
        counter.fetch_add(1, Ordering::SeqCst);
        Err(io::ErrorKind::WouldBlock.into())
    }));
    fixture.negotiate();
    fixture.enable_queue(0, 0x1000, 16);
    fixture.set(reg::STATUS, 15);
    let queue = fixture.queue(0);
    queue.signal_used();
    assert_eq!(fixture.get(reg::INTERRUPT_STATUS), INT_VRING);
    queue.signal_used();
    assert_eq!(tries.load(Ordering::SeqCst), 2);
    assert_eq!(fixture.events().line_failed, 2);
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the conformance suite does to a device, and to its transport before it is live.

mod limits;
mod rings;

use virtio_device_core::{
    Features,
    transport::{FAILED, QueueSetup},
};

use crate::machine::{BUFFERS, MEMORY_END, Machine, QUEUE};
use crate::port::Port;

type Scenario<P> = (&'static str, fn(&mut Machine<P>));

pub(super) fn all<P: Port>() -> [Scenario<P>; 21] {
    [
        ("valid requests", rings::valid_requests),
        ("requests with event indices", rings::event_indices),
        (
            "notifications that the device asks for",
            rings::wanted_notifications,
        ),
        ("broken rings", rings::broken_rings),
        ("bad requests", rings::bad_requests),
        ("a request in a table", rings::indirect_request),
        ("overlapping rings", rings::overlapping_rings),
        ("queue reset", rings::queue_reset),
        ("requests in pieces", limits::pieces),
        ("requests for too much", limits::too_much),
        ("loops", limits::loops),
        ("a ring that never empties", limits::flood),
        ("the host's memory", limits::host_memory),
        ("features", features),
        ("status", status),
        ("queues that are not well-formed", bad_queues),
        ("a live queue", live_queue),
        ("notifications out of place", notifications),
        ("resets from every state", resets),
        ("a driver that gives up", giving_up),
        ("configuration space", configuration),
    ]
}

fn features<P: Port>(machine: &mut Machine<P>) {
    for word in [4, 5, 31, 32, 1 << 31, u32::MAX] {
        assert_eq!(machine.port.offered(word), 0);
    }
    let offered = [machine.port.offered(0), machine.port.offered(1)];
    assert_eq!(offered[1] & 1, 1, "VIRTIO_F_VERSION_1 is not offered");
    let refused = |machine: &mut Machine<P>, words: &[(u32, u32)]| {
        machine.reset();
        for status in [1, 3] {
            machine.port.set_status(status);
        }
        for &(word, features) in words {
            machine.port.accept(word, features);
        }
        machine.port.set_status(11);
        assert_eq!(machine.port.status(), 3, "{words:x?} are accepted");
    };
    refused(machine, &[(0, 0), (1, 0)]);
    refused(machine, &[(0, offered[0]), (1, offered[1] & !1)]);
    refused(machine, &[(1, 1), (2, 1)]);
    refused(machine, &[(1, 1), (u32::MAX, 1)]);
    // A word holds what was written last.
    for word in [0, 2, 3, 4, 9, u32::MAX] {
        refused(machine, &[(1, 1), (word, u32::MAX)]);
        machine.port.accept(word, 0);
        machine.port.set_status(11);
        assert_eq!(machine.port.status(), 11, "word {word} is not replaced");
    }
    for (word, all) in [(0, offered[0]), (1, offered[1])] {
        let step = if cfg!(miri) { 5 } else { 1 };
        let bits = (0..32).step_by(step).map(|bit| 1u32 << bit);
        for bit in bits.filter(|bit| all & bit == 0) {
            refused(machine, &[(1, 1), (word, bit | word)]);
        }
    }
    // All that is offered is accepted, again and again.
    for _ in 0..3 {
        machine.negotiate(Features::from_words([u32::MAX; 4]));
    }
}

fn status<P: Port>(machine: &mut Machine<P>) {
    let ways: [&[u32]; 4] = [&[], &[1], &[1, 3], &[3]];
    for way in ways {
        let from = way.last().copied().unwrap_or(0);
        let values = (1..=255).chain([0x100, 0x10f, 1 << 31]);
        // Miri takes its time.
        let few = |value: &u32| value.count_ones() == 1 || value % 16 == 15;
        for value in values.filter(|value| cfg!(not(miri)) || few(value)) {
            machine.reset();
            way.iter().for_each(|&step| machine.port.set_status(step));
            machine.port.set_status(value);
            let now = machine.port.status();
            let grown = now & !from;
            assert_eq!(now & from, from, "a bit was cleared");
            assert!(now == value || now == from, "{value:#x} became {now:#x}");
            assert_eq!(
                grown & !(1 | 2 | 128),
                0,
                "{value:#x} was taken after {from:#x}"
            );
        }
    }
    machine.reset();
}

fn bad_queues<P: Port>(machine: &mut Machine<P>) {
    machine.negotiate(Features::NONE);
    let index = machine.index();
    let max = machine.port.max_size(index);
    let good = QueueSetup::new(max.min(8))
        .with_desc_table(QUEUE)
        .with_avail_ring(QUEUE + 0x1000)
        .with_used_ring(QUEUE + 0x2000);
    for size in [0, 3, 5, max + 1, 2 * max, 1 << 16, 0x1_0000 | max, u32::MAX] {
        assert!(!machine.port.enable(index, &good.with_size(size)));
    }
    for bad in [1, 2, 4, 8, 15] {
        let desc_table = QUEUE + bad;
        assert!(
            !machine
                .port
                .enable(index, &good.with_desc_table(desc_table))
        );
    }
    for at in [MEMORY_END, MEMORY_END - 16, 1 << 63, u64::MAX - 15] {
        let wrong = [
            good.with_desc_table(at),
            good.with_avail_ring(at),
            good.with_used_ring(at),
        ];
        for setup in wrong {
            assert!(!machine.port.enable(index, &setup), "{setup:x?}");
        }
    }
    for queue in [0xffff, 0x1_0000, u32::MAX] {
        assert_eq!(machine.port.max_size(queue), 0);
        assert!(!machine.port.enable(queue, &good));
    }
    assert!(machine.port.enable(index, &good), "the good one");
}

/// What a live device works with is out of the driver's reach. And without a queue, a device works
/// or says that it cannot.
fn live_queue<P: Port>(machine: &mut Machine<P>) {
    let mut queue = machine.start(Features::NONE);
    machine.serve(&mut queue);
    let index = machine.index();
    let other = QueueSetup::new(2)
        .with_desc_table(QUEUE + 0x4000)
        .with_avail_ring(QUEUE + 0x5000)
        .with_used_ring(QUEUE + 0x6000);
    assert!(machine.port.enable(index, &other), "it still is");
    machine.port.accept(0, u32::MAX);
    machine.port.accept(1, u32::MAX);
    machine.serve(&mut queue);
    assert_eq!(machine.port.status(), 15);

    machine.negotiate(Features::NONE);
    let (before, raised) = (machine.events.counts(), machine.line.raised());
    machine.port.set_status(15);
    // A worker on a thread of its own says so in its own time, and interrupts after that.
    machine.wait("the device's start, or why not", |machine| {
        let now = machine.events.counts();
        let refused = now.device_failed + now.ring_fault > before.device_failed + before.ring_fault;
        refused && machine.line.raised() > raised || now.activated > before.activated
    });
    let status = machine.port.status();
    assert!(matches!(status, 15 | 79), "{status:#x}");
    machine.port.notify(index);
    machine.nothing_happens();
}

fn notifications<P: Port>(machine: &mut Machine<P>) {
    let queues = [0, 1, 0xffff, 0x1_0000, u32::MAX];
    queues.iter().for_each(|&queue| machine.port.notify(queue));
    machine.negotiate(Features::NONE);
    queues.iter().for_each(|&queue| machine.port.notify(queue));
    machine.nothing_happens();
    let mut queue = machine.start(Features::NONE);
    // Any number of them finds an empty ring, and one among them is not lost.
    for _ in 0..if cfg!(miri) { 100 } else { 10_000 } {
        machine.port.notify(machine.index());
    }
    machine.serve(&mut queue);
    for &queue in queues.iter().cycle().take(100) {
        machine.port.notify(queue);
    }
    machine.nothing_is_used(&mut queue);
    assert_eq!(machine.port.status(), 15);
}

fn resets<P: Port>(machine: &mut Machine<P>) {
    // The device of the last scenario may still be at work.
    machine.reset();
    for steps in 0..5u8 {
        for status in [0, 1, 3].into_iter().take(steps.into()) {
            machine.port.set_status(status);
        }
        if steps == 3 {
            machine.negotiate(Features::NONE);
        }
        let mut theirs = vec![];
        if steps == 4 {
            // With a request on its way.
            let mut queue = machine.start(Features::NONE);
            machine.ask_validly(&mut queue);
            theirs = vec![queue.used_ring(), BUFFERS + 0x1000..MEMORY_END];
            // A worker may be in the midst of its first look at the other queues.
            theirs.extend(machine.wishes());
        }
        let image = machine.image();
        machine.reset();
        assert_eq!(machine.port.interrupt_status(), 0);
        let index = machine.index();
        assert!(!machine.port.is_enabled(index));
        machine.same_but(&image, &theirs);
        machine.nothing_happens();
    }
    for _ in 0..if cfg!(miri) { 2 } else { 20 } {
        let mut queue = machine.start(Features::NONE);
        machine.serve(&mut queue);
    }
}

fn giving_up<P: Port>(machine: &mut Machine<P>) {
    let failed = 15 | u32::from(FAILED);
    let mut queue = machine.start(Features::NONE);
    machine.port.set_status(failed);
    machine.ask_validly(&mut queue);
    machine.nothing_happens();
    assert_eq!(queue.take_used(), []);
    for status in [15, 11, 1, failed] {
        machine.port.set_status(status);
        assert_eq!(machine.port.status(), failed);
    }
}

fn configuration<P: Port>(machine: &mut Machine<P>) {
    machine.reset();
    let generation = machine.port.generation();
    let mut whole = [0; 64];
    for (offset, byte) in (0..).zip(whole.chunks_mut(1)) {
        machine.port.read_config(offset, byte);
    }
    // It can be read before the features are agreed on, and does not depend on the width.
    for width in [2, 4, 8] {
        for (offset, expected) in (0..).step_by(width).zip(whole.chunks(width)) {
            let mut data = vec![0xa5; width];
            machine.port.read_config(offset, &mut data);
            let beyond = data.iter().all(|&byte| byte == 0);
            assert!(data == expected || beyond, "{offset:#x} {width}");
        }
    }
    for offset in [0x1000, u32::MAX - 7, u32::MAX] {
        let mut data = [0xa5; 8];
        machine.port.read_config(offset, &mut data);
        assert_eq!(data, [0; 8]);
    }
    assert_eq!(machine.port.generation(), generation);
}

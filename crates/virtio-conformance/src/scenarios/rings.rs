// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the conformance suite does with requests and rings.
#![expect(
    clippy::unwrap_used,
    reason = "a device that does not conform fails the test"
)]

use std::sync::atomic::{Ordering, fence};

use virtio_device_core::{
    Features, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_RING_RESET,
};

use crate::driver::{VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use crate::machine::{BUFFERS, MEMORY_END, Machine, QUEUE, Queue};
use crate::port::Port;

/// Flag of the used ring: the device wants no notifications.
const VIRTQ_USED_F_NO_NOTIFY: u16 = 1;

pub(super) fn valid_requests<P: Port>(machine: &mut Machine<P>) {
    let mut queue = machine.start(Features::NONE);
    let rounds = if cfg!(miri) {
        2
    } else {
        3 * queue.setup().size
    };
    for _ in 0..rounds {
        machine.serve(&mut queue);
    }
}

pub(super) fn event_indices<P: Port>(machine: &mut Machine<P>) {
    let mut queue = machine.start(Features::of(&[VIRTIO_F_EVENT_IDX]));
    let raised = machine.line.raised();
    for index in 0..5u16 {
        queue.set_used_event(index);
        let before = machine.interrupts();
        machine.ask_validly(&mut queue);
        assert_eq!(machine.used(&mut queue, 1).first().unwrap().0, 0);
        machine.interrupted_after(before);
    }
    machine.nothing_is_used(&mut queue);
    let raised = machine.line.raised() - raised;
    assert_eq!(raised, 5, "interrupts for 5 requests");
}

/// A driver that notifies only when the device asks for it (section 2.7.10), as real ones do: no request
/// is left lying by a device that rests and has not asked.
pub(super) fn wanted_notifications<P: Port>(machine: &mut Machine<P>) {
    for features in [Features::NONE, Features::of(&[VIRTIO_F_EVENT_IDX])] {
        let mut queue = machine.start(features);
        let event_idx = features != Features::NONE && machine.offers(VIRTIO_F_EVENT_IDX);
        for _ in 0..if cfg!(miri) { 2 } else { 5 } {
            machine.settle();
            machine.prepare(&queue);
            machine.host.deliver();
            let next = queue.avail_index();
            queue.offer(0);
            // The offer is visible before it is looked at what the device asks for.
            fence(Ordering::SeqCst);
            let is_wanted = if event_idx {
                queue.avail_event() == next
            } else {
                queue.used_flags() & VIRTQ_USED_F_NO_NOTIFY == 0
            };
            if is_wanted {
                machine.notify();
            }
            let what =
                "a request, notified of as the device asks: see Virtqueue::enable_notification";
            machine.wait(what, |_| queue.used_index() == next.wrapping_add(1));
            assert_eq!(queue.take_used().first().unwrap().0, 0);
        }
    }
}

pub(super) fn broken_rings<P: Port>(machine: &mut Machine<P>) {
    let next = VIRTQ_DESC_F_NEXT;
    let table = VIRTQ_DESC_F_INDIRECT;
    let breaks: [fn(&mut Queue); 6] = [
        |queue| queue.offer(u16::try_from(queue.setup().size).unwrap()),
        |queue| queue.offer(0xffff),
        |queue| queue.set_avail_index(u16::try_from(queue.setup().size).unwrap() + 1),
        |queue| queue.set_avail_index(0x8000),
        |queue| {
            queue.descriptor(0, BUFFERS, 1, VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE, 0);
            queue.offer(0);
        },
        |queue| {
            queue.descriptor(
                0,
                BUFFERS,
                1,
                VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE,
                0xffff,
            );
            queue.offer(0);
        },
    ];
    for break_it in breaks {
        faults(machine, Features::NONE, break_it);
    }
    // A table without the feature; with it, tables of every wrong shape.
    faults(machine, Features::NONE, |queue| {
        queue.descriptor(0, BUFFERS, 16, table, 0);
        queue.descriptor_at(BUFFERS, 0, BUFFERS + 0x1000, 1, VIRTQ_DESC_F_WRITE, 0);
        queue.offer(0);
    });
    machine.negotiate(Features::of(&[VIRTIO_F_INDIRECT_DESC]));
    if !machine.offers(VIRTIO_F_INDIRECT_DESC) {
        return;
    }
    for (addr, len, flags) in [
        (BUFFERS, 0, table),
        (BUFFERS, 24, table),
        (BUFFERS, 16, table | next),
        (BUFFERS, u32::MAX - 15, table),
        (MEMORY_END - 16, 32, table),
        (u64::MAX - 15, 32, table),
    ] {
        faults(machine, Features::of(&[VIRTIO_F_INDIRECT_DESC]), |queue| {
            queue.descriptor(0, addr, len, flags, 0);
            queue.offer(0);
        });
    }
    faults(machine, Features::of(&[VIRTIO_F_INDIRECT_DESC]), |queue| {
        queue.descriptor(0, BUFFERS, 16, table, 0);
        queue.descriptor_at(BUFFERS, 0, BUFFERS, 16, table, 0);
        queue.offer(0);
    });
}

fn faults<P: Port>(machine: &mut Machine<P>, features: Features, break_it: impl Fn(&mut Queue)) {
    let mut queue = machine.start(features);
    let (raised, events) = (machine.line.raised(), machine.events.counts());
    machine.host.deliver();
    break_it(&mut queue);
    let image = machine.image();
    machine.notify();
    machine.ring_has_faulted(&events, raised);
    assert_eq!(queue.take_used(), []);
    machine.same_but_used_ring(&image, &queue);
}

pub(super) fn bad_requests<P: Port>(machine: &mut Machine<P>) {
    let write = VIRTQ_DESC_F_WRITE;
    for (addr, len, flags) in [
        (MEMORY_END, 16, write),
        (MEMORY_END - 8, 16, write),
        (u64::MAX - 3, 16, write),
        (BUFFERS, u32::MAX, write),
        (0xd000_0000, 4, write),
        (MEMORY_END - 8, 16, 0),
        (u64::MAX - 3, 16, 0),
        (BUFFERS, u32::MAX, 0),
        (BUFFERS, 0, write),
        (BUFFERS, 16, 0),
    ] {
        let mut queue = machine.start(Features::NONE);
        queue.descriptor(2, addr, len, flags, 0);
        let image = machine.image();
        let before = machine.events.counts();
        let interrupts = machine.interrupts();
        machine.host.deliver();
        queue.offer(2);
        let expected = machine.image();
        assert!(image != expected, "the offer is in memory");
        machine.notify();
        assert_eq!(machine.used(&mut queue, 1), [(2, 0)], "{addr:#x} {len:#x}");
        machine.interrupted_after(interrupts);
        machine.same_but_used_ring(&expected, &queue);
        // It is counted as what it is, or by the device itself, and as nothing else.
        let after = machine.events.counts();
        assert!(after.bad_request <= before.bad_request + 1);
        let mut expected = before;
        expected.bad_request = after.bad_request;
        assert_eq!(after, expected);
        // And the queue goes on.
        machine.serve(&mut queue);
    }
}

pub(super) fn indirect_request<P: Port>(machine: &mut Machine<P>) {
    let mut queue = machine.start(Features::of(&[VIRTIO_F_INDIRECT_DESC]));
    if !machine.offers(VIRTIO_F_INDIRECT_DESC) {
        return;
    }
    let request = machine.request;
    let (table, answer) = (BUFFERS + 0x3001, BUFFERS + 0x1000);
    machine.ask_validly(&mut queue);
    let [(_, len)] = machine.used(&mut queue, 1)[..] else {
        unreachable!("one request makes one used element")
    };
    let readable = u32::try_from(request.readable.len()).unwrap();
    let buffers = [
        (BUFFERS, readable, 0),
        (answer, request.writable, VIRTQ_DESC_F_WRITE),
    ];
    let buffers = buffers.iter().filter(|(_, len, _)| *len != 0);
    let entries = buffers.clone().count();
    for (index, &(addr, len, flags)) in (0..).zip(buffers) {
        let more = usize::from(index) + 1 < entries;
        let flags = flags | if more { VIRTQ_DESC_F_NEXT } else { 0 };
        queue.descriptor_at(table, index, addr, len, flags, index + 1);
    }
    let entries = u32::try_from(entries).unwrap();
    let flags = VIRTQ_DESC_F_INDIRECT | VIRTQ_DESC_F_WRITE;
    queue.descriptor(3, table, 16 * entries, flags, 0);
    machine.ask(&mut queue, 3);
    assert_eq!(machine.used(&mut queue, 1), [(3, len)]);
}

/// Parts of a queue on top of each other: the driver harms itself and nobody else.
pub(super) fn overlapping_rings<P: Port>(machine: &mut Machine<P>) {
    for (avail, used) in [
        (0, 0),
        (0, 0x100),
        (0x100, 0),
        (0x100, 0x100),
        (8, 16),
        (0x84, 0x44),
    ] {
        for features in [Features::NONE, Features::QUEUE] {
            machine.negotiate(features);
            let mut queue = machine.queue(QUEUE);
            let setup = queue
                .setup()
                .with_avail_ring(QUEUE + avail)
                .with_used_ring(QUEUE + used);
            // Refused is as good as served.
            let index = machine.index();
            let enabled = machine.port.enable(index, &setup);
            machine.port.set_status(15);
            machine.ask_validly(&mut queue);
            for _ in 0..10 {
                machine.notify();
                machine.step();
            }
            machine.settle();
            machine.reset();
            machine.nothing_happens();
            assert!(!enabled || !machine.port.is_enabled(index));
        }
    }
}

/// One queue is reset and comes back elsewhere and smaller, with or without a request in it.
pub(super) fn queue_reset<P: Port>(machine: &mut Machine<P>) {
    let offered = machine.offers(VIRTIO_F_RING_RESET);
    let index = machine.index();
    // Without the feature nothing happens.
    let mut queue = machine.start(Features::NONE);
    machine.port.reset_queue(index);
    assert!(machine.port.is_enabled(index));
    machine.serve(&mut queue);
    if !offered {
        return;
    }
    let mut queue = machine.start(Features::of(&[VIRTIO_F_RING_RESET]));
    machine.serve(&mut queue);
    for round in 0..if cfg!(miri) { 2 } else { 4u64 } {
        if round % 2 == 1 {
            // A request on its way, which is nobody's from now on.
            machine.ask_validly(&mut queue);
        }
        machine.port.reset_queue(index);
        assert!(!machine.port.is_enabled(index));
        machine.nothing_happens();
        machine.ask_validly(&mut queue);
        machine.nothing_happens();
        machine.port.reset_queue(index);
        assert!(
            !machine.port.is_enabled(index),
            "a second reset changes nothing"
        );

        let mut setup = *machine.queue(QUEUE).setup();
        setup.size = 3;
        assert!(!machine.port.enable(index, &setup), "no size for a queue");
        // Elsewhere, and of another size.
        let size = if round % 2 == 0 { 2 } else { 8 };
        let size = size.min(u16::try_from(machine.port.max_size(index)).unwrap());
        let plain = machine.memory.plain();
        queue = Queue::new(plain, QUEUE + 0x1000 * (round + 1), size);
        assert!(machine.port.enable(index, queue.setup()));
        assert_eq!(machine.port.status(), 15);
        machine.port.acknowledge(3);
        machine.serve(&mut queue);
        machine.serve(&mut queue);
    }
    machine.reset();
    assert!(!machine.port.is_enabled(index));
    machine.nothing_happens();
}

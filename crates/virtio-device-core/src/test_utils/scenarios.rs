// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the conformance suite does to a device.
#![expect(
    clippy::unwrap_used,
    reason = "a device that does not conform fails the test"
)]

use std::sync::atomic::Ordering;

use vm_memory::GuestMemoryMmap;

use super::conformance::{BUFFERS, MEMORY_END, Machine, Port, QUEUE};
use super::{DriverQueue, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use crate::{FAILED, QueueSetup, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC};

type Queue = DriverQueue<'static, GuestMemoryMmap<()>>;
type Scenario<P> = (&'static str, fn(&mut Machine<P>));

pub(super) fn all<P: Port>() -> [Scenario<P>; 12] {
    [
        ("valid requests", valid_requests),
        ("requests in a row with event indices", event_indices),
        ("broken rings", broken_rings),
        ("bad requests", bad_requests),
        ("a request in a table", indirect_request),
        ("features", features),
        ("status", status),
        ("queues that are not well-formed", bad_queues),
        ("notifications out of place", notifications),
        ("resets from every state", resets),
        ("a driver that gives up", giving_up),
        ("configuration space", configuration),
    ]
}

fn valid_requests<P: Port>(machine: &mut Machine<P>) {
    let mut queue = machine.start(0);
    let rounds = 3 * queue.setup().size;
    for _ in 0..rounds {
        machine.serve(&mut queue);
    }
}

/// The driver waits for the last of several requests only, and gets one interrupt at most for each.
fn event_indices<P: Port>(machine: &mut Machine<P>) {
    let mut queue = machine.start(VIRTIO_F_EVENT_IDX);
    let raised = machine.raised.load(Ordering::SeqCst);
    for index in 0..5u16 {
        queue.set_used_event(index);
        machine.offer(&mut queue);
        machine.port.notify(0);
        assert_eq!(machine.used(&mut queue, 1).first().unwrap().0, 0);
        machine.wait("an interrupt", |machine| {
            machine.port.interrupt_status() & 1 != 0
        });
        machine.port.acknowledge(1);
    }
    machine.nothing_happens();
    let raised = machine.raised.load(Ordering::SeqCst) - raised;
    assert!(
        (1..=5).contains(&raised),
        "{raised} interrupts for 5 requests"
    );
}

/// Each of these faults, whatever the device.
fn broken_rings<P: Port>(machine: &mut Machine<P>) {
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
        faults(machine, 0, break_it);
    }
    // A table without the feature; with it, tables of every wrong shape.
    faults(machine, 0, |queue| {
        queue.descriptor(0, BUFFERS, 16, table, 0);
        queue.descriptor_at(BUFFERS, 0, BUFFERS + 0x1000, 1, VIRTQ_DESC_F_WRITE, 0);
        queue.offer(0);
    });
    machine.negotiate(VIRTIO_F_INDIRECT_DESC);
    if machine.port.offered(0) & u32::try_from(VIRTIO_F_INDIRECT_DESC).unwrap() == 0 {
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
        faults(machine, VIRTIO_F_INDIRECT_DESC, |queue| {
            queue.descriptor(0, addr, len, flags, 0);
            queue.offer(0);
        });
    }
    faults(machine, VIRTIO_F_INDIRECT_DESC, |queue| {
        queue.descriptor(0, BUFFERS, 16, table, 0);
        queue.descriptor_at(BUFFERS, 0, BUFFERS, 16, table, 0);
        queue.offer(0);
    });
}

fn faults<P: Port>(machine: &mut Machine<P>, features: u64, break_it: impl Fn(&mut Queue)) {
    let mut queue = machine.start(features);
    let raised = machine.raised.load(Ordering::SeqCst);
    let faults = machine.events.snapshot().ring_fault;
    break_it(&mut queue);
    let image = machine.image();
    machine.port.notify(0);
    machine.ring_has_faulted(faults, raised);
    assert_eq!(queue.take_used(), []);
    machine.same_but_used_ring(&image, &queue);
}

/// The ring is sound and the request is not: it comes back with length 0 and nothing is written.
fn bad_requests<P: Port>(machine: &mut Machine<P>) {
    let write = VIRTQ_DESC_F_WRITE;
    for (addr, len, flags) in [
        (MEMORY_END, 16, write),
        (MEMORY_END - 8, 16, write),
        (u64::MAX - 3, 16, write),
        (BUFFERS, u32::MAX, write),
        (0xd000_0000, 4, write),
        (BUFFERS, 0, write),
        (BUFFERS, 16, 0),
    ] {
        let mut queue = machine.start(0);
        queue.descriptor(2, addr, len, flags, 0);
        let image = machine.image();
        queue.offer(2);
        let expected = machine.image();
        assert!(image != expected, "the offer is in memory");
        machine.port.notify(0);
        assert_eq!(machine.used(&mut queue, 1), [(2, 0)], "{addr:#x} {len:#x}");
        machine.same_but_used_ring(&expected, &queue);
        // And the queue goes on.
        machine.serve(&mut queue);
    }
}

/// The valid request behind one descriptor, whose WRITE flag means nothing.
fn indirect_request<P: Port>(machine: &mut Machine<P>) {
    let mut queue = machine.start(VIRTIO_F_INDIRECT_DESC);
    if machine.port.offered(0) & u32::try_from(VIRTIO_F_INDIRECT_DESC).unwrap() == 0 {
        return;
    }
    let request = machine.request;
    let (table, answer) = (BUFFERS + 0x3001, BUFFERS + 0x1000);
    machine.offer(&mut queue);
    machine.port.notify(0);
    let [(_, len)] = machine.used(&mut queue, 1)[..] else {
        unreachable!("one request makes one used element")
    };
    let readable = u32::try_from(request.readable.len()).unwrap();
    let entries = if readable == 0 {
        queue.descriptor_at(table, 0, answer, request.writable, VIRTQ_DESC_F_WRITE, 0);
        1
    } else {
        queue.descriptor_at(table, 0, BUFFERS, readable, VIRTQ_DESC_F_NEXT, 1);
        queue.descriptor_at(table, 1, answer, request.writable, VIRTQ_DESC_F_WRITE, 0);
        2
    };
    let flags = VIRTQ_DESC_F_INDIRECT | VIRTQ_DESC_F_WRITE;
    queue.descriptor(3, table, 16 * entries, flags, 0);
    queue.offer(3);
    machine.port.notify(0);
    assert_eq!(machine.used(&mut queue, 1), [(3, len)]);
}

fn features<P: Port>(machine: &mut Machine<P>) {
    for word in [2, 3, 31, 32, 1 << 31, u32::MAX] {
        assert_eq!(machine.port.offered(word), 0);
    }
    let offered = [machine.port.offered(0), machine.port.offered(1)];
    assert_eq!(offered[1] & 1, 1, "VIRTIO_F_VERSION_1 is not offered");
    let refused = |machine: &mut Machine<P>, words: &[(u32, u32)]| {
        for status in [0, 1, 3] {
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
    for (word, all) in [(0, offered[0]), (1, offered[1])] {
        for bit in (0..32).map(|bit| 1u32 << bit).filter(|bit| all & bit == 0) {
            refused(machine, &[(1, 1), (word, bit | word)]);
        }
    }
    // All that is offered is accepted, again and again.
    for _ in 0..3 {
        machine.negotiate(u64::MAX);
    }
}

/// A status only ever grows by the next step.
fn status<P: Port>(machine: &mut Machine<P>) {
    let ways: [&[u32]; 4] = [&[], &[1], &[1, 3], &[3]];
    for way in ways {
        let from = way.last().copied().unwrap_or(0);
        for value in (1..=255).chain([0x100, 0x10f, 1 << 31]) {
            machine.port.set_status(0);
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
    machine.port.set_status(0);
    assert_eq!(machine.port.status(), 0);
}

fn bad_queues<P: Port>(machine: &mut Machine<P>) {
    machine.negotiate(0);
    let max = machine.port.max_size(0);
    let good = QueueSetup {
        size: max.min(8),
        desc_table: QUEUE,
        avail_ring: QUEUE + 0x1000,
        used_ring: QUEUE + 0x2000,
    };
    for size in [0, 3, 5, max + 1, 2 * max, 1 << 16, 0x1_0000 | max, u32::MAX] {
        assert!(!machine.port.enable(0, &QueueSetup { size, ..good }));
    }
    for bad in [1, 2, 4, 8, 15] {
        let desc_table = QUEUE + bad;
        assert!(!machine.port.enable(0, &QueueSetup { desc_table, ..good }));
    }
    for at in [MEMORY_END, MEMORY_END - 16, 1 << 63, u64::MAX - 15] {
        let wrong = [
            QueueSetup {
                desc_table: at,
                ..good
            },
            QueueSetup {
                avail_ring: at,
                ..good
            },
            QueueSetup {
                used_ring: at,
                ..good
            },
        ];
        for setup in wrong {
            assert!(!machine.port.enable(0, &setup), "{setup:x?}");
        }
    }
    for queue in [0xffff, 0x1_0000, u32::MAX] {
        assert_eq!(machine.port.max_size(queue), 0);
        assert!(!machine.port.enable(queue, &good));
    }
    assert!(machine.port.enable(0, &good), "the good one");
}

fn notifications<P: Port>(machine: &mut Machine<P>) {
    let queues = [0, 1, 0xffff, 0x1_0000, u32::MAX];
    queues.iter().for_each(|&queue| machine.port.notify(queue));
    machine.negotiate(0);
    queues.iter().for_each(|&queue| machine.port.notify(queue));
    machine.nothing_happens();
    let mut queue = machine.start(0);
    // Any number of them finds an empty ring, and one among them is not lost.
    for _ in 0..10_000 {
        machine.port.notify(0);
    }
    machine.serve(&mut queue);
    for &queue in queues.iter().cycle().take(100) {
        machine.port.notify(queue);
    }
    machine.nothing_happens();
    assert_eq!(machine.port.status(), 15);
}

fn resets<P: Port>(machine: &mut Machine<P>) {
    for steps in 0..5u8 {
        for status in [0, 1, 3].into_iter().take(steps.into()) {
            machine.port.set_status(status);
        }
        if steps == 3 {
            machine.negotiate(0);
        }
        if steps == 4 {
            // With a request on its way.
            let mut queue = machine.start(0);
            machine.offer(&mut queue);
            machine.port.notify(0);
        }
        machine.port.set_status(0);
        assert_eq!(machine.port.status(), 0);
        assert_eq!(machine.port.interrupt_status(), 0);
        machine.nothing_happens();
    }
    for _ in 0..20 {
        let mut queue = machine.start(0);
        machine.serve(&mut queue);
    }
}

fn giving_up<P: Port>(machine: &mut Machine<P>) {
    let failed = 15 | u32::from(FAILED);
    let mut queue = machine.start(0);
    machine.port.set_status(failed);
    machine.offer(&mut queue);
    machine.port.notify(0);
    machine.nothing_happens();
    assert_eq!(queue.take_used(), []);
    for status in [15, 11, 1, failed] {
        machine.port.set_status(status);
        assert_eq!(machine.port.status(), failed);
    }
}

fn configuration<P: Port>(machine: &mut Machine<P>) {
    machine.port.set_status(0);
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

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The conformance suite's look at how much a device does, and takes.
#![expect(
    clippy::unwrap_used,
    reason = "a device that does not conform fails the test"
)]

use std::sync::{Arc, Mutex};

use virtio_device_core::{Features, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC};
use vm_memory::{Bytes, GuestAddress};

use crate::driver::{VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use crate::machine::{BUFFERS, MEMORY_END, Machine, Queue};
use crate::memory::Access;
use crate::port::Port;

/// The accesses of a device, as they come.
type Accesses = Arc<Mutex<Vec<Access>>>;

fn record<P>(machine: &Machine<P>) -> Accesses {
    let accesses = Accesses::default();
    let list = accesses.clone();
    machine
        .memory
        .watch(move |_, access| list.lock().unwrap().push(access));
    accesses
}

/// How often each descriptor of the table at `table` was read, whole or in part.
fn descriptor_reads(accesses: &[Access], table: u64, count: u64) -> Vec<usize> {
    let touches = |access: &&Access, index| {
        let descriptor = table + 16 * index..table + 16 * (index + 1);
        access.addr < descriptor.end && access.addr + access.len as u64 > descriptor.start
    };
    let reads = |index| accesses.iter().filter(|it| touches(it, index)).count();
    (0..count).map(reads).collect()
}

/// The valid request in as many pieces as go into the queue, in the queue's table and in one of its
/// own: each descriptor is read once, and nothing is touched but what the driver has named.
pub(super) fn pieces<P: Port>(machine: &mut Machine<P>) {
    let tables = 1 + u64::from(machine.offers(VIRTIO_F_INDIRECT_DESC));
    for indirect in 0..tables {
        watched_pieces(machine, indirect);
    }
}

/// The same for the queue's table, or for one of the request's own.
fn watched_pieces<P: Port>(machine: &mut Machine<P>, indirect: u64) {
    let mut queue = machine.set_up(Features::of(&[VIRTIO_F_INDIRECT_DESC]));
    let setup = *queue.setup();
    let table = if indirect == 1 {
        BUFFERS + 0x4000
    } else {
        setup.desc_table
    };
    let buffers = in_pieces(machine, u64::from(setup.size));
    let count = u16::try_from(buffers.len()).unwrap();
    for (index, &(addr, len, write)) in (0..).zip(&buffers) {
        let last = index + 1 == count;
        let flags = if last { 0 } else { VIRTQ_DESC_F_NEXT };
        let flags = flags | if write { VIRTQ_DESC_F_WRITE } else { 0 };
        queue.descriptor_at(table, index, addr, len, flags, index + 1);
    }
    if indirect == 1 {
        queue.descriptor(0, table, 16 * u32::from(count), VIRTQ_DESC_F_INDIRECT, 0);
    }
    let accesses = record(machine);
    machine.go_live();
    machine.serve_prepared(&mut queue);
    machine.memory.unwatch();
    let accesses = std::mem::take(&mut *accesses.lock().unwrap());
    let reads = descriptor_reads(&accesses, table, u64::from(count));
    // The chain's first descriptor is in the queue's table, wherever the others are.
    let first = descriptor_reads(&accesses, setup.desc_table, 1);
    assert_eq!(first, [1], "a descriptor is read once");
    assert_eq!(
        reads,
        vec![1; usize::from(count)],
        "a descriptor is read once"
    );
    for access in accesses {
        if machine.others.iter().any(|queue| is_ring(queue, access)) {
            continue;
        }
        assert!(is_named(&queue, table, &buffers, access), "{access:x?}");
    }
}

/// The buffers of the valid request as (address, length, writable), cut small: `count` in all.
fn in_pieces<P: Port>(machine: &Machine<P>, count: u64) -> Vec<(u64, u32, bool)> {
    let readable = machine.request.readable;
    let plain = machine.memory.plain();
    plain.write_slice(readable, GuestAddress(BUFFERS)).unwrap();
    let mut buffers = Vec::new();
    let mut cut = |mut addr: u64, len: u32, count: u64, write| {
        let mut left = len;
        for piece in (1..=count).rev().filter(|_| len != 0) {
            // One byte each, and the last has the rest.
            let len = if piece == 1 { left } else { left.min(1) };
            buffers.push((addr, len, write));
            (addr, left) = (addr + u64::from(len), left - len);
        }
    };
    let readable = u32::try_from(readable.len()).unwrap();
    let half = match (readable, machine.request.writable) {
        (0, _) => 0,
        (_, 0) => count,
        _ => count / 2,
    };
    cut(BUFFERS, readable, half, false);
    cut(
        BUFFERS + 0x1000,
        machine.request.writable,
        count - half,
        true,
    );
    buffers
}

/// Whether the driver has named what was accessed.
fn is_named(queue: &Queue, table: u64, buffers: &[(u64, u32, bool)], access: Access) -> bool {
    let mut theirs = buffers
        .iter()
        .filter(|(_, _, write)| *write == access.write);
    is_ring(queue, access)
        || !access.write && within(access, table, 16 * buffers.len() as u64)
        || theirs.any(|&(addr, len, _)| within(access, addr, len.into()))
}

/// Whether what was accessed is part of the queue, and the device's to access like that.
fn is_ring(queue: &Queue, access: Access) -> bool {
    let setup = queue.setup();
    let size = u64::from(setup.size);
    if access.write {
        return within(access, setup.used_ring, 6 + 8 * size);
    }
    within(access, setup.avail_ring, 6 + 2 * size) || within(access, setup.desc_table, 16 * size)
}

const fn within(access: Access, from: u64, len: u64) -> bool {
    access.addr >= from && access.addr + access.len as u64 <= from + len
}

/// Descriptors that all name the same memory, as much of it as there can be.
pub(super) fn too_much<P: Port>(machine: &mut Machine<P>) {
    let mut queue = machine.start(Features::NONE);
    ask_for_too_much(machine, &mut queue);
    let image = machine.image();
    machine.notify();
    let [(0, len)] = machine.used(&mut queue, 1)[..] else {
        unreachable!("one request makes one used element")
    };
    assert!(len <= machine.request.most, "{len} bytes are too many");
    let theirs = [queue.used_ring(), TOO_MUCH..MEMORY_END];
    machine.same_but(&image, &theirs);
}

/// Where too much is asked for: all of it to the end of memory.
const TOO_MUCH: u64 = BUFFERS + 0x1_0000;
#[expect(clippy::cast_possible_truncation, reason = "both are small")]
const TOO_MUCH_LEN: u32 = (MEMORY_END - TOO_MUCH) as u32;

/// Has the host deliver, and makes such a request available.
fn ask_for_too_much<P: Port>(machine: &Machine<P>, queue: &mut Queue) {
    machine.prepare(queue);
    let first = u16::from(!machine.request.readable.is_empty());
    let last = u16::try_from(queue.setup().size).unwrap() - 1;
    for index in first..=last {
        let next = if index == last { 0 } else { VIRTQ_DESC_F_NEXT };
        let flags = next | VIRTQ_DESC_F_WRITE;
        queue.descriptor(index, TOO_MUCH, TOO_MUCH_LEN, flags, index + 1);
    }
    machine.host.deliver();
    queue.offer(0);
}

/// A chain without end is left after as many descriptors as the queue has, and the one by which
/// it is found to be too long.
pub(super) fn loops<P: Port>(machine: &mut Machine<P>) {
    let mut queue = machine.set_up(Features::NONE);
    let setup = *queue.setup();
    let flags = VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE;
    for index in 0..u16::try_from(setup.size).unwrap() {
        let next = (index + 1) % u16::try_from(setup.size).unwrap();
        queue.descriptor(index, BUFFERS, 1, flags, next);
    }
    let accesses = record(machine);
    machine.go_live();
    let (before, raised) = (machine.events.counts(), machine.line.raised());
    machine.ask(&mut queue, 0);
    machine.ring_has_faulted(&before, raised);
    machine.memory.unwatch();
    let accesses = accesses.lock().unwrap();
    let reads = descriptor_reads(&accesses, setup.desc_table, setup.size.into());
    let reads: usize = reads.iter().sum();
    assert!(
        reads <= setup.size as usize + 1,
        "{reads} descriptors were read"
    );
}

/// Another vCPU makes a request available for each one that is served. One wake-up still comes to an
/// end, the next goes on, and a reset is final.
pub(super) fn flood<P: Port>(machine: &mut Machine<P>) {
    for features in [Features::NONE, Features::of(&[VIRTIO_F_EVENT_IDX])] {
        let mut queue = machine.set_up(features);
        let index = machine.index();
        let most = machine.port.max_size(index);
        // The ring is full of the same chain, and none of them is there yet.
        machine.prepare(&queue);
        for _ in 0..queue.setup().size {
            queue.offer(0);
        }
        queue.set_avail_index(0);
        let used_index = queue.setup().used_ring + 2;
        let avail_index = GuestAddress(queue.setup().avail_ring + 2);
        machine.memory.watch(move |plain, access| {
            if access.write && access.addr == used_index {
                let index: u16 = plain.read_obj(avail_index).unwrap();
                let index = u16::from_le(index).wrapping_add(1);
                plain.write_obj(index.to_le(), avail_index).unwrap();
            }
        });
        machine.go_live();
        machine.host.deliver();
        queue.set_avail_index(1);
        machine.notify();
        let mut before = 0;
        for _ in 0..if cfg!(miri) { 2 } else { 5 } {
            machine.host.deliver();
            if machine.runs_here() {
                machine.step();
                let served = queue.used_index().wrapping_sub(before);
                assert!(served > 0, "it has stopped");
                assert!(
                    u32::from(served) <= most,
                    "{served} requests in one wake-up"
                );
            } else {
                machine.wait("more requests", |_| queue.used_index() != before);
            }
            before = queue.used_index();
        }
        machine.reset();
        let at_rest = queue.used_index();
        machine.nothing_happens();
        assert_eq!(queue.used_index(), at_rest);
        machine.memory.unwatch();
    }
}

/// Most of the host's memory that a device may take in addition, whatever its driver does.
const MOST_HEAP: u64 = 8 << 10;

pub(super) fn host_memory<P: Port>(machine: &mut Machine<P>) {
    let Some(measure) = machine.heap else { return };
    let rounds = if cfg!(miri) { 1 } else { 50 };
    let features = Features::QUEUE;
    let mut queue = machine.start(features);
    hostile_requests(machine, &mut queue);
    let growth = measure(&mut || {
        for _ in 0..rounds {
            hostile_requests(machine, &mut queue);
        }
    });
    assert!(growth.peak <= MOST_HEAP, "requests take {growth:?}");
    assert_eq!(growth.left, 0, "requests leave something");
    // Starting over, too, also with a ring that is broken each time.
    start_and_break(machine);
    let growth = measure(&mut || (0..rounds).for_each(|_| start_and_break(machine)));
    assert_eq!(growth.left, 0, "starts leave something");
}

/// What a driver may ask for that is far too much. Every request comes back.
fn hostile_requests<P: Port>(machine: &mut Machine<P>, queue: &mut Queue) {
    let write = VIRTQ_DESC_F_WRITE;
    for (addr, len, flags) in [
        (BUFFERS, u32::MAX, write),
        (BUFFERS, 0, write),
        (BUFFERS, 16, 0),
        (MEMORY_END - 8, 16, write),
        (TOO_MUCH, TOO_MUCH_LEN, write),
    ] {
        queue.descriptor(0, addr, len, flags, 0);
        machine.ask(queue, 0);
        machine.used(queue, 1);
    }
    ask_for_too_much(machine, queue);
    machine.notify();
    machine.used(queue, 1);
}

fn start_and_break<P: Port>(machine: &mut Machine<P>) {
    let mut queue = machine.start(Features::NONE);
    machine.ask_validly(&mut queue);
    machine.used(&mut queue, 1);
    machine.ask(&mut queue, 0xffff);
    machine.wait("DEVICE_NEEDS_RESET", |machine| machine.port.status() == 79);
}

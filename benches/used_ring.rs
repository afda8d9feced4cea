// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What it costs to give requests back one by one, and as groups.
//!
//! `cargo bench -p vmm-devices-benches --bench used_ring -- [--quick] [--write docs/used-ring.md]`
//!
//! Both ways complete the same requests of the same queue. Taking them is a case of its own before
//! each, so that the time of the others is that of the used ring alone.

#![expect(clippy::unwrap_used, reason = "a program for the people who change it")]

use std::sync::{Arc, Mutex};

use virtio_conformance::DriverQueue;
use virtio_device_core::{
    Chain, Features, Head, Rings, Virtqueue,
    transport::{QueueLayout, QueueSetup},
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_devices_benches::{Case, Report, Results, Table, interleave, pin, raise_priority};

type Memory = Arc<GuestMemoryMmap<()>>;

/// Large, so that a look at the clock counts for little. The second used ring takes a first-level cache.
const QUEUE_SIZES: [u16; 2] = [1024, 4096];
const GROUP: usize = 16;

/// A queue whose driver has always offered all of it.
struct Device {
    memory: Memory,
    setup: QueueSetup,
    queue: Virtqueue,
    chain: Chain,
    heads: Vec<Head>,
}

impl Device {
    fn new(size: u16) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let memory = Arc::new(memory);
        let mut driver = DriverQueue::new(&*memory, 0, size);
        (0..size).for_each(|index| driver.offer_writable(index, 0x8_0000, 64));
        let setup = *driver.setup();
        let layout = QueueLayout::check(&setup, size, &*memory).unwrap();
        Self {
            memory,
            setup,
            queue: Virtqueue::new(layout, Features::QUEUE),
            chain: Chain::with_capacity(size),
            heads: Vec::with_capacity(size.into()),
        }
    }

    /// Takes everything, and has the driver offer it again.
    fn take(&mut self) -> u64 {
        let rings = Rings::new(&*self.memory, self.queue.layout());
        while let Some(head) = self.queue.take(&rings, &mut self.chain).unwrap() {
            self.heads.push(head);
        }
        let size = self.queue.size();
        let index = self.queue.progress().next_avail.wrapping_add(size);
        let addr = GuestAddress(self.setup.avail_ring + 2);
        self.memory.write_obj(index.to_le(), addr).unwrap();
        assert_eq!(self.heads.len(), usize::from(size));
        self.heads.len() as u64
    }
}

type Complete = fn(&mut Device, &Memory, u64);

fn one_by_one(device: &mut Device, memory: &Memory, groups: u64) {
    let rings = Rings::new(&**memory, device.queue.layout());
    for _ in 0..groups {
        for head in device.heads.drain(device.heads.len() - GROUP..) {
            device.queue.complete(&rings, head, 64).unwrap();
        }
    }
}

fn as_groups(device: &mut Device, memory: &Memory, groups: u64) {
    let rings = Rings::new(&**memory, device.queue.layout());
    for _ in 0..groups {
        let group = device.heads.drain(device.heads.len() - GROUP..);
        let group = group.map(|head| (head, 64));
        device.queue.complete_all(&rings, group).unwrap();
    }
}

const CASES: [(&str, Complete); 2] = [("one by one", one_by_one), ("as groups of 16", as_groups)];

fn measure(size: u16, rounds: usize) -> Results {
    let device = Arc::new(Mutex::new(Device::new(size)));
    let mut cases = Vec::new();
    for (name, complete) in CASES {
        let taking = device.clone();
        let take = move |_| taking.lock().unwrap().take();
        cases.push(Case::new(&format!("take, then {name}"), take));
        let completing = device.clone();
        cases.push(Case::new(name, move |groups| {
            let device = &mut *completing.lock().unwrap();
            let memory = device.memory.clone();
            complete(device, &memory, groups);
            assert!(device.heads.is_empty());
            // Not what the queue has in flight: to list that takes longer than all of this.
            u64::from(device.queue.fault().is_none())
        }));
    }
    interleave(cases, rounds, u64::from(size) / GROUP as u64)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    pin(0);
    raise_priority();
    let mut report = Report::new(
        "Giving requests back",
        "used_ring",
        "A device completes all requests of a queue, of one descriptor each. Nanoseconds are for 16\n\
         requests, the ratio is the median over all rounds. The used ring of a queue of 4096 takes all\n\
         of a first-level cache, whose misses both ways have in common.",
    );
    let rounds = report.rounds(2000, 300);
    let [(single, _), (group, _)] = CASES;
    let mut table = Table::new(&["", "descriptors", "ns for 16", "ratio"]);
    let ratios = QUEUE_SIZES.map(|size| {
        let results = measure(size, rounds);
        for (name, _) in CASES {
            let nanoseconds = format!("{:.1}", results.median(name));
            let ratio = format!("{:.3}", results.ratio(name, single));
            table.row(&[name, &size.to_string(), &nanoseconds, &ratio]);
        }
        results.ratio(group, single)
    });
    report.say(table);
    for (size, ratio) in QUEUE_SIZES.into_iter().zip(ratios) {
        let name = format!("a group of 16 against 16 single ones, queue of {size}");
        report.target(&name, 0.6, ratio);
    }
    report.finish()
}

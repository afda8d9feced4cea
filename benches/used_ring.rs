// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What it costs to give requests back one by one, and as groups.
//!
//! `cargo bench -p vmm-devices-benches --bench used_ring -- [--quick] [--write docs/used-ring.md]`
//!
//! All cases complete the same requests of a queue of 4096 in the same guest memory. Taking them is
//! a case of its own before each, so that the time of the others is that of the used ring alone.

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

const QUEUE_SIZE: u16 = 4096;
const GROUP: usize = 16;
/// Groups in a sample: as many as the queue holds.
const GROUPS: u64 = QUEUE_SIZE as u64 / GROUP as u64;

/// A queue whose driver has always offered all of it.
struct Device {
    memory: Memory,
    setup: QueueSetup,
    queue: Virtqueue,
    chain: Chain,
    heads: Vec<Head>,
}

impl Device {
    fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let memory = Arc::new(memory);
        let mut driver = DriverQueue::new(&*memory, 0, QUEUE_SIZE);
        (0..QUEUE_SIZE).for_each(|index| driver.offer_writable(index, 0x8_0000, 64));
        let setup = *driver.setup();
        let layout = QueueLayout::check(&setup, QUEUE_SIZE, &*memory).unwrap();
        Self {
            memory,
            setup,
            queue: Virtqueue::new(layout, Features::QUEUE),
            chain: Chain::with_capacity(QUEUE_SIZE),
            heads: Vec::with_capacity(QUEUE_SIZE.into()),
        }
    }

    /// Takes everything, and has the driver offer it again.
    fn take(&mut self) -> u64 {
        let rings = Rings::new(&*self.memory, self.queue.layout());
        while let Some(head) = self.queue.take(&rings, &mut self.chain).unwrap() {
            self.heads.push(head);
        }
        let index = self.queue.progress().next_avail.wrapping_add(QUEUE_SIZE);
        let addr = GuestAddress(self.setup.avail_ring + 2);
        self.memory.write_obj(index.to_le(), addr).unwrap();
        assert_eq!(self.heads.len(), usize::from(QUEUE_SIZE));
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

fn measure(rounds: usize) -> Results {
    let device = Arc::new(Mutex::new(Device::new()));
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
    interleave(cases, rounds, GROUPS)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    pin(0);
    raise_priority();
    let mut report = Report::new(
        "Giving requests back",
        "used_ring",
        "A device completes 4096 requests of one descriptor each. Nanoseconds are for 16 requests, the\n\
         ratio is the median over all rounds.",
    );
    let results = measure(report.rounds(2000, 300));
    let [(single, _), (group, _)] = CASES;
    let ratio = results.ratio(group, single);
    let mut table = Table::new(&["", "ns for 16", "ratio"]);
    for (name, _) in CASES {
        let ratio = format!("{:.3}", results.ratio(name, single));
        table.row(&[name, &format!("{:.1}", results.median(name)), &ratio]);
    }
    report.say(table);
    report.target("a group of 16 against 16 single ones", 0.6, ratio);
    report.finish()
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether the workers of two queues are in each other's way when both interrupt their driver.
//!
//! `cargo bench -p vmm-devices-benches --bench queue_interrupts -- [--quick] [--write docs/queue-interrupts.md]`
//!
//! The device is behind virtio-mmio, with a line that has an event fd and costs nothing: with a real one
//! the kernel's own lock would be all that is seen. The driver has not acknowledged the last interrupt,
//! as it is when workers are faster than their driver.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a program for the people who change it"
)]

use std::hint::black_box;
use std::sync::{Arc, Mutex};

use bus::BusDevice;
use virtio_conformance::DriverQueue;
use virtio_device_core::{
    Activation, ActiveQueue, DeviceFault, InterruptLine, VirtioDevice,
    vmm_sys_util::eventfd::EventFd,
};
use virtio_mmio_transport::MmioTransport;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_devices_benches::{Case, Report, Table, Work, interleave, pin, raise_priority};

type Memory = Arc<GuestMemoryMmap<()>>;
type Lent = Arc<Mutex<Vec<ActiveQueue>>>;

const QUEUES: usize = 2;

/// A line that any number of threads may raise at once.
struct Wire(EventFd);

impl InterruptLine for Wire {
    fn trigger(&self) -> std::io::Result<()> {
        black_box(());
        Ok(())
    }

    fn event_fd(&self) -> Option<&EventFd> {
        Some(&self.0)
    }
}

struct Device(Lent);

impl VirtioDevice<Memory> for Device {
    fn device_type(&self) -> u32 {
        4
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[16; QUEUES]
    }

    fn activate(&mut self, activation: Activation<Memory>) -> Result<(), DeviceFault> {
        *self.0.lock().unwrap() = activation.queues;
        Ok(())
    }
}

/// A live transport, and the queues that its device was lent.
fn live() -> (MmioTransport<Memory, Device>, Vec<ActiveQueue>) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let (memory, lent): (Memory, Lent) = (Arc::new(memory), Arc::default());
    let line = Wire(EventFd::new(0).unwrap());
    let mut transport = MmioTransport::new(Device(lent.clone()), memory.clone(), line).unwrap();
    let mut write = |offset, value: u32| transport.write(offset, &value.to_le_bytes()).unwrap();
    for (offset, value) in [(0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)] {
        write(offset, value);
    }
    for queue in [0, 1] {
        let base = 0x4000 * (1 + u64::from(queue));
        let setup = *DriverQueue::new(&*memory, base, 16).setup();
        write(0x30, queue);
        write(0x38, 16);
        let parts = [setup.desc_table, setup.avail_ring, setup.used_ring];
        for (offset, address) in [0x80, 0x90, 0xa0].into_iter().zip(parts) {
            write(offset, u32::try_from(address).unwrap());
        }
        write(0x44, 1);
    }
    write(0x70, 15);
    let queues = std::mem::take(&mut *lent.lock().unwrap());
    assert_eq!(queues.len(), QUEUES);
    (transport, queues)
}

/// Interrupts of each of `queues`, by a thread each.
fn interrupts(name: &str, queues: &[ActiveQueue]) -> Case {
    let work = |queue: &ActiveQueue| -> Work {
        let queue = queue.clone();
        Box::new(move |count| {
            (0..count).for_each(|_| queue.signal_used());
            count
        })
    };
    Case::threads(name, queues.iter().map(work).collect())
}

const ONE: &str = "one queue";
const TWO: &str = "two queues at once";
const SAME: &str = "*one queue, by two threads*";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    pin(0);
    raise_priority();
    let mut report = Report::new(
        "Interrupts of two queues",
        "queue_interrupts",
        "Nanoseconds for an interrupt, on average over the threads. Two threads that interrupt for the\n\
         same queue show what it would be to share a lock.",
    );
    let (transport, queues) = live();
    let cases = vec![
        interrupts(ONE, queues.get(..1).unwrap()),
        interrupts(TWO, &queues),
        interrupts(SAME, &[queues[0].clone(), queues[0].clone()]),
    ];
    let results = interleave(cases, report.rounds(400, 100), 50_000);
    drop(transport);
    let mut table = Table::new(&["", "ns", "ratio"]);
    for name in results.names() {
        let ratio = format!("{:.2}", results.ratio(name, ONE));
        table.row(&[
            name.as_str(),
            &format!("{:.1}", results.median(name)),
            &ratio,
        ]);
    }
    report.say(table);
    let ratio = results.ratio(TWO, ONE);
    report.target("two queues at once against one", 1.2, ratio);
    report.finish()
}

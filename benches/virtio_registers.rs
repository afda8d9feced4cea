// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How long a vCPU takes to read a register of virtio-mmio, with the device's worker at rest and at
//! work.
//!
//! `cargo bench -p vmm-devices-benches --bench virtio_registers -- [--quick]`
//!
//! The worker at work holds the queue's lock nearly all the time: a register read that took it, too,
//! would be slower by orders of magnitude. All cases are ratios to a call of a device that has
//! nothing but one register.

#![expect(clippy::unwrap_used, reason = "a program for the people who change it")]

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use bus::{AccessError, BusDevice};
use virtio_conformance::DriverQueue;
use virtio_device_core::{Activation, DeviceFault, Lease, VirtioDevice, edge_line};
use virtio_mmio_transport::MmioTransport;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_devices_benches::{Case, Table, interleave, pin, raise_priority};

type Memory = Arc<GuestMemoryMmap<()>>;

/// One register, always 0, although the compiler cannot know.
struct Bare(u32);

impl BusDevice for Bare {
    fn read(&mut self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        if let Some(data) = data.first_chunk_mut() {
            *data = self.0.to_le_bytes();
        }
        Ok(())
    }
}

/// What the device was given, for the thread that plays its worker.
type Lent = Arc<Mutex<Option<Activation<Memory>>>>;

struct Device(Lent);

impl VirtioDevice<Memory> for Device {
    fn device_type(&self) -> u32 {
        4
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[256]
    }

    fn activate(&mut self, activation: Activation<Memory>) -> Result<(), DeviceFault> {
        *self.0.lock().unwrap() = Some(activation);
        Ok(())
    }
}

/// A live transport, and what its device was lent.
fn live() -> (MmioTransport<Memory, Device>, Lent) {
    let memory: Memory =
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
    let lent = Lent::default();
    let device = Device(lent.clone());
    let mut transport = MmioTransport::new(device, memory.clone(), edge_line(|| Ok(()))).unwrap();
    let setup = *DriverQueue::new(&*memory, 0x1000, 256).setup();
    let half = |address: u64| u32::try_from(address).unwrap();
    for (offset, value) in [
        (0x70, 1),
        (0x70, 3),
        (0x24, 1),
        (0x20, 1),
        (0x70, 11),
        (0x38, 256),
        (0x80, half(setup.desc_table)),
        (0x90, half(setup.avail_ring)),
        (0xa0, half(setup.used_ring)),
        (0x44, 1),
        (0x70, 15),
    ] {
        transport.write(offset, &u32::to_le_bytes(value)).unwrap();
    }
    let mut status = [0; 4];
    transport.read(0x70, &mut status).unwrap();
    assert_eq!(u32::from_le_bytes(status), 15);
    (transport, lent)
}

/// Reads of `offset`, each of which depends on the one before, as those of a vCPU do.
fn reads(name: &str, mut device: Box<dyn BusDevice>, offset: u64) -> Case {
    Case::new(name, move |count| {
        let mut last = 0u64;
        for _ in 0..count {
            let mut data = [0; 4];
            // The value is at most 15, so that the offset stays; the processor cannot know.
            let at = offset + (last >> 32);
            device.read(black_box(at), &mut data).unwrap();
            last = u32::from_le_bytes(data).into();
        }
        last
    })
}

const BARE: &str = "bare device";

/// Runs all cases, with workers at work or not; returns the table's columns.
fn run(busy: bool, rounds: usize) -> Vec<(String, f64, f64)> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut workers = Vec::new();
    let mut cases = vec![reads(BARE, Box::new(Bare(black_box(0))), 0)];
    for (name, offset) in [
        ("MagicValue", 0x00),
        ("QueueReady", 0x44),
        ("InterruptStatus", 0x60),
        ("Status", 0x70),
        ("ConfigGeneration", 0xfc),
    ] {
        let (transport, lent) = live();
        cases.push(reads(name, Box::new(transport), offset));
        let queue = lent
            .lock()
            .unwrap()
            .as_ref()
            .unwrap()
            .queues
            .first()
            .unwrap()
            .lease
            .clone();
        let stop = stop.clone();
        if busy {
            workers.push((queue, stop));
        }
    }
    // One thread holds the locks of all queues, in turn, for far longer than a read takes.
    let worker = thread::spawn(move || {
        pin(1);
        while let Some((_, stop)) = workers.first() {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            hold(&workers);
        }
    });
    pin(0);
    let results = interleave(cases, rounds, 20_000);
    stop.store(true, Ordering::Relaxed);
    worker.join().unwrap();
    let row = |name: &String| {
        (
            name.clone(),
            results.ratio(name, BARE),
            results.median(name),
        )
    };
    results.names().iter().map(row).collect()
}

/// Holds all the locks at once.
fn hold(queues: &[(Lease, Arc<AtomicBool>)]) {
    match queues.split_first() {
        Some(((queue, _), rest)) => {
            let _ = queue.with(|_| hold(rest));
        }
        None => thread::sleep(std::time::Duration::from_millis(1)),
    }
}

fn main() {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let rounds = if quick { 11 } else { 61 };
    raise_priority();
    let (idle, busy) = (run(false, rounds), run(true, rounds));
    let mut table = Table::new(&[
        "read of",
        "x bare, worker at rest",
        "x bare, worker holds the lock",
        "ns",
    ]);
    for ((name, idle, ns), (_, busy, _)) in idle.iter().zip(&busy) {
        table.row(&[
            name,
            &format!("{idle:.2}"),
            &format!("{busy:.2}"),
            &format!("{ns:.1}"),
        ]);
    }
    println!("{table}");
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Resets, pauses and hot-plugs, very often: nothing of them stays. By itself in a file, so that the
//! process does nothing else meanwhile. `SOAK` sets how many; assurance/soak has it do ten thousand.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

use std::fs;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bus::{MmioBus, MmioView};
use virtio_conformance::{DriverQueue, MmioPort, Port, reg};
use virtio_device_core::{Features, WorkerThread, edge_line};
use virtio_mmio_transport::{MmioTransport, REGION_SIZE};
use virtio_rng_device::EntropyDevice;
use vm_memory::{GuestAddress, GuestMemoryMmap};

type Memory = Arc<GuestMemoryMmap<()>>;
type Transport = MmioTransport<Memory, EntropyDevice<io::Repeat, WorkerThread>>;
type Registers = MmioPort<MmioView>;

const BASE: u64 = 0x8000_0000;
const BUFFER: u64 = 0x8000;
const SOON: Duration = Duration::from_secs(60);

/// What a process has of its host.
#[derive(Clone, Copy, Debug)]
struct Use {
    descriptors: usize,
    threads: usize,
    /// Memory of its own, in KiB.
    memory: u64,
}

impl Use {
    fn now() -> Self {
        let count = |folder| fs::read_dir(folder).unwrap().count();
        // First: a thread that is there no more has closed what it had, one that ends now may not have.
        let threads = count("/proc/self/task");
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let anonymous = status.lines().find_map(|it| it.strip_prefix("RssAnon:"));
        let kib = anonymous.unwrap().trim().strip_suffix(" kB").unwrap();
        Self {
            descriptors: count("/proc/self/fd"),
            threads,
            memory: kib.parse().unwrap(),
        }
    }

    /// Waits for threads that were told to end, and is what there is then.
    fn at_rest(threads: usize) -> Self {
        let deadline = Instant::now() + SOON;
        loop {
            let now = Self::now();
            if now.threads <= threads || Instant::now() >= deadline {
                return now;
            }
            std::thread::yield_now();
        }
    }
}

fn registers(bus: &MmioBus) -> Registers {
    MmioPort::new(
        bus.view(),
        |view, offset, data| view.read(BASE + offset, data).unwrap(),
        |view, offset, data| view.write(BASE + offset, data).unwrap(),
    )
}

/// Resets the device and starts it.
fn start<'m>(port: &mut Registers, memory: &'m Memory) -> DriverQueue<'m, GuestMemoryMmap<()>> {
    assert!(port.negotiate(Features::NONE));
    // Not before: until the reset is complete, the rings of the last driver are the device's to write to.
    let queue = DriverQueue::new(&**memory, 0x1000, 8);
    assert!(port.enable(0, queue.setup()));
    port.set_driver_ok();
    queue
}

/// Makes a request, and waits until it has come back.
fn request(port: &mut Registers, queue: &mut DriverQueue<'_, GuestMemoryMmap<()>>) {
    queue.offer_writable(0, BUFFER, 64);
    port.set(reg::QUEUE_NOTIFY, 0);
    served(queue);
}

fn served(queue: &mut DriverQueue<'_, GuestMemoryMmap<()>>) {
    let deadline = Instant::now() + SOON;
    loop {
        match queue.take_used().as_slice() {
            [] => assert!(Instant::now() < deadline, "the request is not served"),
            used => return assert_eq!(used, [(0, 64)]),
        }
        std::thread::yield_now();
    }
}

/// A device is plugged in, serves a request, is reset in the middle of the next, serves one that was
/// made during a pause, and is unplugged while it is live.
fn round(bus: &MmioBus, memory: &Memory) {
    let worker = WorkerThread::named("soak").unwrap();
    let device = EntropyDevice::new(io::repeat(7), worker);
    let transport = MmioTransport::new(device, memory.clone(), edge_line(|| Ok(()))).unwrap();
    let transport: Arc<Mutex<Transport>> = Arc::new(Mutex::new(transport));
    let id = bus.insert(transport.clone(), BASE, REGION_SIZE).unwrap();
    let mut port = registers(bus);

    let mut queue = start(&mut port, memory);
    request(&mut port, &mut queue);
    queue.offer_writable(0, BUFFER, 64);
    port.set(reg::QUEUE_NOTIFY, 0);

    let mut queue = start(&mut port, memory);
    transport.lock().unwrap().pause().unwrap();
    queue.offer_writable(0, BUFFER, 64);
    port.set(reg::QUEUE_NOTIFY, 0);
    assert!(queue.take_used().is_empty(), "paused");
    transport.lock().unwrap().resume();
    served(&mut queue);
    drop(bus.remove(id).unwrap());
}

#[test]
fn resets_pauses_and_hot_plugs_leave_nothing_behind() {
    let rounds = std::env::var("SOAK").map_or(300, |rounds| rounds.parse().unwrap());
    let memory: Memory =
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap());
    let bus = MmioBus::new();
    let threads = Use::now().threads;
    // What the allocator and the standard library keep comes first.
    (0..100).for_each(|_| round(&bus, &memory));
    let before = Use::at_rest(threads);
    (0..rounds).for_each(|_| round(&bus, &memory));
    let after = Use::at_rest(threads);
    println!("{rounds} rounds: {before:?} before, {after:?} after");
    assert_eq!(after.descriptors, before.descriptors);
    assert_eq!(after.threads, before.threads);
    // A page a round would be 40 MiB in ten thousand.
    let grown = after.memory.saturating_sub(before.memory);
    assert!(grown <= 1024, "{grown} KiB more");
}

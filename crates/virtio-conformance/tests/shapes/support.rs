// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver for devices of any shape, and the ordeal that each of them goes through.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bus::BusDevice;
use virtio_conformance::{DriverQueue, reg};
use virtio_device_core::{
    Activation, DeviceFault, Observer, VirtioDevice, WorkerThread, edge_line,
    transport::DEVICE_NEEDS_RESET,
};
use virtio_mmio_transport::{MmioTransport, TransportState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub(crate) type Memory = Arc<GuestMemoryMmap<()>>;
pub(crate) type Transport<D> = MmioTransport<Memory, D>;
pub(crate) type Queue = DriverQueue<'static, GuestMemoryMmap<()>>;

/// Far beyond what a healthy device takes on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// How long a device is given to do what it must not do.
const A_WHILE: Duration = Duration::from_millis(5);
const MEMORY: usize = 0x4_0000;
pub(crate) const QUEUE_SIZE: u16 = 8;

/// A thread for a device's workers.
pub(crate) fn thread() -> WorkerThread {
    WorkerThread::named("shape").unwrap()
}

/// Where queue `index` has its buffers.
pub(crate) const fn buffers(index: usize) -> u64 {
    0x2_0000 + 0x4000 * index as u64
}

pub(crate) fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// A device behind registers, and its driver.
pub(crate) struct Guest<D: VirtioDevice<Memory>> {
    pub(crate) memory: Memory,
    pub(crate) transport: Transport<D>,
    pub(crate) queues: Vec<Queue>,
    pub(crate) interrupts: Arc<AtomicU32>,
}

impl<D: VirtioDevice<Memory>> Guest<D> {
    pub(crate) fn new(device: D) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        Self::in_memory(Arc::new(memory), device)
    }

    fn in_memory(memory: Memory, device: D) -> Self {
        let interrupts = Arc::new(AtomicU32::new(0));
        let raised = interrupts.clone();
        let line = edge_line(move || {
            raised.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        Self {
            transport: MmioTransport::new(device, memory.clone(), line).unwrap(),
            memory,
            queues: Vec::new(),
            interrupts,
        }
    }

    /// Sets how long a reset waits for I/O in flight.
    pub(crate) fn bound(mut self, bound: Duration) -> Self {
        self.transport = self.transport.with_reset_bound(bound);
        self
    }

    /// Has `observer` told of events.
    pub(crate) fn observed(mut self, observer: impl Observer + 'static) -> Self {
        self.transport = self.transport.with_observer(observer);
        self
    }

    pub(crate) fn get(&mut self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.transport.read(offset, &mut word).unwrap();
        u32::from_le_bytes(word)
    }

    pub(crate) fn set(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes()).unwrap();
    }

    pub(crate) fn status(&mut self) -> u32 {
        self.get(reg::STATUS)
    }

    /// Writes 0 to the status and polls until it reads 0 (section 2.4.2).
    pub(crate) fn reset(&mut self) {
        self.set(reg::STATUS, 0);
        wait("reset", || self.get(reg::STATUS) == 0);
        self.queues.clear();
    }

    /// Goes up to `DRIVER_OK` with all features and queues that there are; returns the status.
    pub(crate) fn try_start(&mut self) -> u32 {
        for status in [0, 1, 3] {
            self.set(reg::STATUS, status);
        }
        for word in 0..4 {
            self.set(reg::DEVICE_FEATURES_SEL, word);
            let offered = self.get(reg::DEVICE_FEATURES);
            self.set(reg::DRIVER_FEATURES_SEL, word);
            self.set(reg::DRIVER_FEATURES, offered);
        }
        self.set(reg::STATUS, 11);
        assert_eq!(self.status(), 11);
        self.queues.clear();
        for index in 0.. {
            self.set(reg::QUEUE_SEL, index);
            if self.get(reg::QUEUE_SIZE_MAX) == 0 {
                break;
            }
            let queue = self.enable(index);
            self.queues.push(queue);
        }
        self.set(reg::STATUS, 15);
        self.status()
    }

    pub(crate) fn start(&mut self) {
        assert_eq!(self.try_start(), 15, "the device does not start");
    }

    fn enable(&mut self, index: u32) -> Queue {
        // The driver's memory lives as long as the process.
        let memory: &'static Memory = Box::leak(Box::new(self.memory.clone()));
        let base = 0x1000 * (u64::from(index) + 1);
        let queue = DriverQueue::new(&**memory, base, QUEUE_SIZE);
        let setup = *queue.setup();
        self.set(reg::QUEUE_SEL, index);
        self.set(reg::QUEUE_SIZE, setup.size);
        let parts = [setup.desc_table, setup.avail_ring, setup.used_ring];
        for (offset, address) in (reg::QUEUE_DESC_LOW..).step_by(16).zip(parts) {
            self.set(offset, u32::try_from(address).unwrap());
            self.set(offset + 4, 0);
        }
        self.set(reg::QUEUE_READY, 1);
        assert_eq!(
            self.get(reg::QUEUE_READY),
            1,
            "queue {index} is not enabled"
        );
        queue
    }

    /// Resets one queue, and enables it again.
    pub(crate) fn restart_queue(&mut self, index: usize) {
        self.set(reg::QUEUE_SEL, u32::try_from(index).unwrap());
        self.set(reg::QUEUE_RESET, 1);
        wait("queue reset", || self.get(reg::QUEUE_RESET) == 0);
        self.queue_settled(index);
        self.queues[index] = self.enable(u32::try_from(index).unwrap());
    }

    /// Offers one device-writable buffer of `len` bytes, and notifies.
    pub(crate) fn offer_writable(&mut self, queue: usize, head: u16, len: u32) {
        let addr = buffers(queue) + 0x200 * u64::from(head);
        self.ask_for_interrupt(queue);
        self.queues[queue].offer_writable(head, addr, len);
        self.notify(queue);
    }

    /// Offers one device-readable buffer that holds `bytes`, and notifies.
    pub(crate) fn offer_readable(&mut self, queue: usize, head: u16, bytes: &[u8]) {
        let addr = buffers(queue) + 0x200 * u64::from(head);
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
        let len = u32::try_from(bytes.len()).unwrap();
        self.ask_for_interrupt(queue);
        self.queues[queue].descriptor(head, addr, len, 0, 0);
        self.queues[queue].offer(head);
        self.notify(queue);
    }

    /// Has the next used element raise an interrupt (`VIRTIO_F_EVENT_IDX`).
    pub(crate) fn ask_for_interrupt(&self, queue: usize) {
        let queue = &self.queues[queue];
        queue.set_used_event(queue.used_index());
    }

    pub(crate) fn notify(&mut self, queue: usize) {
        self.set(reg::QUEUE_NOTIFY, u32::try_from(queue).unwrap());
    }

    /// What is in the buffer of `head`.
    pub(crate) fn bytes(&self, queue: usize, head: u16, len: u32) -> Vec<u8> {
        let addr = buffers(queue) + 0x200 * u64::from(head);
        let mut bytes = vec![0; len as usize];
        let read = self.memory.read_slice(&mut bytes, GuestAddress(addr));
        read.unwrap();
        bytes
    }

    /// Waits for `count` used elements of a queue, in the order in which they came.
    pub(crate) fn used(&mut self, queue: usize, count: usize) -> Vec<(u32, u32)> {
        let mut used = Vec::new();
        wait("used buffers", || {
            used.extend(self.queues[queue].take_used());
            used.len() >= count
        });
        assert_eq!(used.len(), count, "a request came back twice");
        used
    }

    fn image(&self) -> Vec<u8> {
        let mut image = vec![0; MEMORY];
        self.memory.read_slice(&mut image, GuestAddress(0)).unwrap();
        image
    }

    /// Checks that nothing touches the rings and the buffers of one queue.
    fn queue_settled(&self, index: usize) {
        let parts = || {
            let image = self.image();
            let (ring, buffers) = (0x1000 * (index + 1), buffers(index) as usize);
            let parts = [ring..ring + 0x1000, buffers..buffers + 0x4000];
            parts.map(|part| image[part].to_vec())
        };
        let before = parts();
        std::thread::sleep(A_WHILE);
        assert!(
            before == parts(),
            "somebody is still at work on queue {index}"
        );
    }

    /// Checks that nothing touches guest memory, and nobody interrupts.
    pub(crate) fn settled(&self) {
        let before = (self.image(), self.interrupts.load(Ordering::SeqCst));
        std::thread::sleep(A_WHILE);
        let after = (self.image(), self.interrupts.load(Ordering::SeqCst));
        assert!(before == after, "somebody is still at work");
    }
}

/// A device of one shape, with its host, and an exchange that it can have with its driver.
pub(crate) trait Shape {
    type Device: VirtioDevice<Memory>;

    /// A fresh device for the same host.
    fn device(&mut self) -> Self::Device;

    /// The driver, or the host, begins an exchange.
    fn begin(&mut self, guest: &mut Guest<Self::Device>);

    /// The exchange comes to its end, as begun.
    fn finish(&mut self, guest: &mut Guest<Self::Device>);

    /// The driver has lost interest in an exchange that it has begun: clears away what the host has
    /// left of it.
    fn abandon(&mut self) {}

    /// Whether the device itself looks at queue `index` when it is notified, and so finds a broken
    /// ring.
    fn looks_at(&self, index: usize) -> bool {
        let _ = index;
        true
    }
}

/// What every shape goes through: exchanges before and after reset, reset of each queue, pause, save
/// and restore, drop, and a driver that breaks its rings.
pub(crate) fn ordeal<S: Shape>(mut shape: S) {
    let mut guest = Guest::new(shape.device());
    guest.start();
    exchange(&mut shape, &mut guest);

    // Reset, with an exchange on its way; and once more, at rest.
    shape.begin(&mut guest);
    guest.reset();
    guest.settled();
    shape.abandon();
    for _ in 0..3 {
        guest.start();
        exchange(&mut shape, &mut guest);
        guest.reset();
    }

    // One queue is reset and comes back, the others as they were.
    guest.start();
    for index in 0..guest.queues.len() {
        exchange(&mut shape, &mut guest);
        guest.restart_queue(index);
    }
    exchange(&mut shape, &mut guest);

    // A pause holds everything back and loses nothing.
    guest.transport.pause().unwrap();
    shape.begin(&mut guest);
    guest.settled();
    guest.transport.resume();
    shape.finish(&mut guest);

    // So does a move to another process, as it were, in the middle of an exchange.
    guest.transport.pause().unwrap();
    shape.begin(&mut guest);
    let state: TransportState = guest.transport.save().unwrap();
    let mut moved = Guest::in_memory(guest.memory.clone(), shape.device());
    moved.queues = std::mem::take(&mut guest.queues);
    drop(guest);
    moved.transport.restore(&state).unwrap();
    shape.finish(&mut moved);
    exchange(&mut shape, &mut moved);

    // A driver that breaks its rings gets nowhere, and everything back after a reset.
    for index in 0..moved.queues.len() {
        moved.queues[index].set_avail_index(0x8000);
        moved.notify(index);
        if shape.looks_at(index) {
            let broken = u32::from(DEVICE_NEEDS_RESET);
            wait("DEVICE_NEEDS_RESET", || moved.status() & broken != 0);
        }
        moved.reset();
        moved.settled();
        moved.start();
        exchange(&mut shape, &mut moved);
    }

    // A device that is gone leaves memory alone.
    shape.begin(&mut moved);
    let (memory, interrupts) = (moved.memory.clone(), moved.interrupts.clone());
    drop(moved);
    let rest = Guest {
        memory,
        interrupts,
        ..Guest::new(shape.device())
    };
    rest.settled();
}

pub(crate) fn exchange<S: Shape>(shape: &mut S, guest: &mut Guest<S::Device>) {
    let before = guest.interrupts.load(Ordering::SeqCst);
    shape.begin(guest);
    shape.finish(guest);
    let interrupts = guest.interrupts.clone();
    wait("an interrupt", || {
        interrupts.load(Ordering::SeqCst) != before
    });
}

/// A device without features or configuration, of any number of queues: what it does when it is
/// activated is all that it is.
pub(crate) struct Plain<F> {
    pub(crate) queues: &'static [u16],
    pub(crate) activate: F,
}

impl<F> VirtioDevice<Memory> for Plain<F>
where
    F: FnMut(Activation<Memory>) -> Result<(), DeviceFault> + Send,
{
    fn device_type(&self) -> u32 {
        42
    }

    fn queue_max_sizes(&self) -> &[u16] {
        self.queues
    }

    fn activate(&mut self, activation: Activation<Memory>) -> Result<(), DeviceFault> {
        (self.activate)(activation)
    }
}

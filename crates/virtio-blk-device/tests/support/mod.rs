// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver of a disk behind registers, which writes whatever it is told to.
#![allow(
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "each test uses a part of it, and stops at the unexpected"
)]

mod memory_disk;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bus::BusDevice;
use virtio_blk_device::{Backend, Block};
use virtio_conformance::{DriverQueue, EventCounters, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, reg};
use virtio_device_core::{Executor, LoopHandle, StepLoop, edge_line};
use virtio_mmio_transport::{MmioTransport, TransportState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub use memory_disk::MemoryDisk;

pub type Memory = Arc<GuestMemoryMmap<()>>;
pub type Queue = DriverQueue<'static, GuestMemoryMmap<()>>;

/// Far beyond what a healthy device takes on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);
pub const QUEUE_SIZE: u16 = 256;
pub const MEMORY: u64 = 0x40_0000;
/// Where buffers are; each has as much room as it asks for.
pub const BUFFERS: u64 = 0x10_0000;

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;

pub const RO: u32 = 5;
pub const WCE: u32 = 11;

/// What device-writable memory holds before it is written.
pub const CANARY: u8 = 0xa5;

/// A buffer of a request.
#[derive(Clone, Debug)]
pub enum Buf {
    /// For the device to read.
    R(Vec<u8>),
    /// For the device to write: so many bytes.
    W(u32),
    /// Anywhere: address, length, whether it is writable.
    At(u64, u32, bool),
}

pub fn header(kind: u32, sector: u64) -> Buf {
    let words = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()];
    Buf::R(words.concat())
}

/// A range to discard or to zero.
pub fn segment(sector: u64, count: u32, flags: u32) -> Buf {
    let words = [
        &sector.to_le_bytes()[..],
        &count.to_le_bytes(),
        &flags.to_le_bytes(),
    ];
    Buf::R(words.concat())
}

pub fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..=250u8).cycle().skip(seed.into()).take(len).collect()
}

/// How a request came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The used length.
    pub len: u32,
    /// The device-writable bytes, one buffer after the other.
    pub bytes: Vec<u8>,
}

impl Answer {
    /// The last device-writable byte.
    pub fn status(&self) -> u8 {
        *self.bytes.last().unwrap()
    }

    /// What is before it.
    pub fn data(&self) -> &[u8] {
        self.bytes.split_last().unwrap().1
    }
}

/// A chain that the device has.
#[derive(Clone, Debug)]
pub struct Offered {
    pub head: u16,
    writable: Vec<(u64, u32)>,
}

/// A disk, and its driver.
pub struct Guest<E: Executor + 'static = LoopHandle> {
    pub memory: Memory,
    pub transport: MmioTransport<Memory, Block<E>>,
    /// Where the device works, unless on a thread of its own.
    pub workers: Option<StepLoop>,
    pub queues: Vec<Queue>,
    pub events: Arc<EventCounters>,
    pub interrupts: Arc<AtomicU32>,
    next: u64,
    next_head: u16,
}

pub fn memory() -> Memory {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap())
}

impl Guest {
    /// A started driver of a disk that works step by step.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self::of(backend, |device| device)
    }

    pub fn of(
        backend: Arc<dyn Backend>,
        with: impl FnOnce(Block<LoopHandle>) -> Block<LoopHandle>,
    ) -> Self {
        let workers = StepLoop::new().unwrap();
        let device = with(Block::new(backend, workers.handle()).unwrap());
        let mut guest = Guest::in_memory(memory(), device);
        guest.workers = Some(workers);
        guest.start(u64::MAX);
        guest
    }
}

impl<E: Executor + 'static> Guest<E> {
    pub fn in_memory(memory: Memory, device: Block<E>) -> Self {
        let events = Arc::new(EventCounters::default());
        let interrupts = Arc::new(AtomicU32::new(0));
        let raised = interrupts.clone();
        let line = edge_line(move || {
            raised.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        let transport = MmioTransport::new(device, memory.clone(), line).unwrap();
        Self {
            transport: transport.with_observer(events.clone()),
            memory,
            workers: None,
            queues: Vec::new(),
            events,
            interrupts,
            next: BUFFERS,
            next_head: 0,
        }
    }

    pub fn get(&mut self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.transport.read(offset, &mut word).unwrap();
        u32::from_le_bytes(word)
    }

    pub fn set(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes()).unwrap();
    }

    pub fn status(&mut self) -> u32 {
        self.get(reg::STATUS)
    }

    pub fn config<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        for (at, byte) in (offset..).zip(bytes.chunks_mut(1)) {
            self.transport.read(reg::CONFIG + at, byte).unwrap();
        }
        bytes
    }

    pub fn capacity(&mut self) -> u64 {
        u64::from_le_bytes(self.config(0))
    }

    /// The first 64 feature bits that the device offers.
    pub fn offered(&mut self) -> u64 {
        let words = [0, 1].map(|word| {
            self.set(reg::DEVICE_FEATURES_SEL, word);
            u64::from(self.get(reg::DEVICE_FEATURES))
        });
        words[0] | words[1] << 32
    }

    /// Up to `FEATURES_OK`, with those of `features` that are offered.
    pub fn negotiate(&mut self, features: u64) {
        for status in [0, 1, 3] {
            self.set(reg::STATUS, status);
        }
        let features = self.offered() & features | 1 << 32;
        for (word, bits) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.set(reg::DRIVER_FEATURES_SEL, word);
            self.set(reg::DRIVER_FEATURES, bits);
        }
        self.set(reg::STATUS, 11);
        assert_eq!(self.status(), 11);
    }

    /// Up to `DRIVER_OK`, with all queues.
    pub fn start(&mut self, features: u64) {
        self.negotiate(features);
        self.drive();
    }

    pub fn drive(&mut self) {
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
        assert_eq!(self.status(), 15);
    }

    fn enable(&mut self, index: u32) -> Queue {
        // The driver's memory lives as long as the process.
        let memory: &'static Memory = Box::leak(Box::new(self.memory.clone()));
        let base = 0x4000 * (u64::from(index) + 1);
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

    /// Resets one queue; says whether that is complete.
    pub fn reset_queue(&mut self, index: usize) -> bool {
        self.set(reg::QUEUE_SEL, u32::try_from(index).unwrap());
        self.set(reg::QUEUE_RESET, 1);
        self.get(reg::QUEUE_RESET) == 0
    }

    pub fn restart_queue(&mut self, index: usize) {
        self.queues[index] = self.enable(u32::try_from(index).unwrap());
    }

    /// Makes a chain available, without telling the device.
    pub fn put(&mut self, queue: usize, buffers: &[Buf]) -> Offered {
        let head = self.next_head;
        let mut writable = Vec::new();
        for (at, buffer) in buffers.iter().enumerate() {
            let index = self.next_head;
            self.next_head = (index + 1) % QUEUE_SIZE;
            let (addr, len, write) = match buffer {
                Buf::R(bytes) => {
                    let addr = self.room(bytes.len() as u64);
                    self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
                    (addr, bytes.len() as u32, false)
                }
                Buf::W(len) => {
                    let addr = self.room((*len).into());
                    let canary = vec![CANARY; *len as usize];
                    self.memory
                        .write_slice(&canary, GuestAddress(addr))
                        .unwrap();
                    writable.push((addr, *len));
                    (addr, *len, true)
                }
                Buf::At(addr, len, write) => (*addr, *len, *write),
            };
            let more = if at + 1 < buffers.len() {
                VIRTQ_DESC_F_NEXT
            } else {
                0
            };
            let flags = more | if write { VIRTQ_DESC_F_WRITE } else { 0 };
            self.queues[queue].descriptor(index, addr, len, flags, self.next_head);
        }
        self.queues[queue].offer(head);
        Offered { head, writable }
    }

    /// Room for a buffer, used again when it has all been used.
    fn room(&mut self, len: u64) -> u64 {
        // A byte between two of them belongs to neither.
        if self.next + len + 1 > MEMORY {
            self.next = BUFFERS;
        }
        let addr = self.next;
        self.next += len + 1;
        addr
    }

    pub fn notify(&mut self, queue: usize) {
        self.queues[queue].set_used_event(self.queues[queue].used_index());
        self.set(reg::QUEUE_NOTIFY, u32::try_from(queue).unwrap());
    }

    /// Lets a device that works step by step work.
    pub fn work(&mut self) {
        if let Some(workers) = &mut self.workers {
            // Each time is over that somebody waits for, so that this need not end by itself.
            let _ = (0..4).all(|_| workers.step());
        }
    }

    /// Waits for `count` used elements of a queue.
    pub fn used(&mut self, queue: usize, count: usize) -> Vec<(u32, u32)> {
        let mut used = Vec::new();
        let deadline = Instant::now() + SOON;
        while used.len() < count {
            self.work();
            used.extend(self.queues[queue].take_used());
            assert!(Instant::now() < deadline, "not in time");
            std::thread::yield_now();
        }
        assert_eq!(used.len(), count, "a request came back twice");
        used
    }

    pub fn answer(&self, offered: &Offered, len: u32) -> Answer {
        let mut bytes = Vec::new();
        for &(addr, len) in &offered.writable {
            let at = bytes.len();
            bytes.resize(at + len as usize, 0);
            let slice = &mut bytes[at..];
            self.memory.read_slice(slice, GuestAddress(addr)).unwrap();
        }
        Answer { len, bytes }
    }

    /// Makes a request and waits for its answer.
    pub fn ask(&mut self, buffers: &[Buf]) -> Answer {
        self.ask_on(0, buffers)
    }

    pub fn ask_on(&mut self, queue: usize, buffers: &[Buf]) -> Answer {
        let offered = self.put(queue, buffers);
        self.notify(queue);
        let used = self.used(queue, 1);
        assert_eq!(used[0].0, u32::from(offered.head));
        self.answer(&offered, used[0].1)
    }

    pub fn read(&mut self, sector: u64, sectors: u32) -> Answer {
        self.ask(&[header(IN, sector), Buf::W(512 * sectors), Buf::W(1)])
    }

    pub fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.ask(&[header(OUT, sector), Buf::R(data.to_vec()), Buf::W(1)])
            .status()
    }

    pub fn flush(&mut self) -> u8 {
        self.ask(&[header(FLUSH, 0), Buf::W(1)]).status()
    }

    /// Moves to another device, as to another process.
    pub fn restore(&mut self, from: &mut Self, state: &TransportState) {
        self.queues = std::mem::take(&mut from.queues);
        (self.next, self.next_head) = (from.next, from.next_head);
        self.transport.restore(state).unwrap();
    }
}

pub fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_micros(200));
    }
}

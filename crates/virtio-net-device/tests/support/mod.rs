// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver of a network device behind registers, which writes whatever it is told to, and a host that
//! does as it is told.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    missing_debug_implementations,
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "each test uses a part of it, and stops at the unexpected"
)]

pub mod host;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bus::BusDevice;
use virtio_conformance::{DriverQueue, EventCounters, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, reg};
use virtio_device_core::{DeviceState, Executor, LoopHandle, StepLoop, edge_line};
use virtio_mmio_transport::{MmioTransport, TransportState};
use virtio_net_device::{Backend, Net, NetDrops, NetHandle};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub use host::Host;

pub type Memory = Arc<GuestMemoryMmap<()>>;
pub type Queue = DriverQueue<'static, GuestMemoryMmap<()>>;

/// Far beyond what a healthy device takes on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);
pub const QUEUE_SIZE: u16 = 256;
pub const MEMORY: u64 = 0x80_0000;
/// Where buffers are; each has as much room as it asks for.
pub const BUFFERS: u64 = 0x10_0000;

pub const RX: usize = 0;
pub const TX: usize = 1;
/// The control queue of a device with one pair.
pub const CONTROL: usize = 2;

pub const OK: u8 = 0;
pub const ERR: u8 = 1;

pub const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
pub const OTHER: [u8; 6] = [0x52, 0x54, 0, 4, 5, 6];

pub mod feature {
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const GUEST_OFFLOADS: u64 = 1 << 2;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const GUEST_ECN: u64 = 1 << 9;
    pub const GUEST_UFO: u64 = 1 << 10;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const HOST_ECN: u64 = 1 << 13;
    pub const HOST_UFO: u64 = 1 << 14;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const CTRL_RX: u64 = 1 << 18;
    pub const CTRL_VLAN: u64 = 1 << 19;
    pub const CTRL_RX_EXTRA: u64 = 1 << 20;
    pub const ANNOUNCE: u64 = 1 << 21;
    pub const MQ: u64 = 1 << 22;
    pub const CTRL_MAC: u64 = 1 << 23;
    pub const GUEST_USO4: u64 = 1 << 54;
    pub const GUEST_USO6: u64 = 1 << 55;
    pub const HOST_USO: u64 = 1 << 56;
}

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

pub fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..=250u8).cycle().skip(seed.into()).take(len).collect()
}

/// A frame of this length from another station to the driver.
pub fn frame(seed: u8, len: usize) -> Vec<u8> {
    let mut frame = pattern(seed, len);
    let start = [&MAC[..], &OTHER, &[8, 0]].concat();
    for (to, from) in frame.iter_mut().zip(start) {
        *to = from;
    }
    frame
}

/// The header of a packet that needs nothing.
pub const PLAIN: [u8; 12] = [0; 12];

/// A header: flags, type, header's length, segment's size, where the checksum is.
pub fn header(flags: u8, kind: u8, words: [u16; 4]) -> [u8; 12] {
    let mut header = PLAIN;
    header[..2].copy_from_slice(&[flags, kind]);
    for (to, word) in header[2..10].chunks_mut(2).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    header
}

/// A packet to send, in one buffer.
pub fn packet(header: [u8; 12], frame: &[u8]) -> Vec<u8> {
    [&header[..], frame].concat()
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
}

/// A chain that the device has.
#[derive(Clone, Debug)]
pub struct Offered {
    pub head: u16,
    writable: Vec<(u64, u32)>,
}

/// A network device, and its driver.
pub struct Guest<E: Executor = LoopHandle> {
    pub memory: Memory,
    pub transport: MmioTransport<Memory, Net<E>>,
    /// Where the device works, unless on a thread of its own.
    pub workers: Option<StepLoop>,
    pub queues: Vec<Queue>,
    pub events: Arc<EventCounters>,
    pub interrupts: Arc<AtomicU32>,
    pub handle: NetHandle,
    next: u64,
    next_head: u16,
}

pub fn memory() -> Memory {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap())
}

impl Guest {
    /// A started driver of a device that works step by step.
    pub fn new<B: Backend>(backend: B, features: u64) -> Self {
        let mut guest = Self::idle(vec![backend]);
        guest.start(features);
        guest
    }

    pub fn idle<B: Backend>(backends: Vec<B>) -> Self {
        let workers = StepLoop::new().unwrap();
        let device = Net::new(backends, MAC, workers.handle()).unwrap();
        let mut guest = Guest::in_memory(memory(), device);
        guest.workers = Some(workers);
        guest
    }
}

impl<E: Executor + 'static> Guest<E> {
    pub fn in_memory(memory: Memory, device: Net<E>) -> Self {
        let events = Arc::new(EventCounters::default());
        let interrupts = Arc::new(AtomicU32::new(0));
        let raised = interrupts.clone();
        let line = edge_line(move || {
            raised.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        let handle = device.handle();
        let transport = MmioTransport::new(device, memory.clone(), line).unwrap();
        Self {
            transport: transport.with_observer(events.clone()),
            memory,
            workers: None,
            queues: Vec::new(),
            events,
            interrupts,
            handle,
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

    /// The field `status`.
    pub fn link(&mut self) -> u16 {
        u16::from_le_bytes(self.config(6))
    }

    pub fn drops(&self) -> (u64, u64) {
        let NetDrops { received, sent, .. } = self.handle.drops();
        (received, sent)
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
        for (offset, address) in (0x80..).step_by(16).zip(parts) {
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

    pub fn ask_on(&mut self, queue: usize, buffers: &[Buf]) -> Answer {
        let offered = self.put(queue, buffers);
        self.notify(queue);
        let used = self.used(queue, 1);
        assert_eq!(used[0].0, u32::from(offered.head));
        self.answer(&offered, used[0].1)
    }

    /// Makes a command and returns its answer.
    pub fn command(&mut self, class: u8, command: u8, data: &[u8]) -> u8 {
        let bytes = [&[class, command], data].concat();
        let queue = self.queues.len() - 1;
        self.command_on(queue, bytes)
    }

    pub fn command_on(&mut self, queue: usize, bytes: Vec<u8>) -> u8 {
        let answer = self.ask_on(queue, &[Buf::R(bytes), Buf::W(1)]);
        assert_eq!(answer.len, 1);
        answer.status()
    }

    /// Makes buffers for packets available, and says so.
    pub fn offer(&mut self, queue: usize, count: usize, len: u32) -> Vec<Offered> {
        let offered = (0..count)
            .map(|_| self.put(queue, &[Buf::W(len)]))
            .collect();
        self.notify(queue);
        self.work();
        offered
    }

    /// Sends a packet and returns how long the device says the answer is.
    pub fn send(&mut self, bytes: Vec<u8>) -> u32 {
        self.ask_on(TX, &[Buf::R(bytes)]).len
    }

    /// The device's own state.
    pub fn saved(&mut self) -> DeviceState {
        self.transport.pause().unwrap();
        let state = self.transport.save().unwrap();
        self.transport.resume();
        state.device
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

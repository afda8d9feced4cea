// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver for tests of a device: it starts the device, and makes requests of whatever it is told to.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_device_core::{Features, StepLoop};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::driver::{DriverQueue, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use crate::mmio::MmioPort;
use crate::port::Port;
use crate::reg;

/// Far beyond what a healthy device takes on a busy machine.
const SOON: Duration = Duration::from_secs(60);
/// Descriptors of each queue, unless the device has fewer.
const QUEUE_SIZE: u16 = 256;
/// Where the rings of the first queue are, and how far those of two queues are apart.
const RINGS: u64 = 0x2000;

/// A buffer of a request.
#[derive(Clone, Debug)]
pub enum Buf {
    /// For the device to read.
    R(Vec<u8>),
    /// For the device to write: so many bytes, which are [`Guest::CANARY`] before.
    W(u32),
    /// Anywhere: address, length, whether the device may write it.
    At(u64, u32, bool),
}

/// A chain that the device has.
#[derive(Clone, Debug)]
pub struct Offered {
    /// Its first descriptor.
    pub head: u16,
    /// Addresses and lengths of the buffers that are for the device to write.
    writable: Vec<(u64, u32)>,
}

/// How a request came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The used length.
    pub len: u32,
    /// The device-writable bytes, one buffer after the other.
    pub bytes: Vec<u8>,
}

#[expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]
impl Answer {
    /// The last device-writable byte.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn status(&self) -> u8 {
        *self.bytes.last().unwrap()
    }

    /// What is before it.
    ///
    /// # Panics
    ///
    /// As [`status`](Self::status).
    #[must_use]
    pub fn data(&self) -> &[u8] {
        self.bytes.split_last().unwrap().1
    }
}

/// A device behind the registers of `T`, and its driver, for a test that knows what requests mean.
///
/// Every method panics if the device does something else than a driver may expect, or nothing for a
/// minute.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use bus::BusDevice;
/// use virtio_conformance::ramdisk::RamDisk; // or a device of yours
/// use virtio_conformance::{Buf, Guest, MmioPort};
/// use virtio_device_core::{StepLoop, edge_line};
/// use virtio_mmio_transport::MmioTransport;
///
/// let memory = Guest::<()>::memory();
/// let workers = StepLoop::new()?;
/// let disk = RamDisk::new(Arc::new(Mutex::new(vec![7; 4096])), workers.handle());
/// let transport = MmioTransport::new(disk, memory.clone(), edge_line(|| Ok(())))?;
/// let port = MmioPort::new(
///     transport,
///     |it, offset, data| it.read(offset, data).unwrap(),
///     |it, offset, data| it.write(offset, data).unwrap(),
/// );
/// let mut guest = Guest::new(memory, port).with_workers(workers);
/// guest.start(u64::MAX);
/// let answer = guest.ask(0, &[Buf::R(vec![0; 16]), Buf::W(512), Buf::W(1)]);
/// assert_eq!((answer.len, answer.data(), answer.status()), (513, &[7; 512][..], 0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Guest<T> {
    /// Its memory.
    pub memory: Arc<GuestMemoryMmap<()>>,
    /// The registers.
    pub port: MmioPort<T>,
    /// The queues, once it was started.
    pub queues: Vec<DriverQueue<'static, GuestMemoryMmap<()>>>,
    /// Where the device works, unless on a thread of its own.
    pub workers: Option<StepLoop>,
    next_buffer: u64,
    /// Of each queue.
    next_descriptors: Vec<u16>,
}

impl<T> Guest<T> {
    /// Bytes of its memory.
    pub const MEMORY: u64 = 0x80_0000;
    /// Where its buffers are. The rings, of 127 queues at most, come before them.
    pub const BUFFERS: u64 = 0x10_0000;
    /// What memory for the device to write holds before that.
    pub const CANARY: u8 = 0xa5;
}

#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test stops at the unexpected"
)]
impl<T> Guest<T> {
    /// Memory for a guest.
    #[must_use]
    pub fn memory() -> Arc<GuestMemoryMmap<()>> {
        let ranges = [(GuestAddress(0), Self::MEMORY as usize)];
        Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
    }

    /// A guest that has not started yet. The device behind `port` works in `memory`.
    pub const fn new(memory: Arc<GuestMemoryMmap<()>>, port: MmioPort<T>) -> Self {
        Self {
            memory,
            port,
            queues: Vec::new(),
            workers: None,
            next_buffer: Self::BUFFERS,
            next_descriptors: Vec::new(),
        }
    }

    /// Has the device work whenever an answer is waited for.
    #[must_use]
    pub fn with_workers(mut self, workers: StepLoop) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Reads a register.
    pub fn get(&mut self, offset: u64) -> u32 {
        self.port.get(offset)
    }

    /// Writes a register.
    pub fn set(&mut self, offset: u64, value: u32) {
        self.port.set(offset, value);
    }

    /// The status.
    pub fn status(&mut self) -> u32 {
        self.get(reg::STATUS)
    }

    /// Bytes of the configuration space, read one by one.
    pub fn config<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        for (at, byte) in (offset..).zip(bytes.chunks_mut(1)) {
            self.port.read(reg::CONFIG + at, byte);
        }
        bytes
    }

    /// Writes bytes of the configuration space, all at once.
    pub fn set_config(&mut self, offset: u64, bytes: &[u8]) {
        self.port.write(reg::CONFIG + offset, bytes);
    }

    /// The first 64 feature bits that the device offers.
    pub fn offered(&mut self) -> u64 {
        let [low, high] = [0, 1].map(|word| u64::from(self.port.offered(word)));
        low | high << 32
    }

    /// Goes up to `FEATURES_OK`, with those of `features` that are offered, and `VIRTIO_F_VERSION_1`.
    pub fn negotiate(&mut self, features: u64) {
        let features = self.offered() & features;
        let words = [features as u32, (features >> 32) as u32, 0, 0];
        let is_accepted = self.port.negotiate(Features::from_words(words));
        assert!(is_accepted, "the features are refused");
    }

    /// Goes up to `DRIVER_OK`, with all queues.
    pub fn start(&mut self, features: u64) {
        self.negotiate(features);
        self.drive();
    }

    /// Goes from `FEATURES_OK` to `DRIVER_OK`, with all queues.
    pub fn drive(&mut self) {
        self.queues.clear();
        while self.port.max_size(self.queues.len() as u32) != 0 {
            let queue = self.enable(self.queues.len());
            self.queues.push(queue);
        }
        self.next_descriptors = vec![0; self.queues.len()];
        let status = self.port.set_driver_ok();
        assert_eq!(status, 15, "the device does not start");
    }

    fn enable(&mut self, index: usize) -> DriverQueue<'static, GuestMemoryMmap<()>> {
        // The driver's memory lives as long as the process.
        let memory: &'static Arc<_> = Box::leak(Box::new(self.memory.clone()));
        let size = self.port.max_size(index as u32).min(QUEUE_SIZE.into());
        let rings = RINGS * (index as u64 + 1);
        assert!(
            rings + RINGS <= Self::BUFFERS,
            "more queues than fit before the buffers"
        );
        let queue = DriverQueue::new(&**memory, rings, size as u16);
        let enabled = self.port.enable(index as u32, queue.setup());
        assert!(enabled, "queue {index} is not enabled");
        queue
    }

    /// Resets one queue; says whether that is complete.
    pub fn reset_queue(&mut self, index: usize) -> bool {
        self.set(reg::QUEUE_SEL, index as u32);
        self.set(reg::QUEUE_RESET, 1);
        self.get(reg::QUEUE_RESET) == 0
    }

    /// Enables one queue again.
    pub fn restart_queue(&mut self, index: usize) {
        self.queues[index] = self.enable(index);
        self.next_descriptors[index] = 0;
    }

    /// Makes a chain available, without telling the device.
    pub fn put(&mut self, queue: usize, buffers: &[Buf]) -> Offered {
        let head = self.next_descriptors[queue];
        let mut writable = Vec::new();
        for (at, buffer) in buffers.iter().enumerate() {
            let (addr, len, write) = match buffer {
                Buf::R(bytes) => (self.room(bytes), bytes.len() as u32, false),
                Buf::W(len) => {
                    let addr = self.room(&vec![Self::CANARY; *len as usize]);
                    writable.push((addr, *len));
                    (addr, *len, true)
                }
                Buf::At(addr, len, write) => (*addr, *len, *write),
            };
            let (queue, next) = (&self.queues[queue], &mut self.next_descriptors[queue]);
            let index = *next;
            *next = (index + 1) % queue.setup().size as u16;
            let more = at + 1 < buffers.len();
            let flags = if more { VIRTQ_DESC_F_NEXT } else { 0 };
            let flags = flags | if write { VIRTQ_DESC_F_WRITE } else { 0 };
            queue.descriptor(index, addr, len, flags, *next);
        }
        self.queues[queue].offer(head);
        Offered { head, writable }
    }

    /// Memory that holds `bytes`; used again when all of it was used.
    fn room(&mut self, bytes: &[u8]) -> u64 {
        // A byte between two of them belongs to neither.
        let len = bytes.len() as u64 + 1;
        if self.next_buffer + len > Self::MEMORY {
            self.next_buffer = Self::BUFFERS;
        }
        let addr = self.next_buffer;
        self.next_buffer += len;
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
        addr
    }

    /// Tells the device that there is something new in a queue; the next answer interrupts.
    pub fn notify(&mut self, queue: usize) {
        self.queues[queue].set_used_event(self.queues[queue].used_index());
        self.port.notify(queue as u32);
    }

    /// Lets a device that works step by step work.
    pub fn work(&mut self) {
        if let Some(workers) = &mut self.workers {
            // Each time is over that somebody waits for, so that this need not end by itself.
            let _ = (0..4).all(|_| workers.step());
        }
    }

    /// Waits for `count` used elements of a queue: heads and lengths.
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

    /// What is in the buffers of a chain that came back with this length.
    #[must_use]
    pub fn answer(&self, offered: &Offered, len: u32) -> Answer {
        let mut bytes = Vec::new();
        for &(addr, len) in &offered.writable {
            let mut part = vec![0; len as usize];
            let read = self.memory.read_slice(&mut part, GuestAddress(addr));
            read.unwrap();
            bytes.extend(part);
        }
        Answer { len, bytes }
    }

    /// Makes a request and waits for its answer, while no other is on its way in that queue.
    pub fn ask(&mut self, queue: usize, buffers: &[Buf]) -> Answer {
        let offered = self.put(queue, buffers);
        self.notify(queue);
        let used = self.used(queue, 1);
        assert_eq!(used[0].0, u32::from(offered.head));
        self.answer(&offered, used[0].1)
    }

    /// Goes on with the queues and chains of a guest whose transport was restored behind this one, in
    /// the same memory.
    pub fn go_on(&mut self, from: &mut Self) {
        self.queues = std::mem::take(&mut from.queues);
        self.next_buffer = from.next_buffer;
        self.next_descriptors = std::mem::take(&mut from.next_descriptors);
    }
}

impl<T: fmt::Debug> fmt::Debug for Guest<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest")
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

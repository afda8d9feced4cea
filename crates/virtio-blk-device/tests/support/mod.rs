// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver of a disk behind registers, which writes whatever it is told to.
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

mod memory_disk;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::BusDevice;
use virtio_blk_device::{Backend, Block};
use virtio_conformance::{CountingLine, EventCounters, MmioPort};
use virtio_device_core::{Executor, LoopHandle, StepLoop};
use virtio_mmio_transport::{MmioTransport, TransportState};
use vm_memory::GuestMemoryMmap;

pub use memory_disk::MemoryDisk;
pub use virtio_conformance::{Answer, Buf, Offered};

pub type Memory = Arc<GuestMemoryMmap<()>>;
pub type Transport<E> = MmioTransport<Memory, Block<E>>;

/// Far beyond what a healthy device takes on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);
pub const QUEUE_SIZE: u16 = 256;
pub const MEMORY: u64 = virtio_conformance::Guest::<()>::MEMORY;
pub const CANARY: u8 = virtio_conformance::Guest::<()>::CANARY;

pub fn memory() -> Memory {
    virtio_conformance::Guest::<()>::memory()
}

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

/// A disk, and its driver.
pub struct Guest<E: Executor + 'static = LoopHandle> {
    driver: virtio_conformance::Guest<Transport<E>>,
    pub events: Arc<EventCounters>,
    pub line: CountingLine,
}

impl<E: Executor + 'static> Deref for Guest<E> {
    type Target = virtio_conformance::Guest<Transport<E>>;

    fn deref(&self) -> &Self::Target {
        &self.driver
    }
}

impl<E: Executor + 'static> DerefMut for Guest<E> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.driver
    }
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
        Self::behind(memory, device, |transport| transport)
    }

    /// A driver of a disk behind a transport that `with` has changed.
    pub fn behind(
        memory: Memory,
        device: Block<E>,
        with: impl FnOnce(Transport<E>) -> Transport<E>,
    ) -> Self {
        let events = Arc::new(EventCounters::default());
        let line = CountingLine::default();
        let transport = MmioTransport::new(device, memory.clone(), line.clone()).unwrap();
        let port = MmioPort::new(
            with(transport.with_observer(events.clone())),
            |it, offset, data| it.read(offset, data).unwrap(),
            |it, offset, data| it.write(offset, data).unwrap(),
        );
        Self {
            driver: virtio_conformance::Guest::new(memory, port),
            events,
            line,
        }
    }

    pub const fn transport(&mut self) -> &mut Transport<E> {
        self.driver.port.device_mut()
    }

    pub fn capacity(&mut self) -> u64 {
        u64::from_le_bytes(self.config(0))
    }

    /// Makes a request and waits for its answer.
    pub fn ask(&mut self, buffers: &[Buf]) -> Answer {
        self.ask_on(0, buffers)
    }

    pub fn ask_on(&mut self, queue: usize, buffers: &[Buf]) -> Answer {
        self.driver.ask(queue, buffers)
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
        self.driver.go_on(&mut from.driver);
        self.transport().restore(state).unwrap();
    }
}

pub fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_micros(200));
    }
}

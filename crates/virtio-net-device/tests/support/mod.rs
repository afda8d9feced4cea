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

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::BusDevice;
use virtio_conformance::{CountingLine, EventCounters, MmioPort};
use virtio_device_core::{DeviceState, Executor, InterruptLine, LoopHandle, StepLoop};
use virtio_mmio_transport::{MmioTransport, TransportState};
use virtio_net_device::{Backend, Net, NetDrops, NetHandle};
use vm_memory::GuestMemoryMmap;

pub use host::Host;
pub use virtio_conformance::{Answer, Buf, Offered};

pub type Memory = Arc<GuestMemoryMmap<()>>;
pub type Transport<E> = MmioTransport<Memory, Net<E>>;

/// Far beyond what a healthy device takes on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);
pub const QUEUE_SIZE: u16 = 256;
pub const BUFFERS: u64 = virtio_conformance::Guest::<()>::BUFFERS;
pub const MEMORY: u64 = virtio_conformance::Guest::<()>::MEMORY;
pub const CANARY: u8 = virtio_conformance::Guest::<()>::CANARY;

pub fn memory() -> Memory {
    virtio_conformance::Guest::<()>::memory()
}

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

/// A network device, and its driver.
pub struct Guest<E: Executor + 'static = LoopHandle> {
    driver: virtio_conformance::Guest<Transport<E>>,
    pub events: Arc<EventCounters>,
    pub handle: NetHandle,
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
        Self::with_line(memory, device, CountingLine::default())
    }

    pub fn with_line(memory: Memory, device: Net<E>, line: impl InterruptLine + 'static) -> Self {
        let events = Arc::new(EventCounters::default());
        let handle = device.handle();
        let transport = MmioTransport::new(device, memory.clone(), line).unwrap();
        let port = MmioPort::new(
            transport.with_observer(events.clone()),
            |it, offset, data| it.read(offset, data).unwrap(),
            |it, offset, data| it.write(offset, data).unwrap(),
        );
        Self {
            driver: virtio_conformance::Guest::new(memory, port),
            events,
            handle,
        }
    }

    pub const fn transport(&mut self) -> &mut Transport<E> {
        self.driver.port.device_mut()
    }

    /// The field `status`.
    pub fn link(&mut self) -> u16 {
        u16::from_le_bytes(self.config(6))
    }

    pub fn drops(&self) -> (u64, u64) {
        let NetDrops { received, sent, .. } = self.handle.drops();
        (received, sent)
    }

    /// Makes a command and returns its answer.
    pub fn command(&mut self, class: u8, command: u8, data: &[u8]) -> u8 {
        let bytes = [&[class, command], data].concat();
        let queue = self.queues.len() - 1;
        self.command_on(queue, bytes)
    }

    pub fn command_on(&mut self, queue: usize, bytes: Vec<u8>) -> u8 {
        let answer = self.ask(queue, &[Buf::R(bytes), Buf::W(1)]);
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
        self.ask(TX, &[Buf::R(bytes)]).len
    }

    /// The device's own state.
    pub fn saved(&mut self) -> DeviceState {
        self.transport().pause().unwrap();
        let state = self.transport().save().unwrap();
        self.transport().resume();
        state.device
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

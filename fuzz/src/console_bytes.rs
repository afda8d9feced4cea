// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A console between a driver that offers all kinds of chains and a host that gives and takes when it
//! likes, while queues are reset and machines paused, moved and restarted: every byte arrives once, in
//! order.

mod program;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bus::BusDevice as _;
use rustix::net::sockopt::set_socket_send_buffer_size;
use virtio_conformance::{
    CountingLine, DriverQueue, MmioPort, Port as _, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, reg,
};
use virtio_console_device::{Console, ConsoleHandle, Port, Size};
use virtio_device_core::{Features, LoopHandle, WorkerLoop};
use virtio_mmio_transport::MmioTransport;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub use program::Program;
use program::{Piece, Step};

/// Descriptors of each queue, each with a buffer of its own.
const SIZE: u16 = 16;
const ROOM: usize = 0x400;
const BUFFERS: usize = 0x4000;
const MEMORY: usize = BUFFERS + 2 * ROOM * SIZE as usize;
const RX: usize = 0;
const TX: usize = 1;

/// In the first word: the size, the emergency write, and `VIRTIO_F_EVENT_IDX`. In the second:
/// `VIRTIO_F_RING_RESET`.
const FEATURES: [u32; 2] = [1 | 4, 1 << 8];
const EVENT_IDX: u32 = 1 << 29;

type Memory = Arc<GuestMemoryMmap<()>>;
type Transport = MmioTransport<Memory, Console<LoopHandle>>;

/// A chain that is with the device.
#[derive(Debug, Default)]
struct Chain {
    descriptors: Vec<u16>,
    /// Addresses and lengths of what the device may write.
    writable: Vec<(usize, usize)>,
    /// How much it has to read.
    readable: usize,
    /// A buffer is not in memory.
    is_bad: bool,
}

impl Chain {
    fn room(&self) -> usize {
        self.writable.iter().map(|buffer| buffer.1).sum()
    }

    fn takes_input(&self) -> bool {
        !self.is_bad && self.room() != 0
    }
}

/// A queue as its driver has it.
struct Queue<'m> {
    ring: DriverQueue<'m, GuestMemoryMmap<()>>,
    free: Vec<u16>,
    offered: VecDeque<Chain>,
    /// The device was notified of all that is offered.
    notified: bool,
}

impl<'m> Queue<'m> {
    fn new(memory: &'m Memory, index: usize) -> Self {
        Self {
            ring: DriverQueue::new(memory, 0x1000 * (index as u64 + 1), SIZE),
            free: (0..SIZE).collect(),
            offered: VecDeque::new(),
            notified: true,
        }
    }
}

/// The device, and what runs it.
struct Machine {
    workers: WorkerLoop,
    port: MmioPort<Transport>,
    console: ConsoleHandle,
    line: CountingLine,
}

impl Machine {
    fn new(memory: &Memory, device: &UnixStream) -> Self {
        let workers = WorkerLoop::new().unwrap();
        let end = || device.try_clone().unwrap();
        let port = Port::new(end(), end()).unwrap();
        let console = Console::new(port, workers.handle()).unwrap();
        let (handle, line) = (console.handle(), CountingLine::default());
        let transport = MmioTransport::new(console, memory.clone(), line.clone()).unwrap();
        let port = MmioPort::new(
            transport,
            |it, offset, data| it.read(offset, data).unwrap(),
            |it, offset, data| it.write(offset, data).unwrap(),
        );
        Self {
            workers,
            port,
            console: handle,
            line,
        }
    }
}

/// Bytes that differ from their neighbours.
#[derive(Default)]
struct Pattern(u8);

impl Pattern {
    fn take(&mut self, count: usize) -> Vec<u8> {
        let next = || {
            self.0 = self.0.wrapping_mul(5).wrapping_add(3);
            self.0
        };
        std::iter::repeat_with(next).take(count).collect()
    }
}

struct Rig<'m> {
    memory: &'m Memory,
    machine: Machine,
    event_idx: bool,
    paused: bool,
    queues: [Queue<'m>; 2],
    host: UnixStream,
    device: UnixStream,
    /// What the host has given and the guest has not got yet.
    input: VecDeque<u8>,
    /// What the guest has written and the host has not got yet.
    output: VecDeque<u8>,
    given: Pattern,
    written: Pattern,
    completed: u32,
}

impl<'m> Rig<'m> {
    fn new(memory: &'m Memory, event_idx: bool) -> Self {
        let (host, device) = UnixStream::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        // As little as there can be, so that chains are sent in parts.
        set_socket_send_buffer_size(&device, 1).unwrap();
        let mut rig = Self {
            memory,
            machine: Machine::new(memory, &device),
            event_idx,
            paused: false,
            queues: [RX, TX].map(|index| Queue::new(memory, index)),
            host,
            device,
            input: VecDeque::new(),
            output: VecDeque::new(),
            given: Pattern::default(),
            written: Pattern::default(),
            completed: 0,
        };
        rig.start();
        rig
    }

    /// Starts the device with empty queues.
    fn start(&mut self) {
        self.queues = [RX, TX].map(|index| Queue::new(self.memory, index));
        let port = &mut self.machine.port;
        let [low, high] = FEATURES;
        let event_idx = if self.event_idx { EVENT_IDX } else { 0 };
        assert!(port.negotiate(Features::from_words([low | event_idx, high, 0, 0])));
        for (index, queue) in (0..).zip(&self.queues) {
            assert!(port.enable(index, queue.ring.setup()));
        }
        port.set_driver_ok();
    }

    fn image(&self) -> Vec<u8> {
        let mut image = vec![0; MEMORY];
        self.memory.read_slice(&mut image, GuestAddress(0)).unwrap();
        image
    }

    /// Offers a chain of these pieces, those to be read first, as far as there are descriptors.
    fn offer(&mut self, index: usize, pieces: &[Piece]) {
        let queue = &mut self.queues[index];
        let there = pieces.iter().copied().filter(|piece| piece.kind % 8 != 2);
        let mut pieces: Vec<_> = there.take(queue.free.len()).collect();
        let is_writable = |piece: &Piece| (index == RX) != (piece.kind % 8 == 0);
        pieces.sort_by_key(is_writable);
        let mut chain = Chain {
            descriptors: queue.free.drain(..pieces.len()).collect(),
            ..Chain::default()
        };
        let mut text = Vec::new();
        for (place, piece) in pieces.iter().enumerate() {
            let descriptor = chain.descriptors[place];
            let mut addr = BUFFERS + ROOM * (index * usize::from(SIZE) + usize::from(descriptor));
            let len = 1 + usize::from(piece.len) % ROOM;
            let mut flags = 0;
            if piece.kind % 8 == 1 {
                chain.is_bad = true;
                addr = MEMORY - len / 2;
            }
            if is_writable(piece) {
                flags |= VIRTQ_DESC_F_WRITE;
                chain.writable.push((addr, len));
            } else {
                chain.readable += len;
                if piece.kind % 8 != 1 {
                    let bytes = self.written.take(len);
                    let addr = GuestAddress(addr as u64);
                    self.memory.write_slice(&bytes, addr).unwrap();
                    text.extend(bytes);
                }
            }
            let next = chain.descriptors.get(place + 1);
            flags |= next.map_or(0, |_| VIRTQ_DESC_F_NEXT);
            let (addr, len) = (addr as u64, len as u32);
            let next = next.copied().unwrap_or(0);
            queue.ring.descriptor(descriptor, addr, len, flags, next);
        }
        if let Some(head) = chain.descriptors.first() {
            queue.ring.offer(*head);
            if index == TX && !chain.is_bad {
                self.output.extend(text);
            }
            queue.offered.push_back(chain);
            queue.notified = false;
        }
    }

    fn notify(&mut self, index: usize) {
        self.queues[index].notified = true;
        self.machine.port.notify(index as u32);
    }

    /// Lets the device do what it can without waiting, and looks at all of it.
    fn settle(&mut self) {
        let mut expected = self.image();
        let raised = self.machine.line.raised();
        for _ in 0..4 {
            self.machine.workers.dispatch().unwrap();
        }
        assert_eq!(self.machine.port.status(), 15);
        let before = self.completed;
        for index in [RX, TX] {
            for (head, len) in self.queues[index].ring.take_used() {
                self.take(index, head, len as usize, &mut expected);
            }
        }
        let image = self.image();
        for queue in &self.queues {
            let used = queue.ring.used_ring();
            let used = used.start as usize..used.end as usize;
            expected[used.clone()].copy_from_slice(&image[used]);
        }
        if image != expected {
            let first = image.iter().zip(&expected).position(|(a, b)| a != b);
            panic!("the device wrote to {first:x?}");
        }
        let (told, done) = (
            self.machine.line.raised() != raised,
            self.completed != before,
        );
        assert!(done || !told, "an interrupt without a cause");
        assert!(told || !done || self.event_idx, "no interrupt");
        assert!(!done || !self.paused, "a paused device has worked");
        if !self.paused {
            self.check_nobody_waits();
        }
    }

    /// Takes a chain back that the device has used.
    fn take(&mut self, index: usize, head: u32, len: usize, expected: &mut [u8]) {
        let queue = &mut self.queues[index];
        let chain = queue.offered.pop_front().unwrap();
        assert_eq!(u32::from(chain.descriptors[0]), head, "out of order");
        if index == TX || !chain.takes_input() {
            assert_eq!(len, 0);
        } else {
            assert!((1..=chain.room()).contains(&len), "{len} of {chain:?}");
            assert!(len <= self.input.len(), "more than the host has given");
            let mut left = len;
            for &(addr, room) in &chain.writable {
                let count = room.min(left);
                let bytes: Vec<_> = self.input.drain(..count).collect();
                expected[addr..][..count].copy_from_slice(&bytes);
                left -= count;
            }
        }
        queue.free.extend(chain.descriptors);
        self.completed += 1;
    }

    /// What waits has a reason to.
    fn check_nobody_waits(&self) {
        let [rx, tx] = &self.queues;
        if let Some(first) = rx.offered.front().filter(|_| rx.notified) {
            assert!(self.input.is_empty() && first.takes_input(), "{first:?}");
        }
        if let Some(first) = tx.offered.front().filter(|_| tx.notified) {
            let is_held_back = !first.is_bad && !self.output.is_empty();
            assert!(is_held_back, "{first:?}");
        }
    }

    fn host_gives(&mut self, count: usize) {
        let bytes = self.given.take(count);
        let taken = match self.host.write(&bytes) {
            Ok(taken) => taken,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("{error}"),
        };
        self.input.extend(&bytes[..taken]);
    }

    /// Returns how much there was.
    fn host_takes(&mut self, most: usize) -> usize {
        let mut bytes = vec![0; most];
        let count = match self.host.read(&mut bytes) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("{error}"),
        };
        assert!(
            count <= self.output.len(),
            "more than the guest has written"
        );
        let expected: Vec<_> = self.output.drain(..count).collect();
        assert_eq!(bytes[..count], expected);
        count
    }

    /// The device has lost its chains for output: only what was in them may be missing, and only the
    /// first of them may have been sent in part.
    fn forget_output(&mut self, lost: &VecDeque<Chain>) {
        while self.host_takes(4096) != 0 {}
        let mut lens = lost
            .iter()
            .filter(|chain| !chain.is_bad)
            .map(|chain| chain.readable);
        let first = lens.next().unwrap_or(0);
        let others: usize = lens.sum();
        assert!((others..=others + first).contains(&self.output.len()));
        self.output.clear();
    }

    fn step(&mut self, step: &Step) {
        let queue = |output: bool| if output { TX } else { RX };
        match step {
            Step::Offer(output, pieces, notify) => {
                self.offer(queue(*output), pieces);
                if *notify {
                    self.notify(queue(*output));
                }
            }
            Step::Notify(output) => self.notify(queue(*output)),
            Step::HostGives(count) => self.host_gives(usize::from(*count) % 3000),
            Step::HostTakes(count) => drop(self.host_takes(usize::from(*count) % 3000)),
            Step::Resize(cols, rows) => {
                let (cols, rows) = (*cols, *rows);
                self.machine.console.resize(0, Size { cols, rows });
                let mut config = [0; 4];
                self.machine.port.read_config(0, &mut config);
                let size = [cols.to_le_bytes(), rows.to_le_bytes()];
                assert_eq!(config, *size.as_flattened());
            }
            Step::Emergency(character) => {
                // With nothing else on its way, there is room for it.
                if self.queues[TX].offered.is_empty() && self.output.is_empty() {
                    self.machine.port.write(0x108, &[*character, 0, 0, 0]);
                    self.output.push_back(*character);
                }
            }
            Step::Pause => {
                self.machine.port.device_mut().pause().unwrap();
                self.paused = true;
            }
            Step::Resume => {
                self.machine.port.device_mut().resume();
                self.paused = false;
            }
            Step::ResetQueue(output) => {
                let index = queue(*output);
                self.machine.port.reset_queue(index as u32);
                let fresh = Queue::new(self.memory, index);
                let old = std::mem::replace(&mut self.queues[index], fresh);
                if index == TX {
                    self.forget_output(&old.offered);
                }
                let setup = *self.queues[index].ring.setup();
                assert!(self.machine.port.enable(index as u32, &setup));
            }
            Step::Move => {
                let transport = self.machine.port.device_mut();
                transport.pause().unwrap();
                let state = transport.save().unwrap();
                let mut twin = Machine::new(self.memory, &self.device);
                if self.paused {
                    twin.port.device_mut().pause().unwrap();
                }
                twin.port.device_mut().restore(&state).unwrap();
                self.machine = twin;
            }
            Step::Restart => {
                self.machine.port.set(reg::STATUS, 0);
                let old = std::mem::take(&mut self.queues[TX].offered);
                self.forget_output(&old);
                self.start();
            }
        }
        self.settle();
    }

    /// All that is on its way arrives, if both sides go on.
    fn finish(&mut self) {
        self.step(&Step::Resume);
        for index in [RX, TX] {
            self.notify(index);
        }
        let room = Piece { len: 1023, kind: 7 };
        for _ in 0..1000 {
            self.offer(RX, &[room; 4]);
            self.notify(RX);
            self.settle();
            let idle = self.host_takes(4096) == 0 && self.queues[TX].offered.is_empty();
            if idle && self.input.is_empty() {
                assert!(self.output.is_empty(), "{} bytes lost", self.output.len());
                return;
            }
        }
        panic!("{} bytes in, {} out", self.input.len(), self.output.len());
    }
}

/// Returns how many chains the device has used, of the driver's own.
pub fn run(program: &Program) -> u32 {
    let range = (GuestAddress(0), MEMORY);
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&[range]).unwrap());
    let mut rig = Rig::new(&memory, program.event_idx);
    rig.settle();
    for step in &program.steps {
        rig.step(step);
    }
    let completed = rig.completed;
    rig.finish();
    // Whatever has happened: after a reset it serves.
    rig.step(&Step::Restart);
    let before = rig.completed;
    rig.step(&Step::HostGives(100));
    for output in [false, true] {
        let pieces = [(99, 7), (0, 2), (0, 2)].map(|(len, kind)| Piece { len, kind });
        rig.step(&Step::Offer(output, pieces, true));
    }
    assert_eq!(rig.completed, before + 2);
    assert_eq!(rig.host_takes(4096), 100);
    completed
}

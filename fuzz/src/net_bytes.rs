// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Packets, buffers and commands of a driver that writes whatever comes to its mind, and of a host that
//! does the same, against what may become of each.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use bus::BusDevice as _;
use virtio_conformance::{CountingLine, DriverQueue, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use virtio_device_core::{Features, LoopHandle, StepLoop};
use virtio_mmio_transport::MmioTransport;
use virtio_net_device::{Backend, Buffers, Net, NetHandle};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

type Memory = GuestMemoryMmap<()>;

const QUEUE_SIZE: u16 = 128;
const END: u64 = 0x8_0000;
const BUFFERS: u64 = 0x1_0000;
/// No descriptor is used twice, so there are no more chains than this in a queue.
const MOST: u16 = QUEUE_SIZE / 4;
const CANARY: u8 = 0xa5;
/// What may be agreed on: everything but several pairs, and the rules among features.
const CSUM: u64 = 1;
const FEATURES: u64 = 0x0100_0000_00bf_ffaf | 3 << 54;
const MRG_RXBUF: u64 = 1 << 15;

#[derive(Arbitrary, Debug)]
pub struct Program {
    features: u64,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// A packet to send: header, length of the frame, where it is cut.
    Send([u8; 12], u16, [u8; 2]),
    /// The same with a header that means something more often.
    Offload(u8, u8, [u8; 4], u8),
    /// Buffers for received packets.
    Room([u16; 3]),
    Command(u8, u8, Vec<u8>),
    /// A chain of any buffers, in any queue.
    Chain(u8, [(u32, u16, bool); 3]),
    /// A packet of the host's.
    Give([u8; 12], u16),
    GivePlain(u16),
    /// Whether the host takes packets, and whether it works.
    Host(bool, bool),
    Cable(bool),
    Work,
    Pause,
}

#[derive(Default)]
struct State {
    incoming: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    busy: bool,
    broken: bool,
}

#[derive(Clone)]
struct Host(Arc<Mutex<State>>, Arc<File>);

impl Backend for Host {
    fn receive(&mut self, packet: &Buffers<'_>) -> io::Result<usize> {
        let mut state = self.0.lock().unwrap();
        if state.broken {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let bytes = state.incoming.pop_front().ok_or(ErrorKind::WouldBlock)?;
        let len = packet.copy_from(0, &bytes);
        assert_eq!(len, bytes.len(), "there is room for every packet");
        Ok(len)
    }

    fn send(&mut self, packet: &Buffers<'_>) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        match (state.broken, state.busy) {
            (true, _) => return Err(ErrorKind::BrokenPipe.into()),
            (_, true) => return Err(ErrorKind::WouldBlock.into()),
            _ => {}
        }
        let mut bytes = vec![0; usize::try_from(packet.bytes()).unwrap()];
        packet.copy_to(0, &mut bytes);
        state.sent.push(bytes);
        Ok(())
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.1.as_fd()
    }

    fn offloads(&self) -> Features {
        Features::from(u64::MAX)
    }

    fn reopen(&mut self) -> io::Result<()> {
        match self.0.lock().unwrap().broken {
            true => Err(ErrorKind::BrokenPipe.into()),
            false => Ok(()),
        }
    }
}

type Transport = MmioTransport<Arc<Memory>, Net<LoopHandle>>;

fn set(transport: &mut Transport, offset: u64, value: u32) {
    transport.write(offset, &value.to_le_bytes()).unwrap();
}

fn get(transport: &mut Transport, offset: u64) -> u32 {
    let mut word = [0; 4];
    transport.read(offset, &mut word).unwrap();
    u32::from_le_bytes(word)
}

struct Machine<'m> {
    memory: &'m Arc<Memory>,
    transport: Transport,
    handle: NetHandle,
    workers: StepLoop,
    host: Arc<Mutex<State>>,
    queues: Vec<DriverQueue<'m, Memory>>,
    /// Of each queue, how many chains were made, and came back.
    made: [u16; 3],
    back: [u32; 3],
    /// The writable buffers of the chains for received packets, by their heads.
    rooms: Vec<Vec<(u64, u32)>>,
    next: u64,
    features: u64,
    /// Frames that the host has given, the next one first.
    given: VecDeque<Vec<u8>>,
    received: u32,
}

/// The features of a driver that keeps the rules of section 5.1.3.1.
fn allowed(mut features: u64) -> u64 {
    features &= FEATURES;
    for (csum, others, tso, ecn) in [
        (
            0,
            1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 56,
            3 << 11,
            1 << 13,
        ),
        (
            1,
            1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 3 << 54,
            3 << 7,
            1 << 9,
        ),
    ] {
        if features & 1 << csum == 0 {
            features &= !others;
        }
        if features & tso == 0 {
            features &= !ecn;
        }
    }
    if features & 1 << 17 == 0 {
        // No commands without a control queue.
        features &= !(1 << 18 | 1 << 19 | 1 << 20 | 1 << 21 | 1 << 23 | 1 << 2);
    }
    features & !(1 << 3)
}

impl Machine<'_> {
    /// A buffer of this length with `bytes` in it, if there is room for one.
    fn buffer(&mut self, len: u64) -> Option<u64> {
        let addr = self.next;
        // A byte between two buffers belongs to neither.
        self.next = addr.checked_add(len + 1).filter(|end| *end <= END)?;
        Some(addr)
    }

    fn chain(&mut self, queue: usize, buffers: &[(u64, u32, bool)]) {
        if self.made[queue] == MOST || buffers.is_empty() {
            return;
        }
        let head = 4 * self.made[queue];
        for (at, (addr, len, write)) in (0..).zip(buffers) {
            let next = if at + 1 < buffers.len() as u16 {
                VIRTQ_DESC_F_NEXT
            } else {
                0
            };
            let flags = next | if *write { VIRTQ_DESC_F_WRITE } else { 0 };
            self.queues[queue].descriptor(head + at, *addr, *len, flags, head + at + 1);
        }
        if queue == 0 {
            let writable = buffers.iter().filter(|buffer| buffer.2);
            self.rooms
                .push(writable.map(|(addr, len, _)| (*addr, *len)).collect());
        }
        self.made[queue] += 1;
        self.queues[queue].offer(head);
        set(&mut self.transport, 0x50, queue as u32);
    }

    /// Readable bytes in pieces.
    fn readable(&mut self, queue: usize, bytes: &[u8], cuts: [u8; 2], answer: u64) {
        let mut cuts = cuts.map(|cut| usize::from(cut).min(bytes.len()));
        cuts.sort_unstable();
        let mut buffers = Vec::new();
        for piece in [
            &bytes[..cuts[0]],
            &bytes[cuts[0]..cuts[1]],
            &bytes[cuts[1]..],
        ] {
            let Some(addr) = self.buffer(piece.len() as u64) else {
                return;
            };
            self.memory.write_slice(piece, GuestAddress(addr)).unwrap();
            buffers.push((addr, piece.len() as u32, false));
        }
        if answer != 0 {
            let Some(addr) = self.buffer(answer) else {
                return;
            };
            buffers.push((addr, answer as u32, true));
        }
        self.chain(queue, &buffers);
    }

    fn give(&mut self, header: [u8; 12], len: u16) {
        let number = self.given.len() as u8;
        let frame: Vec<u8> = (0..len % 3000)
            .map(|at| (at as u8).wrapping_add(number))
            .collect();
        let packet = [&header[..], &frame].concat();
        self.given.push_back(packet.clone());
        self.host.lock().unwrap().incoming.push_back(packet);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Send(header, len, cuts) => {
                let frame = vec![0x11; usize::from(len % 4000)];
                self.readable(1, &[&header[..], &frame].concat(), *cuts, 0);
            }
            Step::Offload(flags, kind, words, len) => {
                let [a, b, c, d] = *words;
                let header = [flags & 3, kind & 0x87, a, 0, b, 0, c, 0, d & 31, 0, 0, 0];
                let frame = vec![0x22; usize::from(*len) + 14];
                self.readable(1, &[&header[..], &frame].concat(), [12, 12], 0);
            }
            Step::Room(lens) => {
                let mut buffers = Vec::new();
                for len in lens {
                    let len = len % 1600;
                    let Some(addr) = self.buffer(len.into()) else {
                        return;
                    };
                    buffers.push((addr, len.into(), true));
                }
                self.chain(0, &buffers);
            }
            Step::Command(class, command, data) => {
                let head = [class % 7, command % 7];
                self.readable(2, &[&head[..], data].concat(), [1, 2], 1);
            }
            Step::Chain(queue, buffers) => {
                let buffers = buffers.map(|(addr, len, write)| {
                    // Anywhere but in the rings, or in others' buffers if they are written.
                    let addr = u64::from(addr) + if write { END } else { BUFFERS };
                    (addr, len.into(), write)
                });
                self.chain(usize::from(queue % 3), &buffers);
            }
            Step::Give(header, len) => self.give(*header, *len),
            Step::GivePlain(len) => self.give([0; 12], *len),
            Step::Host(busy, broken) => {
                let mut state = self.host.lock().unwrap();
                (state.busy, state.broken) = (*busy, *broken);
            }
            Step::Cable(plugged) => self.handle.set_cable(*plugged),
            Step::Work => self.work(),
            Step::Pause => {
                self.transport.pause().unwrap();
                let state = self.transport.save().unwrap();
                self.workers.step();
                assert_eq!(self.transport.save().unwrap(), state);
                self.transport.resume();
            }
        }
    }

    /// Lets the device work, and looks at all that it has done.
    fn work(&mut self) {
        for _ in 0..4 {
            self.workers.step();
        }
        assert_eq!(get(&mut self.transport, 0x70), 15, "the device goes on");
        for sent in std::mem::take(&mut self.host.lock().unwrap().sent) {
            self.may_be_sent(&sent);
        }
        for queue in 1..3 {
            let used = self.queues[queue].take_used();
            self.back[queue] += used.len() as u32;
            for (_, len) in used {
                assert!(len <= (queue == 2).into());
            }
        }
        let used = self.queues[0].take_used();
        self.back[0] += used.len() as u32;
        let mut used = used.into_iter();
        while let Some((head, len)) = used.next() {
            // One that was refused comes back empty.
            if len != 0 {
                self.is_received(head, len, &mut used);
            }
        }
    }

    fn may_be_sent(&self, packet: &[u8]) {
        let header = &packet[..12];
        let word = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let frame = packet.len() - 12;
        assert!((14..=65_553).contains(&frame));
        assert!(header[0] <= 1 && word(10) == 0);
        if header[0] == 1 {
            assert!(self.features & CSUM != 0 && word(6) + word(8) + 2 <= frame);
        }
        if header[1] != 0 {
            let feature = match header[1] & 0x7f {
                1 => 11,
                4 => 12,
                3 => 14,
                5 => 56,
                _ => unreachable!("a type that does not exist"),
            };
            assert!(self.features & 1 << feature != 0 && header[0] == 1);
            assert!(header[1] & 0x80 == 0 || self.features & 1 << 13 != 0);
            assert!(word(4) != 0 && word(2) <= frame);
        }
    }

    /// A packet that lies in the chain at `head` and in the next ones is one of those that the host has
    /// given, and comes after the one before.
    fn is_received(&mut self, head: u32, len: u32, used: &mut impl Iterator<Item = (u32, u32)>) {
        let mut packet = self.bytes(head, len);
        let count = u16::from_le_bytes([packet[10], packet[11]]);
        assert!(count == 1 || self.features & MRG_RXBUF != 0);
        for _ in 1..count {
            let (head, len) = used.next().expect("a packet is seen whole");
            packet.extend(self.bytes(head, len));
        }
        let header = &packet[..12];
        assert!(header[0] <= 3 && (header[0] == 0 || self.features & 2 != 0));
        assert!(header[1] == 0 || self.features & (0xf << 7 | 3 << 54) != 0);
        loop {
            let given = self.given.pop_front().expect("nobody has sent this packet");
            if given.get(12..) == Some(&packet[12..]) {
                break;
            }
        }
        self.received += 1;
    }

    fn bytes(&self, head: u32, len: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (addr, part) in &self.rooms[head as usize / 4] {
            let part = (*part as usize).min(len as usize - bytes.len());
            let at = bytes.len();
            bytes.resize(at + part, 0);
            self.memory
                .read_slice(&mut bytes[at..], GuestAddress(*addr))
                .unwrap();
        }
        assert_eq!(bytes.len(), len as usize, "no more than there is room for");
        bytes
    }
}

/// Runs a program, and returns how many chains came back and how many packets were received.
pub fn run(program: &Program) -> (u32, u32) {
    let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), END as usize)]).unwrap());
    memory
        .write_slice(
            &vec![CANARY; (END - BUFFERS) as usize],
            GuestAddress(BUFFERS),
        )
        .unwrap();
    let host = Host(Arc::default(), Arc::new(File::open("/dev/null").unwrap()));
    let state = host.0.clone();
    let workers = StepLoop::new().unwrap();
    let device = Net::new(vec![host], [2, 0, 0, 0, 0, 1], workers.handle()).unwrap();
    let handle = device.handle();
    let mut transport =
        MmioTransport::new(device, memory.clone(), CountingLine::default()).unwrap();
    let features = allowed(program.features);
    set(&mut transport, 0x70, 3);
    for (word, bits) in [(0, features & 0xffff_ffff), (1, features >> 32 | 1)] {
        set(&mut transport, 0x24, word);
        set(&mut transport, 0x20, bits as u32);
    }
    set(&mut transport, 0x70, 11);
    assert_eq!(get(&mut transport, 0x70), 11, "{features:x}");
    let mut queues = Vec::new();
    for index in 0..3 {
        let queue = DriverQueue::new(&*memory, 0x2000 * (u64::from(index) + 1), QUEUE_SIZE);
        let setup = *queue.setup();
        set(&mut transport, 0x30, index);
        set(&mut transport, 0x38, setup.size);
        let parts = [setup.desc_table, setup.avail_ring, setup.used_ring];
        for (offset, address) in (0x80..).step_by(16).zip(parts) {
            set(&mut transport, offset, address as u32);
        }
        set(&mut transport, 0x44, 1);
        assert_eq!(get(&mut transport, 0x44), 1);
        queues.push(queue);
    }
    set(&mut transport, 0x70, 15);
    let mut machine = Machine {
        memory: &memory,
        transport,
        handle,
        workers,
        host: state,
        queues,
        made: [0; 3],
        back: [0; 3],
        rooms: Vec::new(),
        next: BUFFERS,
        features,
        given: VecDeque::new(),
        received: 0,
    };
    for step in &program.steps {
        machine.step(step);
    }
    // With a host that works again, everything but room for packets comes back, once.
    *machine.host.lock().unwrap() = State::default();
    machine.handle.set_cable(true);
    let before = machine.received;
    machine.work();
    // A buffer that is left may be too small, and a driver with a control queue may have said that it
    // does not want this packet.
    let left = u32::from(machine.made[0]) != machine.back[0];
    let has_room = machine.made[0] < MOST && machine.next + 3000 < END;
    let comes = has_room && !left && features & 1 << 17 == 0;
    machine.step(&Step::Room([1000, 500, 0]));
    machine.step(&Step::GivePlain(1200));
    for _ in 0..100 {
        machine.work();
        let back = machine.back[1] == u32::from(machine.made[1]);
        if back && (!comes || machine.received > before) {
            break;
        }
        set(&mut machine.transport, 0x50, 0);
        set(&mut machine.transport, 0x50, 1);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(
        machine.back[1],
        u32::from(machine.made[1]),
        "each packet comes back once"
    );
    if features & 1 << 17 != 0 {
        assert_eq!(
            machine.back[2],
            u32::from(machine.made[2]),
            "each command is answered"
        );
    }
    assert!(machine.back[0] <= u32::from(machine.made[0]));
    if comes {
        assert_eq!(
            machine.received,
            before + 1,
            "a good packet is received in the end"
        );
    }
    (machine.back.iter().sum(), machine.received)
}

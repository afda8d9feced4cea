// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rings and requests as a driver without any sense writes them, against the model.

use arbitrary::Arbitrary;
use virtio_conformance::{Port as _, reg};
use virtio_device_core::transport::QueueSetup;
use vm_memory::{Bytes, GuestAddress};

use crate::machine::{Machine, REGIONS, Stream};
use crate::model::Model;

#[derive(Arbitrary, Debug)]
pub struct Program {
    start: Start,
    /// How much one read of the source gives, but for 1.
    limit: u16,
    /// Reads after which the source ends, if not never.
    ends: Option<u8>,
    prompt: bool,
    steps: Vec<Step>,
}

/// How the driver starts the device.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Start {
    event_idx: bool,
    indirect: bool,
    size: u8,
    desc_table: u16,
    avail_ring: u16,
    used_ring: u16,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// Into the queue's table.
    Descriptor(u8, Descriptor),
    /// Into a table of its own: which, and the index there.
    Entry(u8, u8, Descriptor),
    Offer(Index),
    /// A descriptor that is made available at once.
    Request(u8, Descriptor),
    AvailIndex(u16),
    AvailFlags(u16),
    UsedEvent(u16),
    Poke(u16, u8),
    Notify,
    Acknowledge(u8),
    Start(Start),
}

#[derive(Arbitrary, Debug)]
struct Descriptor {
    addr: Place,
    len: Length,
    flags: u8,
    next: Index,
}

#[derive(Arbitrary, Debug)]
enum Place {
    Low(u16),
    Table(u8),
    Seam(i8),
    Hole(i8),
    Island(i8),
    IslandEnd(i8),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
enum Length {
    Short(u8),
    Entries(u8),
    Medium(u16),
    Any(u32),
}

/// A small number as a rule.
#[derive(Arbitrary, Debug)]
enum Index {
    Small(u8),
    Smaller(u8),
    Any(u16),
}

impl Index {
    fn number(&self) -> u16 {
        match *self {
            Self::Small(index) => (index % 16).into(),
            Self::Smaller(index) => (index % 3).into(),
            Self::Any(index) => index,
        }
    }
}

/// Where the indirect table of this number is.
fn table(number: u8) -> u64 {
    0x2800 + 0x101 * u64::from(number % 4)
}

impl Descriptor {
    fn bytes(&self) -> [u8; 16] {
        let near = |base: u64, offset: i8| base.wrapping_add_signed(offset.into());
        let addr = match self.addr {
            Place::Low(addr) => addr.into(),
            Place::Table(number) => table(number),
            Place::Seam(offset) => near(REGIONS[0].end, offset),
            Place::Hole(offset) => near(REGIONS[1].end, offset),
            Place::Island(offset) => near(REGIONS[2].start, offset),
            Place::IslandEnd(offset) => near(REGIONS[2].end, offset),
            Place::Any(addr) => addr,
        };
        let len = match self.len {
            Length::Short(len) => len.into(),
            Length::Entries(entries) => 16 * u32::from(entries % 20),
            Length::Medium(len) => len.into(),
            Length::Any(len) => len,
        };
        // Indirect ones are rarer than others.
        let flags = if self.flags & 0x38 == 0 {
            self.flags & 7
        } else {
            self.flags & 3
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12] = flags;
        bytes[14..].copy_from_slice(&self.next.number().to_le_bytes());
        bytes
    }
}

impl Start {
    /// A set-up that the device takes, whatever overlaps.
    fn setup(self) -> QueueSetup {
        let size = 1 << (self.size % 7);
        let place = |place: u16, align: u64, len: u64| {
            u64::from(place) % (REGIONS[1].end - len) / align * align
        };
        QueueSetup::new(size as u32)
            .with_desc_table(place(self.desc_table, 16, 16 * size))
            .with_avail_ring(place(self.avail_ring, 2, 6 + 2 * size))
            .with_used_ring(place(self.used_ring, 4, 6 + 8 * size))
    }

    fn features(self) -> u64 {
        u64::from(self.event_idx) << 29 | u64::from(self.indirect) << 28
    }
}

/// A machine and its model, and the driver's own index.
struct Pair {
    machine: Machine,
    model: Model,
    setup: QueueSetup,
    avail: u16,
    /// Whether the device was notified.
    kicked: bool,
}

impl Pair {
    fn write(&mut self, addr: u64, bytes: &[u8]) {
        let memory = &self.machine.memory;
        memory.write_slice(bytes, GuestAddress(addr)).unwrap();
        self.model.memory[addr as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Starts the device, after a reset.
    fn start(&mut self, start: Start) {
        self.setup = start.setup();
        self.machine.port.set(reg::STATUS, 0);
        let QueueSetup {
            avail_ring,
            used_ring,
            ..
        } = self.setup;
        self.write(avail_ring, &[0; 4]);
        self.write(used_ring, &[0; 4]);
        // The second may have been written over the first, and the other way round.
        self.avail = 0;
        self.write(avail_ring + 2, &[0; 2]);
        self.machine.start(start.features(), &self.setup);
        let (memory, stream) = (std::mem::take(&mut self.model.memory), self.model.stream);
        let raised = self.model.raised;
        self.model = Model::new(memory, stream, self.setup, start.features());
        self.model.raised = raised;
        // Whether a device looks at its queue before it is notified is its own affair.
        if self.machine.workers.step() {
            self.kicked = self.model.wake();
        } else {
            self.kicked = false;
        }
        self.compare();
    }

    /// Makes the chain at `head` available.
    fn offer(&mut self, head: u16) {
        let slot = u64::from(self.avail) % u64::from(self.setup.size);
        let entry = self.setup.avail_ring + 4 + 2 * slot;
        self.write(entry, &head.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        let index = self.avail.to_le_bytes();
        self.write(self.setup.avail_ring + 2, &index);
    }

    /// Lets the device do what it wants to, up to a few wake-ups.
    fn work(&mut self) {
        for _ in 0..4 {
            let worked = self.machine.workers.step();
            assert!(!self.kicked || worked || self.model.broken);
            if std::mem::take(&mut self.kicked) {
                self.kicked = self.model.wake();
            }
            if !worked {
                break;
            }
        }
        self.compare();
    }

    fn compare(&mut self) {
        let status = if self.model.broken { 15 | 64 } else { 15 };
        assert_eq!(self.machine.port.get(reg::STATUS), status);
        assert_eq!(
            self.machine.port.get(reg::INTERRUPT_STATUS),
            self.model.causes
        );
        assert_eq!(self.machine.line.raised(), self.model.raised);
        let image = self.machine.image();
        // As a whole first, which is quick.
        if image != self.model.memory {
            let differs = |(real, model): (&u8, &u8)| real != model;
            let first = image.iter().zip(&self.model.memory).position(differs);
            panic!("guest memory differs from the model's at {first:x?}");
        }
    }

    fn step(&mut self, step: &Step) {
        let size = u64::from(self.setup.size);
        match step {
            Step::Descriptor(index, descriptor) => {
                let index = u64::from(*index) % size;
                self.write(self.setup.desc_table + 16 * index, &descriptor.bytes());
            }
            Step::Entry(number, index, descriptor) => {
                let index = u64::from(*index) % 16;
                self.write(table(*number) + 16 * index, &descriptor.bytes());
            }
            Step::Offer(head) => self.offer(head.number()),
            Step::Request(index, descriptor) => {
                let index = u64::from(*index) % size;
                self.write(self.setup.desc_table + 16 * index, &descriptor.bytes());
                self.offer(index as u16);
            }
            Step::AvailIndex(index) => {
                self.avail = *index;
                self.write(self.setup.avail_ring + 2, &index.to_le_bytes());
            }
            Step::AvailFlags(flags) => {
                self.write(self.setup.avail_ring, &flags.to_le_bytes());
            }
            Step::UsedEvent(event) => {
                let addr = self.setup.avail_ring + 4 + 2 * size;
                self.write(addr, &event.to_le_bytes());
            }
            Step::Poke(addr, byte) => self.write(u64::from(*addr) % REGIONS[1].end, &[*byte]),
            Step::Notify => {
                self.machine.port.notify(0);
                self.kicked |= !self.model.broken;
                self.work();
            }
            Step::Acknowledge(causes) => {
                self.machine.port.set(reg::INTERRUPT_ACK, (*causes).into());
                self.model.causes &= !u32::from(*causes);
                self.compare();
            }
            Step::Start(start) => self.start(*start),
        }
    }
}

pub fn run(program: &Program) {
    let ends = program.ends.map_or(u32::MAX, u32::from);
    let stream = Stream::new(usize::from(program.limit) + 1, ends);
    let machine = Machine::new(stream, program.prompt);
    let setup = program.start.setup();
    let mut pair = Pair {
        model: Model::new(machine.image(), stream, setup, 0),
        machine,
        setup,
        avail: 0,
        kicked: false,
    };
    pair.start(program.start);
    for step in &program.steps {
        pair.step(step);
    }
    let Pair {
        mut machine, model, ..
    } = pair;
    let mut stream = model.stream;
    machine.reset_and_serve(&mut stream);
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Register accesses of a driver without any sense, and a VMM that pauses and moves the machine.

use arbitrary::Arbitrary;
use bus::BusDevice as _;
use virtio_conformance::{Port as _, READABLE, reg};
use virtio_device_core::transport::QueueSetup;
use vm_memory::{Bytes, GuestAddress};

use crate::machine::{Machine, Stream};

#[derive(Arbitrary, Debug)]
pub struct Program {
    prompt: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
pub(crate) enum Step {
    Read(u16, u8),
    Write(u16, u8, u64),
    /// To a register that there is.
    Word(u8, u32),
    Status(u8),
    Agree(u8),
    /// The whole of a driver's start.
    Start(u8),
    Enable(u8, u8, u8, u8),
    /// One writable descriptor, available.
    Offer(u8, u16),
    Notify(u8),
    Work,
    Pause,
    Resume,
    Move,
}

const DRIVER_OK: u32 = 4;
const SETUP: QueueSetup = QueueSetup::new(8)
    .with_desc_table(0x1000)
    .with_avail_ring(0x1100)
    .with_used_ring(0x1200);

/// What a driver and a VMM can see of a machine that must not act.
#[derive(PartialEq)]
struct Sight {
    image: Vec<u8>,
    raised: u32,
    causes: u32,
}

pub(crate) struct Rig {
    pub(crate) machine: Machine,
    paused: bool,
    avail: u16,
}

impl Rig {
    pub(crate) fn new(prompt: bool) -> Self {
        Self {
            machine: Machine::new(Stream::constant(), prompt),
            paused: false,
            avail: 0,
        }
    }

    fn sight(&mut self) -> Sight {
        Sight {
            image: self.machine.image(),
            raised: self.machine.line.raised(),
            causes: self.machine.port.get(reg::INTERRUPT_STATUS),
        }
    }

    fn write(&self, addr: u64, bytes: &[u8]) {
        let memory = &self.machine.memory;
        memory.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub(crate) fn step(&mut self, prompt: bool, step: &Step) {
        match *step {
            Step::Read(offset, width) => {
                let mut data = vec![0xa5; usize::from(width % 17)];
                let offset = u64::from(offset % 0x1000);
                let transport = self.machine.port.device_mut();
                transport.read(offset, &mut data).unwrap();
                // There is no configuration space, and nothing else is read but by words.
                if data.len() != 4 || offset >= 0x100 {
                    assert!(data.iter().all(|&byte| byte == 0));
                }
            }
            Step::Write(offset, width, value) => {
                let data = [value.to_le_bytes(); 2].concat();
                let data = &data[..usize::from(width % 17)];
                let offset = u64::from(offset % 0x1000);
                let transport = self.machine.port.device_mut();
                transport.write(offset, data).unwrap();
            }
            Step::Word(register, value) => self.machine.port.set(u64::from(register) & !3, value),
            Step::Status(status) => {
                self.machine.port.set(reg::STATUS, status.into());
                if status == 0 {
                    let registers = [reg::STATUS, reg::INTERRUPT_STATUS, reg::QUEUE_READY];
                    assert_eq!(registers.map(|it| self.machine.port.get(it)), [0; 3]);
                }
            }
            Step::Agree(features) => {
                self.machine.port.set(reg::STATUS, 0);
                // EVENT_IDX, INDIRECT_DESC and RING_RESET.
                let ring_reset = u64::from(features >> 2 & 1) << 40;
                self.machine
                    .negotiate(u64::from(features & 3) << 28 | ring_reset);
            }
            Step::Start(features) => {
                self.write(SETUP.avail_ring, &[0; 4]);
                self.avail = 0;
                self.machine.start(chosen(features), &SETUP);
            }
            Step::Enable(size, desc_table, avail_ring, used_ring) => {
                // The right places, and sometimes those beside them.
                let setup = QueueSetup::new(if size < 0x80 { 8 } else { (size & 0x3f).into() })
                    .with_desc_table(SETUP.desc_table + 0x200 * u64::from(desc_table / 0x40))
                    .with_avail_ring(SETUP.avail_ring + u64::from(avail_ring / 0x40))
                    .with_used_ring(SETUP.used_ring + u64::from(used_ring / 0x40));
                let sound = setup.size.is_power_of_two()
                    && setup.avail_ring % 2 == 0
                    && setup.used_ring % 4 == 0;
                // One that is enabled already stays as it is.
                let before = self.machine.port.is_enabled(0);
                let after = self.machine.port.enable(0, &setup);
                assert!(sound || before || !after);
            }
            Step::Offer(head, len) => {
                let index = u64::from(head % 8);
                let mut descriptor = [0; 16];
                descriptor[..8].copy_from_slice(&0x4000_u64.to_le_bytes());
                descriptor[8..10].copy_from_slice(&len.to_le_bytes());
                descriptor[12] = 2;
                self.write(SETUP.desc_table + 16 * index, &descriptor);
                let slot = u64::from(self.avail % 8);
                self.write(SETUP.avail_ring + 4 + 2 * slot, &[head % 8, 0]);
                self.avail = self.avail.wrapping_add(1);
                self.write(SETUP.avail_ring + 2, &self.avail.to_le_bytes());
            }
            Step::Notify(queue) => self.machine.port.notify(queue.into()),
            Step::Work => {
                // Two queue-lengths of requests, and no more, come of it.
                for _ in 0..2 {
                    self.machine.workers.step();
                }
            }
            Step::Pause => {
                self.machine.port.device_mut().pause().unwrap();
                self.paused = true;
            }
            Step::Resume => self.resume(),
            Step::Move => self.move_on(prompt),
        }
    }

    pub(crate) fn resume(&mut self) {
        self.machine.port.device_mut().resume();
        self.paused = false;
    }

    /// Saves the machine, and goes on with another one in the same memory.
    fn move_on(&mut self, prompt: bool) {
        let transport = self.machine.port.device_mut();
        transport.pause().unwrap();
        let state = transport.save().unwrap();
        let memory = self.machine.memory.clone();
        let mut twin = Machine::with_memory(memory, Stream::constant(), prompt);
        if self.paused {
            twin.port.device_mut().pause().unwrap();
        }
        twin.port.device_mut().restore(&state).unwrap();
        for register in READABLE {
            let (before, after) = (self.machine.port.get(register), twin.port.get(register));
            // Whoever works is told to look, because it may have missed something.
            let told = register == reg::INTERRUPT_STATUS && after == before | 1;
            assert!(after == before || told, "{register:#x}");
        }
        let raised = u32::from(twin.port.get(reg::INTERRUPT_STATUS) != 0);
        assert_eq!(twin.line.raised(), raised);
        self.machine = twin;
    }

    /// Runs a program to its end, after which the device still serves.
    pub(crate) fn run(&mut self, prompt: bool, steps: &[Step]) {
        for step in steps {
            let status = self.machine.port.get(reg::STATUS);
            let before = self.sight();
            self.step(prompt, step);
            let after = self.sight();
            let port = &mut self.machine.port;
            let identity =
                [reg::MAGIC_VALUE, reg::VERSION, reg::DEVICE_ID].map(|register| port.get(register));
            assert_eq!(identity, [0x7472_6976, 2, 4]);
            assert_eq!(port.get(reg::STATUS) & !0xcf, 0, "status");
            assert_eq!(after.causes & !3, 0, "causes");
            let selected = port.get(reg::QUEUE_SIZE_MAX);
            assert!(selected == 0 || selected == 256, "queue size");
            // The device's own doing: with the driver not ready, with nobody working, or paused.
            let at_rest = status & DRIVER_OK == 0 || self.paused;
            let own = matches!(step, Step::Work | Step::Read(..) | Step::Notify(_));
            if own && (at_rest || !matches!(step, Step::Work)) {
                assert!(before == after, "acted at rest: {step:?}");
            }
            // No interrupt without a cause.
            if !matches!(step, Step::Move) && after.raised != before.raised {
                assert_ne!(after.causes, 0);
            }
            if !own && !matches!(step, Step::Offer(..) | Step::Start(_)) {
                assert!(before.image == after.image, "a register wrote to memory");
            }
        }
        self.resume();
        self.machine.reset_and_serve(&mut Stream::constant());
    }
}

/// INDIRECT_DESC, EVENT_IDX and RING_RESET, by the bits of a byte.
fn chosen(features: u8) -> u64 {
    u64::from(features & 3) << 28 | u64::from(features >> 2 & 1) << 40
}

pub fn run(program: &Program) {
    Rig::new(program.prompt).run(program.prompt, &program.steps);
}

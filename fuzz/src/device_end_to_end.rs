// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The whole life of the entropy device: a driver with sense, whose device is reset, paused and
//! moved at any moment, and whose host has a source that fails in every way.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use virtio_conformance::{Port as _, READABLE, reg};
use virtio_device_core::transport::QueueSetup;
use vm_memory::{Bytes, GuestAddress};

pub use crate::life::Program;
use crate::life::{INDIRECT, RING_RESET, Start, Step};
use crate::machine::{Machine, new_memory};
use crate::source::{Script, Source};

/// A request that the device has not given back.
struct Request {
    head: u16,
    /// Its descriptors in the queue's table.
    descriptors: Vec<u16>,
    buffers: Vec<(u64, usize)>,
}

/// How often a program got where it was to get.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reached {
    pub requests: u32,
    pub breakdowns: u32,
    pub queue_resets: u32,
    pub moves: u32,
}

struct Rig {
    machine: Machine<Source>,
    script: Arc<Mutex<Script>>,
    prompt: bool,
    /// What memory must be.
    image: Vec<u8>,
    features: u64,
    setup: QueueSetup,
    /// The device is started, and its queue is enabled.
    live: bool,
    enabled: bool,
    paused: bool,
    /// DEVICE_NEEDS_RESET.
    broken: bool,
    /// The source has panicked, and this device does not ask it again.
    lost: bool,
    notified: bool,
    wants_interrupts: bool,
    avail: u16,
    used: u16,
    requests: VecDeque<Request>,
    free: Vec<u16>,
    reached: Reached,
}

impl Rig {
    fn write(&mut self, addr: u64, bytes: &[u8]) {
        let memory = &self.machine.memory;
        memory.write_slice(bytes, GuestAddress(addr)).unwrap();
        self.image[addr as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    /// The device gave up what it had; the driver makes an empty queue.
    fn renew(&mut self, setup: QueueSetup) {
        self.setup = setup;
        self.write(setup.desc_table, &[0; 0x600]);
        (self.avail, self.used, self.notified) = (0, 0, false);
        self.requests.clear();
        self.free = (0..setup.size as u16).collect();
        self.tell_wish();
    }

    /// Says from which used element on an interrupt is wanted.
    fn tell_wish(&mut self) {
        let ring = self.setup.avail_ring;
        self.write(ring, &[u8::from(!self.wants_interrupts), 0]);
        let behind = u16::from(!self.wants_interrupts).wrapping_neg();
        let event = self.used.wrapping_add(behind).to_le_bytes();
        self.write(ring + 4 + 2 * u64::from(self.setup.size), &event);
    }

    fn start(&mut self, start: Start) {
        self.machine.port.set_status(0);
        self.features = start.features();
        self.renew(start.setup());
        self.machine.start(self.features, &self.setup);
        (self.live, self.enabled, self.broken) = (true, true, false);
    }

    fn reset(&mut self) {
        self.machine.port.set_status(0);
        for register in [reg::STATUS, reg::INTERRUPT_STATUS, reg::QUEUE_READY] {
            assert_eq!(self.machine.port.get(register), 0, "{register:#x}");
        }
        (self.live, self.enabled, self.broken) = (false, false, false);
        self.requests.clear();
    }

    fn queue_reset(&mut self, comeback: Option<Start>) {
        if !self.live || self.features & RING_RESET == 0 || self.broken {
            return;
        }
        if self.enabled {
            self.machine.port.reset_queue(0);
            assert!(!self.machine.port.is_enabled(0));
            self.requests.clear();
            self.enabled = false;
            self.reached.queue_resets += 1;
        }
        if let Some(start) = comeback {
            self.renew(start.setup());
            assert!(self.machine.port.enable(0, &self.setup));
            self.enabled = true;
        }
    }

    fn offer(&mut self, lens: [u8; 3]) {
        let indirect = self.features & INDIRECT != 0;
        // No chain is longer than the queue, wherever its descriptors are.
        let room = if indirect {
            self.setup.size as usize
        } else {
            self.free.len()
        };
        let most = room.min(3);
        if !self.enabled || self.free.is_empty() {
            return;
        }
        let count = 1 + usize::from(lens[0]) % most;
        let taken = if indirect { 1 } else { count };
        let descriptors: Vec<u16> = self.free.drain(..taken).collect();
        let head = descriptors[0];
        let arena = 0x1000 + 0x400 * u64::from(head);
        let buffers: Vec<_> = (0..count)
            .map(|at| (arena + 0x111 * at as u64, usize::from(lens[at])))
            .collect();
        for (at, &(addr, len)) in buffers.iter().enumerate() {
            let next = match indirect {
                true => at as u16 + 1,
                false => descriptors.get(at + 1).copied().unwrap_or(0),
            };
            let flags = 2 | u16::from(at + 1 < count);
            let slot = match indirect {
                true => arena + 0x380 + 16 * at as u64,
                false => self.setup.desc_table + 16 * u64::from(descriptors[at]),
            };
            self.write(slot, &descriptor(addr, len, flags, next));
        }
        if indirect {
            let table = descriptor(arena + 0x380, 16 * count, 4, 0);
            self.write(self.setup.desc_table + 16 * u64::from(head), &table);
        }
        let slot = u64::from(self.avail) % u64::from(self.setup.size);
        let ring = self.setup.avail_ring;
        self.write(ring + 4 + 2 * slot, &head.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.write(ring + 2, &self.avail.to_le_bytes());
        self.notified = false;
        self.requests.push_back(Request {
            head,
            descriptors,
            buffers,
        });
    }

    fn work(&mut self) {
        let patience = self.script.lock().unwrap().faults.len() + 8;
        let raised = self.machine.line.raised();
        let acts = self.live && self.enabled && !self.paused && !self.broken;
        for _ in 0..patience {
            if !self.machine.workers.step() {
                break;
            }
        }
        let before = self.used;
        if acts {
            self.take_used();
            let mut script = self.script.lock().unwrap();
            self.lost |= script.panicked;
            script.panicked = false;
            self.broken = std::mem::take(&mut script.fatal);
            let more = self.requests.iter().any(|it| it.room() > 0);
            // Without a notification, whether it looks is its own affair.
            let looked = self.notified || self.machine.port.status() & 64 != 0;
            self.broken |= self.lost && more && looked;
            let kept = script.faults.is_empty() && self.notified && !self.broken;
            assert!(!kept || self.requests.is_empty(), "a request is kept");
            self.reached.breakdowns += u32::from(self.broken);
        }
        self.check();
        let causes = self.machine.port.interrupt_status();
        let has_used = self.used != before;
        let is_told = self.machine.line.raised() != raised;
        assert!(is_told || !has_used || !self.wants_interrupts);
        assert!(!has_used || !self.wants_interrupts || causes & 1 != 0);
        assert!(
            !is_told || has_used || acts && self.broken,
            "told of nothing"
        );
        assert!(!self.broken || causes & 2 != 0 || !acts);
        self.tell_wish();
    }

    /// Every request that came back is the oldest one, and has what the source gave for it.
    fn take_used(&mut self) {
        let ring = self.setup.used_ring;
        let index = self.machine.memory.read_obj(GuestAddress(ring + 2));
        let index = u16::from_le(index.unwrap());
        while self.used != index {
            let request = self.requests.pop_front().expect("no more than was offered");
            let bytes = if request.room() == 0 {
                Vec::new()
            } else {
                let given = self.script.lock().unwrap().given.pop_front();
                given.expect("bytes of the source")
            };
            assert!(bytes.len() <= request.room());
            let mut rest = &bytes[..];
            for (addr, len) in request.buffers {
                let (now, later) = rest.split_at(rest.len().min(len));
                self.image[addr as usize..][..now.len()].copy_from_slice(now);
                rest = later;
            }
            let slot = u64::from(self.used) % u64::from(self.setup.size);
            let element = (ring + 4 + 8 * slot) as usize;
            let [head, len] = [request.head.into(), bytes.len() as u32].map(u32::to_le_bytes);
            self.image[element..][..8].copy_from_slice(&[head, len].concat());
            self.used = self.used.wrapping_add(1);
            self.image[ring as usize + 2..][..2].copy_from_slice(&self.used.to_le_bytes());
            self.free.extend(request.descriptors);
            self.reached.requests += 1;
        }
        // Drawn bytes are not lost, and not kept for anybody else.
        assert!(self.script.lock().unwrap().given.is_empty());
        // Whether the device wants to be notified is its own affair.
        let image = self.machine.image();
        for at in [ring, ring + 4 + 8 * u64::from(self.setup.size)] {
            let at = at as usize;
            self.image[at..at + 2].copy_from_slice(&image[at..at + 2]);
        }
        assert!(image[ring as usize] <= 1 && image[ring as usize + 1] == 0);
    }

    fn check(&mut self) {
        let image = self.machine.image();
        let differs = image
            .iter()
            .zip(&self.image)
            .position(|(it, model)| it != model);
        assert_eq!(differs, None, "memory outside of what was offered");
        let status = if self.live { 15 } else { 0 } | if self.broken { 64 } else { 0 };
        assert_eq!(self.machine.port.status(), status);
        assert_eq!(self.machine.port.is_enabled(0), self.enabled);
    }

    /// Goes on in another machine, which has the same memory and the same source.
    fn migrate(&mut self) {
        let transport = self.machine.port.device_mut();
        transport.pause().unwrap();
        let state = transport.save().unwrap();
        let source = Source(self.script.clone());
        let mut twin = Machine::with_source(self.machine.memory.clone(), source, self.prompt);
        let transport = twin.port.device_mut();
        transport.pause().unwrap();
        transport.restore(&state).unwrap();
        let mut again = transport.save().unwrap();
        // Whoever works is told to look, and of a breakdown once more.
        let told = 1 | if self.broken { 2 } else { 0 };
        assert_eq!(again.interrupt_status | told, state.interrupt_status | told);
        again.interrupt_status = state.interrupt_status;
        assert_eq!(again, state);
        if !self.paused {
            transport.resume();
        }
        self.machine = twin;
        self.lost = false;
        self.reached.moves += 1;
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Offer(lens) => self.offer(lens),
            Step::Notify => {
                self.machine.port.notify(0);
                self.notified = true;
            }
            Step::Work => self.work(),
            Step::Fault(fault) => self.script.lock().unwrap().faults.push_back(fault),
            Step::Reset(None) => self.reset(),
            Step::Reset(Some(start)) => self.start(start),
            Step::QueueReset(comeback) => self.queue_reset(comeback),
            Step::Pause => {
                self.machine.port.device_mut().pause().unwrap();
                self.paused = true;
            }
            Step::Resume => {
                self.machine.port.device_mut().resume();
                self.paused = false;
            }
            Step::Move => self.migrate(),
            Step::Acknowledge => {
                self.machine.port.acknowledge(3);
                assert_eq!(self.machine.port.interrupt_status(), 0);
            }
            Step::WantInterrupts(wants) => {
                self.wants_interrupts = wants;
                self.tell_wish();
            }
            Step::Read(offset, width) => {
                let mut data = vec![0xa5; usize::from(width % 17)];
                self.machine.port.read(offset.into(), &mut data);
                let is_register = data.len() == 4 && READABLE.contains(&offset.into());
                assert!(is_register || data.iter().all(|&byte| byte == 0));
            }
            Step::Write(register, value) => {
                const FROZEN: [u64; 10] = [
                    reg::MAGIC_VALUE,
                    reg::DEVICE_FEATURES_SEL,
                    reg::DRIVER_FEATURES,
                    reg::DRIVER_FEATURES_SEL,
                    reg::QUEUE_SIZE,
                    reg::QUEUE_DESC_LOW,
                    reg::QUEUE_DRIVER_LOW,
                    reg::QUEUE_DRIVER_HIGH,
                    reg::QUEUE_DEVICE_LOW,
                    reg::SHM_SEL,
                ];
                self.machine.port.set(reg::QUEUE_SEL, 0);
                let register = FROZEN[usize::from(register) % FROZEN.len()];
                self.machine.port.set(register, value);
            }
        }
        // None but a worker writes to memory, and `work` looks at that itself.
        self.check();
    }
}

impl Request {
    fn room(&self) -> usize {
        self.buffers.iter().map(|(_, len)| len).sum()
    }
}

fn descriptor(addr: u64, len: usize, flags: u16, next: u16) -> Vec<u8> {
    let mut bytes = addr.to_le_bytes().to_vec();
    bytes.extend((len as u32).to_le_bytes());
    bytes.extend([flags, next].map(u16::to_le_bytes).concat());
    bytes
}

pub fn run(program: &Program) -> Reached {
    let script = Arc::<Mutex<Script>>::default();
    let machine = Machine::with_source(new_memory(), Source(script.clone()), program.prompt);
    let mut rig = Rig {
        image: machine.image(),
        machine,
        script,
        prompt: program.prompt,
        features: 0,
        setup: program.start.setup(),
        live: false,
        enabled: false,
        paused: false,
        broken: false,
        lost: false,
        notified: false,
        wants_interrupts: true,
        avail: 0,
        used: 0,
        requests: VecDeque::new(),
        free: Vec::new(),
        reached: Reached::default(),
    };
    rig.start(program.start);
    for step in &program.steps {
        rig.step(step);
    }
    // Whatever has happened: a source that is there again serves.
    rig.script.lock().unwrap().faults.clear();
    rig.step(&Step::Resume);
    rig.start(program.start);
    let last = [Step::Offer([9; 3]), Step::Notify, Step::Work];
    last.iter().for_each(|step| rig.step(step));
    assert_eq!(rig.broken, rig.lost);
    assert_eq!(rig.requests.len(), usize::from(rig.lost));
    rig.reached
}

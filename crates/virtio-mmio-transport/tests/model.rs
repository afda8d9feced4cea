// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random register programs against a model of the registers, written from VIRTIO 1.3, sections
//! 2.1, 2.2, 2.6.1, 3.1.1 and 4.2.2, that shares no code with the transport.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test stops at the unexpected; the model runs on 64 bits"
)]

mod support;

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use support::{Fixture, Probe};
use virtio_device_core::{DeviceFault, Features};

use bus::BusDevice;

const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
const NOTIFICATION_DATA: u64 = 1 << 38;
const RING_RESET: u64 = 1 << 40;
const OFFERED: u64 = EVENT_IDX | VERSION_1 | NOTIFICATION_DATA | RING_RESET;
const MAX_SIZES: [u64; 2] = [16, 8];
const RAM: u64 = 0x1_0000;

#[derive(Clone, Copy, Default)]
struct ModelQueue {
    size: u64,
    /// Descriptor table, available ring, used ring.
    rings: [u64; 3],
    ready: bool,
    was_reset: bool,
}

#[derive(Default)]
struct Model {
    status: u64,
    broken: bool,
    accepted: u64,
    /// What the driver has written to feature words that are never offered, last value each.
    accepted_beyond: BTreeMap<u64, u64>,
    offer_select: u64,
    accept_select: u64,
    queue_select: u64,
    region_select: u64,
    queues: [ModelQueue; 2],
    causes: u64,
    generation: u64,
    config: [u8; 6],
    kicks: [u64; 2],
}

impl Model {
    fn live(&self) -> bool {
        self.status == 15
    }

    fn agreed(&self, feature: u64) -> bool {
        self.status & 8 != 0 && self.accepted & feature != 0
    }

    fn queue(&mut self) -> Option<&mut ModelQueue> {
        self.queues.get_mut(self.queue_select as usize)
    }

    /// What the driver reads from the word at `offset`.
    fn read(&mut self, offset: u64) -> u64 {
        let region = match self.region_select {
            0 => (0x1000, 0x8000_0000),
            3 => (0x2_3456_789a, 0x1_2345_6789),
            _ => (u64::MAX, u64::MAX),
        };
        let low = |value: u64| value & 0xffff_ffff;
        match offset {
            0x00 => u64::from(u32::from_le_bytes(*b"virt")),
            0x04 => 2,
            0x08 => 42,
            0x0c => u64::from(u32::from_le_bytes(*b"RVMM")),
            0x10 => match self.offer_select {
                0 => low(OFFERED),
                1 => OFFERED >> 32,
                _ => 0,
            },
            0x34 => *MAX_SIZES.get(self.queue_select as usize).unwrap_or(&0),
            0x44 => self.queue().is_some_and(|queue| queue.ready).into(),
            0x60 => self.causes,
            0x70 => self.status | if self.broken { 64 } else { 0 },
            0xb0 => low(region.0),
            0xb4 => region.0 >> 32,
            0xb8 => low(region.1),
            0xbc => region.1 >> 32,
            0xfc => self.generation,
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u64) {
        match offset {
            0x14 => self.offer_select = value,
            0x20 if self.status == 3 => match self.accept_select {
                0 => self.accepted = self.accepted >> 32 << 32 | value,
                1 => self.accepted = self.accepted & 0xffff_ffff | value << 32,
                select => self.accepted_beyond.extend([(select, value)]),
            },
            0x24 => self.accept_select = value,
            0x30 => self.queue_select = value,
            0x38 | 0x80..=0xa4 => self.set_up(offset, value),
            0x44 => self.ready(value),
            0x50 => {
                let data = self.agreed(NOTIFICATION_DATA);
                let index = if data { value & 0xffff } else { value } as usize;
                if self.live() && self.queues.get(index).is_some_and(|queue| queue.ready) {
                    self.kicks[index] += 1;
                }
            }
            0x64 => self.causes &= !value,
            0x70 => self.set_status(value),
            0xac => self.region_select = value,
            0xc0 if value == 1 && self.agreed(RING_RESET) && self.status & 128 == 0 => {
                if let Some(queue) = self.queue() {
                    *queue = ModelQueue {
                        was_reset: true,
                        ..ModelQueue::default()
                    };
                }
            }
            _ => {}
        }
    }

    fn set_up(&mut self, offset: u64, value: u64) {
        let (configuring, live) = (self.status == 11, self.live());
        let Some(queue) = self.queue() else { return };
        if queue.ready || !(configuring || live && queue.was_reset) {
            return;
        }
        let ring = match offset & 0xf0 {
            0x30 => {
                queue.size = value;
                return;
            }
            0x80 => &mut queue.rings[0],
            0x90 => &mut queue.rings[1],
            _ => &mut queue.rings[2],
        };
        match offset & 0xf {
            0 => *ring = *ring >> 32 << 32 | value,
            4 => *ring = *ring & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    fn ready(&mut self, value: u64) {
        let (configuring, live, broken) = (self.status == 11, self.live(), self.broken);
        let index = self.queue_select as usize;
        let Some(queue) = self.queue() else { return };
        if value == 0 {
            queue.ready = false;
        }
        let may = configuring || live && queue.was_reset && !broken;
        if value != 1 || queue.ready || !may {
            return;
        }
        let [table, avail, used] = queue.rings;
        let size = queue.size;
        let fits = |at: u64, align: u64, len: u64| {
            at % align == 0 && at.checked_add(len).is_some_and(|end| end <= RAM)
        };
        let good = (1..=MAX_SIZES[index]).contains(&size)
            && size & (size - 1) == 0
            && fits(table, 16, 16 * size)
            && fits(avail, 2, 6 + 2 * size)
            && fits(used, 4, 6 + 8 * size);
        if good {
            queue.ready = true;
            queue.was_reset = false;
            if live {
                self.kicks[index] += 1;
            }
        }
    }

    fn set_status(&mut self, value: u64) {
        if value == 0 {
            *self = Self {
                generation: self.generation,
                config: self.config,
                kicks: self.kicks,
                ..Self::default()
            };
            return;
        }
        let value = if self.broken { value & !64 } else { value };
        if self.status & 128 != 0 {
            return;
        }
        let next = match (self.status, value) {
            (old, new) if new == old | 128 => true,
            _ if self.broken => false,
            (0, 1 | 3) | (1, 3) => true,
            (3, 11) => {
                let unknown = self.accepted & !OFFERED != 0
                    || self.accepted_beyond.values().any(|&word| word != 0);
                !unknown && self.accepted & VERSION_1 != 0
            }
            (11, 15) => true,
            _ => false,
        };
        if next {
            self.status = value;
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u32),
    Read(u64),
    /// An access of another width, which does nothing.
    Odd(u64, usize),
    ConfigWrite(u64, u8),
    Used,
    ConfigChange,
    Fail,
    /// The steps that bring a driver on, so that programs reach the later states.
    Negotiate(u32, u32),
    SetUp(u32, u32),
    Start,
    ResetQueue(u32),
}

fn values() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => select(vec![0, 1, 2, 3, 4, 8, 11, 15, 16, 64, 128, 79, 131, 139, 143, 207]),
        2 => select(vec![0x100, 0x1_0000, 0x1_0001, 0x2000_0000, u32::MAX, 1 << 8 | 1]),
        2 => (0u32..0x20).prop_map(|page| page << 12),
        1 => any::<u32>(),
    ]
}

fn offsets() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0u64..0x40).prop_map(|word| word * 4),
        4 => select(vec![0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x90, 0xa0, 0xc0]),
        1 => any::<u64>().prop_map(|offset| 0x200 + (offset >> 1 & !3)),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (offsets(), values()).prop_map(|(offset, value)| Step::Write(offset, value)),
        2 => offsets().prop_map(Step::Read),
        1 => (0u64..0x100, select(vec![1, 2, 3, 8])).prop_map(|(o, w)| Step::Odd(o, w)),
        1 => (0u64..6, any::<u8>()).prop_map(|(offset, value)| Step::ConfigWrite(offset, value)),
        2 => select(vec![15, 15, 143, 139, 131]).prop_map(|status| Step::Write(0x70, status)),
        1 => Just(Step::Start),
        2 => select(vec![0, 0, 1, 2]).prop_map(Step::ResetQueue),
        1 => Just(Step::Used),
        1 => Just(Step::ConfigChange),
        1 => Just(Step::Fail),
        2 => (select(vec![0, 1 << 29, 1]), select(vec![0x141, 0x101, 1, 0]))
            .prop_map(|(low, high)| Step::Negotiate(low, high)),
        4 => (select(vec![0, 1, 2]), select(vec![8, 16, 8, 4, 3])).prop_map(|(q, s)| Step::SetUp(q, s)),
    ]
}

struct Pair {
    real: Fixture,
    model: Model,
}

impl Pair {
    fn write(&mut self, offset: u64, value: u32) {
        self.real.set(offset, value);
        self.model.write(offset, value.into());
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Write(offset, value) if offset != 0x100 && offset != 0x104 => {
                self.write(offset, value);
            }
            Step::Write(..) => {}
            Step::Read(offset) => self.compare(offset),
            Step::Odd(offset, width) => {
                if offset % 4 != 0 || width != 4 {
                    let mut data = vec![0xff; width];
                    self.real.transport.write(offset, &data).unwrap();
                    self.real.transport.read(offset, &mut data).unwrap();
                    // A part may lie beyond the control registers; this is about those.
                    assert!(data.iter().all(|&byte| byte == 0));
                }
            }
            Step::ConfigWrite(offset, value) => {
                self.real.transport.write(0x100 + offset, &[value]).unwrap();
                if matches!(self.model.status, 11 | 15) {
                    self.model.config[offset as usize] = value;
                }
            }
            Step::Used | Step::Fail => {
                let activation = self.real.probe.activation.lock().unwrap();
                let Some(activation) = &*activation else {
                    return;
                };
                if matches!(step, Step::Used) {
                    activation.interrupt.used_buffers(0);
                    if self.model.live() {
                        self.model.causes |= 1;
                    }
                } else {
                    activation.interrupt.device_failed(&DeviceFault::Panicked);
                    if self.model.live() && !self.model.broken {
                        self.model.broken = true;
                        self.model.causes |= 2;
                    }
                }
            }
            Step::ConfigChange => {
                self.real
                    .transport
                    .update_config(|device| device.config[5] ^= 1);
                self.model.config[5] ^= 1;
                self.model.causes |= if self.model.live() { 2 } else { 0 };
                // By how much is the transport's business.
                let before = self.model.generation;
                self.model.generation = self.real.get(0xfc).into();
                assert_ne!(self.model.generation, before);
            }
            Step::Negotiate(low, high) => {
                for (offset, value) in [
                    (0x70, 0),
                    (0x70, 3),
                    (0x24, 0),
                    (0x20, low),
                    (0x24, 1),
                    (0x20, high),
                    (0x70, 11),
                ] {
                    self.write(offset, value);
                }
            }
            Step::Start => {
                self.step(&Step::Negotiate(0, 0x141));
                self.step(&Step::SetUp(0, 8));
                self.write(0x70, 15);
            }
            Step::ResetQueue(queue) => {
                self.write(0x30, queue);
                self.write(0xc0, 1);
            }
            Step::SetUp(queue, size) => {
                for (offset, value) in [
                    (0x30, queue),
                    (0x38, size),
                    (0x80, 0x1000),
                    (0x84, 0),
                    (0x90, 0x2000),
                    (0x94, 0),
                    (0xa0, 0x3000),
                    (0xa4, 0),
                    (0x44, 1),
                ] {
                    self.write(offset, value);
                }
            }
        }
    }

    fn compare(&mut self, offset: u64) {
        let real = u64::from(self.real.get(offset));
        if (0x100..0x106).contains(&offset) {
            return;
        }
        assert_eq!(real, self.model.read(offset), "{offset:#x}");
    }

    fn compare_all(&mut self) {
        (0..0x100)
            .step_by(4)
            .for_each(|offset| self.compare(offset));
        let mut config = [0; 6];
        self.real.transport.read(0x100, &mut config).unwrap();
        assert_eq!(config, self.model.config);
        for queue in [0, 1] {
            assert_eq!(
                self.real.kicks(queue),
                std::mem::take(&mut self.model.kicks[usize::from(queue)])
            );
        }
        // The device sees exactly the queues that are enabled while it is live.
        let activation = self.real.probe.activation.lock().unwrap();
        let restarted = self.real.probe.restarted.lock().unwrap();
        let leases = activation.iter().flat_map(|a| &a.queues).chain(&*restarted);
        for index in [0, 1] {
            let mine = leases.clone().filter(|queue| queue.index == index);
            let held = mine.filter(|queue| !queue.queue.is_revoked()).count();
            let ready = self.model.live() && self.model.queues[usize::from(index)].ready;
            assert_eq!(held, usize::from(ready), "queue {index}");
        }
    }
}

fn run(program: &[Step]) {
    let mut real = Fixture::with(Probe {
        features: Features::from(NOTIFICATION_DATA | RING_RESET),
        ..Probe::default()
    });
    let model = Model {
        config: support::CONFIG,
        generation: real.get(0xfc).into(),
        ..Model::default()
    };
    let mut pair = Pair { real, model };
    for step in program {
        pair.step(step);
        pair.compare_all();
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 400 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn register_programs_end_as_the_model_says(program in vec(steps(), 1..if cfg!(miri) { 16 } else { 60 })) {
        run(&program);
    }
}

#[test]
fn the_programs_reach_every_state() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let strategy = vec(steps(), 1..60);
    let mut seen = std::collections::BTreeSet::new();
    let (mut restarted, mut broken) = (0, 0);
    for _ in 0..if cfg!(miri) { 1 } else { 300 } {
        let program = strategy.new_tree(&mut runner).unwrap().current();
        let real = Fixture::with(Probe {
            features: Features::from(NOTIFICATION_DATA | RING_RESET),
            ..Probe::default()
        });
        let mut pair = Pair {
            real,
            model: Model::default(),
        };
        for step in &program {
            pair.step(step);
            seen.insert(pair.model.status);
            broken += u32::from(pair.model.broken);
        }
        restarted += pair.real.events().queue_restarted;
    }
    if cfg!(not(miri)) {
        for status in [0, 1, 3, 11, 15, 131, 139, 143] {
            assert!(seen.contains(&status), "{status} is never reached");
        }
        assert!(restarted > 0 && broken > 0, "{restarted} {broken}");
    }
}

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
use support::Fixture;
use support::programs::{Run, Step, steps};
use virtio_conformance::reg;
use virtio_device_core::Features;

use bus::BusDevice;

const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
const NOTIFICATION_DATA: u64 = 1 << 38;
const RING_RESET: u64 = 1 << 40;
const INDIRECT_DESC: u64 = 1 << 28;
const OFFERED: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1 | NOTIFICATION_DATA | RING_RESET;
const MAX_SIZES: [u64; 2] = [16, 8];
const RAM: u64 = 0x1_0000;

#[derive(Clone, Copy, Default)]
struct ModelQueue {
    size: u64,
    /// Descriptor table, available ring, used ring.
    rings: [u64; 3],
    ready: bool,
    was_reset: bool,
    /// The device was given it when it was activated.
    active: bool,
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
    /// The configuration has changed since the driver began, and it is not live yet.
    untold: bool,
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
            reg::MAGIC_VALUE => u64::from(u32::from_le_bytes(*b"virt")),
            reg::VERSION => 2,
            reg::DEVICE_ID => 42,
            reg::VENDOR_ID => u64::from(u32::from_le_bytes(*b"RVMM")),
            reg::DEVICE_FEATURES => match self.offer_select {
                0 => low(OFFERED),
                1 => OFFERED >> 32,
                _ => 0,
            },
            reg::QUEUE_SIZE_MAX => *MAX_SIZES.get(self.queue_select as usize).unwrap_or(&0),
            reg::QUEUE_READY => self.queue().is_some_and(|queue| queue.ready).into(),
            reg::INTERRUPT_STATUS => self.causes,
            reg::STATUS => self.status | if self.broken { 64 } else { 0 },
            reg::SHM_LEN_LOW => low(region.0),
            reg::SHM_LEN_HIGH => region.0 >> 32,
            reg::SHM_BASE_LOW => low(region.1),
            reg::SHM_BASE_HIGH => region.1 >> 32,
            reg::CONFIG_GENERATION => self.generation,
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u64) {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.offer_select = value,
            reg::DRIVER_FEATURES if self.status == 3 => match self.accept_select {
                0 => self.accepted = self.accepted >> 32 << 32 | value,
                1 => self.accepted = self.accepted & 0xffff_ffff | value << 32,
                select => self.accepted_beyond.extend([(select, value)]),
            },
            reg::DRIVER_FEATURES_SEL => self.accept_select = value,
            reg::QUEUE_SEL => self.queue_select = value,
            reg::QUEUE_SIZE | reg::QUEUE_DESC_LOW..=reg::QUEUE_DEVICE_HIGH => {
                self.set_up(offset, value)
            }
            reg::QUEUE_READY => self.ready(value),
            reg::QUEUE_NOTIFY => {
                let data = self.agreed(NOTIFICATION_DATA);
                let index = if data { value & 0xffff } else { value } as usize;
                if let Some(kicks) = self.kicks.get_mut(index) {
                    *kicks += 1;
                }
            }
            reg::INTERRUPT_ACK => self.causes &= !value,
            reg::STATUS => self.set_status(value),
            reg::SHM_SEL => self.region_select = value,
            reg::QUEUE_RESET if value == 1 && self.agreed(RING_RESET) && self.status & 128 == 0 => {
                let index = self.queue_select as usize;
                if let Some(queue) = self.queue() {
                    let taken_back = queue.ready && queue.active;
                    *queue = ModelQueue {
                        active: queue.active,
                        was_reset: true,
                        ..ModelQueue::default()
                    };
                    self.kicks[index] += u64::from(taken_back);
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
            let taken_back = std::mem::take(&mut queue.ready) && queue.active;
            // Its worker is to let go of what is in flight.
            self.kicks[index] += u64::from(taken_back);
            return;
        }
        let may = configuring || live && queue.active && queue.was_reset && !broken;
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
        // What has changed before the driver began it finds by itself.
        self.untold &= self.status != 0;
        if next && value == 15 {
            self.causes |= if std::mem::take(&mut self.untold) {
                2
            } else {
                0
            };
            // The device looks at each of its queues.
            for (queue, kicks) in self.queues.iter_mut().zip(&mut self.kicks) {
                queue.active = queue.ready;
                *kicks += u64::from(queue.ready);
            }
        }
        if next {
            self.status = value;
        }
    }
}

struct Pair {
    run: Run,
    model: Model,
}

impl Pair {
    fn new() -> Self {
        let features = Features::from(NOTIFICATION_DATA);
        let mut real = Fixture::new().offering(features);
        let model = Model {
            config: support::CONFIG,
            generation: real.get(reg::CONFIG_GENERATION).into(),
            ..Model::default()
        };
        let run = Run::new(real);
        Self { run, model }
    }

    fn step(&mut self, step: &Step) {
        self.run.step(step);
        for (offset, value) in step.writes() {
            self.model.write(offset, value.into());
        }
        match *step {
            Step::Read(offset) => self.compare(offset),
            Step::ConfigWrite(offset, value) => {
                if matches!(self.model.status, 11 | 15) {
                    self.model.config[offset as usize] = value;
                }
            }
            Step::Used if self.model.live() && self.model.queues[0].ready => {
                self.model.causes |= 1;
            }
            Step::Fail if self.model.live() && !self.model.broken => {
                self.model.broken = true;
                self.model.causes |= 2;
            }
            Step::ConfigChange => {
                self.model.config[5] ^= 1;
                self.model.causes |= if self.model.live() { 2 } else { 0 };
                self.model.untold |= !self.model.live();
                // By how much is the transport's business.
                let before = self.model.generation;
                self.model.generation = self.run.real.get(reg::CONFIG_GENERATION).into();
                assert_ne!(self.model.generation, before);
            }
            _ => {}
        }
    }

    fn compare(&mut self, offset: u64) {
        let real = u64::from(self.run.real.get(offset));
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
        self.run
            .real
            .transport
            .read(reg::CONFIG, &mut config)
            .unwrap();
        assert_eq!(config, self.model.config);
        for queue in [0, 1] {
            assert_eq!(
                self.run.real.kicks(queue),
                std::mem::take(&mut self.model.kicks[usize::from(queue)])
            );
        }
        // The device sees exactly the queues that are enabled while it is live.
        let activation = self.run.real.probe.activation.lock().unwrap();
        for index in [0, 1] {
            let mut queues = activation.iter().flat_map(|a| a.queues.clone());
            let queue = queues.find(|queue| queue.index == index);
            let held = queue.is_some_and(|mut queue| {
                queue.refresh();
                !queue.lease.is_revoked()
            });
            let ready = self.model.live() && self.model.queues[usize::from(index)].ready;
            assert_eq!(held, ready, "queue {index}");
        }
    }
}

fn run(program: &[Step]) {
    let mut pair = Pair::new();
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
        let mut pair = Pair::new();
        for step in &program {
            pair.step(step);
            seen.insert(pair.model.status);
            broken += u32::from(pair.model.broken);
        }
        restarted += pair.run.real.events().queue_restarted;
    }
    if cfg!(not(miri)) {
        for status in [0, 1, 3, 11, 15, 131, 139, 143] {
            assert!(seen.contains(&status), "{status} is never reached");
        }
        assert!(restarted > 0 && broken > 0, "{restarted} {broken}");
    }
}

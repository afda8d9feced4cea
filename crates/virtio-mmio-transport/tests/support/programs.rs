// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random programs of a driver, its device and its VMM.

use bus::BusDevice;
use proptest::prelude::*;
use proptest::sample::select;
use virtio_conformance::reg;
use virtio_device_core::{Chain, DeviceFault, Head};
use vm_memory::{Bytes, GuestAddress};

use super::Fixture;

const DESC_TABLE: u64 = 0x1000;
const AVAIL_RING: u64 = 0x2000;
const USED_RING: u64 = 0x3000;

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Write(u64, u32),
    Read(u64),
    /// An access of another width, which does nothing.
    Odd(u64, usize),
    ConfigWrite(u64, u8),
    /// The device says that it has used a buffer of queue 0.
    Used,
    ConfigChange,
    Fail,
    /// The driver makes a chain of queue 0 available, or lies about how many there are.
    Offer(u16),
    AvailIndex(u16),
    /// The device takes a chain from queue 0, or gives one back.
    Take,
    Complete,
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
        4 => select(vec![reg::QUEUE_SEL, reg::QUEUE_SIZE, reg::QUEUE_READY, reg::QUEUE_NOTIFY, reg::INTERRUPT_ACK, reg::STATUS, reg::QUEUE_DESC_LOW, reg::QUEUE_DRIVER_LOW, reg::QUEUE_DEVICE_LOW, reg::QUEUE_RESET]),
        1 => any::<u64>().prop_map(|offset| 0x200 + (offset >> 1 & !3)),
    ]
}

pub(crate) fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (offsets(), values()).prop_map(|(offset, value)| Step::Write(offset, value)),
        2 => offsets().prop_map(Step::Read),
        1 => (0u64..0x100, select(vec![1, 2, 3, 8])).prop_map(|(o, w)| Step::Odd(o, w)),
        1 => (0u64..6, any::<u8>()).prop_map(|(offset, value)| Step::ConfigWrite(offset, value)),
        2 => select(vec![15, 15, 143, 139, 131]).prop_map(|status| Step::Write(reg::STATUS, status)),
        1 => Just(Step::Start),
        2 => select(vec![0, 0, 1, 2]).prop_map(Step::ResetQueue),
        1 => Just(Step::Used),
        1 => Just(Step::ConfigChange),
        1 => Just(Step::Fail),
        2 => (select(vec![0, 1 << 29, 1]), select(vec![0x141, 0x101, 1, 0]))
            .prop_map(|(low, high)| Step::Negotiate(low, high)),
        4 => (select(vec![0, 1, 2]), select(vec![8, 16, 8, 4, 3])).prop_map(|(q, s)| Step::SetUp(q, s)),
        2 => (0u16..9).prop_map(Step::Offer),
        1 => select(vec![0, 1, 9, 0x8000]).prop_map(Step::AvailIndex),
        3 => Just(Step::Take),
        2 => Just(Step::Complete),
    ]
}

impl Step {
    /// The register writes that it is, or is made of.
    pub(crate) fn writes(&self) -> Vec<(u64, u32)> {
        let low = |address: u64| u32::try_from(address).unwrap();
        match *self {
            // The configuration space has a step of its own.
            Self::Write(0x100 | 0x104, _) => vec![],
            Self::Write(offset, value) => vec![(offset, value)],
            Self::Negotiate(low, high) => vec![
                (reg::STATUS, 0),
                (reg::STATUS, 3),
                (reg::DRIVER_FEATURES_SEL, 0),
                (reg::DRIVER_FEATURES, low),
                (reg::DRIVER_FEATURES_SEL, 1),
                (reg::DRIVER_FEATURES, high),
                (reg::STATUS, 11),
            ],
            Self::SetUp(queue, size) => vec![
                (reg::QUEUE_SEL, queue),
                (reg::QUEUE_SIZE, size),
                (reg::QUEUE_DESC_LOW, low(DESC_TABLE)),
                (reg::QUEUE_DESC_HIGH, 0),
                (reg::QUEUE_DRIVER_LOW, low(AVAIL_RING)),
                (reg::QUEUE_DRIVER_HIGH, 0),
                (reg::QUEUE_DEVICE_LOW, low(USED_RING)),
                (reg::QUEUE_DEVICE_HIGH, 0),
                (reg::QUEUE_READY, 1),
            ],
            Self::Start => {
                let mut writes = Self::Negotiate(0, 0x141).writes();
                writes.extend(Self::SetUp(0, 8).writes());
                writes.push((reg::STATUS, 15));
                writes
            }
            Self::ResetQueue(queue) => vec![(reg::QUEUE_SEL, queue), (reg::QUEUE_RESET, 1)],
            _ => vec![],
        }
    }
}

/// A fixture that programs run on.
pub(crate) struct Run {
    pub(crate) real: Fixture,
    /// What the device has taken and not given back.
    taken: Vec<Head>,
    offered: u16,
}

impl Run {
    pub(crate) fn new(real: Fixture) -> Self {
        Self {
            real,
            taken: Vec::new(),
            offered: 0,
        }
    }

    /// Does one step.
    pub(crate) fn step(&mut self, step: &Step) {
        for (offset, value) in step.writes() {
            self.real.set(offset, value);
            if (offset, value) == (reg::STATUS, 0) {
                self.start_over();
            }
        }
        let memory = self.real.memory.clone();
        match *step {
            Step::Odd(offset, width) if offset % 4 != 0 || width != 4 => {
                let mut data = vec![0xff; width];
                self.real.transport.write(offset, &data).unwrap();
                self.real.transport.read(offset, &mut data).unwrap();
                // A part may lie beyond the control registers; this is about those.
                assert!(data.iter().all(|&byte| byte == 0));
            }
            Step::ConfigWrite(offset, value) => {
                self.real
                    .transport
                    .write(reg::CONFIG + offset, &[value])
                    .unwrap();
            }
            Step::Used if self.has_queue() => self.real.queue(0).signal_used(),
            Step::Fail if self.is_active() => {
                self.real.interrupt().device_failed(&DeviceFault::Panicked);
            }
            Step::ConfigChange => {
                let transport = &mut self.real.transport;
                transport.update_config(|device| device.config[5] ^= 1);
            }
            Step::Offer(head) => {
                let descriptor = GuestAddress(DESC_TABLE + 16 * u64::from(head));
                memory.write_obj(0x4000u64.to_le(), descriptor).unwrap();
                let rest = GuestAddress(descriptor.0 + 8);
                memory.write_obj((2u64 << 32 | 16).to_le(), rest).unwrap();
                let slot = AVAIL_RING + 4 + 2 * u64::from(self.offered % 8);
                memory.write_obj(head.to_le(), GuestAddress(slot)).unwrap();
                self.set_avail_index(self.offered.wrapping_add(1));
            }
            Step::AvailIndex(index) => self.set_avail_index(index),
            Step::Take if self.has_queue() => {
                let mut chain = Chain::with_capacity(16);
                let lease = self.real.lease(0);
                let taken = lease.with(|queue| queue.take(&*memory, &mut chain));
                self.taken.extend(taken.ok().and_then(Result::ok).flatten());
            }
            Step::Complete if self.has_queue() => {
                if let Some(head) = self.taken.pop() {
                    let lease = self.real.lease(0);
                    let _ = lease.with(|queue| queue.complete(&*memory, head, 16));
                }
            }
            _ => {}
        }
    }

    fn set_avail_index(&mut self, index: u16) {
        self.offered = index;
        let at = GuestAddress(AVAIL_RING + 2);
        self.real.memory.write_obj(index.to_le(), at).unwrap();
    }

    /// A driver that starts over has a new ring.
    fn start_over(&mut self) {
        self.taken.clear();
        self.set_avail_index(0);
        let used_index = GuestAddress(USED_RING + 2);
        self.real.memory.write_obj(0u16, used_index).unwrap();
    }

    fn is_active(&self) -> bool {
        self.real.probe.activation.lock().unwrap().is_some()
    }

    /// Whether the device was given queue 0.
    fn has_queue(&self) -> bool {
        let activation = self.real.probe.activation.lock().unwrap();
        activation.as_ref().is_some_and(|it| it.queue(0).is_ok())
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Saved states: what `save` gives, `restore` takes; what somebody has changed is taken whole or
//! refused, and harms nothing either way.

use arbitrary::{Arbitrary, Unstructured};
use virtio_conformance::reg;
use virtio_device_core::DeviceState;
use virtio_device_core::transport::{QueueProgress, QueueSetup};
use virtio_mmio_transport::TransportState;

use crate::machine::{Machine, Stream};
use crate::registers::{Rig, Step};

#[derive(Debug)]
pub struct Program {
    prompt: bool,
    before: Vec<Step>,
    changes: Vec<Change>,
    after: Vec<Step>,
}

impl<'a> Arbitrary<'a> for Program {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self, arbitrary::Error> {
        let mut program = Self {
            prompt: bytes.arbitrary()?,
            changes: (0..bytes.int_in_range(0..=3)?)
                .map(|_| bytes.arbitrary())
                .collect::<Result<_, _>>()?,
            before: Vec::new(),
            after: Vec::new(),
        };
        while !bytes.is_empty() {
            let is_after = bytes.ratio(1, 4)?;
            let part = if is_after {
                &mut program.after
            } else {
                &mut program.before
            };
            part.push(bytes.arbitrary()?);
        }
        Ok(program)
    }
}

/// What somebody does to a saved state. None of it need make sense.
#[derive(Arbitrary, Debug)]
enum Change {
    Version(u32),
    DeviceType(u32),
    Status(u8),
    NeedsReset(bool),
    DriverFeatures(u32, u32),
    Selectors([u32; 4]),
    InterruptStatus(u32),
    Generation(u32),
    FewerQueues,
    MoreQueues(u8),
    Setup(u8, u32, [u64; 3]),
    /// The addresses of the rings, a little off.
    Shift(u8, [i8; 3]),
    Ready(u8, bool),
    Reset(u8, bool),
    Active(u8, bool),
    NoProgress(u8),
    Progress(u8, u16, u16, Vec<u16>),
    Device(u32, Vec<u8>),
}

impl Change {
    fn make(&self, state: &mut TransportState) {
        let count = state.queues.len().max(1);
        let queue = |index: &u8| usize::from(*index) % count;
        match self {
            Self::Version(version) => state.version = *version,
            Self::DeviceType(number) => state.device_type = *number,
            Self::Status(status) => state.status = *status,
            Self::NeedsReset(is_needed) => state.needs_reset = *is_needed,
            Self::DriverFeatures(select, word) => {
                state.driver_features.insert(*select, *word);
            }
            Self::Selectors([device, driver, queue, shm]) => {
                state.device_features_sel = *device;
                state.driver_features_sel = *driver;
                state.queue_sel = *queue;
                state.shm_sel = *shm;
            }
            Self::InterruptStatus(causes) => state.interrupt_status = *causes,
            Self::Generation(generation) => state.config_generation = *generation,
            Self::FewerQueues => drop(state.queues.pop()),
            Self::MoreQueues(count) => {
                let len = state.queues.len() + usize::from(*count);
                state.queues.resize(len, Default::default());
            }
            Self::Device(version, data) => {
                state.device = DeviceState::new(*version, data.clone()).unwrap();
            }
            Self::Setup(index, size, [desc_table, avail_ring, used_ring]) => {
                if let Some(queue) = state.queues.get_mut(queue(index)) {
                    queue.setup = QueueSetup::new(*size)
                        .with_desc_table(*desc_table)
                        .with_avail_ring(*avail_ring)
                        .with_used_ring(*used_ring);
                }
            }
            Self::Shift(index, by) => {
                if let Some(queue) = state.queues.get_mut(queue(index)) {
                    let [desc_table, avail_ring, used_ring] = by.map(i64::from);
                    let setup = &mut queue.setup;
                    setup.desc_table = setup.desc_table.wrapping_add_signed(desc_table);
                    setup.avail_ring = setup.avail_ring.wrapping_add_signed(avail_ring);
                    setup.used_ring = setup.used_ring.wrapping_add_signed(used_ring);
                }
            }
            Self::Ready(index, is_ready) => {
                if let Some(queue) = state.queues.get_mut(queue(index)) {
                    queue.ready = *is_ready;
                }
            }
            Self::Reset(index, is_reset) => {
                if let Some(queue) = state.queues.get_mut(queue(index)) {
                    queue.reset = *is_reset;
                }
            }
            Self::Active(index, is_active) => {
                if let Some(queue) = state.queues.get_mut(queue(index)) {
                    queue.active = *is_active;
                }
            }
            Self::NoProgress(index) => {
                if let Some(queue) = state.queues.get_mut(queue(index)) {
                    queue.progress = None;
                }
            }
            Self::Progress(index, next_avail, next_used, taken) => {
                let progress = QueueProgress::new(*next_avail, *next_used, taken.clone());
                if let Some(queue) = state.queues.get_mut(queue(index)) {
                    queue.progress = Some(progress);
                }
            }
        }
    }
}

/// A paused machine in the memory of `rig`, that has gone on from `state` if it could.
fn restored(rig: &Rig, prompt: bool, state: &TransportState) -> (Machine, bool) {
    let memory = rig.machine.memory.clone();
    let mut twin = Machine::with_memory(memory, Stream::constant(), prompt);
    let transport = twin.port.device_mut();
    transport.pause().unwrap();
    let is_taken = transport.restore(state).is_ok();
    (twin, is_taken)
}

/// Runs a program, and returns whether a live device came out of the state.
pub fn run(program: &Program) -> bool {
    let mut rig = Rig::new(program.prompt);
    for step in &program.before {
        rig.step(program.prompt, step);
    }
    let transport = rig.machine.port.device_mut();
    transport.pause().unwrap();
    let mut state = transport.save().unwrap();
    let (_, is_taken) = restored(&rig, program.prompt, &state);
    assert!(is_taken, "{state:?}");

    for change in &program.changes {
        change.make(&mut state);
    }
    let before = rig.machine.image();
    let (mut twin, is_taken) = restored(&rig, program.prompt, &state);
    assert!(before == twin.image(), "restoring wrote to memory");
    if is_taken {
        let transport = twin.port.device_mut();
        let again = transport.save().unwrap();
        let (mut third, is_taken) = restored(&rig, program.prompt, &again);
        assert!(is_taken, "{again:?} of {state:?}");
        // What is saved again is what was saved, but for the interrupt that restoring makes.
        let last = third.port.device_mut().save().unwrap();
        assert_eq!(last, again);
    } else {
        let registers = [
            reg::STATUS,
            reg::INTERRUPT_STATUS,
            reg::QUEUE_READY,
            reg::CONFIG_GENERATION,
        ];
        assert_eq!(registers.map(|it| twin.port.get(it)), [0; 4]);
        assert_eq!(twin.line.raised(), 0);
    }
    rig.machine = twin;
    rig.resume();
    let is_live = is_taken && rig.machine.port.get(reg::STATUS) == 15;
    rig.run(program.prompt, &program.after);
    is_live
}

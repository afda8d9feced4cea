// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What may happen to a device in its life.

use arbitrary::{Arbitrary, Unstructured};
use virtio_device_core::transport::QueueSetup;

use crate::source::Fault;

#[derive(Debug)]
pub struct Program {
    pub(crate) prompt: bool,
    pub(crate) start: Start,
    pub(crate) steps: Vec<Step>,
}

/// As many steps as there are bytes for.
impl<'a> Arbitrary<'a> for Program {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self, arbitrary::Error> {
        let (prompt, start) = bytes.arbitrary()?;
        let mut steps = Vec::new();
        while !bytes.is_empty() {
            steps.push(bytes.arbitrary()?);
        }
        Ok(Self {
            prompt,
            start,
            steps,
        })
    }
}

/// Features, and where the queue is.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Start {
    features: u8,
    size: u8,
    place: bool,
}

#[derive(Arbitrary, Debug)]
pub(crate) enum Step {
    /// Lengths of up to three buffers, in one chain.
    Offer([u8; 3]),
    Notify,
    Work,
    Fault(Fault),
    Reset(Option<Start>),
    /// And with which size, and where, the queue comes back.
    QueueReset(Option<Start>),
    Pause,
    Resume,
    Move,
    Acknowledge,
    WantInterrupts(bool),
    /// Anywhere in the registers.
    Read(u8, u8),
    /// To a register that is not a live device's business.
    Write(u8, u32),
}

const EVENT_IDX: u64 = 1 << 29;
pub(crate) const INDIRECT: u64 = 1 << 28;
pub(crate) const RING_RESET: u64 = 1 << 40;

impl Start {
    pub(crate) fn features(self) -> u64 {
        [INDIRECT, EVENT_IDX, RING_RESET]
            .iter()
            .enumerate()
            .filter(|(bit, _)| self.features >> bit & 1 != 0)
            .fold(0, |all, (_, feature)| all | feature)
    }

    pub(crate) fn setup(self) -> QueueSetup {
        let base = 0x800 * u64::from(self.place);
        QueueSetup::new(1 << (self.size % 5))
            .with_desc_table(base)
            .with_avail_ring(base + 0x200)
            .with_used_ring(base + 0x400)
    }
}

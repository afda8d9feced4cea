// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the driver, the host and the VMM do.

use arbitrary::{Arbitrary, Unstructured};

#[derive(Debug)]
pub struct Program {
    pub(super) event_idx: bool,
    pub(super) steps: Vec<Step>,
}

impl<'a> Arbitrary<'a> for Program {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self, arbitrary::Error> {
        let event_idx = bytes.arbitrary()?;
        let mut steps = Vec::new();
        while !bytes.is_empty() {
            steps.push(bytes.arbitrary()?);
        }
        Ok(Self { event_idx, steps })
    }
}

#[derive(Arbitrary, Debug)]
pub(super) enum Step {
    /// A chain for input or output, and whether the device is notified.
    Offer(bool, [Piece; 3], bool),
    Notify(bool),
    HostGives(u16),
    HostTakes(u16),
    Resize(u16, u16),
    Emergency(u8),
    Pause,
    Resume,
    ResetQueue(bool),
    /// Goes on in another machine, with the same memory and host.
    Move,
    /// The driver starts anew.
    Restart,
}

/// A buffer of a chain, for the device to write or to read, not in memory, or not there.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) len: u16,
    pub(super) kind: u8,
}

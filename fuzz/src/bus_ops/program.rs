// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is done to the bus.

use arbitrary::{Arbitrary, Unstructured};

#[derive(Debug)]
pub struct Program {
    pub(super) ports: bool,
    pub(super) steps: Vec<Step>,
}

/// As many steps as there are bytes for: programs are long.
impl<'a> Arbitrary<'a> for Program {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self, arbitrary::Error> {
        let ports = bytes.arbitrary()?;
        let mut steps = Vec::new();
        while !bytes.is_empty() {
            steps.push(bytes.arbitrary()?);
        }
        Ok(Self { ports, steps })
    }
}

#[derive(Arbitrary, Debug)]
pub(super) enum Step {
    /// A read or a write of one of the vCPUs.
    Access(u8, Place, u8, Option<u64>),
    /// The same of a region that there is, near its start.
    Touch(u8, u8, u8, u8, Option<u64>),
    /// The same access again, which then goes the fast way.
    Again,
    /// Changes that come one by one, or all at once or not at all.
    Change([Option<Change>; 3], bool),
    RemoveAt(Place),
    RemoveDevice(u8),
    /// The VMM lets go of a device; those that the bus holds weakly are gone then.
    Drop(u8),
    NewView(u8),
    Refresh(u8),
}

#[derive(Arbitrary, Debug)]
pub(super) enum Change {
    Insert(Place, Len, u8, Rules),
    Remove(u8),
    Relocate(u8, Place),
}

/// An address: near the start, near the end, or anywhere.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Place {
    Low(u8),
    Page(u8, u8),
    High(u8),
    Any(u64),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Len {
    Short(u8),
    Any(u64),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Which widths are let through, if not all.
    pub(super) widths: Option<u8>,
    pub(super) aligned: bool,
    pub(super) counted: bool,
    pub(super) weak: bool,
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why the bus did not change as asked.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

use crate::{Address, BusRange, RegionId};

/// Why a bus was not changed. A call that returns one of these has changed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BusError<K> {
    /// The range has no address in it.
    EmptyRange {
        /// Where the range was to begin.
        base: K,
    },
    /// The range does not fit into the address space.
    BeyondEnd {
        /// Where the range was to begin.
        base: K,
        /// How many addresses it was to have.
        len: u64,
    },
    /// Another region claims a part of the range.
    Overlap {
        /// The range that was asked for.
        range: BusRange<K>,
        /// The name it was asked for under.
        name: Cow<'static, str>,
        /// The range it collides with.
        existing: BusRange<K>,
        /// The name of the region it collides with.
        existing_name: Cow<'static, str>,
    },
    /// The bus has no such region: it has been removed, or belongs to another bus.
    NoSuchRegion {
        /// The identifier that was passed.
        id: RegionId,
    },
    /// The calling thread is inside a handler of the device, so that waiting for the device to be
    /// left would never end; or it is inside of another device, which a thread inside of this one
    /// waits to remove.
    InsideDevice {
        /// The range that was to be removed.
        range: BusRange<K>,
        /// The name of its region.
        name: Cow<'static, str>,
    },
    /// The operating system refused `membarrier(2)`, which it had granted to this process before.
    Barrier,
}

impl<K: Address> fmt::Display for BusError<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyRange { base } => write!(f, "range at {base:#x} is empty"),
            Self::BeyondEnd { base, len } => write!(f, "{len:#x} bytes at {base:#x} do not fit"),
            Self::Overlap {
                range,
                name,
                existing,
                existing_name,
            } => write!(f, "{range} ({name}) overlaps {existing} ({existing_name})"),
            Self::NoSuchRegion { id } => write!(f, "no region #{} on this bus", id.0),
            Self::InsideDevice { range, name } => write!(f, "called from inside {range} ({name})"),
            Self::Barrier => f.write_str("membarrier(2) failed"),
        }
    }
}

impl<K: Address> Error for BusError<K> {}

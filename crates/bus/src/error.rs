// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why the bus did not change as asked.

use std::fmt;

use crate::{Address, RegionId, RegionInfo};

/// Why a bus was not changed. A call that returns one of these has changed nothing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum BusError<K> {
    /// The range is empty, or does not fit into the address space.
    InvalidRange {
        /// Where the range was to begin.
        base: K,
        /// How many addresses it was to have.
        len: u64,
    },
    /// Another region claims a part of the range.
    Overlap {
        /// The region as it would have become.
        new: RegionInfo<K>,
        /// The first region that it collides with.
        existing: RegionInfo<K>,
    },
    /// The bus has no such region: it has been removed, or belongs to another bus.
    NoSuchRegion(RegionId),
    /// The bus has no region at this address.
    NoRegionAt(K),
    /// Waiting until this region is left would never end: the calling thread is inside of the
    /// region's device, by this bus or another, or holds what those wait for who are.
    InsideDevice(RegionInfo<K>),
    /// The operating system refused `membarrier(2)`, which it had granted to this process before.
    Barrier,
}

impl<K: Address> fmt::Display for BusError<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidRange { base, len } => {
                write!(f, "invalid range: {len:#x} bytes at {base:#x}")
            }
            Self::Overlap { new, existing } => write!(f, "({new}) overlaps ({existing})"),
            Self::NoSuchRegion(id) => write!(f, "no region #{} on this bus", id.0),
            Self::NoRegionAt(addr) => write!(f, "no region at {addr:#x}"),
            Self::InsideDevice(region) => write!(f, "called from inside ({region})"),
            Self::Barrier => f.write_str("membarrier(2) failed"),
        }
    }
}

impl<K: Address> std::error::Error for BusError<K> {}

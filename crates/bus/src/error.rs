// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why the bus did not change as asked.

use thiserror::Error;

use crate::range::InvalidRange;
use crate::{RegionId, RegionInfo};

/// Why a bus was not changed. A call that returns one of these has changed nothing.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use bus::{BusDevice, BusError, MmioBus};
///
/// struct Uart;
/// impl BusDevice for Uart {}
///
/// let bus = MmioBus::new();
/// bus.insert(Arc::new(Mutex::new(Uart)), 0x1000, 0x1000)?;
/// match bus.insert(Arc::new(Mutex::new(Uart)), 0x1ff8, 8) {
///     Err(BusError::Overlap { existing, .. }) => assert_eq!(existing.range.first(), 0x1000),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), BusError<u64>>(())
/// ```
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum BusError<K> {
    /// The range is empty, or does not fit into the address space.
    #[error("invalid range: {len:#x} bytes at {base:#x}")]
    InvalidRange {
        /// Where the range was to begin.
        base: K,
        /// How many addresses it was to have.
        len: u64,
    },
    /// Another region claims a part of the range.
    #[error("({new}) overlaps ({existing})")]
    Overlap {
        /// The region as it would have become.
        new: RegionInfo<K>,
        /// The first region that it collides with.
        existing: RegionInfo<K>,
    },
    /// The bus has no such region: it has been removed, or belongs to another bus.
    #[error("no region #{} on this bus", .0.0)]
    NoSuchRegion(RegionId),
    /// The bus has no region at this address.
    #[error("no region at {0:#x}")]
    NoRegionAt(K),
    /// Waiting until this region is left would never end: the calling thread is inside of the
    /// region's device, by this bus or another, or holds what those wait for who are.
    #[error("called from inside ({0})")]
    InsideDevice(RegionInfo<K>),
    /// The operating system refused `membarrier(2)`, which it had granted to this process before.
    #[error("membarrier(2) failed")]
    Barrier,
}

impl<K> From<InvalidRange<K>> for BusError<K> {
    fn from(InvalidRange { base, len }: InvalidRange<K>) -> Self {
        Self::InvalidRange { base, len }
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Addresses and checked ranges of them.

use std::fmt::{self, Debug, LowerHex};

use thiserror::Error;

/// An address of a bus: `u64` for memory-mapped I/O, `u16` for ports.
///
/// The type keeps the two address spaces apart. No other type implements this.
pub trait Address:
    Copy
    + Ord
    + Default
    + Debug
    + LowerHex
    + Into<u64>
    + TryFrom<u64>
    + Send
    + Sync
    + sealed::Sealed
    + 'static
{
}

mod sealed {
    pub trait Sealed {}
}

impl Address for u64 {}
impl Address for u16 {}
impl sealed::Sealed for u64 {}
impl sealed::Sealed for u16 {}

/// A range that is empty, or does not fit into the address space.
///
/// ```
/// use bus::{BusRange, InvalidRange};
///
/// // One address more than there are ports.
/// let error = BusRange::<u16>::new(0xffff, 2).unwrap_err();
/// assert_eq!(error, InvalidRange { base: 0xffff, len: 2 });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("invalid range: {len:#x} bytes at {base:#x}")]
pub struct InvalidRange<K> {
    /// Where the range was to begin.
    pub base: K,
    /// How many addresses it was to have.
    pub len: u64,
}

/// A range of addresses that is never empty and never wraps, both by construction.
///
/// Both ends are included, so that a range can reach the last address of the space.
///
/// ```
/// use bus::BusRange;
///
/// let uart = BusRange::new(0x3f8_u16, 8)?;
/// assert_eq!(uart.last(), 0x3ff);
/// assert_eq!(uart.to_string(), "03f8-03ff");
/// assert!(BusRange::new(u64::MAX, 1).is_ok());
/// assert!(BusRange::new(u64::MAX, 2).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BusRange<K> {
    first: K,
    last: K,
}

impl<K: Address> BusRange<K> {
    /// The `len` addresses from `base` on.
    ///
    /// # Errors
    ///
    /// [`InvalidRange`] if `len` is 0, or the range does not fit into the address space.
    pub fn new(base: K, len: u64) -> Result<Self, InvalidRange<K>> {
        let last = (len.checked_sub(1)).and_then(|reach| base.into().checked_add(reach));
        let last = last.and_then(|last| last.try_into().ok());
        let last = last.ok_or(InvalidRange { base, len })?;
        Ok(Self { first: base, last })
    }

    /// The first address.
    pub fn first(&self) -> K {
        self.first
    }

    /// The last address, which is part of the range.
    pub fn last(&self) -> K {
        self.last
    }

    /// The number of addresses in the range, at least 1.
    pub fn size(&self) -> u64 {
        // No overflow: a length passed to `new` is at most `u64::MAX`.
        self.last.into() - self.first.into() + 1
    }

    /// Whether `addr` is in the range.
    pub fn contains(&self, addr: K) -> bool {
        self.first <= addr && addr <= self.last
    }

    /// Whether the two ranges have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// `first-last` in hexadecimal, as in `/proc/iomem` and `/proc/ioports`.
impl<K: Address> fmt::Display for BusRange<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = 2 * size_of::<K>().min(4);
        write!(f, "{:0digits$x}-{:0digits$x}", self.first, self.last)
    }
}

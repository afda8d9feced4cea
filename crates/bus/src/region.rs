// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device claims, and under which rules.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::width::pieces;
use crate::{AccessError, Address, BusRange, Width};

/// Names one insertion of one device; never used again, neither by this bus nor by another.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use bus::{BusDevice, MmioBus};
///
/// struct Card;
/// impl BusDevice for Card {}
///
/// // It stays the region's, wherever that moves.
/// let bus = MmioBus::new();
/// let id = bus.insert(Arc::new(Mutex::new(Card)), 0x1000, 0x1000)?;
/// bus.relocate(id, 0x8000)?;
/// bus.remove(id)?;
/// # Ok::<(), bus::BusError<u64>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(pub(crate) usize);

/// A range to insert a device at, with a name and access rules.
///
/// Without any call to the methods below, a region is called `device` and takes every width at
/// every alignment.
///
/// ```
/// use bus::{AccessError, BusDevice, MmioBus, Region, Width};
/// use std::sync::{Arc, Mutex};
///
/// struct Register(u32);
/// impl BusDevice for Register {
///     fn read(&mut self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
///         data.copy_from_slice(&self.0.to_le_bytes());
///         Ok(())
///     }
/// }
///
/// let bus = MmioBus::new();
/// let region = Region::new(0x1000, 4).named("register").widths(&[Width::U32]);
/// bus.insert_region(Arc::new(Mutex::new(Register(7))), region)?;
/// assert_eq!(bus.view().read(0x1000, &mut [0; 2]), Err(AccessError::Width));
/// assert_eq!(bus.to_string(), "00001000-00001003 : register\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use]
pub struct Region<K> {
    pub(crate) base: K,
    pub(crate) len: u64,
    name: Cow<'static, str>,
    /// The sum of the widths that are let through.
    widths: usize,
    aligned: bool,
    counted: bool,
    /// Reads, writes, and those of both that failed.
    counts: [AtomicU64; 3],
}

impl<K: Address> Region<K> {
    /// The `len` addresses from `base` on.
    pub const fn new(base: K, len: u64) -> Self {
        Self {
            base,
            len,
            name: Cow::Borrowed("device"),
            widths: 1 + 2 + 4 + 8,
            aligned: false,
            counted: false,
            counts: [const { AtomicU64::new(0) }; 3],
        }
    }

    /// The name in the map of the bus and in errors.
    pub fn named(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Refuses all other widths before the device sees them, with [`AccessError::Width`].
    ///
    /// An access of 3, 5, 6 or 7 bytes is taken if the region takes all of its
    /// [pieces](crate#lengths). They are never of one width, so a region that takes only one width
    /// never sees a piece of an access.
    pub const fn widths(mut self, mut widths: &[Width]) -> Self {
        self.widths = 0;
        while let [first, rest @ ..] = widths {
            self.widths |= *first as usize;
            widths = rest;
        }
        self
    }

    /// Refuses accesses whose offset is no multiple of their width, with
    /// [`AccessError::Misaligned`], before the device sees them. The [pieces](crate#lengths) of an
    /// access of 3, 5, 6 or 7 bytes are always aligned.
    pub const fn aligned(mut self) -> Self {
        self.aligned = true;
        self
    }

    /// Counts the accesses to this region; see [`RegionInfo::counts`].
    ///
    /// The counters are shared by all vCPUs, so an access to a counted region takes longer.
    pub const fn counted(mut self) -> Self {
        self.counted = true;
        self
    }
}

/// How often a region had been accessed, whatever came of it, at the moment of asking.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use bus::{BusDevice, MmioBus, Region};
///
/// struct Deaf; // refuses all accesses
/// impl BusDevice for Deaf {}
///
/// let bus = MmioBus::new();
/// let region = Region::new(0x1000, 8).named("deaf").counted();
/// let id = bus.insert_region(Arc::new(Mutex::new(Deaf)), region)?;
/// let _ = bus.view().read(0x1004, &mut [0; 4]);
/// let counts = bus.find(0x1000).unwrap().counts();
/// assert_eq!((counts.reads, counts.writes, counts.refused), (1, 0, 1));
/// # let _ = id;
/// # Ok::<(), bus::BusError<u64>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Reads that started in the region.
    pub reads: u64,
    /// Writes that started in the region.
    pub writes: u64,
    /// Those of both that failed: refused by the bus or by the device.
    pub refused: u64,
}

/// A region of a bus as it was at the moment of asking.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use bus::{BusDevice, MmioBus, Region};
///
/// struct Deaf; // refuses all accesses
/// impl BusDevice for Deaf {}
///
/// let bus = MmioBus::new();
/// let region = Region::new(0x1000, 8).named("deaf").counted();
/// let id = bus.insert_region(Arc::new(Mutex::new(Deaf)), region)?;
/// let _ = bus.view().read(0x1004, &mut [0; 4]);
/// let info = bus.find(0x1007).unwrap();
/// assert_eq!((info.id, info.name()), (id, "deaf"));
/// assert_eq!(info.to_string(), "00001000-00001007 : deaf");
/// # Ok::<(), bus::BusError<u64>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RegionInfo<K> {
    /// What [`Bus::remove`](crate::Bus::remove) and [`Bus::relocate`](crate::Bus::relocate) take.
    pub id: RegionId,
    /// The addresses of the region.
    pub range: BusRange<K>,
    /// What stays the same about the region while it moves. Its base is where it was at first.
    pub(crate) region: Arc<Region<K>>,
}

impl<K: Address> RegionInfo<K> {
    /// A region under a new identifier.
    pub(crate) fn new(range: BusRange<K>, at: Region<K>) -> Self {
        static NEXT_ID: AtomicUsize = AtomicUsize::new(1);
        Self {
            id: RegionId(NEXT_ID.fetch_add(1, Ordering::Relaxed)),
            range,
            region: Arc::new(at),
        }
    }

    /// The name of the region.
    pub fn name(&self) -> &str {
        &self.region.name
    }

    /// How often the region has been accessed; all 0 unless it is [`counted`](Region::counted).
    pub fn counts(&self) -> Counts {
        let counts = self.region.counts.each_ref();
        let [reads, writes, refused] = counts.map(|count| count.load(Ordering::Relaxed));
        Counts {
            reads,
            writes,
            refused,
        }
    }

    /// Whether accesses of one width are only limited by the end, and nothing is counted.
    pub(crate) fn is_plain(&self) -> bool {
        !self.region.aligned && !self.region.counted
    }

    /// The offset of an access that starts inside of the region, if the region takes it.
    pub(crate) fn route(&self, addr: K, width: usize) -> Result<u64, AccessError> {
        let rules = &*self.region;
        let offset = addr.into() - self.range.first().into();
        let is_taken = match width {
            1 | 2 | 4 | 8 => width & rules.widths != 0,
            3 | 5 | 6 | 7 => pieces(offset, width).all(|piece| piece.len() & rules.widths != 0),
            _ => false,
        };
        if !is_taken {
            Err(AccessError::Width)
        } else if width as u64 > self.range.size() - offset {
            Err(AccessError::CrossesEnd)
        } else if rules.aligned && width.is_power_of_two() && offset % width as u64 != 0 {
            Err(AccessError::Misaligned)
        } else {
            Ok(offset)
        }
    }

    pub(crate) fn count(&self, is_write: bool, has_failed: bool) {
        if self.region.counted {
            let [reads, writes, refused] = &self.region.counts;
            let way = if is_write { writes } else { reads };
            way.fetch_add(1, Ordering::Relaxed);
            refused.fetch_add(has_failed.into(), Ordering::Relaxed);
        }
    }
}

/// A line of the map: the range and the name.
impl<K: Address> fmt::Display for RegionInfo<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} : {}", self.range, self.name())
    }
}

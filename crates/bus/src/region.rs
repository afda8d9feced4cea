// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device claims, under which rules, and the table of all claims.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::device::Device;
use crate::{Access, AccessError, Address, BusError, BusRange};

/// The widths that a bus carries, in bytes.
const WIDTHS: &[usize] = &[1, 2, 4, 8];

/// Names one insertion of one device; never used again, neither by this bus nor by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(pub(crate) u64);

/// A range to insert a device at, with a name and access rules.
///
/// Without any call to the methods below, a region is called `device` and takes every width at
/// every alignment.
///
/// ```
/// use bus::{AccessError, BusDevice, MmioBus, Region};
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
/// let region = Region::new(0x1000, 4).named("register").widths(&[4]);
/// bus.insert_region(Arc::new(Mutex::new(Register(7))), region)?;
/// assert_eq!(bus.view().read(0x1000, &mut [0; 2]), Err(AccessError::Width));
/// assert_eq!(bus.to_string(), "00001000-00001003 : register\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use]
pub struct Region<K> {
    base: K,
    len: u64,
    name: Cow<'static, str>,
    widths: &'static [usize],
    aligned: bool,
    counted: bool,
    /// Reads, writes, and those of both that failed.
    counts: [AtomicU64; 3],
    /// Whether the device has panicked, and is not to be called any more.
    pub(crate) panicked: AtomicBool,
}

impl<K: Address> Region<K> {
    /// The `len` addresses from `base` on.
    pub const fn new(base: K, len: u64) -> Self {
        Self {
            base,
            len,
            name: Cow::Borrowed("device"),
            widths: WIDTHS,
            aligned: false,
            counted: false,
            counts: [const { AtomicU64::new(0) }; 3],
            panicked: AtomicBool::new(false),
        }
    }

    /// The name in the map of the bus and in errors.
    pub fn named(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Refuses all other widths before the device sees them, with [`AccessError::Width`]. A bus
    /// carries no other widths than 1, 2, 4 and 8 bytes.
    pub const fn widths(mut self, widths: &'static [usize]) -> Self {
        self.widths = widths;
        self
    }

    /// Refuses accesses whose offset is no multiple of their width, with
    /// [`AccessError::Misaligned`], before the device sees them.
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
        if !WIDTHS.contains(&width) || !rules.widths.contains(&width) {
            Err(AccessError::Width)
        } else if width as u64 > self.range.size() - offset {
            Err(AccessError::CrossesEnd)
        } else if rules.aligned && offset % width as u64 != 0 {
            Err(AccessError::Misaligned)
        } else if rules.panicked.load(Ordering::Relaxed) {
            Err(AccessError::Panicked)
        } else {
            Ok(offset)
        }
    }

    pub(crate) fn count(&self, access: &Access<'_, K>) {
        if self.region.counted {
            let [reads, writes, refused] = &self.region.counts;
            let way = if access.is_write { writes } else { reads };
            way.fetch_add(1, Ordering::Relaxed);
            refused.fetch_add(access.outcome.is_err().into(), Ordering::Relaxed);
        }
    }
}

/// A line of the map: the range and the name.
impl<K: Address> fmt::Display for RegionInfo<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} : {}", self.range, self.name())
    }
}

/// A region together with its device.
pub(crate) struct Entry<K, R> {
    pub(crate) info: RegionInfo<K>,
    pub(crate) device: Device<R>,
}

impl<K: Address, R> Entry<K, R> {
    pub(crate) fn new(at: Region<K>, device: Device<R>) -> Result<Self, BusError<K>> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let info = RegionInfo {
            id: RegionId(NEXT_ID.fetch_add(1, Ordering::Relaxed)),
            range: BusRange::new(at.base, at.len)?,
            region: Arc::new(at),
        };
        Ok(Self { info, device })
    }
}

impl<K: Address, R> Clone for Entry<K, R> {
    fn clone(&self) -> Self {
        Self {
            info: self.info.clone(),
            device: Arc::clone(&self.device),
        }
    }
}

/// All regions in the order of their addresses. Published maps are never changed, only replaced.
pub(crate) struct Map<K, R>(pub(crate) Vec<Entry<K, R>>);

impl<K, R> Default for Map<K, R> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Address, R> Clone for Map<K, R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Address, R> Map<K, R> {
    /// The entry that `addr` is in. `hint` is a guess at its index, and the truth afterwards.
    pub(crate) fn find(&self, addr: K, hint: &mut usize) -> Option<&Entry<K, R>> {
        let get = |index: usize| (self.0.get(index)).filter(|e| e.info.range.contains(addr));
        get(*hint).or_else(|| {
            // This search compiles to conditional moves: guests' addresses are hard to predict.
            let map = &self.0;
            let behind = map.partition_point(|entry| entry.info.range.first() <= addr);
            *hint = behind.checked_sub(1)?;
            get(*hint)
        })
    }

    pub(crate) fn insert(&mut self, new: Entry<K, R>) -> Result<(), BusError<K>> {
        let (map, range) = (&mut self.0, new.info.range);
        let place = map.partition_point(|old| old.info.range.last() < range.first());
        let existing = map.get(place).map(|old| old.info.clone());
        if let Some(existing) = existing.filter(|old| old.range.overlaps(&range)) {
            let new = new.info;
            return Err(BusError::Overlap { new, existing });
        }
        map.insert(place, new);
        Ok(())
    }

    pub(crate) fn remove(&mut self, id: RegionId) -> Result<Entry<K, R>, BusError<K>> {
        let place = self.0.iter().position(|entry| entry.info.id == id);
        Ok(self.0.remove(place.ok_or(BusError::NoSuchRegion(id))?))
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device claims, under which rules, and the table of all claims.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::device::Device;
use crate::{Access, AccessError, Address, BusDeviceSync, BusError, BusRange};

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
/// assert_eq!(bus.read(0x1000, &mut [0; 2]), Err(AccessError::Width));
/// assert_eq!(bus.to_string(), "00001000-00001003 : register\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Region<K> {
    base: K,
    len: u64,
    name: Cow<'static, str>,
    widths: &'static [usize],
    aligned: bool,
    counted: bool,
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

    /// The region as it goes into the map of a bus.
    pub(crate) fn with(self, device: Device) -> Result<RegionInfo<K>, BusError<K>> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Ok(RegionInfo {
            id: RegionId(NEXT_ID.fetch_add(1, Ordering::Relaxed)),
            range: BusRange::new(self.base, self.len)?,
            device,
            meta: Arc::new(Meta {
                asked: self,
                counts: Counts::default(),
                panicked: AtomicBool::new(false),
            }),
        })
    }
}

/// How often a region was accessed, whatever came of it, and how often the access failed.
///
/// These are the counters themselves: they go on counting.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Counts {
    /// Reads that started in the region.
    pub reads: AtomicU64,
    /// Writes that started in the region.
    pub writes: AtomicU64,
    /// Those of both that failed: refused by the bus or by the device.
    pub refused: AtomicU64,
}

/// A region of a bus as it was at the moment of asking.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RegionInfo<K> {
    /// What [`Bus::remove`](crate::Bus::remove) and [`Bus::relocate`](crate::Bus::relocate) take.
    pub id: RegionId,
    /// The addresses of the region.
    pub range: BusRange<K>,
    /// The device of the region.
    pub device: Arc<dyn BusDeviceSync>,
    pub(crate) meta: Arc<Meta<K>>,
}

/// What stays the same about a region while it moves.
#[derive(Debug)]
pub(crate) struct Meta<K> {
    /// What the device was inserted with. Its base is where the region was then.
    asked: Region<K>,
    counts: Counts,
    /// Whether the device has panicked, and is not to be called any more.
    pub(crate) panicked: AtomicBool,
}

impl<K: Address> RegionInfo<K> {
    /// The name of the region.
    pub fn name(&self) -> &str {
        &self.meta.asked.name
    }

    /// How often the region has been accessed; all 0 unless it is [`counted`](Region::counted).
    pub fn counts(&self) -> &Counts {
        &self.meta.counts
    }

    /// Whether accesses of one width are only limited by the end, and nothing is counted.
    pub(crate) fn is_plain(&self) -> bool {
        !self.meta.asked.aligned && !self.meta.asked.counted
    }

    /// The offset of an access that starts inside of the region, if the region takes it.
    pub(crate) fn route(&self, addr: K, width: usize) -> Result<u64, AccessError> {
        let asked = &self.meta.asked;
        let offset = addr.into() - self.range.first().into();
        if !WIDTHS.contains(&width) || !asked.widths.contains(&width) {
            Err(AccessError::Width)
        } else if width as u64 > self.range.size() - offset {
            Err(AccessError::CrossesEnd)
        } else if asked.aligned && offset % width as u64 != 0 {
            Err(AccessError::Misaligned)
        } else if self.meta.panicked.load(Ordering::Relaxed) {
            Err(AccessError::Panicked)
        } else {
            Ok(offset)
        }
    }

    pub(crate) fn count(&self, access: &Access<'_, K>) {
        if self.meta.asked.counted {
            let counts = &self.meta.counts;
            let ways = (&counts.reads, &counts.writes);
            let way = if access.is_write { ways.1 } else { ways.0 };
            way.fetch_add(1, Ordering::Relaxed);
            let refused = access.outcome.is_err().into();
            counts.refused.fetch_add(refused, Ordering::Relaxed);
        }
    }
}

/// Whether this is the same region at the same place.
impl<K: PartialEq> PartialEq for RegionInfo<K> {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && self.range == other.range
    }
}

impl<K: Eq> Eq for RegionInfo<K> {}

/// A line of the map: the range and the name.
impl<K: Address> fmt::Display for RegionInfo<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} : {}", self.range, self.name())
    }
}

/// All regions in the order of their addresses. Published maps are never changed, only replaced.
pub(crate) type Map<K> = Vec<RegionInfo<K>>;

/// The region that `addr` is in. `hint` is a guess at its index, and the truth afterwards.
pub(crate) fn find<'a, K: Address>(
    map: &'a [RegionInfo<K>],
    addr: K,
    hint: &mut usize,
) -> Option<&'a RegionInfo<K>> {
    let get = |index: usize| map.get(index).filter(|region| region.range.contains(addr));
    get(*hint).or_else(|| {
        // This search compiles to conditional moves: guests' addresses are hard to predict.
        let behind = map.partition_point(|region| region.range.first() <= addr);
        *hint = behind.checked_sub(1)?;
        get(*hint)
    })
}

pub(crate) fn insert<K: Address>(map: &mut Map<K>, new: RegionInfo<K>) -> Result<(), BusError<K>> {
    let place = map.partition_point(|old| old.range.last() < new.range.first());
    let existing = map.get(place).cloned();
    if let Some(existing) = existing.filter(|old| old.range.overlaps(&new.range)) {
        return Err(BusError::Overlap { new, existing });
    }
    map.insert(place, new);
    Ok(())
}

pub(crate) fn remove<K>(map: &mut Map<K>, id: RegionId) -> Result<RegionInfo<K>, BusError<K>> {
    let place = map.iter().position(|region| region.id == id);
    place.map_or_else(
        || Err(BusError::NoSuchRegion(id)),
        |place| Ok(map.remove(place)),
    )
}

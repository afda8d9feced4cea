// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device claims, and under which rules.

use std::borrow::Cow;
use std::fmt;
use std::ops::BitOr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::access::Outcome;
use crate::device::Device;
use crate::{AccessError, Address, BusError, BusRange, Direction};

/// A set of access widths in bytes: one or more of 1, 2, 4 and 8.
///
/// ```
/// use bus::Widths;
///
/// let widths = Widths::W1 | Widths::W4;
/// assert!(widths.contains(4));
/// assert!(!widths.contains(2));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Widths(u8);

impl Widths {
    /// One byte.
    pub const W1: Self = Self(1);
    /// Two bytes.
    pub const W2: Self = Self(2);
    /// Four bytes.
    pub const W4: Self = Self(4);
    /// Eight bytes.
    pub const W8: Self = Self(8);
    /// Every width a bus carries.
    pub const ANY: Self = Self(15);

    /// Whether accesses of `width` bytes are in the set.
    pub fn contains(self, width: usize) -> bool {
        // Each width is its own bit, so only a single bit can be a width.
        width.is_power_of_two() && width & usize::from(self.0) != 0
    }
}

impl BitOr for Widths {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Names one insertion of one device; never used again, neither by this bus nor by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(pub(crate) u64);

/// A range to insert a device at, with a name and access rules.
///
/// Without any call to the methods below, a region is called `device` and takes every width at
/// every alignment.
///
/// ```
/// use bus::{AccessError, BusDevice, MmioBus, Region, Widths};
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
/// let region = Region::new(0x1000, 4).named("register").widths(Widths::W4);
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
    pub(crate) name: Cow<'static, str>,
    widths: Widths,
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
            widths: Widths::ANY,
            aligned: false,
            counted: false,
        }
    }

    /// The name in the map of the bus and in errors.
    pub fn named(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Refuses all other widths before the device sees them, with [`AccessError::Width`].
    pub const fn widths(mut self, widths: Widths) -> Self {
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
        let range = BusRange::new(self.base, self.len)?;
        let meta = Arc::new(Meta {
            id: RegionId(NEXT_ID.fetch_add(1, Ordering::Relaxed)),
            asked: self,
            counts: Default::default(),
            panicked: AtomicBool::new(false),
            device,
        });
        Ok(RegionInfo { range, meta })
    }
}

/// How often a region was accessed, whatever came of it, and how often the access failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
pub struct RegionInfo<K> {
    pub(crate) range: BusRange<K>,
    pub(crate) meta: Arc<Meta<K>>,
}

/// What stays the same about a region while it moves.
#[derive(Debug)]
pub(crate) struct Meta<K> {
    id: RegionId,
    /// What the device was inserted with. Its base is where the region was then.
    pub(crate) asked: Region<K>,
    /// Reads, writes, and refused ones of both.
    counts: [AtomicU64; 3],
    /// Whether the device has panicked, and is not to be called any more.
    pub(crate) panicked: AtomicBool,
    pub(crate) device: Device,
}

impl<K: Address> RegionInfo<K> {
    /// What [`Bus::remove`](crate::Bus::remove) and [`Bus::relocate`](crate::Bus::relocate) take.
    pub fn id(&self) -> RegionId {
        self.meta.id
    }

    /// The addresses of the region.
    pub fn range(&self) -> BusRange<K> {
        self.range
    }

    /// The name of the region.
    pub fn name(&self) -> &str {
        &self.meta.asked.name
    }

    /// The device of the region.
    pub fn device(&self) -> &Device {
        &self.meta.device
    }

    /// How often the region has been accessed so far; all 0 unless it is
    /// [`counted`](Region::counted).
    pub fn counts(&self) -> Counts {
        let counts = self.meta.counts.each_ref();
        let [reads, writes, refused] = counts.map(|count| count.load(Ordering::Relaxed));
        Counts {
            reads,
            writes,
            refused,
        }
    }

    /// Whether the end of the range is the only rule, and nothing is counted.
    pub(crate) fn is_plain(&self) -> bool {
        let asked = &self.meta.asked;
        asked.widths == Widths::ANY && !asked.aligned && !asked.counted
    }

    /// The offset of an access that starts inside of the region, if the region takes it.
    pub(crate) fn route(&self, addr: K, width: usize) -> Result<u64, AccessError> {
        let offset = addr.into() - self.range.first().into();
        if width as u64 > self.range.size() - offset {
            Err(AccessError::CrossesEnd)
        } else if !self.meta.asked.widths.contains(width) {
            Err(AccessError::Width)
        } else if self.meta.asked.aligned && offset % width as u64 != 0 {
            Err(AccessError::Misaligned)
        } else if self.meta.panicked.load(Ordering::Relaxed) {
            Err(AccessError::Panicked)
        } else {
            Ok(offset)
        }
    }

    pub(crate) fn count(&self, direction: Direction, outcome: Outcome) {
        if self.meta.asked.counted {
            let [reads, writes, refused] = &self.meta.counts;
            let way = match direction {
                Direction::Read => reads,
                Direction::Write => writes,
            };
            way.fetch_add(1, Ordering::Relaxed);
            refused.fetch_add(outcome.is_err().into(), Ordering::Relaxed);
        }
    }
}

/// A line of the map: the range and the name.
impl<K: Address> fmt::Display for RegionInfo<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} : {}", self.range, self.name())
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a queue reaches the guest memory that it lives in.

use std::fmt;
use std::sync::atomic::Ordering;

use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use vm_memory::bitmap::{BS, BitmapSlice};
use vm_memory::{
    Address, AtomicAccess, ByteValued, Bytes, GuestAddress, GuestMemory, GuestMemoryBackend,
    GuestMemoryRegion, MemoryRegionAddress, Permissions, VolatileArrayRef, VolatileMemory,
    VolatileSlice,
};

use super::layout::{QueueLayout, QueuePart};
use crate::fault::RingFault;

/// Guest memory as a queue reaches it: guest memory itself, in which every access looks its region
/// up, or [`Rings`], which has looked them up before. No other type implements this.
pub trait RingMemory: sealed::Cache {
    /// All of guest memory.
    fn memory(&self) -> &Self::Memory;
}

/// Where models of the rings stand in for guest memory.
#[cfg(loom)]
#[doc(hidden)]
pub use sealed::Cache as RingCache;

mod sealed {
    use super::{
        AtomicAccess, BitmapSlice, ByteValued, GuestMemory, Ordering, QueuePart, Region,
        VolatileArrayRef,
    };

    /// The places that were looked up before, if any.
    pub trait Cache {
        /// Guest memory.
        type Memory: GuestMemory;
        /// Notes which of it was written.
        type Bitmap: BitmapSlice;

        /// Loads a field of a part, if its place is known.
        fn known_load<T: AtomicAccess>(
            &self,
            part: QueuePart,
            offset: usize,
            order: Ordering,
        ) -> Option<T> {
            let _ = (part, offset, order);
            None
        }

        /// Stores a field of a part, if its place is known; says whether it was.
        fn known_store<T: AtomicAccess>(
            &self,
            part: QueuePart,
            offset: usize,
            value: T,
            order: Ordering,
        ) -> bool {
            let _ = (part, offset, value, order);
            false
        }

        /// The used elements from `index` to the end of the ring, at least one, if their place is
        /// known.
        fn known_elements(&self, index: u16) -> Option<VolatileArrayRef<'_, u64, Self::Bitmap>> {
            let _ = index;
            None
        }

        /// Reads an object from a part, if its place is known.
        fn known_read<T: ByteValued>(&self, part: QueuePart, offset: usize) -> Option<T> {
            let _ = (part, offset);
            None
        }

        /// A region that is known: where a driver has its queue, it has its buffers as a rule.
        fn known_region(&self) -> Option<&Region<Self::Memory>> {
            None
        }
    }
}

impl<M: GuestMemory> sealed::Cache for M {
    type Memory = M;
    type Bitmap = ();
}

impl<M: GuestMemory> RingMemory for M {
    fn memory(&self) -> &M {
        self
    }
}

/// The three parts of a queue, looked up in guest memory once: for a device that makes many
/// accesses to them and holds on to one view of guest memory meanwhile, such as for one wake-up.
///
/// A part that does not lie in one region, or lies behind an IOMMU, is looked up at each access all
/// the same.
pub struct Rings<'m, M: GuestMemory> {
    memory: &'m M,
    region: Option<&'m Region<M>>,
    desc_table: Option<RegionSlice<'m, M>>,
    avail_ring: Option<RegionSlice<'m, M>>,
    used_ring: Option<RegionSlice<'m, M>>,
}

impl<'m, M: GuestMemory> Rings<'m, M> {
    /// Looks up the queue that lives at `layout`.
    #[must_use]
    #[inline(always)] // Built where it stays: a copy, just after it was written in parts, stalls.
    pub fn new(memory: &'m M, layout: &QueueLayout) -> Self {
        let entries = usize::from(layout.size());
        let mut regions = Regions::new(memory);
        let desc_table = regions.slice(layout.desc_table(), 16 * entries);
        let avail_ring = regions.slice(layout.avail_ring(), 6 + 2 * entries);
        let used_ring = regions.slice(layout.used_ring(), 6 + 8 * entries);
        Self {
            memory,
            region: regions.last(),
            desc_table,
            avail_ring,
            used_ring,
        }
    }

    #[inline]
    const fn part(&self, part: QueuePart) -> Option<&RegionSlice<'m, M>> {
        match part {
            QueuePart::DescTable => self.desc_table.as_ref(),
            QueuePart::AvailRing => self.avail_ring.as_ref(),
            QueuePart::UsedRing => self.used_ring.as_ref(),
        }
    }
}

impl<M: GuestMemory> RingMemory for Rings<'_, M> {
    fn memory(&self) -> &M {
        self.memory
    }
}

impl<'m, M: GuestMemory> sealed::Cache for Rings<'m, M> {
    type Memory = M;
    type Bitmap = BS<'m, Bitmap<M>>;

    #[inline]
    fn known_load<T: AtomicAccess>(
        &self,
        part: QueuePart,
        offset: usize,
        order: Ordering,
    ) -> Option<T> {
        self.part(part)?.load(offset, order).ok()
    }

    #[inline]
    fn known_store<T: AtomicAccess>(
        &self,
        part: QueuePart,
        offset: usize,
        value: T,
        order: Ordering,
    ) -> bool {
        self.part(part)
            .is_some_and(|part| part.store(value, offset, order).is_ok())
    }

    #[inline]
    fn known_elements(&self, index: u16) -> Option<VolatileArrayRef<'_, u64, Self::Bitmap>> {
        let ring = self.used_ring.as_ref()?;
        let start = 4 + 8 * usize::from(index);
        // The event index follows the elements.
        let end = ring.len().checked_sub(2)?;
        let count = end.checked_sub(start)? / 8;
        let slots = ring.get_array_ref(start, count).ok()?;
        (!slots.is_empty()).then_some(slots)
    }

    #[inline]
    fn known_read<T: ByteValued>(&self, part: QueuePart, offset: usize) -> Option<T> {
        Some(self.part(part)?.get_ref(offset).ok()?.load())
    }

    #[inline]
    fn known_region(&self) -> Option<&Region<M>> {
        self.region
    }
}

impl<M: GuestMemory> fmt::Debug for Rings<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rings").finish_non_exhaustive()
    }
}

fn address(
    layout: &QueueLayout,
    part: QueuePart,
    offset: usize,
) -> Result<GuestAddress, RingFault> {
    let base = match part {
        QueuePart::DescTable => layout.desc_table(),
        QueuePart::AvailRing => layout.avail_ring(),
        QueuePart::UsedRing => layout.used_ring(),
    };
    base.checked_add(offset as u64).ok_or(RingFault::RingMemory)
}

/// Reads a field of a ring, in one access.
#[inline]
pub(crate) fn load<R: RingMemory>(
    rings: &R,
    layout: &QueueLayout,
    part: QueuePart,
    offset: usize,
    order: Ordering,
) -> Result<u16, RingFault> {
    match rings.known_load(part, offset, order) {
        Some(value) => Ok(u16::from_le(value)),
        None => look_up_and_load(rings.memory(), layout, part, offset, order),
    }
}

#[inline(never)]
fn look_up_and_load<M: GuestMemory>(
    memory: &M,
    layout: &QueueLayout,
    part: QueuePart,
    offset: usize,
    order: Ordering,
) -> Result<u16, RingFault> {
    let load = memory.load(address(layout, part, offset)?, order);
    load.map(u16::from_le).map_err(|_| RingFault::RingMemory)
}

/// Writes a field of the used ring, in one access; `value` is little-endian already.
#[inline]
pub(crate) fn store<R: RingMemory, T: AtomicAccess>(
    rings: &R,
    layout: &QueueLayout,
    offset: usize,
    value: T,
    order: Ordering,
) -> Result<(), RingFault> {
    if rings.known_store(QueuePart::UsedRing, offset, value, order) {
        return Ok(());
    }
    look_up_and_store(rings.memory(), layout, offset, value, order)
}

#[inline(never)]
fn look_up_and_store<M: GuestMemory, T: AtomicAccess>(
    memory: &M,
    layout: &QueueLayout,
    offset: usize,
    value: T,
    order: Ordering,
) -> Result<(), RingFault> {
    let store = memory.store(value, address(layout, QueuePart::UsedRing, offset)?, order);
    store.map_err(|_| RingFault::RingMemory)
}

/// Reads descriptor `index` of the queue's own table, in one access.
#[inline]
pub(crate) fn descriptor<R: RingMemory>(
    rings: &R,
    layout: &QueueLayout,
    index: u16,
) -> Result<Descriptor, RingFault> {
    let (part, offset) = (QueuePart::DescTable, 16 * usize::from(index));
    match rings.known_read::<RawDescriptor>(part, offset) {
        Some(raw) => Ok(Descriptor::from(raw)),
        None => look_up_and_read(rings.memory(), layout, part, offset),
    }
}

#[inline(never)]
fn look_up_and_read<M: GuestMemory>(
    memory: &M,
    layout: &QueueLayout,
    part: QueuePart,
    offset: usize,
) -> Result<Descriptor, RingFault> {
    let read = memory.read_obj::<RawDescriptor>(address(layout, part, offset)?);
    read.map(Descriptor::from)
        .map_err(|_| RingFault::RingMemory)
}

/// A region of guest memory.
pub(crate) type Region<M> = <<M as GuestMemory>::PhysicalMemory as GuestMemoryBackend>::R;
/// A slice of one region.
pub(crate) type RegionSlice<'m, M> = VolatileSlice<'m, BS<'m, Bitmap<M>>>;
type Bitmap<M> = <Region<M> as GuestMemoryRegion>::B;

/// Finds the region in which a range lies, and tries the one that it found last first: what a
/// driver names one after the other is close together as a rule.
///
/// Only where guest memory is the physical memory itself, without an IOMMU in between.
pub(crate) struct Regions<'m, M: GuestMemory> {
    memory: &'m M,
    last: Option<&'m Region<M>>,
}

impl<'m, M: GuestMemory> Regions<'m, M> {
    pub(crate) const fn new(memory: &'m M) -> Self {
        Self { memory, last: None }
    }

    /// Starts with the region that holds the queue, if it is known.
    pub(crate) fn near<R: RingMemory<Memory = M>>(rings: &'m R) -> Self {
        Self {
            memory: rings.memory(),
            last: rings.known_region(),
        }
    }

    /// The region that was found last.
    pub(crate) const fn last(&self) -> Option<&'m Region<M>> {
        self.last
    }

    /// The region that holds all of a range, and where in it the range begins; `None` if there is
    /// none, or if it cannot be known.
    #[inline]
    pub(crate) fn find(
        &mut self,
        addr: GuestAddress,
        len: usize,
    ) -> Option<(&'m Region<M>, usize)> {
        if let Some(last) = self.last {
            if let Some(start) = place(last, addr, len) {
                return Some((last, start));
            }
        }
        let region = self.memory.physical_memory()?.find_region(addr)?;
        let start = place(region, addr, len)?;
        self.last = Some(region);
        Some((region, start))
    }

    /// A range as one slice, under the same conditions. It is as long as the region says, which can be
    /// anybody's code.
    #[inline]
    pub(crate) fn slice(&mut self, addr: GuestAddress, len: usize) -> Option<RegionSlice<'m, M>> {
        let (region, start) = self.find(addr, len)?;
        region
            .get_slice(MemoryRegionAddress(start as u64), len)
            .ok()
    }

    /// Names the pieces of a range; returns whether all of it is in guest memory.
    #[inline]
    pub(crate) fn pieces(
        &mut self,
        addr: GuestAddress,
        len: usize,
        access: Permissions,
        each: &mut impl FnMut(*mut u8, usize),
    ) -> bool {
        if let Some(slice) = self.slice(addr, len) {
            each(slice.ptr_guard_mut().as_ptr(), slice.len());
            return slice.len() == len;
        }
        let Ok(mut slices) = self.memory.get_slices(addr, len, access) else {
            return false;
        };
        slices.all(|slice| {
            let slice = slice.map(|slice| each(slice.ptr_guard_mut().as_ptr(), slice.len()));
            slice.is_ok()
        })
    }

    /// Reads a range; returns whether all of it is in guest memory.
    #[inline]
    pub(crate) fn read(&mut self, data: &mut [u8], addr: GuestAddress) -> bool {
        match self.slice(addr, data.len()) {
            Some(slice) => slice.copy_to(data) == data.len(),
            None => self.memory.read_slice(data, addr).is_ok(),
        }
    }

    /// Writes a range, under the same condition.
    #[inline]
    pub(crate) fn write(&mut self, data: &[u8], addr: GuestAddress) -> bool {
        match self.slice(addr, data.len()) {
            Some(slice) => {
                slice.copy_from(data);
                slice.len() == data.len()
            }
            None => self.memory.write_slice(data, addr).is_ok(),
        }
    }
}

/// Where a range begins in `region`, if it lies in it as a whole.
#[inline]
fn place<R: GuestMemoryRegion>(region: &R, addr: GuestAddress, len: usize) -> Option<usize> {
    let offset = addr.checked_offset_from(region.start_addr())?;
    let end = offset.checked_add(len as u64)?;
    (end <= region.len()).then(|| usize::try_from(offset).ok())?
}

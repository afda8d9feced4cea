// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Looking guest memory's regions up less often.

use vm_memory::bitmap::BS;
use vm_memory::{
    Address, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress,
    VolatileSlice,
};

use crate::rings::RingMemory;

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

    /// Begins where the queue itself is, if that is known.
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

    /// A range as one slice, under the same conditions.
    #[inline]
    pub(crate) fn slice(&mut self, addr: GuestAddress, len: usize) -> Option<RegionSlice<'m, M>> {
        let (region, start) = self.find(addr, len)?;
        region
            .get_slice(MemoryRegionAddress(start as u64), len)
            .ok()
    }
}

/// Where a range begins in `region`, if it lies in it as a whole.
#[inline]
fn place<R: GuestMemoryRegion>(region: &R, addr: GuestAddress, len: usize) -> Option<usize> {
    let offset = addr.checked_offset_from(region.start_addr())?;
    let end = offset.checked_add(len as u64)?;
    (end <= region.len()).then(|| usize::try_from(offset).ok())?
}

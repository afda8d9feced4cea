// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Looking guest memory's regions up less often.

use vm_memory::bitmap::BS;
use vm_memory::{
    Address, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, VolatileSlice,
};

type Region<M> = <<M as GuestMemory>::PhysicalMemory as GuestMemoryBackend>::R;
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

    /// The region that holds all of a range; `None` if there is none, or if it cannot be known.
    #[inline]
    pub(crate) fn find(&mut self, addr: GuestAddress, len: usize) -> Option<&'m Region<M>> {
        if let Some(last) = self.last.filter(|region| holds(*region, addr, len)) {
            return Some(last);
        }
        let region = self.memory.physical_memory()?.find_region(addr)?;
        if !holds(region, addr, len) {
            return None;
        }
        self.last = Some(region);
        Some(region)
    }

    /// A range as one slice, under the same conditions.
    #[inline]
    pub(crate) fn slice(&mut self, addr: GuestAddress, len: usize) -> Option<RegionSlice<'m, M>> {
        let region = self.find(addr, len)?;
        let start = region.to_region_addr(addr)?;
        region.get_slice(start, len).ok()
    }
}

#[inline]
fn holds<R: GuestMemoryRegion>(region: &R, addr: GuestAddress, len: usize) -> bool {
    let offset = addr.checked_offset_from(region.start_addr());
    offset.is_some_and(|offset| {
        let end = offset.checked_add(len as u64);
        end.is_some_and(|end| end <= region.len())
    })
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::mm::{Advice, madvise};
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion,
};

use crate::kvm::call;

/// The one kind of error here: something that has no remedy but to be read.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Guest memory: anonymous, and only backed by pages that are touched.
pub(crate) type Memory = GuestMemoryMmap<()>;

/// The size of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Makes guest memory of these ranges, each an address and a length.
pub(crate) fn allocate(ranges: impl IntoIterator<Item = (u64, usize)>) -> Result<Memory> {
    let mut regions = Vec::new();
    for (start, len) in ranges {
        let region = GuestRegionMmap::new(mapping(len)?, GuestAddress(start));
        regions.push(region.ok_or("memory ends behind the last address")?);
    }
    Ok(Memory::from_regions(regions)?)
}

/// Maps memory that begins at a huge page if possible: the host can then back the guest with huge
/// pages, and does not have to be called for each of the small ones.
fn mapping(len: usize) -> Result<MmapRegion> {
    let mut mapping = MmapRegion::new(len)?;
    let mut others = Vec::new();
    for _ in 0..8 {
        let excess = mapping.as_ptr().addr() % HUGE_PAGE;
        if excess == 0 {
            break;
        }
        // The kernel places one mapping below the other: with this between them, the next fits. Where
        // there is no room for both, this one has to do.
        let (Ok(between), Ok(next)) = (MmapRegion::new(excess), MmapRegion::new(len)) else {
            break;
        };
        others.extend([std::mem::replace(&mut mapping, next), between]);
    }
    Ok(mapping)
}

/// Asks the host to back the guest with huge pages: good for a guest that uses much of its memory,
/// while the first touch of each page takes longer.
pub(crate) fn advise_huge_pages(memory: &Memory) -> Result<()> {
    // A kernel without huge pages does without.
    advise(memory, Advice::LinuxHugepage, |_| Ok(()))
}

/// Fills memory with zeros, and gives it back to the host until it is touched again.
pub(crate) fn clear(memory: &Memory) -> Result<()> {
    advise(memory, Advice::LinuxDontNeed, |advised| {
        Ok(advised.map_err(call("madvise"))?)
    })
}

fn advise(
    memory: &Memory,
    advice: Advice,
    done: impl Fn(rustix::io::Result<()>) -> Result<()>,
) -> Result<()> {
    for region in memory.iter() {
        let place = memory.get_host_address(region.start_addr())?.cast();
        let len = usize::try_from(region.len())?;
        // SAFETY: all of the range is anonymous memory of the guest, in which nobody but the guest
        // expects to find what it left there.
        #[expect(unsafe_code, reason = "advice is given on addresses")]
        done(unsafe { madvise(place, len, advice) })?;
    }
    Ok(())
}

/// Shows `memory` to the guest.
///
/// The caller keeps `memory` mapped for as long as the virtual machine lives.
pub(crate) fn map(vm: &VmFd, memory: &Memory) -> Result<()> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let start = region.start_addr();
        let mapping = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: start.raw_value(),
            memory_size: region.len(),
            userspace_addr: memory.get_host_address(start)? as u64,
        };
        // SAFETY: the range is a mapping of its own that holds nothing but guest memory, and the
        // caller keeps it. Nothing else is ever mapped into this slot.
        #[expect(unsafe_code, reason = "the kernel is told to write to this memory")]
        let mapped = unsafe { vm.set_user_memory_region(mapping) };
        mapped.map_err(|error| {
            let (mib, start) = (region.len() >> 20, start.raw_value());
            let failed = call("KVM_SET_USER_MEMORY_REGION")(error);
            format!("{failed}, for {mib} MiB of memory at {start:#x}")
        })?;
    }
    Ok(())
}

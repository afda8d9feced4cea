// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The first state of guest memory and of the vCPU, without any firmware.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuFd, VmFd};
use rustix::mm::{Advice, madvise};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

use crate::kvm::call;
use crate::layout::{CODE_SELECTOR, DATA_SELECTOR, GDT, PAGE_TABLES, STACK_TOP};

/// The one kind of error here: something that has no remedy but to be read.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Guest memory: anonymous, and only backed by pages that are touched.
pub(crate) type Memory = GuestMemoryMmap<()>;

const GDT_CODE: u64 = 0x00af_9b00_0000_ffff;
const GDT_DATA: u64 = 0x00cf_9300_0000_ffff;

const SEGMENT_CODE: u8 = 0xb;
const SEGMENT_DATA: u8 = 0x3;
/// A busy 32-bit task state segment.
const SEGMENT_TASK: u8 = 0xb;

const CR0_PE: u64 = 1;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Present and writable.
const PTE_TABLE: u64 = 0b11;
/// Present, writable, and a page of 2 MiB.
const PTE_PAGE: u64 = 0b1000_0011;

/// How much memory one entry of a page directory maps.
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
        // The kernel places one mapping below the other: with this between them, the next fits.
        others.push(mapping);
        others.push(MmapRegion::new(excess)?);
        mapping = MmapRegion::new(len)?;
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

/// Writes the segment descriptors and the page tables that [`long_mode`] starts with.
pub(crate) fn write_tables(memory: &Memory) -> Result<()> {
    for (index, descriptor) in [0, 0, GDT_CODE, GDT_DATA].into_iter().enumerate() {
        memory.write_obj(descriptor, GuestAddress(GDT + 8 * index as u64))?;
    }
    write_page_tables(memory)
}

/// Maps the first 4 GiB one to one: a table each of the fourth and the third level, and four of the
/// second, whose entries are pages of 2 MiB.
fn write_page_tables(memory: &Memory) -> Result<()> {
    let (pml4, pdpt, directories) = (PAGE_TABLES, PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000);
    memory.write_obj(pdpt | PTE_TABLE, GuestAddress(pml4))?;
    for index in 0..4 {
        let directory = directories + 0x1000 * index;
        memory.write_obj(directory | PTE_TABLE, GuestAddress(pdpt + 8 * index))?;
    }
    for page in 0..4 * 512u64 {
        let entry = page << 21 | PTE_PAGE;
        memory.write_obj(entry, GuestAddress(directories + 8 * page))?;
    }
    Ok(())
}

/// Shows `memory` to the guest.
///
/// The caller keeps `memory` mapped for as long as the virtual machine lives.
pub(crate) fn map_memory(vm: &VmFd, memory: &Memory) -> Result<()> {
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

/// Puts the vCPU into 64-bit mode, with `registers` and the tables of [`write_tables`].
pub(crate) fn long_mode(vcpu: &VcpuFd, registers: kvm_regs) -> Result<()> {
    let mut sregs = vcpu.get_sregs().map_err(call("KVM_GET_SREGS"))?;
    sregs.cs = segment(CODE_SELECTOR, SEGMENT_CODE, Width::Long);
    let data = segment(DATA_SELECTOR, SEGMENT_DATA, Width::Protected);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 8 * 4 - 1;
    sregs.cr0 |= CR0_PE | CR0_PG;
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 |= CR4_PAE;
    sregs.efer |= EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs).map_err(call("KVM_SET_SREGS"))?;
    set_registers(vcpu, registers)
}

/// Puts the vCPU into 32-bit protected mode without paging, with `registers`.
pub(crate) fn protected_mode(vcpu: &VcpuFd, registers: kvm_regs) -> Result<()> {
    let mut sregs = vcpu.get_sregs().map_err(call("KVM_GET_SREGS"))?;
    sregs.cs = segment(CODE_SELECTOR, SEGMENT_CODE, Width::Protected);
    let data = segment(DATA_SELECTOR, SEGMENT_DATA, Width::Protected);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        limit: 0x67,
        type_: SEGMENT_TASK,
        s: 0,
        g: 0,
        ..segment(0, SEGMENT_TASK, Width::Protected)
    };
    sregs.cr0 = CR0_PE;
    sregs.cr4 = 0;
    vcpu.set_sregs(&sregs).map_err(call("KVM_SET_SREGS"))?;
    set_registers(vcpu, registers)
}

fn set_registers(vcpu: &VcpuFd, registers: kvm_regs) -> Result<()> {
    let registers = kvm_regs {
        rsp: STACK_TOP,
        // Bit 1 is always set.
        rflags: 2,
        ..registers
    };
    vcpu.set_regs(&registers).map_err(call("KVM_SET_REGS"))?;
    Ok(())
}

/// What a code segment holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Width {
    Protected,
    Long,
}

/// A segment of all addresses.
fn segment(selector: u16, type_: u8, width: Width) -> kvm_segment {
    let long = width == Width::Long;
    kvm_segment {
        selector,
        base: 0,
        limit: u32::MAX,
        type_,
        present: 1,
        dpl: 0,
        db: (!long).into(),
        s: 1,
        l: long.into(),
        g: 1,
        ..Default::default()
    }
}

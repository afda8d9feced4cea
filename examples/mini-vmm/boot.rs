// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory and the first state of the vCPU: 64-bit mode, without any firmware.

use kvm_bindings::{CpuId, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};

use crate::guest;
use crate::layout::{CODE_SELECTOR, DATA_SELECTOR, GDT, PAGE_TABLES, RAM_SIZE, STACK_TOP};

/// The one kind of error here: something that has no remedy but to be read.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Guest memory: anonymous, and only backed by pages that are touched.
pub(crate) type Memory = GuestMemoryMmap<()>;

const GDT_CODE: u64 = 0x00af_9b00_0000_ffff;
const GDT_DATA: u64 = 0x00cf_9300_0000_ffff;

const CR0_PE: u64 = 1;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Present and writable.
const PTE_TABLE: u64 = 0b11;
/// Present, writable, and a page of 2 MiB.
const PTE_PAGE: u64 = 0b1000_0011;

/// Makes guest memory with the guest's program, its page tables and its segments in it.
pub(crate) fn memory() -> Result<Memory> {
    let memory = Memory::from_ranges(&[(GuestAddress(0), RAM_SIZE)])?;
    let (address, program) = guest::image();
    memory.write_slice(program, GuestAddress(address))?;
    for (index, descriptor) in [0, GDT_CODE, GDT_DATA].into_iter().enumerate() {
        memory.write_obj(descriptor, GuestAddress(GDT + 8 * index as u64))?;
    }
    write_page_tables(&memory)?;
    Ok(memory)
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
        unsafe {
            vm.set_user_memory_region(mapping)?;
        }
    }
    Ok(())
}

/// Puts the vCPU at the start of the guest's program, which finds `bytes` in rdi.
pub(crate) fn set_registers(vcpu: &VcpuFd, cpuid: &CpuId, bytes: u64) -> Result<()> {
    vcpu.set_cpuid2(cpuid)?;

    let mut sregs = vcpu.get_sregs()?;
    let segment = |selector, type_, long: bool| kvm_segment {
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
    };
    sregs.cs = segment(CODE_SELECTOR, 0xb, true);
    let data = segment(DATA_SELECTOR, 0x3, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 8 * 3 - 1;
    sregs.cr0 |= CR0_PE | CR0_PG;
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 |= CR4_PAE;
    sregs.efer |= EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs)?;

    let (entry, _) = guest::image();
    // Bit 1 of rflags is always set.
    let registers = kvm_regs {
        rip: entry,
        rsp: STACK_TOP,
        rdi: bytes,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&registers)?;
    Ok(())
}

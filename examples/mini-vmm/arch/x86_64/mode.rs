// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The mode that a processor is in when it begins with a program, without any firmware.

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::layout::{CODE_SELECTOR, DATA_SELECTOR, GDT, PAGE_TABLES, STACK_TOP};
use crate::kvm::call;
use crate::memory::Memory;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

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
    sregs.efer = 0;
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

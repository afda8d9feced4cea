// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Address translation for the case study's guest, which is on when it begins: without it a
//! processor goes past its caches, in which the host's processors leave what they write.

use kvm_bindings::{KVM_REG_ARM64, KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U64};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::cpu;
use super::layout::TRANSLATION_TABLE;
use crate::layout::{HIGH_RAM, RAM_START, WINDOW};
use crate::memory::Memory;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const SCTLR_EL1: u64 = system_register(3, 0, 1, 0, 0);
const TTBR0_EL1: u64 = system_register(3, 0, 2, 0, 0);
const TCR_EL1: u64 = system_register(3, 0, 2, 0, 2);
const MAIR_EL1: u64 = system_register(3, 0, 10, 2, 0);

/// The kinds of memory that a table's entries name: 0, write-back; and 1, device nGnRE.
const KINDS: u64 = 0x04_ff;
/// Addresses of 39 bits, so that each entry of the only table maps a gibibyte; tables of 4 KiB
/// pages in write-back memory, physical addresses of 40 bits, and nothing in the upper half.
const CONTROL: u64 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32;
/// Translation, the data cache and the instruction cache are on.
const ON: u64 = 1 | 1 << 2 | 1 << 12;

/// A valid block that has been accessed.
const BLOCK: u64 = 0b01 | 1 << 10;
/// RAM: of the first kind, shared with the other processors.
const RAM: u64 = BLOCK | 3 << 8;
/// Devices: of the second kind, never executed.
const DEVICES: u64 = BLOCK | 1 << 2 | 0b11 << 53;

const fn system_register(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    let name = op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2;
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64 | name
}

/// Writes the table: the first 4 GiB one to one.
pub(super) fn write_table(memory: &Memory) -> Result<()> {
    for index in 0..4 {
        let start = index << 30;
        let kind = match start {
            RAM_START..WINDOW => RAM,
            0..HIGH_RAM => DEVICES,
            _ => 0,
        };
        memory.write_obj(start | kind, GuestAddress(TRANSLATION_TABLE + 8 * index))?;
    }
    Ok(())
}

/// Has the processor begin with the table.
pub(super) fn switch_on(vcpu: &VcpuFd) -> Result<()> {
    cpu::set(vcpu, MAIR_EL1, KINDS)?;
    cpu::set(vcpu, TCR_EL1, CONTROL)?;
    cpu::set(vcpu, TTBR0_EL1, TRANSLATION_TABLE)?;
    cpu::set(vcpu, SCTLR_EL1, cpu::get(vcpu, SCTLR_EL1)? | ON)
}

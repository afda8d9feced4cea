// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What of the memory map only this architecture has: devices below RAM, too.

/// The distributor of the interrupt controller, inside KVM.
pub(crate) const GIC_DISTRIBUTOR: u64 = 0x0800_0000;
/// Length of the distributor's registers.
pub(crate) const GIC_DISTRIBUTOR_SIZE: u64 = 0x1_0000;
/// The redistributors, one for each processor, inside KVM.
pub(crate) const GIC_REDISTRIBUTORS: u64 = 0x0810_0000;
/// Length of one redistributor's registers.
pub(crate) const GIC_REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
/// The serial port, a 16550.
pub(crate) const SERIAL: u64 = 0x0900_0000;
/// Where the registers of announcements begin, see `case_study/announce.rs`.
pub(crate) const ANNOUNCEMENTS: u64 = 0x0a00_0000;

/// RAM begins here.
pub(crate) const RAM_START: u64 = 0x4000_0000;

// --- The case study.

/// The table of the first gibibytes' translation, a page.
pub(crate) const TRANSLATION_TABLE: u64 = RAM_START + 0x9000;

// --- Linux.

/// The device tree, in front of the kernel.
pub(crate) const FDT: u64 = RAM_START;
/// Start of the memory that kernels are loaded to, on 2 MiB.
pub(crate) const KERNEL: u64 = RAM_START + 0x20_0000;

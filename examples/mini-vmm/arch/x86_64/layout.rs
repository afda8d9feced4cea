// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What of the memory map only this architecture has, and the map of ports.

/// RAM begins here.
pub(crate) const RAM_START: u64 = 0;
/// Segment descriptors.
pub(crate) const GDT: u64 = 0x1000;
/// Interrupt descriptors of the case study, whose guest fills them.
pub(crate) const IDT: u64 = 0x2000;
/// The first stack grows down from here.
pub(crate) const STACK_TOP: u64 = 0x8000;
/// Page tables, six pages.
pub(crate) const PAGE_TABLES: u64 = 0x9000;

/// Selector of the code segment, as the Linux boot protocol wants it.
pub(crate) const CODE_SELECTOR: u16 = 0x10;
/// Selector of the data segment.
pub(crate) const DATA_SELECTOR: u16 = 0x18;

/// Where the kernel may put the task state segment that old Intel processors need.
pub(crate) const TSS_ADDRESS: usize = 0xfffb_d000;

// --- The case study.

/// Where the ports of announcements begin, see `case_study/announce.rs`.
pub(crate) const PORT_START: u16 = 0x500;

// --- Linux.

/// The boot parameters of the 64-bit boot protocol, also called zero page.
pub(crate) const ZERO_PAGE: u64 = 0x1_0000;
/// The start information of the PVH boot protocol.
pub(crate) const START_INFO: u64 = 0x1_1000;
/// The module list of the PVH boot protocol.
pub(crate) const MODULES: u64 = 0x1_1800;
/// The memory map of the PVH boot protocol.
pub(crate) const MEMORY_MAP: u64 = 0x1_2000;
/// The kernel's command line.
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// Most bytes of a command line, with its terminating zero.
pub(crate) const COMMAND_LINE_SIZE: usize = 0x1_0000;
/// Conventional memory ends here, where the extended BIOS data area would begin.
pub(crate) const LOW_RAM_END: u64 = 0x9_fc00;
/// ACPI tables; a kernel looks for the first of them here by itself.
pub(crate) const ACPI: u64 = 0xe_0000;
/// End of the room for ACPI tables, and where a processor begins that is reset: see `power.rs`.
pub(crate) const RESET_VECTOR: u64 = 0xf_fff0;
/// Start of the memory that kernels are loaded to.
pub(crate) const KERNEL: u64 = 0x10_0000;

/// The keyboard controller, whose only use is to reset the machine.
pub(crate) const I8042: u16 = 0x60;
/// Its command port, and the command that resets the machine.
pub(crate) const I8042_COMMAND: u16 = 0x64;
/// The command that resets the machine.
pub(crate) const I8042_RESET: u8 = 0xfe;
/// Length of the keyboard controller's ports.
pub(crate) const I8042_SIZE: u64 = 5;
/// The serial port, a 16550.
pub(crate) const SERIAL: u16 = 0x3f8;
/// The sleep control register of ACPI; the sleep status register follows.
pub(crate) const SLEEP: u16 = 0x600;
/// Length of both sleep registers.
pub(crate) const SLEEP_SIZE: u64 = 2;
/// The sleep type that means power-off.
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;
/// The I/O APIC, inside KVM.
pub(crate) const IO_APIC: u32 = 0xfec0_0000;
/// The local APICs, inside KVM.
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;

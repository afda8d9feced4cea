// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The numbers of the kernel's user-space API that the decoder knows, from `linux/kvm.h`.
//!
//! Written down here so that exits can be decoded and tested on any operating system; compared
//! with `kvm-bindings` in the tests.

pub(crate) const KVM_EXIT_UNKNOWN: u32 = 0;
pub(crate) const KVM_EXIT_EXCEPTION: u32 = 1;
pub(crate) const KVM_EXIT_IO: u32 = 2;
pub(crate) const KVM_EXIT_HYPERCALL: u32 = 3;
pub(crate) const KVM_EXIT_DEBUG: u32 = 4;
pub(crate) const KVM_EXIT_HLT: u32 = 5;
pub(crate) const KVM_EXIT_MMIO: u32 = 6;
pub(crate) const KVM_EXIT_IRQ_WINDOW_OPEN: u32 = 7;
pub(crate) const KVM_EXIT_SHUTDOWN: u32 = 8;
pub(crate) const KVM_EXIT_FAIL_ENTRY: u32 = 9;
#[cfg(feature = "kvm")]
pub(crate) const KVM_EXIT_INTR: u32 = 10;
pub(crate) const KVM_EXIT_SET_TPR: u32 = 11;
pub(crate) const KVM_EXIT_INTERNAL_ERROR: u32 = 17;
pub(crate) const KVM_EXIT_SYSTEM_EVENT: u32 = 24;
pub(crate) const KVM_EXIT_IOAPIC_EOI: u32 = 26;
pub(crate) const KVM_EXIT_ARM_NISV: u32 = 28;
pub(crate) const KVM_EXIT_X86_RDMSR: u32 = 29;
pub(crate) const KVM_EXIT_X86_WRMSR: u32 = 30;
pub(crate) const KVM_EXIT_DIRTY_RING_FULL: u32 = 31;
pub(crate) const KVM_EXIT_X86_BUS_LOCK: u32 = 33;
pub(crate) const KVM_EXIT_NOTIFY: u32 = 37;
pub(crate) const KVM_EXIT_MEMORY_FAULT: u32 = 39;

pub(crate) const KVM_EXIT_IO_IN: u32 = 0;
pub(crate) const KVM_EXIT_IO_OUT: u32 = 1;
pub(crate) const KVM_INTERNAL_ERROR_EMULATION: u32 = 1;
pub(crate) const KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES: u64 = 1;
pub(crate) const KVM_NOTIFY_CONTEXT_INVALID: u32 = 1;

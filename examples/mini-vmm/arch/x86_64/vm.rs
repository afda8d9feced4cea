// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The virtual machine, and its interrupt lines.

use std::error::Error;
use std::fs;

use kvm_ioctls::{Kvm, VmFd};

use super::layout::TSS_ADDRESS;
use crate::kvm::call;

/// What brings KVM to a machine that could have it.
pub(crate) const KVM_REMEDY: &str =
    "enable virtualization in its firmware, and load the kernel module kvm_intel or kvm_amd";

/// Whether every kernel leaves the guest soon after its start: it looks for old devices on ports.
pub(crate) const EXITS_EARLY: bool = true;

/// Makes a virtual machine with the kernel's interrupt controllers, and without memory.
pub(crate) fn create(kvm: &Kvm) -> Result<VmFd, Box<dyn Error>> {
    let vm = kvm.create_vm().map_err(call("KVM_CREATE_VM"))?;
    vm.set_tss_address(TSS_ADDRESS)
        .map_err(call("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip().map_err(call("KVM_CREATE_IRQCHIP"))?;
    Ok(vm)
}

/// What `KVM_IRQ_LINE` calls the interrupt line `gsi`: a pin of the I/O APIC.
pub(crate) const fn irq_line(gsi: u32) -> Option<u32> {
    Some(gsi)
}

/// Why Linux may not run on this machine's KVM, if there is a sign of that.
pub(crate) fn doubt() -> Option<&'static str> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    // Hidden from us or not there, both look the same. A file without any flags says nothing.
    let mut flags = cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace)
        .peekable();
    flags.peek()?;
    let missing = !flags.any(|flag| matches!(flag, "vmx" | "svm"));
    missing.then_some(
        "/proc/cpuinfo shows neither vmx nor svm: KVM has no hardware to run on, and may not be \
         able to run Linux",
    )
}

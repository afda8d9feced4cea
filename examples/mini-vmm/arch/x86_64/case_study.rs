// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine of the case study, as far as it is this architecture's.

use std::error::Error;
use std::sync::{Arc, Mutex};

use bus::{BusError, MmioBus, PioBus, Region};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vcpu_runner::ExitKind;
use vm_memory::{Bytes, GuestAddress};

use super::layout::PORT_START;
use super::{guest, mode};
use crate::case_study::announce::{ANNOUNCEMENTS_SIZE, Announcements};
use crate::kvm::call;
use crate::layout::IMAGE;
use crate::memory::Memory;

/// The kind of exit that an announcement is.
pub(crate) const ANNOUNCEMENT: ExitKind = ExitKind::IoOut;

/// Puts the registers of announcements where the guest looks for them: on ports.
pub(crate) fn insert_announcements(
    _mmio: &MmioBus,
    pio: &PioBus,
    announcements: Announcements,
) -> Result<(), BusError<u16>> {
    let region = Region::new(PORT_START, ANNOUNCEMENTS_SIZE).named("announcements");
    pio.insert_region(Arc::new(Mutex::new(announcements)), region)
        .map(drop)
}

/// Writes the guest's program, and what it needs to start in 64-bit mode.
pub(crate) fn write_guest(memory: &Memory) -> Result<(), Box<dyn Error>> {
    memory.write_slice(guest::program(), GuestAddress(IMAGE))?;
    mode::write_tables(memory)
}

/// Makes the vCPU that begins with the guest's program and fetches `bytes` bytes from each device.
pub(crate) fn create_vcpu(kvm: &Kvm, vm: &VmFd, bytes: u64) -> Result<VcpuFd, Box<dyn Error>> {
    let vcpu = vm.create_vcpu(0).map_err(call("KVM_CREATE_VCPU"))?;
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(call("KVM_GET_SUPPORTED_CPUID"))?;
    vcpu.set_cpuid2(&cpuid).map_err(call("KVM_SET_CPUID2"))?;
    mode::long_mode(
        &vcpu,
        kvm_regs {
            rip: IMAGE,
            rdi: bytes,
            ..Default::default()
        },
    )?;
    Ok(vcpu)
}

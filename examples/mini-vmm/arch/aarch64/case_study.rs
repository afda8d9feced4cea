// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine of the case study, as far as it is this architecture's.

use std::error::Error;
use std::sync::{Arc, Mutex};

use bus::{BusError, MmioBus, PioBus, Region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vcpu_runner::ExitKind;
use vm_memory::{Bytes, GuestAddress};

use super::layout::ANNOUNCEMENTS;
use super::{cpu, guest, mmu};
use crate::case_study::announce::{ANNOUNCEMENTS_SIZE, Announcements};
use crate::layout::IMAGE;
use crate::memory::Memory;

/// The kind of exit that an announcement is.
pub(crate) const ANNOUNCEMENT: ExitKind = ExitKind::MmioWrite;

/// Puts the registers of announcements where the guest looks for them.
pub(crate) fn insert_announcements(
    mmio: &MmioBus,
    _pio: &PioBus,
    announcements: Announcements,
) -> Result<(), BusError<u64>> {
    let region = Region::new(ANNOUNCEMENTS, ANNOUNCEMENTS_SIZE).named("announcements");
    mmio.insert_region(Arc::new(Mutex::new(announcements)), region)
        .map(drop)
}

/// Writes the guest's program, and what it needs to start with its caches on.
pub(crate) fn write_guest(memory: &Memory) -> Result<(), Box<dyn Error>> {
    memory.write_slice(guest::program(), GuestAddress(IMAGE))?;
    mmu::write_table(memory)
}

/// Makes the vCPU that begins with the guest's program and fetches `bytes` bytes from each device.
pub(crate) fn create_vcpu(_kvm: &Kvm, vm: &VmFd, bytes: u64) -> Result<VcpuFd, Box<dyn Error>> {
    let mut vcpus = cpu::create(vm, 1, IMAGE, bytes)?;
    let vcpu = vcpus.pop().ok_or("there is no vCPU")?;
    mmu::switch_on(&vcpu)?;
    Ok(vcpu)
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The state in which firmware would hand the processors over to a kernel.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, Msrs, kvm_fpu, kvm_msr_entry,
    kvm_pit_config, kvm_regs,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use super::layout::{START_INFO, ZERO_PAGE};
use super::mode;
use crate::kvm::call;
use crate::linux::loader::{Entry, Kernel};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// `IA32_MISC_ENABLE`, and its bit for fast string operations.
const MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
/// `IA32_MTRR_DEF_TYPE`: enabled, and all memory is write-back.
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_WRITE_BACK: u64 = 0x806;

/// Local vector table entries of a local APIC, and how they deliver.
const LINT0: usize = 0x350;
const LINT1: usize = 0x360;
const DELIVER_EXTINT: u32 = 7 << 8;
const DELIVER_NMI: u32 = 4 << 8;

/// Makes the vCPUs, and a timer for all of them; the first vCPU begins at the kernel's entry point,
/// the others wait for it.
pub(crate) fn create(kvm: &Kvm, vm: &VmFd, cpus: u8, kernel: &Kernel) -> Result<Vec<VcpuFd>> {
    let timer = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..kvm_pit_config::default()
    };
    vm.create_pit2(timer).map_err(call("KVM_CREATE_PIT2"))?;
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(call("KVM_GET_SUPPORTED_CPUID"))?;
    let deadline_timer = vm.check_extension(Cap::TscDeadlineTimer);
    let mut vcpus = Vec::new();
    for id in 0..cpus {
        let vcpu = vm.create_vcpu(id.into()).map_err(call("KVM_CREATE_VCPU"))?;
        let mut cpuid = supported.clone();
        describe(&mut cpuid, id, cpus, deadline_timer);
        vcpu.set_cpuid2(&cpuid).map_err(call("KVM_SET_CPUID2"))?;
        set_msrs(&vcpu)?;
        // As a reset leaves it.
        let fpu = kvm_fpu {
            fcw: 0x37f,
            mxcsr: 0x1f80,
            ..kvm_fpu::default()
        };
        vcpu.set_fpu(&fpu).map_err(call("KVM_SET_FPU"))?;
        if id == 0 {
            connect_legacy_interrupts(&vcpu)?;
            enter(&vcpu, kernel)?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

/// Has the first vCPU begin at the kernel's entry point.
pub(crate) fn enter(vcpu: &VcpuFd, kernel: &Kernel) -> Result<()> {
    match &kernel.entry {
        Entry::Long { address, .. } => mode::long_mode(
            vcpu,
            kvm_regs {
                rip: *address,
                rsi: ZERO_PAGE,
                ..kvm_regs::default()
            },
        ),
        Entry::Pvh { address } => mode::protected_mode(
            vcpu,
            kvm_regs {
                rip: *address,
                rbx: START_INFO,
                ..kvm_regs::default()
            },
        ),
    }
}

/// Makes what KVM supports into the description of one processor of `cpus`: all are cores of one
/// package, with one thread each.
fn describe(cpuid: &mut CpuId, id: u8, cpus: u8, deadline_timer: bool) {
    const DEADLINE_TIMER: u32 = 1 << 24;
    const HYPERVISOR: u32 = 1 << 31;
    const MULTI_THREADING: u32 = 1 << 28;

    let (wide_id, others) = (u32::from(id), u32::from(cpus - 1));
    // How many bits of an APIC identifier tell the cores of a package apart.
    let bits = u32::from(cpus).next_power_of_two().trailing_zeros();
    for entry in cpuid.as_mut_slice() {
        match (entry.function, entry.index) {
            (0x1, _) => {
                entry.ebx = entry.ebx & 0xffff | u32::from(cpus) << 16 | wide_id << 24;
                entry.ecx |= HYPERVISOR;
                if deadline_timer {
                    entry.ecx |= DEADLINE_TIMER;
                }
                if cpus > 1 {
                    entry.edx |= MULTI_THREADING;
                } else {
                    entry.edx &= !MULTI_THREADING;
                }
            }
            // Caches: the last level is shared by all, the others by none.
            (0x4 | 0x8000_001d, _) if entry.eax & 0x1f != 0 => {
                let shared = if entry.eax >> 5 & 7 >= 3 { others } else { 0 };
                entry.eax = entry.eax & 0x3fff | shared << 14;
                if entry.function == 0x4 {
                    entry.eax |= others << 26;
                }
            }
            // Topology: nothing but the identifier. A kernel takes the rest from leaves 1 and 4.
            (0xb | 0x1f, _) => {
                (entry.eax, entry.ebx) = (0, 0);
                entry.ecx &= 0xff;
                entry.edx = wide_id;
            }
            (0x8000_0008, _) => entry.ecx = entry.ecx & !0xf0ff | others | bits << 12,
            (0x8000_001e, _) => {
                entry.eax = wide_id;
                entry.ebx = entry.ebx & !0xffff | wide_id;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
}

/// Sets the registers that firmware sets. A processor without one of them is none the worse.
fn set_msrs(vcpu: &VcpuFd) -> Result<()> {
    for (index, data) in [
        (MISC_ENABLE, FAST_STRINGS),
        (MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ] {
        let entry = kvm_msr_entry {
            index,
            data,
            ..kvm_msr_entry::default()
        };
        vcpu.set_msrs(&Msrs::from_entries(&[entry])?)
            .map_err(call("KVM_SET_MSRS"))?;
    }
    Ok(())
}

/// Lets the old interrupt controller and NMIs through the first local APIC, for kernels that do
/// not find the I/O APIC.
fn connect_legacy_interrupts(vcpu: &VcpuFd) -> Result<()> {
    let mut apic = vcpu.get_lapic().map_err(call("KVM_GET_LAPIC"))?;
    for (register, value) in [(LINT0, DELIVER_EXTINT), (LINT1, DELIVER_NMI)] {
        let bytes = apic.regs.iter_mut().skip(register);
        for (place, byte) in bytes.zip(value.to_le_bytes()) {
            *place = i8::from_ne_bytes([byte]);
        }
    }
    vcpu.set_lapic(&apic).map_err(call("KVM_SET_LAPIC"))?;
    Ok(())
}

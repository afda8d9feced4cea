// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The first state of processors: KVM's state after a reset, with an entry point.

use std::mem::offset_of;

use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_REG_ARM_CORE, KVM_REG_ARM64,
    KVM_REG_SIZE_U64, kvm_vcpu_init, user_pt_regs,
};
use kvm_ioctls::{VcpuFd, VmFd};

use super::vm;
use crate::kvm::call;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The program counter, and the first register, where a program finds its argument.
const PC: u64 = core_register(offset_of!(user_pt_regs, pc));
const X0: u64 = core_register(offset_of!(user_pt_regs, regs));

/// A core register, which is named by its position in words of 4 bytes.
const fn core_register(offset: usize) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | (offset / 4) as u64
}

/// Makes the processors and then their interrupt controller. The first processor begins at `entry`
/// with `argument`, the others wait to be switched on by PSCI.
pub(super) fn create(vm: &VmFd, cpus: u8, entry: u64, argument: u64) -> Result<Vec<VcpuFd>> {
    let mut kind = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut kind)
        .map_err(call("KVM_ARM_PREFERRED_TARGET"))?;
    let [features, ..] = &mut kind.features;
    *features |= 1 << KVM_ARM_VCPU_PSCI_0_2;
    let mut vcpus = Vec::new();
    for id in 0..cpus {
        let vcpu = vm.create_vcpu(id.into()).map_err(call("KVM_CREATE_VCPU"))?;
        let mut kind = kind;
        if id > 0 {
            let [features, ..] = &mut kind.features;
            *features |= 1 << KVM_ARM_VCPU_POWER_OFF;
        }
        vcpu.vcpu_init(&kind).map_err(call("KVM_ARM_VCPU_INIT"))?;
        if id == 0 {
            enter(&vcpu, entry, argument)?;
        }
        vcpus.push(vcpu);
    }
    vm::create_gic(vm)?;
    Ok(vcpus)
}

/// Has a processor begin at `entry` with `argument`.
pub(super) fn enter(vcpu: &VcpuFd, entry: u64, argument: u64) -> Result<()> {
    set(vcpu, PC, entry)?;
    set(vcpu, X0, argument)
}

/// Sets a register.
pub(super) fn set(vcpu: &VcpuFd, register: u64, value: u64) -> Result<()> {
    vcpu.set_one_reg(register, &value.to_le_bytes())
        .map_err(call("KVM_SET_ONE_REG"))?;
    Ok(())
}

/// Reads a register.
pub(super) fn get(vcpu: &VcpuFd, register: u64) -> Result<u64> {
    let mut value = [0; 8];
    vcpu.get_one_reg(register, &mut value)
        .map_err(call("KVM_GET_ONE_REG"))?;
    Ok(u64::from_le_bytes(value))
}

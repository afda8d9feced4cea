// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! arm64.

use std::io;
use std::os::fd::RawFd;

use kvm_bindings::{
    KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_SIZE_U64, kvm_one_reg, kvm_vcpu_events, user_pt_regs,
};

use super::ioctl::{self, READ, WRITE, request};

/// Bytes of the run area that are used: `struct kvm_run`; there is no port I/O.
pub(super) const RUN_LEN: usize = 4096;

const KVM_GET_ONE_REG: libc::Ioctl = request::<kvm_one_reg>(WRITE, 0xab);
const KVM_GET_VCPU_EVENTS: libc::Ioctl = request::<kvm_vcpu_events>(READ, 0x9f);
const KVM_SET_VCPU_EVENTS: libc::Ioctl = request::<kvm_vcpu_events>(WRITE, 0xa0);

/// The guest's program counter.
///
/// # Safety
///
/// `vcpu` is the file of a vCPU.
pub(super) unsafe fn program_counter(vcpu: RawFd) -> Option<u64> {
    // A core register is named by its position in `struct kvm_regs`, counted in 32-bit words.
    let position = std::mem::offset_of!(user_pt_regs, pc) / 4;
    let mut value = 0u64;
    let mut register = kvm_one_reg {
        id: KVM_REG_ARM64 | KVM_REG_SIZE_U64 | u64::from(KVM_REG_ARM_CORE) | position as u64,
        addr: std::ptr::from_mut(&mut value).expose_provenance() as u64,
    };
    // SAFETY: the kernel writes the 8 bytes of the register to `value`, which outlives the call.
    unsafe { ioctl::with(vcpu, KVM_GET_ONE_REG, &mut register) }.ok()?;
    Some(value)
}

/// arm64 has no paravirtual clock that wants to know.
///
/// # Safety
///
/// None is needed.
pub(super) unsafe fn notify_paused(_vcpu: RawFd) {}

/// Has the guest take a synchronous external abort for its last access.
///
/// # Safety
///
/// `vcpu` is the file of a vCPU.
pub(super) unsafe fn inject_abort(vcpu: RawFd) -> io::Result<()> {
    let mut events = kvm_vcpu_events::default();
    // SAFETY: the request fills the structure.
    unsafe { ioctl::with(vcpu, KVM_GET_VCPU_EVENTS, &mut events) }?;
    events.exception.ext_dabt_pending = 1;
    // SAFETY: the request reads the structure, and changes what the guest sees only.
    unsafe { ioctl::with(vcpu, KVM_SET_VCPU_EVENTS, &mut events) }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! x86-64.

use std::io;
use std::os::fd::RawFd;

use kvm_bindings::kvm_regs;

use super::ioctl::{self, NONE, READ, request};

/// Bytes of the run area: `struct kvm_run` in the first page, port I/O data in the second.
pub(super) const RUN_LEN: usize = 2 * 4096;

const KVM_GET_REGS: libc::Ioctl = request::<kvm_regs>(READ, 0x81);
const KVM_KVMCLOCK_CTRL: libc::Ioctl = request::<()>(NONE, 0xad);

/// The guest's instruction pointer.
///
/// # Safety
///
/// `vcpu` is the file of a vCPU.
pub(super) unsafe fn program_counter(vcpu: RawFd) -> Option<u64> {
    let mut regs = kvm_regs::default();
    // SAFETY: the request fills the structure.
    unsafe { ioctl::with(vcpu, KVM_GET_REGS, &mut regs) }.ok()?;
    Some(regs.rip)
}

/// Tells the guest's kvmclock that time stood still, so that its watchdogs stay quiet.
///
/// A guest without kvmclock has nobody to tell, which KVM reports as an error.
///
/// # Safety
///
/// `vcpu` is the file of a vCPU.
pub(super) unsafe fn notify_paused(vcpu: RawFd) {
    // SAFETY: the request sets a flag in the guest's clock.
    let _ = unsafe { ioctl::plain(vcpu, KVM_KVMCLOCK_CTRL) };
}

/// x86 has no such aborts.
///
/// # Safety
///
/// None is needed.
pub(super) unsafe fn inject_abort(_vcpu: RawFd) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

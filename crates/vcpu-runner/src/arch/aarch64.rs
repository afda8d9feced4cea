// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! arm64.

use kvm_bindings::{KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_SIZE_U64, user_pt_regs};
use kvm_ioctls::VcpuFd;

use crate::decode::{Record, u32_at, u64_at};

/// Bytes of the run area that are used: `struct kvm_run`; there is no port I/O.
pub(crate) const RUN_LEN: usize = 4096;

/// What stopped the guest at a debug event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DebugInfo {
    /// Syndrome, as in `ESR_EL2`: the low word, and above it the high word.
    pub hsr: u64,
    /// The address that a watchpoint saw.
    pub far: u64,
}

impl DebugInfo {
    pub(crate) fn read(record: &Record, at: usize) -> Self {
        Self {
            hsr: u64::from(u32_at(record, at)) | u64::from(u32_at(record, at + 4)) << 32,
            far: u64_at(record, at + 8),
        }
    }
}

/// The guest's program counter.
pub(crate) fn program_counter(fd: &VcpuFd) -> Option<u64> {
    // A core register is named by its position in `struct kvm_regs`, counted in 32-bit words.
    let position = std::mem::offset_of!(user_pt_regs, pc) / 4;
    let id = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | u64::from(KVM_REG_ARM_CORE) | position as u64;
    let mut value = [0; 8];
    fd.get_one_reg(id, &mut value).ok()?;
    Some(u64::from_le_bytes(value))
}

/// arm64 has no paravirtual clock that wants to know.
pub(crate) fn notify_paused(_fd: &VcpuFd) {}

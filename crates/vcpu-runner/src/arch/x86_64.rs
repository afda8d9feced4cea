// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! x86-64.

use kvm_ioctls::VcpuFd;

use crate::decode::{Record, u32_at, u64_at};

/// Bytes of the run area: `struct kvm_run` in the first page, port I/O data in the second.
pub(crate) const RUN_LEN: usize = 2 * 4096;

/// What stopped the guest at a debug event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DebugInfo {
    /// Exception vector: 1 for `#DB`, 3 for `#BP`.
    pub exception: u32,
    /// Linear address of the instruction.
    pub pc: u64,
    /// Debug status register.
    pub dr6: u64,
    /// Debug control register.
    pub dr7: u64,
}

impl DebugInfo {
    pub(crate) fn read(record: &Record, at: usize) -> Self {
        Self {
            exception: u32_at(record, at),
            pc: u64_at(record, at + 8),
            dr6: u64_at(record, at + 16),
            dr7: u64_at(record, at + 24),
        }
    }
}

/// The guest's instruction pointer.
pub(crate) fn program_counter(fd: &VcpuFd) -> Option<u64> {
    fd.get_regs().ok().map(|regs| regs.rip)
}

/// Tells the guest's kvmclock that time stood still, so that its watchdogs stay quiet.
///
/// A guest without kvmclock has nobody to tell, which KVM reports as an error.
pub(crate) fn notify_paused(fd: &VcpuFd) {
    let _ = fd.kvmclock_ctrl();
}

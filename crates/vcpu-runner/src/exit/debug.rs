// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What stopped a guest that is being debugged.

use super::decode::{u32_at, u64_at};

/// What stopped the guest at a debug event, in the registers of its architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DebugInfo {
    /// x86.
    #[non_exhaustive]
    X86 {
        /// Exception vector: 1 for `#DB`, 3 for `#BP`.
        exception: u32,
        /// Linear address of the instruction.
        pc: u64,
        /// Debug status register.
        dr6: u64,
        /// Debug control register.
        dr7: u64,
    },
    /// arm64.
    #[non_exhaustive]
    Arm64 {
        /// Syndrome, as in `ESR_EL2`: the low word, and above it the high word.
        hsr: u64,
        /// The address that a watchpoint saw.
        far: u64,
    },
}

impl DebugInfo {
    /// Where the guest stopped, if the record of its exit says so.
    #[must_use]
    pub const fn pc(&self) -> Option<u64> {
        match self {
            Self::X86 { pc, .. } => Some(*pc),
            Self::Arm64 { .. } => None,
        }
    }

    /// What the record of this host's architecture says at `at`.
    pub(super) fn read(record: &[u8], at: usize) -> Self {
        if cfg!(target_arch = "aarch64") {
            Self::Arm64 {
                hsr: u64::from(u32_at(record, at)) | u64::from(u32_at(record, at + 4)) << 32,
                far: u64_at(record, at + 8),
            }
        } else {
            Self::X86 {
                exception: u32_at(record, at),
                pc: u64_at(record, at + 8),
                dr6: u64_at(record, at + 16),
                dr7: u64_at(record, at + 24),
            }
        }
    }
}

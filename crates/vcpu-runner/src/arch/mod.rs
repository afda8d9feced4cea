// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What differs between processor architectures, one module each.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "aarch64")]
pub use aarch64::DebugInfo;
#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::{RUN_LEN, notify_paused, program_counter};

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::DebugInfo;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{RUN_LEN, notify_paused, program_counter};

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("vcpu-runner knows x86_64 and aarch64 only");

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The formats of kernels, which depend on the processor's architecture.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::{Entry, load_kernel};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{Entry, load_kernel};

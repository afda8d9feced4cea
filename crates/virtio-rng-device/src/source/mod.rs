// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where randomness comes from.

#[cfg(feature = "fast-entropy")]
mod fast;
mod kernel;

#[cfg(feature = "fast-entropy")]
pub use fast::{FastEntropy, Reseed};
pub use kernel::KernelEntropy;

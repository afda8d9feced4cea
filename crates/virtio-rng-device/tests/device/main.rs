// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The entropy device, driven request by request without a thread.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test stops at the unexpected"
)]

#[cfg(not(miri))]
mod allocation;
mod hostile;
mod limits;
mod memory;
mod requests;
mod sources;
mod support;

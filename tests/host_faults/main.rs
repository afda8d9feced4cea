// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A host that refuses the system calls that a machine is made of, and those that its devices live
//! on, one by one: whatever fails is told, nothing hangs, and nothing is left over.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test stops at the unexpected"
)]

mod boot;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/kvm.rs"]
mod kvm;
mod refuse;
mod serving;

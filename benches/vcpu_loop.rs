// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the run loop adds to an exit, on real KVM.
//!
//! `cargo bench -p vmm-devices-benches --bench vcpu_loop -- [--quick] [--write docs/vcpu-loop.md]`
//!
//! Every case has a machine of its own with the same guest, which reads four bytes from one
//! address again and again. The first table compares the whole exit: guest, kernel, loop, device.
//! The second one looks at what is spent between the end of one `KVM_RUN` and the start of the
//! next, measured in place with the processor's clock, because the difference of two exits is
//! smaller than their noise.

#![cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "guest memory and a bare KVM_RUN have no safe interface"
    )
)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "a program for the people who change it"
)]

#[cfg(target_arch = "x86_64")]
#[path = "vcpu_loop/x86_64.rs"]
mod x86_64;

#[cfg(target_arch = "x86_64")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    x86_64::main()
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("skipped: the guest of this benchmark is x86-64 code");
}

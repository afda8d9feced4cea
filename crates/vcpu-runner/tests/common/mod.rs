// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the tests share: a small machine on real KVM, and devices that write down what happens.

#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test file is a crate of its own and uses its own part"
)]

#[cfg(target_arch = "x86_64")]
mod guests;
mod limit;
#[cfg(target_arch = "x86_64")]
mod machine;
#[cfg(feature = "test-utils")]
pub mod scripts;
pub mod signal;
mod skip;

use std::ops::Deref;
use std::sync::{Arc, Mutex};

use kvm_ioctls::Kvm;
use vcpu_runner::GuestIo;

#[cfg(target_arch = "x86_64")]
pub use guests::{Guest, rounds};
pub use limit::{Limit, SOON, join, receive, wait_until};
#[cfg(target_arch = "x86_64")]
pub use machine::{ENTRY, MMIO, Machine, RAM};
pub(crate) use skip::skip;

/// KVM for one test, and a limit to how long that takes.
pub struct TestKvm {
    kvm: Kvm,
    limit: Option<Limit>,
}

impl TestKvm {
    /// Lets the test take as long as it wants.
    pub fn lift_limit(&mut self) {
        self.limit = None;
    }
}

impl Deref for TestKvm {
    type Target = Kvm;

    fn deref(&self) -> &Kvm {
        &self.kvm
    }
}

/// KVM, or a visible line that the test did nothing; with `REQUIRE_KVM=1` that is a failure.
pub fn kvm() -> Option<TestKvm> {
    match Kvm::new() {
        Ok(kvm) => Some(TestKvm {
            kvm,
            limit: Some(Limit::new("the end of the guest")),
        }),
        Err(error) if std::env::var("REQUIRE_KVM").as_deref() == Ok("1") => {
            panic!("no usable /dev/kvm: {error}")
        }
        Err(error) => {
            skip(format_args!("no usable /dev/kvm: {error}"));
            None
        }
    }
}

/// One access as a device saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    MmioRead(u64, usize),
    MmioWrite(u64, Vec<u8>),
    PioRead(u16, usize),
    PioWrite(u16, Vec<u8>),
}

/// Devices that write every access down, check what they are given, and count upwards in what
/// they answer.
#[derive(Clone, Default)]
pub struct Recorder {
    pub seen: Arc<Mutex<Vec<Access>>>,
    next: u8,
}

impl Recorder {
    pub fn log(&self) -> Vec<Access> {
        self.seen.lock().unwrap().clone()
    }

    fn note(&self, access: Access) {
        self.seen.lock().unwrap().push(access);
    }

    fn answer(&mut self, data: &mut [u8]) {
        assert!(
            data.iter().all(|&byte| byte == 0xff),
            "a buffer arrives filled with ones"
        );
        for byte in data {
            self.next += 1;
            *byte = self.next;
        }
    }
}

impl GuestIo for Recorder {
    type Answer = ();
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
        self.note(Access::MmioRead(addr, data.len()));
        self.answer(data);
    }

    fn mmio_write(&mut self, addr: u64, data: &[u8]) {
        self.note(Access::MmioWrite(addr, data.to_vec()));
    }

    fn pio_read(&mut self, port: u16, data: &mut [u8]) {
        self.note(Access::PioRead(port, data.len()));
        self.answer(data);
    }

    fn pio_write(&mut self, port: u16, data: &[u8]) {
        self.note(Access::PioWrite(port, data.to_vec()));
    }
}

/// Devices that answer nothing.
#[derive(Clone, Copy, Default)]
pub struct Nothing;

impl GuestIo for Nothing {
    type Answer = ();
    fn mmio_read(&mut self, _: u64, _: &mut [u8]) {}
    fn mmio_write(&mut self, _: u64, _: &[u8]) {}
    fn pio_read(&mut self, _: u16, _: &mut [u8]) {}
    fn pio_write(&mut self, _: u16, _: &[u8]) {}
}

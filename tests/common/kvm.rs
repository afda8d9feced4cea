// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether there is KVM to test with.

use std::fs::{self, File};

/// Whether the tests that need KVM can run. With `REQUIRE_KVM` set they must.
pub(crate) fn kvm() -> bool {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) if std::env::var_os("REQUIRE_KVM").is_some() => {
            panic!("REQUIRE_KVM is set, but /dev/kvm: {error}")
        }
        Err(error) => {
            // Straight to the terminal: the test runner keeps what a passing test prints.
            let line = format!("tests of mini-vmm skipped: no usable /dev/kvm: {error}\n");
            let _ = fs::write("/dev/stderr", line);
            false
        }
    }
}

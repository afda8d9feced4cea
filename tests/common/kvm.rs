// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether there is KVM to test with.

#[path = "../../crates/vcpu-runner/tests/common/skip.rs"]
mod skip;

use std::fs::File;

use skip::skip;

/// Whether the tests that need KVM can run. With `REQUIRE_KVM` set they must.
pub(crate) fn kvm() -> bool {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) if std::env::var_os("REQUIRE_KVM").is_some() => {
            panic!("REQUIRE_KVM is set, but /dev/kvm: {error}")
        }
        Err(error) => {
            skip(format_args!("no usable /dev/kvm: {error}"));
            false
        }
    }
}

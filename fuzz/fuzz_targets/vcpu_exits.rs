// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![no_main]

libfuzzer_sys::fuzz_target!(|program: vmm_devices_fuzz::vcpu_exits::Program| {
    vmm_devices_fuzz::vcpu_exits::run(&program);
});

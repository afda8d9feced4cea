// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![no_main]

libfuzzer_sys::fuzz_target!(|program: vmm_devices_fuzz::device_end_to_end::Program| {
    vmm_devices_fuzz::device_end_to_end::run(&program);
});

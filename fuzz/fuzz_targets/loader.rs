// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|files: vmm_devices_fuzz::kernel::Files| vmm_devices_fuzz::kernel::run(&files));

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the guest's check of both generators must have found.

use serde_json::Value;

/// What the register's driver reads at a time, and virtio-rng's.
const REFILLS: [u64; 2] = [60, 64];

/// The number behind `name=` in the last of the guest's findings about a generator.
fn last(details: &str, generator: usize, name: &str) -> u64 {
    let mut findings: Vec<&str> = details.split("from=").collect();
    // Register, virtio-rng, register, virtio-rng.
    let finding = findings.split_off(3)[generator];
    let mut words = finding.split_whitespace();
    let number = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    number.unwrap().parse().unwrap()
}

/// Both drivers have given the file's bytes, and `devices` has not given more: a word of the register
/// for each read, which makes 256 reads a KiB, and requests of 64 bytes.
pub(crate) fn assert_all_from_the_file(details: &str, json: &Value) {
    assert_eq!(details.matches("from=").count(), 4, "{details}");
    let register = &json["devices"]["mmio-rng-legacy"];
    let reads = register["reads"].as_u64().unwrap();
    let given = [4 * reads, json["virtio_rng"]["bytes"].as_u64().unwrap()];
    for (generator, (given, refill)) in given.into_iter().zip(REFILLS).enumerate() {
        // The kernel's own thread may have drawn after the last read; virtio-rng has later checks.
        let end = last(details, generator, "end");
        assert!(given >= end, "{details}, {json}");
        let late = given - end;
        assert!(generator == 1 || late <= 20 * refill, "{details}, {json}");
    }
    assert_eq!(register["refused"], 0, "{json}");
    assert_eq!(register["writes"], 0, "{json}");
}

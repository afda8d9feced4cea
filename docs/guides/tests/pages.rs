// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guides that quote show lines of this package's code, and nothing else.
#![allow(clippy::unwrap_used, reason = "tests")]

/// Panics unless every Rust block of `page` is made of lines of `code`, `// ...` between parts.
#[track_caller]
fn quotes(page: &str, code: &str) {
    let code: Vec<&str> = code.lines().map(str::trim).collect();
    let blocks: Vec<&str> = page.split("```rust\n").skip(1).collect();
    assert_ne!(blocks.len(), 0);
    for block in blocks {
        let (block, _) = block.split_once("```").unwrap();
        for part in block.split("// ...\n") {
            let lines: Vec<&str> = part.lines().map(str::trim).collect();
            let found = code.windows(lines.len()).any(|window| window == lines);
            assert!(found, "there are no such lines:\n{part}");
        }
    }
}

#[test]
fn a_device_in_an_hour_shows_the_device_and_its_tests() {
    let code = [include_str!("../src/pipe.rs"), include_str!("pipe.rs")].concat();
    quotes(include_str!("../../a-device-in-an-hour.md"), &code);
}

#[test]
fn a_transport_of_your_own_shows_the_transport() {
    let code = include_str!("../src/pci.rs");
    quotes(include_str!("../../a-transport-of-your-own.md"), code);
}

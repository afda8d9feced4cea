// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `docs/device-shapes.md` shows what is here, and nothing else.

use std::fs;
use std::path::Path;

#[test]
fn the_page_shows_lines_of_these_devices() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Ok(page) = fs::read_to_string(here.join("../../docs/device-shapes.md")) else {
        return; // a packaged crate comes without it
    };
    let mut sections = page.split("\n## ").skip(1);
    for _ in 0..16 {
        let section = sections.next().unwrap();
        let (_, rest) = section.split_once("tests/shapes/").unwrap();
        let (file, rest) = rest.split_once(')').unwrap();
        let source = fs::read_to_string(here.join("tests/shapes").join(file)).unwrap();
        let source: Vec<&str> = source.lines().map(str::trim).collect();
        let (_, code) = rest.split_once("```rust\n").unwrap();
        let (code, _) = code.split_once("```").unwrap();
        for part in code.split("// ...\n") {
            let lines: Vec<&str> = part.lines().map(str::trim).collect();
            let found = source.windows(lines.len()).any(|window| window == lines);
            assert!(found, "{file} has no such lines:\n{part}");
        }
    }
    assert_eq!(sections.next(), None);
}

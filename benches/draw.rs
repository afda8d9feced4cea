// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Draws the pictures in `docs/` again, from the tables that stand there.

use std::error::Error;
use std::fs;
use std::path::Path;

use vmm_devices_benches::chart;

fn main() -> Result<(), Box<dyn Error>> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    for page in chart::pages() {
        let path = docs.join(page).with_extension("md");
        let svg = chart::svg(page, &fs::read_to_string(&path)?)?;
        fs::write(path.with_extension("svg"), svg)?;
    }
    Ok(())
}

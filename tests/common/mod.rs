// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the tests of mini-vmm have in common.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// The program, which Cargo has built along with this test.
pub(crate) fn mini_vmm() -> Command {
    let built = || {
        let test = std::env::current_exe().unwrap();
        let profile = test.ancestors().nth(2).unwrap();
        profile.join("examples").join("mini-vmm")
    };
    let path = std::env::var_os("MINI_VMM").map_or_else(built, PathBuf::from);
    let remedy = "build it with `cargo build --example mini-vmm`";
    assert!(path.exists(), "{} is not there: {remedy}", path.display());
    Command::new(path)
}

/// A folder of the test's own.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mini-vmm-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

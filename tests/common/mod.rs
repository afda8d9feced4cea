// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the tests of mini-vmm have in common.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Once};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

/// The program, which Cargo has built along with this test. No signal is ignored when it starts.
pub(crate) fn mini_vmm() -> Command {
    static SIGNALS: Once = Once::new();
    SIGNALS.call_once(heed_signals);
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

/// Has programs that this one starts begin without ignored signals.
///
/// `nohup`, and the `&` of a script, start the tests with some signals ignored. A program inherits
/// that, but not a handler: for it, the signal does again what it does by default.
fn heed_signals() {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mut lines = status.lines();
    let ignored = lines.find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        if ignored >> (signal - 1) & 1 == 1 {
            signal_hook::flag::register(signal, Arc::default()).unwrap();
        }
    }
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

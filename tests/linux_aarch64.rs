// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Debian's kernel for arm64, unmodified, as the guest of a mini-vmm for arm64: on real KVM of arm64,
//! inside an emulated machine, of which each test starts one.
//!
//! `tests/linux/run --arch aarch64` builds and fetches what this takes, and runs it.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the unexpected"
)]

#[path = "common/mod.rs"]
#[expect(dead_code, reason = "this one's mini-vmm is for another processor")]
mod common;
#[path = "linux/generators.rs"]
mod generators;
#[path = "linux/runs.rs"]
mod runs;
#[path = "../crates/vcpu-runner/tests/common/skip.rs"]
mod skip;

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::Folder;
use runs::Run;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The program for arm64, if there is everything that a guest needs. With `REQUIRE_LINUX` set there must
/// be.
fn program() -> Option<PathBuf> {
    let program = env::var_os("MINI_VMM_AARCH64").map(PathBuf::from);
    let kit = root().join("target/linux-aarch64/initrd");
    let ready = program.filter(|program| program.exists() && kit.exists());
    if ready.is_none() {
        let line =
            "no arm64 guest, or no mini-vmm for it; `tests/linux/run --arch aarch64` gets them";
        assert!(env::var_os("REQUIRE_LINUX").is_none(), "{line}");
        skip::skip(line);
    }
    ready
}

/// Runs the cases of `inside` with these names, all in one emulated machine.
fn run(mini_vmm: &Path, cases: &[&str]) -> BTreeMap<String, Run> {
    let folder = Folder::new(&format!("linux-aarch64-{}", cases.concat()));
    let entropy = Command::new(root().join("tests/linux/entropy")).output();
    let entropy = folder.file("entropy", &entropy.unwrap().stdout);
    let inside = root().join("tests/linux/inside");
    let files = format!(
        "{}:guest/mini-vmm {kit}/vmlinuz:guest/vmlinux {kit}/initrd:guest/initrd {}:guest/entropy",
        mini_vmm.display(),
        entropy.display(),
        kit = root().join("target/linux-aarch64").display(),
    );
    let mut command = Command::new(root().join(".ci/nested/runner"));
    command.arg(inside).env("NESTED_FILES", files);
    command.env("NESTED_ARCH", "aarch64");
    command.env(
        "NESTED_ENV",
        "MINI_VMM=/guest/mini-vmm GUEST=/guest ENTROPY=/guest/entropy",
    );
    command.env("NESTED_TIMEOUT", "3600");
    runs::of(&command.args(cases).output().unwrap(), cases)
}

/// Both generators by Linux' own drivers, found by the device tree, on two vCPUs.
#[test]
fn a_stock_arm64_kernel_finds_both_devices_and_uses_them() {
    let Some(mini_vmm) = program() else {
        return;
    };
    let runs = run(&mini_vmm, &["generators"]);
    let generators = &runs["generators"];
    assert!(generators.check("cpus").contains("2 on line"));
    assert_eq!(generators.status, Some(0), "{generators:#?}");
    let json = generators.json();
    assert_eq!(json["outcome"], "power-off");
    generators::assert_all_from_the_file(generators.check("generators"), &json);
    // PSCI switches the second processor on, and it works.
    let exits = json["vcpus"].as_array().unwrap().iter();
    assert!(
        exits
            .map(|exits| exits["total"].as_u64())
            .all(|exits| exits > Some(0))
    );
}

/// What the guest's end is to the program: PSCI says it.
#[test]
fn a_stock_arm64_kernel_ends_in_every_way() {
    let Some(mini_vmm) = program() else {
        return;
    };
    let runs = run(&mini_vmm, &["eight", "reboot", "panic"]);
    for (name, status, outcome) in [
        ("eight", 0, "power-off"),
        ("reboot", 3, "reset"),
        ("panic", 3, "reset"),
    ] {
        let run = &runs[name];
        let user_space = |line: &String| line.starts_with("guest: userspace");
        assert!(run.lines.iter().any(user_space), "{run:#?}");
        assert_eq!(run.status, Some(status), "{run:#?}");
        assert_eq!(run.json()["outcome"], outcome, "{run:#?}");
    }
    assert!(runs["eight"].check("cpus").contains("8 on line"));
}

/// The case study on arm64: its own guest, the file's bytes, and as many exits as everywhere.
#[test]
fn the_case_study_runs_on_arm64() {
    let Some(mini_vmm) = program() else {
        return;
    };
    let runs = run(&mini_vmm, &["case-study"]);
    let study = &runs["case-study"];
    assert_eq!(study.status, Some(0), "{study:#?}");
    let json = study.json();
    let results = json["results"].as_array().unwrap().iter();
    let exits = results.map(|result| result["exits"]["total"].as_u64().unwrap());
    assert!(exits.eq([16, 2, 512, 2]), "{json}");
}

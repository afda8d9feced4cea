// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Debian's kernel, unmodified, as mini-vmm's guest: its own drivers find the devices and use them.
//!
//! `tests/linux/run` fetches the kernel and runs these tests. On a processor with virtualisation the
//! guest runs on that; elsewhere it runs on real KVM inside an emulated machine (see `.ci/nested`),
//! of which each test starts one.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the unexpected"
)]

#[path = "../common/mod.rs"]
mod common;
mod generators;
mod hvc0;
mod runs;
#[path = "../../crates/vcpu-runner/tests/common/skip.rs"]
mod skip;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use common::{Folder, mini_vmm};
use runs::Run;

/// Where `prepare` has put the guest.
fn kit() -> PathBuf {
    let prepared = || root().join("target/linux");
    env::var_os("GUEST").map_or_else(prepared, PathBuf::from)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Whether the guest can run on this machine's own processor.
fn hardware() -> bool {
    let kvm = fs::File::options().read(true).write(true).open("/dev/kvm");
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpu.lines().find(|line| line.starts_with("flags"));
    let virtualises = flags.is_some_and(|line| {
        line.split_whitespace()
            .any(|flag| matches!(flag, "vmx" | "svm"))
    });
    kvm.is_ok() && virtualises
}

/// Whether everything is there that a guest needs. With `REQUIRE_LINUX` set it must be.
fn ready() -> bool {
    let emulator = || {
        let paths = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&paths).any(|path| path.join("qemu-system-x86_64").exists())
    };
    // The file that came last: a kit from before is none. Who names a guest has what it needs of it.
    let named = env::var_os("GUEST").is_some();
    let missing = if !named && !kit().join("modules/tun.ko").exists() {
        "no Linux guest in target/linux, or an old one"
    } else if !hardware() && !emulator() {
        "neither KVM on a processor with virtualisation nor QEMU to emulate one"
    } else {
        return true;
    };
    let line = format!("{missing}; tests/linux/run gets what it needs");
    assert!(env::var_os("REQUIRE_LINUX").is_none(), "{line}");
    skip::skip(line);
    false
}

/// A program that is to run in an emulated machine, where mini-vmm and the guest are in `/guest`, and
/// so are these files.
fn emulated(program: &Path, more_files: &str) -> Command {
    let mini_vmm = mini_vmm().get_program().to_owned();
    let mut files = format!(
        "{}:guest/mini-vmm {more_files}",
        Path::new(&mini_vmm).display()
    );
    for file in ["vmlinux", "vmlinuz", "initrd", "initrd.gz", "disk", "net"] {
        files += &format!(" {}:guest/{file}", kit().join(file).display());
    }
    for tool in ["mke2fs", "e2fsck", "debugfs"] {
        files += &format!(" /usr/sbin/{tool}:usr/sbin/{tool}");
    }
    let mut command = Command::new(root().join(".ci/nested/runner"));
    command.arg(program).env("NESTED_FILES", files);
    // An emulated guest boots in half a minute, and moves about a megabyte a second.
    let or = |name: &str, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
    let (cuts, disk) = (or("CUTS", "3"), or("DISK_BYTES", "16777216"));
    let (bytes, seed) = (or("NETWORK_BYTES", "1048576"), or("SEED", ""));
    // Emulated SVM loses the guest's deadline timer now and then, whatever the monitor: the
    // guest then sits idle for ever. The older timer of the local APIC is never lost.
    command.env(
        "NESTED_ENV",
        format!(
            "MINI_VMM=/guest/mini-vmm GUEST=/guest ENTROPY=/guest/entropy REQUIRE_LINUX=1 \
             KERNEL_PARAMETERS=lapic=notscdeadline CUTS={cuts} DISK_BYTES={disk} \
             NETWORK_BYTES={bytes} SEED={seed}"
        ),
    );
    command.env("NESTED_TIMEOUT", "7200");
    command
}

/// Runs `test`, whose name this is, in an emulated machine if there must be one.
fn where_kvm_is(name: &str, test: impl FnOnce()) {
    if !ready() {
        return;
    }
    if hardware() {
        return test();
    }
    let mut machine = emulated(&env::current_exe().unwrap(), "");
    let output = machine.args(["--exact", name, "--nocapture"]).output();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    let passed = output.status.success() && text.contains("1 passed");
    assert!(passed, "{text}\n{complaints}");
    println!("{text}");
}

/// Runs the cases of `inside` with these names, all in one emulated machine if there must be one.
fn run(cases: &[&str]) -> BTreeMap<String, Run> {
    let folder = Folder::new(&format!("linux-{}", cases.concat()));
    let entropy = Command::new(root().join("tests/linux/entropy")).output();
    let entropy = folder.file("entropy", &entropy.unwrap().stdout);

    let inside = root().join("tests/linux/inside");
    let mut command;
    if hardware() {
        command = Command::new(inside);
        command.env("MINI_VMM", mini_vmm().get_program());
        command.env("GUEST", kit()).env("ENTROPY", &entropy);
    } else {
        command = emulated(&inside, &format!("{}:guest/entropy", entropy.display()));
    }
    runs::of(&command.args(cases).output().unwrap(), cases)
}

/// The whole of what a distribution's kernel does with the devices, on two vCPUs.
#[test]
fn a_stock_kernel_finds_both_devices_and_uses_them() {
    if !ready() {
        return;
    }
    let runs = run(&["checks"]);
    let checks = &runs["checks"];
    for name in [
        "cpus",
        "rng_current",
        "hwrng",
        "generators",
        "rebind_driver",
        "rebind_transport",
        "reload_modules",
    ] {
        checks.check(name);
    }
    generators::assert_all_from_the_file(checks.check("generators"), &checks.json());
    assert!(checks.check("cpus").contains("2 on line"), "{checks:#?}");
    assert_eq!(checks.status, Some(0), "{checks:#?}");

    let json = checks.json();
    assert_eq!(json["outcome"], "power-off");
    let requests = json["virtio_rng"]["requests"].as_u64().unwrap();
    let device = &json["devices"]["virtio-rng"];
    let exits = device["reads"].as_u64().unwrap() + device["writes"].as_u64().unwrap();
    // Each interrupt takes a read and a write of a register. The notification takes no exit, and
    // the rest is the driver setting up the device, more than a dozen times.
    assert!(requests >= 16_384, "{json}");
    assert!(exits < 2 * requests + 2_000, "{json}");
    assert_eq!(device["refused"], 0, "{json}");
}

/// A reset by the keyboard controller, one by ACPI and a triple fault: each time the kernel starts again
/// in the same process, with two vCPUs and virtio-rng.
#[test]
fn a_stock_kernel_reboots_in_place() {
    if !ready() {
        return;
    }
    let runs = run(&["in-place"]);
    let lives = &runs["in-place"];
    assert_eq!(lives.status, Some(0), "{lives:#?}");
    let said = |what: &str| {
        lives
            .lines
            .iter()
            .filter(|line| line.starts_with(what))
            .count()
    };
    assert_eq!(said("guest: userspace"), 4, "{lives:#?}");
    assert_eq!(said("check rng_current: ok"), 4, "{lives:#?}");
    let json = lives.json();
    assert_eq!(json["outcome"], "power-off");
    assert_eq!(json["reboots"], 3);
}

/// The kernel's own driver of virtio-blk: a file system, blocks given back, a disk that grows, a driver
/// that comes and goes under load, a disk that is read-only, and one whose host is full.
#[test]
fn a_stock_kernel_uses_disks() {
    if !ready() {
        return;
    }
    let runs = run(&["disk"]);
    let disk = &runs["disk"];
    disk.check("disk");
    assert_eq!(disk.status, Some(0), "{disk:#?}");
    // What was written and given back takes no room any more.
    let blocks = disk
        .lines
        .iter()
        .find_map(|line| line.strip_prefix("blocks "));
    let blocks: u64 = blocks.unwrap().parse().unwrap();
    assert!(blocks < 8 << 11, "{blocks} blocks are left: {disk:#?}");
}

/// The kernel's own driver of virtio-net: packets both ways with every set of offloads, by two pairs of
/// queues, and on a cable, with a driver and to a tap that come and go; and no faster than they may.
#[test]
fn a_stock_kernel_uses_a_network() {
    if !ready() {
        return;
    }
    let runs = run(&["network", "network-limits"]);
    for (case, check) in [("network", "network"), ("network-limits", "network_limits")] {
        let run = &runs[case];
        println!("{case}: {}", run.check(check));
        assert_eq!(run.status, Some(0), "{run:#?}");
    }
    let said = |what: &str| {
        let lines = runs["network"].lines.iter();
        lines.filter(|line| line.contains(what)).count()
    };
    // The user is told of the first, and of the first that is back: a back end could come and go for ever.
    assert_eq!(said("the link is down"), 1, "{runs:#?}");
    assert_eq!(said("the link is up again"), 1, "{runs:#?}");
}

/// The program is killed at random moments in the middle of the guest's writes, by either engine: what
/// the guest has flushed is there, and its file system is whole.
#[test]
fn what_a_guest_has_flushed_outlives_the_program() {
    if !ready() {
        return;
    }
    let runs = run(&["power-cut", "files-cut"]);
    for (case, file_system) in [("power-cut", ""), ("files-cut", "clean, ")] {
        let lines = runs[case].lines.iter();
        let cuts: Vec<_> = lines.filter(|line| line.starts_with("cut ")).collect();
        let seed = runs[case].lines.iter().find(|it| it.starts_with("SEED="));
        println!("{case}, {}: {cuts:#?}", seed.unwrap());
        assert!(!cuts.is_empty(), "{runs:#?}");
        let whole = |cut: &&String| cut.contains(file_system) && cut.ends_with("intact");
        assert!(cuts.iter().all(whole), "{runs:#?}");
    }
}

/// A guest fills a file system and switches itself off: what it leaves on the host is clean.
#[test]
fn a_file_system_is_clean_after_a_guest_has_filled_it() {
    if !ready() {
        return;
    }
    let runs = run(&["fill"]);
    println!("{}", runs["fill"].check("fill"));
    assert_eq!(runs["fill"].status, Some(0), "{runs:#?}");
}

/// The other format, boot protocol and kind of archive; and what the guest's end is to the program.
#[test]
fn a_stock_kernel_boots_and_ends_in_every_way() {
    if !ready() {
        return;
    }
    let runs = run(&["bzimage", "reboot", "panic", "no-acpi"]);
    for (name, status, outcome) in [
        ("bzimage", 0, "power-off"),
        ("reboot", 3, "reset"),
        ("panic", 3, "reset"),
        // Without ACPI there is nothing to switch the machine off with.
        ("no-acpi", 3, "reset"),
    ] {
        let run = &runs[name];
        let user_space = |line: &String| line.starts_with("guest: userspace");
        assert!(run.lines.iter().any(user_space), "{run:#?}");
        assert_eq!(run.status, Some(status), "{run:#?}");
        assert_eq!(run.json()["outcome"], outcome, "{run:#?}");
    }
}

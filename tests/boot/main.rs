// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `mini-vmm --kernel` on real KVM, with kernels of a few instructions: what a kernel is told, what
//! becomes of its end, and what the program does to its terminal.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the unexpected"
)]

mod calls;
#[path = "../common/mod.rs"]
mod common;
mod input;
mod kernels;
#[path = "../common/kvm.rs"]
mod kvm;
mod loader;
mod output;
mod program;
mod reboot;
mod terminal;

use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use common::{Folder, mini_vmm};
use kernels::{Code, bzimage, elf, elf_pvh};
use kvm::kvm;
use program::{await_full, end_of, program, run_with, stderr};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An archive with nothing in it.
fn empty_archive() -> Vec<u8> {
    let mut header = b"070701".to_vec();
    for field in [0u32, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 11, 0] {
        header.extend(format!("{field:08x}").bytes());
    }
    header.extend(b"TRAILER!!!\0");
    header.resize(header.len().next_multiple_of(4), 0);
    header
}

#[test]
fn every_kind_of_kernel_finds_its_command_line_and_its_initramfs() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("formats");
    let archive = empty_archive();
    let initrd = folder.file("initrd", &archive);
    let long = || {
        Code::new()
            .print_command_line_64()
            .print_initrd_64()
            .power_off()
    };
    let pvh = Code::new()
        .print_command_line_pvh()
        .print_initrd_pvh()
        .power_off();
    for (name, image) in [
        ("bzImage", bzimage(&long())),
        ("vmlinux", elf(&long())),
        ("vmlinux-pvh", elf_pvh(&pvh)),
    ] {
        let kernel = folder.file(name, &image);
        let output = run_with(
            b"",
            &[
                "--kernel",
                text(&kernel),
                "--initrd",
                text(&initrd),
                "--cmdline",
                "one two=3",
            ],
        );
        assert_eq!(output.status.code(), Some(0), "{name}: {output:?}");
        assert_eq!(stderr(&output), "", "{name}");
        let mut wanted = b"one two=3 pci=off initcall_blacklist=pci_arch_init".to_vec();
        wanted.extend(archive.split(|byte| *byte == 0).next().unwrap());
        // The program ends the guest's last line.
        wanted.push(b'\n');
        assert_eq!(output.stdout, wanted, "{name}");
    }
}

#[test]
fn memory_goes_around_the_devices() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("memory");
    let code = Code::new()
        .probe_memory(0x7fff_fff8)
        .probe_memory(0x9000_0000)
        .power_off();
    let kernel = folder.file("kernel", &elf(&code));
    let output = run_with(b"", &["--kernel", text(&kernel), "--memory", "5120"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(output.stdout, b"yn\n");
}

#[test]
fn the_end_of_the_guest_is_the_end_of_the_program() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("ends");
    for (name, code, status, outcome) in [
        ("power-off", Code::new().power_off(), 0, "power-off"),
        ("reset", Code::new().reset(), 3, "reset"),
        (
            "triple-fault",
            Code::new().triple_fault(),
            4,
            "triple-fault",
        ),
    ] {
        let kernel = folder.file(name, &elf(&code));
        let output = run_with(b"", &["--kernel", text(&kernel), "--json"]);
        assert_eq!(output.status.code(), Some(status), "{name}: {output:?}");
        let complaints = stderr(&output).lines().count();
        assert_eq!(complaints, usize::from(status != 0), "{name}: {output:?}");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["outcome"], outcome);
        assert_eq!(json["status"], status);
    }
}

#[test]
fn the_register_gives_the_bytes_of_the_entropy_file() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("rng0");
    let entropy = folder.file("entropy", b"abcdefgh");
    let kernel = folder.file(
        "kernel",
        &elf(&Code::new().print_rng0().print_rng0().power_off()),
    );
    let args = [
        "--kernel",
        text(&kernel),
        "--entropy",
        text(&entropy),
        "--json",
    ];
    let output = run_with(b"", &args);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let mut lines = output.stdout.split(|byte| *byte == b'\n');
    assert_eq!(lines.next(), Some(b"abcdefgh".as_slice()));
    let json: Value = serde_json::from_slice(lines.next().unwrap()).unwrap();
    assert_eq!(json["devices"]["mmio-rng-legacy"]["reads"], 2);
    // Eight bytes, and the one that switches off.
    assert_eq!(json["vcpus"][0]["io_out"], 9);
    assert_eq!(json["vcpus"][0]["mmio_read"], 2);
    assert_eq!(json["vcpus"][0]["total"], 11);

    let without = [&args[..4], &["--legacy-rng", "off"]].concat();
    let output = run_with(b"", &without);
    assert_eq!(output.stdout, [&[0xff; 8], b"\n".as_slice()].concat());
}

#[test]
fn all_of_standard_input_reaches_the_guest_in_order() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("input");
    let kernel = folder.file("kernel", &elf(&Code::new().echo_until_q().power_off()));
    // Many times what the port can hold, with every byte but the last one.
    let mut input: Vec<u8> = (0..20_000u32).map(|n| n.to_le_bytes()[0]).collect();
    input.retain(|byte| *byte != b'q');
    input.push(b'q');
    let output = run_with(&input, &["--kernel", text(&kernel)]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    input.push(b'\n');
    assert_eq!(output.stdout, input);
}

#[test]
fn a_trace_names_the_devices_and_has_an_end() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("trace");
    let code = Code::new().print_rng0().print_rng0().power_off();
    let kernel = folder.file("kernel", &elf(&code));
    let entropy = folder.file("entropy", b"abcdefgh");
    let args = [
        "--kernel",
        text(&kernel),
        "--entropy",
        text(&entropy),
        "--trace",
    ];
    let output = run_with(b"", &args);
    let lines: Vec<_> = stderr(&output).lines().collect();
    assert_eq!(lines.len(), 11, "{lines:?}");
    let first = "trace: vcpu0 mmio_read 0x80001000 mmio-rng-legacy+0x0 = 0x64636261";
    assert_eq!(lines[0], first);
    assert_eq!(lines[1], "trace: vcpu0 io_out 0x3f8 serial+0x0 = 0x61");
    assert_eq!(lines[10], "trace: vcpu0 io_out 0x600 acpi-sleep+0x0 = 0x34");

    let bounded = [&args[..4], &["--trace=3"]].concat();
    let output = run_with(b"", &bounded);
    assert_eq!(stderr(&output).lines().count(), 4, "{output:?}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn pci_is_off_unless_the_user_says_otherwise() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("pci");
    let kernel = folder.file(
        "kernel",
        &bzimage(&Code::new().print_command_line_64().power_off()),
    );
    let off = "pci=off initcall_blacklist=pci_arch_init";
    let (long, full) = ("x".repeat(220), "x".repeat(255));
    for (line, wanted) in [
        ("", off.to_owned()),
        ("quiet", format!("quiet {off}")),
        ("pci=conf1 quiet", "pci=conf1 quiet".to_owned()),
        ("quiet  pci=", "quiet  pci=".to_owned()),
        ("xpci=1", format!("xpci=1 {off}")),
        (r#"a="b pci=1""#, format!(r#"a="b pci=1" {off}"#)),
        // What is behind this is for the first process.
        ("quiet -- pci=1 x", format!("quiet {off} -- pci=1 x")),
        (r#"a=" -- " b"#, format!(r#"a=" -- " b {off}"#)),
        ("-- x", format!("{off} -- x")),
        // No reason to refuse a line that the kernel takes.
        (&long, long.clone()),
        (&full, full.clone()),
    ] {
        let output = run_with(b"", &["--kernel", text(&kernel), "--cmdline", line]);
        let printed = String::from_utf8(output.stdout).unwrap();
        assert_eq!(printed.trim_end(), wanted, "{line}");
    }
}

#[test]
fn a_signal_ends_the_program_whatever_the_guest_does() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("signals");
    let spin = folder.file("spin", &elf(&Code::new().put(b'r').spin()));
    let halt = folder.file("halt", &elf(&Code::new().put(b'r').halt()));
    let flood = folder.file("flood", &elf(&Code::new().put(b'r').flood(b'x')));
    for (kernel, floods) in [(&spin, false), (&halt, false), (&flood, true)] {
        for signal in [
            Signal::TERM,
            Signal::INT,
            Signal::HUP,
            Signal::QUIT,
            Signal::USR1,
            Signal::ALARM,
        ] {
            let mut child = program()
                .args(["--kernel", text(kernel), "--cpus", "3"])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut ready = [0];
            let mut stdout = child.stdout.take().unwrap();
            stdout.read_exact(&mut ready).unwrap();
            // Nobody reads any more: the flooding guest gets stuck in its output.
            if floods {
                await_full(&stdout);
            }
            kill_process(Pid::from_child(&child), signal).unwrap();
            let status = end_of(&mut child);
            assert_eq!(status.code(), Some(128 + signal.as_raw()), "{kernel:?}");
        }
    }
}

#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("nohup");
    let kernel = folder.file(
        "kernel",
        &elf(&Code::new().put(b'r').echo_until_q().power_off()),
    );
    let path = mini_vmm().get_program().to_owned();
    let mut child = std::process::Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$@\"", "sh"])
        .arg(path)
        .args(["--kernel", text(&kernel)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut ready = [0];
    child.stdout.take().unwrap().read_exact(&mut ready).unwrap();
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    thread::sleep(Duration::from_millis(100));
    assert!(child.try_wait().unwrap().is_none());
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(end_of(&mut child).code(), Some(143));
}

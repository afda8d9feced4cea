// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the program prints: nothing is lost, and whoever cannot be told of a loss learns it by the
//! exit status.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{Folder, mini_vmm};
use crate::kernels::{Code, elf};
use crate::kvm::kvm;
use crate::program::{await_full, end_of, program, run_with, stderr};
use crate::text;

#[test]
fn a_guest_whose_output_nobody_takes_is_ended() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("gone");
    let kernel = folder.file("kernel", &elf(&Code::new().flood(b'x')));
    let mut child = program()
        .args(["--kernel", text(&kernel)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let complaint = stderr(&output);
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    assert!(complaint.contains("standard output"), "{complaint}");
}

#[test]
fn what_a_guest_has_left_for_hvc0_at_its_end_is_not_printed() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("leaves");
    let kernel = folder.file("kernel", &elf(&Code::new().flood_hvc0().spin()));
    let mut child = program()
        .args(["--kernel", text(&kernel), "--console", "virtio"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut reader = child.stdout.take().unwrap();
    await_full(&reader);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    // A reader that is slower than the guest's device, so that the program always has something left.
    // It gets what waited, and what the guest has added until the signal came: far from all of it.
    let (mut printed, mut piece) = (0, [0; 64 << 10]);
    loop {
        let count = reader.read(&mut piece).unwrap();
        if count == 0 {
            break;
        }
        printed += count;
        assert!(printed < 256 << 20, "the end does not come");
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(end_of(&mut child).code(), Some(130));
}

#[test]
fn standard_output_that_cannot_be_written_is_status_1() {
    let folder = Folder::new("full");
    let code = Code::new().put(b'r').power_off();
    let kernel = folder.file("kernel", &elf(&code));
    let path = mini_vmm().get_program().to_owned();
    let mut cases = vec![vec!["--help"], vec!["--version"], vec!["--map"]];
    if kvm() {
        cases.push(vec!["--kernel", text(&kernel)]);
        cases.push(vec!["--kernel", text(&kernel), "--json"]);
        cases.push(vec!["--bytes", "4"]);
        cases.push(vec!["--bytes", "4", "--json"]);
    }
    for args in cases {
        for redirection in [">&-", ">/dev/full", "1</dev/null"] {
            let output = Command::new("sh")
                .args(["-c", &format!("\"$@\" {redirection}"), "sh"])
                .arg(&path)
                .args(&args)
                .output()
                .unwrap();
            let complaint = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{args:?} {redirection}");
            assert_eq!(complaint.lines().count(), 1, "{args:?}: {complaint}");
            assert!(complaint.contains("standard output"), "{complaint}");
        }
    }
}

#[test]
fn a_guest_waits_for_whoever_reads_its_output_and_loses_nothing() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("slow");
    // More than fits into the pipe and into the program's buffer.
    let code = Code::new().put_many(b'x', 200_000).power_off();
    let kernel = folder.file("kernel", &elf(&code));
    let mut child = program()
        .args(["--kernel", text(&kernel), "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    await_full(&stdout);
    let mut text = Vec::new();
    stdout.read_to_end(&mut text).unwrap();
    assert_eq!(end_of(&mut child).code(), Some(0));
    let end = text.iter().position(|byte| *byte != b'x').unwrap();
    assert_eq!(end, 200_000);
    assert!(text[end..].starts_with(b"\n{"));
}

#[test]
fn a_signal_ends_a_program_that_waits_for_its_reader_after_the_guest_is_gone() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("late");
    // All of it fits into the pipe and the buffer, so the guest switches the machine off.
    let code = Code::new().put_many(b'x', 100_000).power_off();
    let kernel = folder.file("kernel", &elf(&code));
    let trace = folder.0.join("trace");
    let mut child = program()
        .args(["--kernel", text(&kernel), "--trace=200000"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(&trace).unwrap())
        .spawn()
        .unwrap();
    let off = || fs::read_to_string(&trace).unwrap().contains("acpi-sleep");
    while !off() {
        thread::sleep(Duration::from_millis(50));
    }
    assert!(child.try_wait().unwrap().is_none());
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(end_of(&mut child).code(), Some(143));
}

#[test]
fn a_kvm_without_hardware_is_doubted_in_one_line() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("doubt");
    let kernel = folder.file("kernel", &elf(&Code::new().power_off()));
    let output = run_with(b"", &["--kernel", text(&kernel)]);
    let complaints = String::from_utf8(output.stderr).unwrap();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap();
    let hardware = cpuinfo
        .split_whitespace()
        .any(|flag| matches!(flag, "vmx" | "svm"));
    if hardware {
        assert_eq!(complaints, "");
    } else {
        assert_eq!(complaints.lines().count(), 1, "{complaints}");
        assert!(complaints.contains("vmx") && complaints.contains("svm"));
    }
}

#[test]
fn a_guest_that_never_exits_is_doubted_after_ten_seconds() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("silent");
    let kernel = folder.file("kernel", &elf(&Code::new().spin()));
    let mut child = program()
        .args(["--kernel", text(&kernel)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let complaints = BufReader::new(child.stderr.take().unwrap());
    let mut complaints = complaints.lines().map(Result::unwrap);
    let line = complaints
        .find(|line| !line.contains("/proc/cpuinfo"))
        .unwrap();
    assert!(line.contains("10 seconds"), "{line}");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(end_of(&mut child).code(), Some(143));
    assert_eq!(complaints.next(), None);
}

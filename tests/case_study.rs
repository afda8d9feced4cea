// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The case study on real KVM: every byte in guest memory, every exit, every complaint.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test stops at the unexpected"
)]

mod common;
#[path = "common/kvm.rs"]
mod kvm;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::{Folder, mini_vmm};
use kvm::kvm;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;

/// Runs the program to its end.
fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    mini_vmm().args(args).output().unwrap()
}

/// Bytes in which no piece of 8 occurs twice.
fn known_bytes(len: usize) -> Vec<u8> {
    let words = (1..).map(|n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).take(len).collect()
}

fn with(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn every_byte_and_every_exit() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("bytes");
    // The last size takes several requests, the last of them a short one.
    let sizes = [4, 64, 2048, 65_536, 140_000];
    let source = known_bytes(140_000);
    let file = folder.file("entropy", &source);
    let dump = folder.0.join("new").join("dump");
    let list = sizes.map(|size| size.to_string()).join(",");
    let output = run([
        "--json",
        "--bytes",
        &list,
        "--entropy",
        with(&file),
        "--dump",
        with(&dump),
        "--svg",
        with(&folder.0.join("chart.svg")),
    ]);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let chart = fs::read_to_string(folder.0.join("chart.svg")).unwrap();
    assert!(chart.starts_with("<svg ") && chart.trim_end().ends_with("</svg>"));
    // In each of both panels both devices have a bar's label for each size.
    let labels = chart.lines().filter(|line| line.trim() == "140000").count();
    assert_eq!(labels, 4);

    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let results = json["results"].as_array().unwrap();
    assert_eq!(results.len(), 2 * sizes.len());
    for (index, size) in sizes.into_iter().enumerate() {
        for (result, device) in results[2 * index..]
            .iter()
            .zip(["mmio-rng-legacy", "virtio-rng"])
        {
            assert_eq!(result["device"], device);
            assert_eq!(result["bytes"], size);
            assert!(result["elapsed_ns"].as_u64().unwrap() > 0);
            let dumped = fs::read(dump.join(format!("{device}-{size}.bin"))).unwrap();
            assert!(
                dumped == source[..size],
                "{device} {size}: other bytes in guest memory"
            );

            let exits = &result["exits"];
            let (requests, reads, writes) = match device {
                "mmio-rng-legacy" => (size / 4, size / 4, 0),
                // One read and one write of the interrupt handler for each request.
                _ => {
                    let requests = size.div_ceil(65_536);
                    (requests, requests, requests)
                }
            };
            assert_eq!(result["requests"], requests, "{device} {size}");
            assert_eq!(exits["mmio_read"], reads, "{device} {size}");
            assert_eq!(exits["mmio_write"], writes, "{device} {size}");
            assert_eq!(exits["total"], reads + writes, "{device} {size}");
            for other in ["io_in", "io_out", "hlt", "other"] {
                assert_eq!(exits[other], 0, "{device} {size}");
            }
        }
        assert!(json["time_ratio"][size.to_string()].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn the_table_fits_100_columns_and_tells_the_devices_apart() {
    if !kvm() {
        return;
    }
    let output = run(["--bytes", "64,65536"]);
    assert!(output.status.success(), "{output:?}");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(
        table.lines().all(|line| line.chars().count() <= 100),
        "{table}"
    );
    for device in ["mmio-rng-legacy", "virtio-rng"] {
        assert_eq!(
            table
                .lines()
                .filter(|line| line.starts_with(device))
                .count(),
            2,
            "{table}"
        );
    }
    assert!(table.trim_end().ends_with('.'), "{table}");
}

#[test]
fn the_kernel_gives_both_devices_different_bytes() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("kernel");
    let output = run(["--bytes", "4096", "--dump", with(&folder.0)]);
    assert!(output.status.success(), "{output:?}");
    let legacy = fs::read(folder.0.join("mmio-rng-legacy-4096.bin")).unwrap();
    let virtio = fs::read(folder.0.join("virtio-rng-4096.bin")).unwrap();
    assert_ne!(legacy, virtio);
    for bytes in [legacy, virtio] {
        // 4096 bytes without one that is 0 are as unlikely as 4096 with 100 of them.
        let zeros = bytes.iter().filter(|&&byte| byte == 0).count();
        assert!((1..100).contains(&zeros), "{zeros} zeros");
    }
}

/// Starts the program with pipes on its standard streams.
fn start(args: &[&str]) -> Child {
    mini_vmm()
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// A named pipe.
fn pipe(folder: &Folder) -> PathBuf {
    let pipe = folder.0.join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    pipe
}

#[test]
fn a_reader_of_a_pipe_gets_the_whole_picture() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("picture");
    let pipe = pipe(&folder);
    let mut child = start(&["--bytes", "4", "--svg", with(&pipe)]);
    let picture = fs::read_to_string(&pipe).unwrap();
    if picture.is_empty() {
        // It would wait for another reader.
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    assert!(picture.trim_end().ends_with("</svg>"), "{picture}");
    assert!(output.status.success(), "{output:?}");
}

/// A size that takes seconds.
const LONG: &str = "16777216";

#[test]
fn rows_are_printed_as_they_are_measured_and_an_interrupt_keeps_them() {
    if !kvm() {
        return;
    }
    let mut child = start(&["--bytes", &format!("64,{LONG}")]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut table: Vec<_> = lines.by_ref().take(4).map(Result::unwrap).collect();
    assert!(child.try_wait().unwrap().is_none(), "{table:?}");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    table.extend(lines.map(Result::unwrap));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(Signal::TERM.as_raw()));
    assert_eq!(table.len(), 4, "{table:?}");
    assert!(table[1].starts_with("mmio-rng-legacy"), "{table:?}");
    assert!(table[2].starts_with("virtio-rng"), "{table:?}");
    // A terminal would have been shown how far it is; this is none.
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_terminal_is_shown_how_far_a_long_size_is() {
    if !kvm() {
        return;
    }
    let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&screen).unwrap();
    unlockpt(&screen).unwrap();
    let path = ptsname(&screen, Vec::new()).unwrap();
    let terminal = File::options()
        .read(true)
        .write(true)
        .open(path.to_str().unwrap())
        .unwrap();
    let mut child = mini_vmm()
        .args(["--bytes", LONG])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(terminal)
        .spawn()
        .unwrap();
    let mut shown = String::new();
    let mut screen = File::from(screen);
    while !shown.contains(" %") {
        let mut piece = [0; 256];
        let len = screen.read(&mut piece).unwrap();
        shown.push_str(std::str::from_utf8(&piece[..len]).unwrap());
    }
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.stdout.is_empty(), "{output:?}");
    assert!(
        shown.contains(&format!("{LONG} bytes from the ")),
        "{shown}"
    );
}

#[test]
fn the_slower_device_is_the_one_that_takes_a_multiple() {
    if !kvm() {
        return;
    }
    // One read against a request with an interrupt: the register wins.
    let output = run(["--bytes", "4"]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(
        table.contains("the register cost 1 exit, the queue 2;"),
        "{table}"
    );
    for nonsense in [" 0 times", " 0.", "1 exits"] {
        let said = table.lines().filter(|line| !line.contains("-rng"));
        assert!(
            !said.into_iter().any(|line| line.contains(nonsense)),
            "{table}"
        );
    }
}

#[test]
fn a_source_that_runs_out_during_the_run_is_a_clear_error() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("out");
    let file = folder.file("entropy", &known_bytes(16 << 20));
    let mut child = start(&["--bytes", &format!("64,{LONG}"), "--entropy", with(&file)]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let table: Vec<_> = lines.by_ref().take(4).map(Result::unwrap).collect();
    fs::write(&file, []).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let complaint = String::from_utf8(output.stderr).unwrap();
    let file = with(&file);
    assert!(
        complaint.starts_with(&format!("mini-vmm: --entropy: {file}: has run out: ")),
        "{complaint}"
    );
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    assert_eq!(table.len(), 4);
}

#[test]
fn a_source_without_data_is_the_same_error_whatever_it_is() {
    let folder = Folder::new("dry");
    let empty = folder.file("empty", b"");
    for file in [with(&empty), "/dev/null"] {
        let wanted = format!("--entropy: {file}: has run out: 0 bytes, 2048 wanted");
        assert_complaint(&run(["--bytes", "2048", "--entropy", file]), 2, &wanted);
        let wanted = format!("--entropy: {file}: has run out: 0 bytes, 1 wanted");
        assert_complaint(&run(["--map", "--entropy", file]), 2, &wanted);
    }
    let one = folder.file("one", b"x");
    let output = run(["--bytes", "2048", "--entropy", with(&one)]);
    assert_complaint(&output, 2, "has run out: 1 byte, 2048 wanted");
}

/// One line on standard error, nothing on standard output.
fn assert_complaint(output: &Output, status: i32, about: &str) {
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let line = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(line.matches('\n').count(), 1, "{line}");
    assert!(
        line.starts_with("mini-vmm: ") && line.contains(about),
        "{line}"
    );
}

#[test]
fn wrong_command_lines_are_refused_in_one_line() {
    let folder = Folder::new("usage");
    let short = folder.file("short", &known_bytes(60));
    let pipe = pipe(&folder);
    let random = folder.file("random", &known_bytes(1 << 16));
    let link = folder.0.join("link");
    std::os::unix::fs::symlink(&random, &link).unwrap();
    std::os::unix::fs::symlink(&random, folder.0.join("virtio-rng-64.bin")).unwrap();
    let cases: &[(&[&str], &str)] = &[
        (&["--frobnicate"], "--frobnicate"),
        (&["stray"], "stray"),
        (&["--bytes"], "--bytes"),
        (&["--bytes", ""], "--bytes"),
        (&["--bytes", "0"], "multiple of 4"),
        (&["--bytes", "6"], "multiple of 4"),
        (&["--bytes", "-4"], "'-4'"),
        (&["--bytes", "64,,128"], "''"),
        (&["--bytes", "64,64"], "twice"),
        (&["--bytes", "16777220"], "16777216"),
        (&["--bytes", "99999999999999999999"], "not a number"),
        (&["--entropy", ""], "--entropy"),
        (&["--entropy", "/nowhere/at/all"], "/nowhere/at/all"),
        (&["--entropy", "/"], "directory"),
        (&["--entropy", with(&pipe)], "pipe"),
        (&["--entropy", with(&short)], "60 bytes"),
        (&["--dump", with(&short)], "--dump"),
        (&["--dump", "/proc"], "--dump: /proc/"),
        (
            &["--svg", "/nowhere/at/all.svg"],
            "--svg: /nowhere/at/all.svg",
        ),
        (
            &["--entropy", with(&random), "--svg", with(&link)],
            "--svg: ",
        ),
        (
            &[
                "--bytes",
                "64",
                "--entropy",
                with(&random),
                "--dump",
                with(&folder.0),
            ],
            "virtio-rng-64.bin: the file of --entropy",
        ),
        (&["--json=yes"], "--json"),
        (&["--json", "--json"], "--json is given twice"),
        (&["--bytes=4", "--bytes=8"], "--bytes is given twice"),
        (&["--dump=a", "--dump=a"], "--dump is given twice"),
        (&["--entropy=a", "--entropy=b"], "--entropy is given twice"),
    ];
    for (args, about) in cases {
        assert_complaint(&run(*args), 2, about);
    }
    assert_eq!(fs::read(&random).unwrap(), known_bytes(1 << 16));
}

#[test]
fn help_and_version_are_printed() {
    let help = run(["--help"]);
    assert!(help.status.success());
    let help = String::from_utf8(help.stdout).unwrap();
    for option in [
        "--bytes",
        "--entropy",
        "--dump",
        "--svg",
        "--json",
        "--help",
        "--version",
    ] {
        assert!(help.contains(option), "{help}");
    }
    let version = run(["--version"]);
    assert!(version.status.success());
    assert_eq!(
        version.stdout,
        format!("mini-vmm {}\n", env!("CARGO_PKG_VERSION")).as_bytes()
    );
}

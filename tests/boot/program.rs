// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The program as a test runs it.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Once};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::ioctl_fionread;
use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1};
use signal_hook::flag;

use crate::common::mini_vmm;

/// Longer than any of this takes, on however busy a machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// The program, with the signals as a shell hands them to it in the foreground.
///
/// Under nohup, and in the background of a script, some are ignored, and a program that is started
/// inherits that. It does not inherit a handler.
pub(crate) fn program() -> Command {
    static CAUGHT: Once = Once::new();
    CAUGHT.call_once(|| {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let ignored = u64::from_str_radix(mask.unwrap().trim(), 16).unwrap();
        for signal in [SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1] {
            if ignored >> (signal - 1) & 1 == 1 {
                flag::register(signal, Arc::default()).unwrap();
            }
        }
    });
    mini_vmm()
}

/// Waits for the program's end; kills it if that does not come.
pub(crate) fn end_of(child: &mut Child) -> ExitStatus {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if began.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("the program has not ended");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the program cannot write any more, because nobody reads what is at `reader`.
pub(crate) fn await_full(reader: impl AsFd) {
    let mut before = 0;
    let began = Instant::now();
    loop {
        thread::sleep(Duration::from_millis(300));
        let now = ioctl_fionread(&reader).unwrap();
        if now > 1000 && now == before {
            return;
        }
        before = now;
        assert!(began.elapsed() < PATIENCE, "the output does not end");
    }
}

/// Runs the program with `input` on standard input.
pub(crate) fn run_with(input: &[u8], args: &[&str]) -> Output {
    let mut child = program()
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    let writer = thread::spawn(move || {
        // The guest may end without having read it all.
        let _ = stdin.write_all(&input);
    });
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        stdout.read_to_end(&mut text).unwrap();
        text
    });
    let complaints = thread::spawn(move || {
        let mut text = Vec::new();
        stderr.read_to_end(&mut text).unwrap();
        text
    });
    let status = end_of(&mut child);
    writer.join().unwrap();
    Output {
        status,
        stdout: reader.join().unwrap(),
        stderr: complaints.join().unwrap(),
    }
}

/// What the program complained about. That there is no hardware for KVM is no fault of a test's.
pub(crate) fn stderr(output: &Output) -> &str {
    let complaints = std::str::from_utf8(&output.stderr).unwrap();
    match complaints.split_once('\n') {
        Some((first, rest)) if first.contains("/proc/cpuinfo") => rest,
        _ => complaints,
    }
}

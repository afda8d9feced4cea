// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! On a terminal: keys reach the guest as they are, and in the end the terminal is what it was.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};

use crate::common::{Folder, mini_vmm};
use crate::kernels::{Code, elf};
use crate::kvm::kvm;
use crate::{PATIENCE, end_of, text};

/// A terminal with mini-vmm on it, whose guest has written an `r` and does what `code` does next.
struct Session {
    keyboard: File,
    terminal: File,
    before: Termios,
    child: Child,
    _folder: Folder,
}

impl Session {
    fn start(name: &str, code: Code) -> Self {
        let folder = Folder::new(name);
        let kernel = folder.file("kernel", &elf(&code));
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let path = ptsname(&keyboard, Vec::new()).unwrap();
        let terminal = File::options()
            .read(true)
            .write(true)
            .open(path.to_str().unwrap())
            .unwrap();
        let before = tcgetattr(&terminal).unwrap();
        let fd = || Stdio::from(OwnedFd::from(terminal.try_clone().unwrap()));
        let child = mini_vmm()
            .args(["--kernel", text(&kernel)])
            .stdin(fd())
            .stdout(fd())
            .stderr(fd())
            .spawn()
            .unwrap();
        let mut session = Self {
            keyboard: File::from(keyboard),
            terminal,
            before,
            child,
            _folder: folder,
        };
        session.expect(b"r");
        session
    }

    fn expect(&mut self, wanted: &[u8]) {
        let mut read = vec![0; wanted.len()];
        self.keyboard.read_exact(&mut read).unwrap();
        assert_eq!(read, wanted);
    }

    fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    fn kill(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn is_as_before(&self) -> bool {
        let now = tcgetattr(&self.terminal).unwrap();
        now.local_modes == self.before.local_modes && now.input_modes == self.before.input_modes
    }

    /// Waits until the terminal is as before, or is not.
    fn await_as_before(&self, wanted: bool) {
        let began = Instant::now();
        while self.is_as_before() != wanted {
            assert!(began.elapsed() < PATIENCE, "the terminal does not change");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end with this status; the terminal must be as it was.
    fn end(mut self, status: i32) {
        assert_eq!(end_of(&mut self.child).code(), Some(status));
        assert!(self.is_as_before());
    }
}

/// A guest that echoes keys and switches itself off on `q`.
fn echo() -> Code {
    Code::new().put(b'r').echo_until_q().power_off()
}

#[test]
fn every_key_reaches_the_guest_and_none_the_terminal() {
    if !kvm() {
        return;
    }
    let mut session = Session::start("keys", echo());
    let modes = tcgetattr(&session.terminal).unwrap().local_modes;
    assert!(!modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG));
    // Ctrl-C, carriage return, Ctrl-S, Ctrl-Z, Ctrl-D: all of them would mean something to a
    // terminal. Ctrl-A Ctrl-A is one Ctrl-A, and Ctrl-A with anything else is nothing.
    session.press(b"\x03\r\x13\x1a\x04\x01\x01\x01zq");
    session.expect(b"\x03\r\x13\x1a\x04\x01q");
    session.end(0);
}

#[test]
fn the_escape_sequence_ends_the_program() {
    if !kvm() {
        return;
    }
    let mut session = Session::start("escape", Code::new().put(b'r').spin());
    session.press(b"\x01x");
    session.end(0);
}

#[test]
fn a_crash_of_the_guest_gives_the_terminal_back() {
    if !kvm() {
        return;
    }
    let session = Session::start("crash", Code::new().put(b'r').triple_fault());
    session.end(4);
}

#[test]
fn a_signal_gives_the_terminal_back() {
    if !kvm() {
        return;
    }
    let session = Session::start("signal", Code::new().put(b'r').spin());
    assert!(!session.is_as_before());
    session.kill(Signal::TERM);
    session.end(143);
}

#[test]
fn the_terminal_is_given_back_while_the_program_is_stopped() {
    if !kvm() {
        return;
    }
    let mut session = Session::start("stop", echo());
    session.kill(Signal::TSTP);
    let pid = Pid::from_child(&session.child);
    let (_, status) = waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().unwrap();
    assert!(status.stopped());
    assert!(session.is_as_before());
    session.kill(Signal::CONT);
    session.await_as_before(false);
    session.press(b"abq");
    session.expect(b"abq");
    session.end(0);
}

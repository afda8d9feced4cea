// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! On a terminal: keys reach the guest as they are, and in the end the terminal is what it was.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::common::Folder;
use crate::kernels::{Code, elf};
use crate::kvm::kvm;
use crate::program::{PATIENCE, await_full, end_of, program};
use crate::text;

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
        let mut session = Self::start_with(name, code, Stdio::null);
        session.expect(b"r");
        session
    }

    /// Starts the program, but does not wait for the guest.
    fn start_with(name: &str, code: Code, stderr: impl Fn() -> Stdio) -> Self {
        Self::start_on(pair(), name, code, &[], stderr)
    }

    /// The same on this terminal, with these options.
    fn start_on(
        (keyboard, terminal): (File, File),
        name: &str,
        code: Code,
        options: &[&str],
        stderr: impl Fn() -> Stdio,
    ) -> Self {
        let folder = Folder::new(name);
        let kernel = folder.file("kernel", &elf(&code));
        let before = tcgetattr(&terminal).unwrap();
        let fd = || Stdio::from(OwnedFd::from(terminal.try_clone().unwrap()));
        let child = program()
            .args(["--kernel", text(&kernel)])
            .args(options)
            .stdin(fd())
            .stdout(fd())
            .stderr(stderr())
            .spawn()
            .unwrap();
        Self {
            keyboard,
            terminal,
            before,
            child,
            _folder: folder,
        }
    }

    fn expect(&mut self, wanted: &[u8]) {
        let mut read = vec![0; wanted.len()];
        let mut done = 0;
        while done < read.len() {
            let time = Timespec::try_from(PATIENCE).unwrap();
            let ready = poll(
                &mut [PollFd::new(&self.keyboard, PollFlags::IN)],
                Some(&time),
            );
            assert_eq!(ready.unwrap(), 1, "waited for {wanted:?}, got {read:?}");
            done += self.keyboard.read(&mut read[done..]).unwrap();
        }
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

    /// Waits for the end by a signal, which may have come before the program took care of it.
    fn end_by(mut self, signal: Signal) {
        let status = end_of(&mut self.child);
        let by = status
            .signal()
            .or_else(|| status.code().map(|code| code - 128));
        assert_eq!(by, Some(signal.as_raw()), "{status}");
        assert!(self.is_as_before());
    }

    /// Waits for the end with this status; the terminal must be as it was.
    fn end(mut self, status: i32) {
        assert_eq!(end_of(&mut self.child).code(), Some(status));
        assert!(self.is_as_before());
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // After a failed test, it may go on for ever.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Both ends of a terminal: the keyboard's and the program's.
fn pair() -> (File, File) {
    let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&keyboard).unwrap();
    unlockpt(&keyboard).unwrap();
    let path = ptsname(&keyboard, Vec::new()).unwrap();
    let terminal = File::options()
        .read(true)
        .write(true)
        .open(path.to_str().unwrap())
        .unwrap();
    (File::from(keyboard), terminal)
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
fn the_escape_sequence_ends_the_program_when_nobody_reads_its_output() {
    if !kvm() {
        return;
    }
    let mut session = Session::start("unread", Code::new().put(b'r').flood(b'x'));
    await_full(&session.keyboard);
    // An ordinary key first, which a guest that is stuck in its output cannot take.
    session.press(b"a");
    thread::sleep(Duration::from_millis(100));
    session.press(b"\x01x");
    session.end(0);
}

#[test]
fn the_escape_sequence_ends_the_program_when_the_guest_takes_no_keys() {
    if !kvm() {
        return;
    }
    let mut session = Session::start("deaf", Code::new().put(b'r').spin());
    // Many times what the port can hold.
    for _ in 0..100 {
        session.press(&[b'a'; 100]);
    }
    session.press(b"\x01x");
    session.end(0);
}

#[test]
fn a_paste_reaches_a_slow_guest_whole() {
    if !kvm() {
        return;
    }
    let mut session = Session::start("paste", echo());
    let paste: Vec<_> = (0..20_000_u32)
        .map(|place| b'a' + (place % 16) as u8)
        .collect();
    let mut keyboard = session.keyboard.try_clone().unwrap();
    let whole = [&paste[..], b"q"].concat();
    let writer = thread::spawn(move || keyboard.write_all(&whole).unwrap());
    session.expect(&paste);
    writer.join().unwrap();
    session.end(0);
}

#[test]
fn the_escape_sequence_ends_the_program_when_a_trace_is_not_read_either() {
    if !kvm() {
        return;
    }
    let (name, code) = ("trace-unread", Code::new().flood(b'x'));
    let (keyboard, terminal) = pair();
    let folder = Folder::new(name);
    let kernel = folder.file("kernel", &elf(&code));
    let before = tcgetattr(&terminal).unwrap();
    let fd = || Stdio::from(OwnedFd::from(terminal.try_clone().unwrap()));
    let child = program()
        .args(["--kernel", text(&kernel), "--trace=1000000", "--cpus", "2"])
        .stdin(fd())
        .stdout(fd())
        .stderr(fd())
        .spawn()
        .unwrap();
    let mut session = Session {
        keyboard,
        terminal,
        before,
        child,
        _folder: folder,
    };
    await_full(&session.keyboard);
    session.press(b"a\x01x");
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
fn a_signal_that_few_programs_know_gives_the_terminal_back() {
    if !kvm() {
        return;
    }
    // SIGPWR, SIGSTKFLT, and two real-time signals.
    for signal in [30, 16, 35, 64] {
        let session = Session::start("rare", Code::new().put(b'r').spin());
        let kill = format!("kill -{signal} {}", session.child.id());
        let killed = Command::new("sh").args(["-c", &kill]).status();
        assert!(killed.unwrap().success(), "{kill}");
        session.end(128 + signal);
    }
}

#[test]
fn a_signal_at_any_moment_gives_the_terminal_back() {
    if !kvm() {
        return;
    }
    // From before the program has begun to long after the guest has: every half millisecond.
    for moment in 0..60 {
        let code = Code::new().put(b'r').spin();
        let session = Session::start_with("moment", code, Stdio::null);
        thread::sleep(Duration::from_micros(500 * moment));
        session.kill(Signal::TERM);
        session.end_by(Signal::TERM);
    }
    // And as soon as the terminal is taken.
    for _ in 0..20 {
        let code = Code::new().put(b'r').spin();
        let session = Session::start_with("taken", code, Stdio::null);
        while session.is_as_before() {
            thread::yield_now();
        }
        session.kill(Signal::USR2);
        session.end_by(Signal::USR2);
    }
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

#[test]
fn the_virtio_console_has_the_size_of_the_terminal() {
    if !kvm() {
        return;
    }
    let (keyboard, terminal) = pair();
    let columns = |fd: &File, columns| {
        let size = Winsize {
            ws_row: 25,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(fd, size).unwrap();
    };
    columns(&keyboard, b'A'.into());
    let (code, options) = (Code::new().show_columns(), ["--console", "virtio"]);
    let pair = (keyboard, terminal);
    let mut session = Session::start_on(pair, "size", code, &options, Stdio::null);
    session.expect(b"A");
    columns(&session.keyboard, b'B'.into());
    session.kill(Signal::WINCH);
    session.expect(b"B");
    // Keys that no driver takes are in nobody's way.
    session.press(&[b'k'; 1000]);
    session.press(b"\x01x");
    session.end(0);
}

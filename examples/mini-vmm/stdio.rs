// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Standard output and standard error.
//!
//! The standard library treats writes to a closed standard output as successful, so results would
//! be lost without a word: here they are written by system calls.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, fcntl_getfd, write};
use rustix::stdio::{stderr, stdout};

/// Whether standard output was open when the program began.
static OPEN: AtomicBool = AtomicBool::new(true);

/// Before `main`, the standard library opens `/dev/null` where a standard stream is closed, and
/// nobody can tell afterwards. So this looks before that.
#[expect(unsafe_code, reason = "the C library is told to call a function")]
// SAFETY: the section holds pointers to functions that the C library calls, with arguments that a
// function may leave alone. This one makes a system call and stores a flag.
#[unsafe(link_section = ".init_array")]
#[used]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    OPEN.store(fcntl_getfd(stdout()).is_ok(), Ordering::Relaxed);
}

/// Checks that standard output was not closed from the start.
pub(crate) fn check_stdout() -> Result<(), String> {
    match OPEN.load(Ordering::Relaxed) {
        true => Ok(()),
        false => Err(failed_stdout(&Errno::BADF.into())),
    }
}

/// Prints to standard output.
///
/// # Errors
///
/// One line that says why that failed.
pub(crate) fn print(text: &str) -> Result<(), String> {
    write_all(stdout(), text.as_bytes()).map_err(|error| failed_stdout(&error))
}

/// What to say when standard output cannot be written.
pub(crate) fn failed_stdout(error: &io::Error) -> String {
    format!("standard output: {error}")
}

/// Writes one line to standard error, whatever characters the message has. Failures are ignored:
/// there is nowhere left to report them.
pub(crate) fn complain(message: &str) {
    let _ = write_all(stderr(), complaint(message).as_bytes());
}

/// A message as one printable line.
pub(crate) fn complaint(message: &str) -> String {
    format!("mini-vmm: {}\n", message.replace(char::is_control, " "))
}

/// Writes all of `data`, however long that takes.
pub(crate) fn write_all(fd: impl AsFd, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        match write(&fd, data) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => data = data.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            // Somebody else has made it non-blocking.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(&fd, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A number of things: `1 byte`, `2 bytes`.
pub(crate) fn count(number: u64, unit: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {unit}{plural}")
}

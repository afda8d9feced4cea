// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The virtio console, `hvc0`, from the user's side.
//!
//! A socket leads to the device. What the guest writes goes from there to standard output's thread,
//! as that of the serial port does; what is typed on a terminal goes the other way. Other input the
//! device reads by itself, as the guest takes it.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, dup};
use rustix::net::{SendFlags, send};
use rustix::stdio::stdin;
use rustix::termios::{isatty, tcgetwinsize};
use virtio_console_device::{Console, ConsoleHandle, Port, Size};
use virtio_device_core::WorkerThread;

use super::output::Output;
use crate::devices::CONSOLE;

/// Most bytes that are handed on at once.
const PIECE: usize = 4096;

/// The user's end.
#[derive(Clone, Debug)]
pub(crate) struct Hvc(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// It does not wait.
    socket: UnixStream,
    /// Held while bytes are between socket and output, which is never for long.
    turn: Mutex<()>,
    output: Output,
    handle: ConsoleHandle,
}

impl Hvc {
    /// Makes the device and the user's end of it, which writes to `output`.
    pub(crate) fn new(output: Output) -> io::Result<(Console<WorkerThread>, Self)> {
        let (socket, device) = UnixStream::pair()?;
        socket.set_nonblocking(true)?;
        let input: OwnedFd = match isatty(stdin()) {
            true => device.try_clone()?.into(),
            false => dup(stdin())?,
        };
        let port = Port::new(input, device)?.with_size(size());
        let device = Console::new(port, CONSOLE.worker()?)?;
        let user = Self(Arc::new(Inner {
            socket,
            turn: Mutex::default(),
            output,
            handle: device.handle(),
        }));
        Ok((device, user))
    }

    /// Starts the thread that hands on what the guest writes.
    pub(crate) fn start(&self) -> io::Result<()> {
        // It may have changed before anybody watched for that.
        self.resize();
        let hvc = self.clone();
        let pass_on = move || {
            while hvc.wait().is_ok() {
                hvc.0.output.wait_for_room();
                if hvc.pass_on() == Some(0) {
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("hvc".to_owned());
        thread.spawn(pass_on).map(drop)
    }

    /// Waits until the guest has written something.
    fn wait(&self) -> Result<(), Errno> {
        loop {
            match poll(&mut [PollFd::new(&self.0.socket, PollFlags::IN)], None) {
                Err(Errno::INTR) => {}
                result => return result.map(drop),
            }
        }
    }

    /// Hands on a piece of what the guest has written, without waiting; says how long it was, if there
    /// was one: 0 at the end.
    fn pass_on(&self) -> Option<usize> {
        let turn = self.0.turn.lock();
        let _turn = turn.unwrap_or_else(PoisonError::into_inner);
        let mut piece = [0; PIECE];
        let count = (&self.0.socket).read(&mut piece).ok()?;
        self.0.output.push(piece.get(..count)?);
        Some(count)
    }

    /// Hands on all that the guest has written by now.
    pub(crate) fn flush(&self) {
        while self.pass_on().is_some_and(|count| count != 0) {}
    }

    /// Takes input, without waiting. A guest that takes none loses what is typed beyond what the
    /// socket holds.
    pub(crate) fn type_in(&self, input: &[u8]) {
        let _ = send(
            &self.0.socket,
            input,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        );
    }

    /// Tells the guest the size that the terminal has now.
    pub(crate) fn resize(&self) {
        self.0.handle.resize(0, size());
    }
}

/// The size of the terminal, if there is one.
fn size() -> Size {
    match tcgetwinsize(stdin()) {
        Ok(size) => Size {
            cols: size.ws_col,
            rows: size.ws_row,
        },
        Err(_) => Size::default(),
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The virtio console, `hvc0`, from the user's side.
//!
//! A socket leads to the device. What the guest writes goes from there to standard output's thread,
//! as that of the serial port does; what is typed on a terminal goes the other way. Other input the
//! device reads by itself, as the guest takes it.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, dup, ioctl_fionread};
use rustix::net::{SendFlags, send};
use rustix::stdio::stdin;
use rustix::termios::{isatty, tcgetwinsize};
use virtio_console_device::{Console, ConsoleHandle, Port, Size};
use virtio_device_core::WorkerThread;

use super::output::Output;
use crate::devices::CONSOLE;

/// Most bytes that are handed on at once.
const PIECE: usize = 4096;

/// Most bytes of output that wait for standard output's reader. Linux waits for each piece of console
/// output with its processor's interrupts off, so this is more than a reader that stops for a while
/// leaves unread.
const MOST_OUTPUT: usize = 16 << 20;

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
        output.allow(MOST_OUTPUT);
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
                hvc.0.output.wait_for_room_while_running();
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

    /// Hands on all that the guest has written by now. Its device may go on writing meanwhile.
    pub(crate) fn flush(&self) {
        let mut left = ioctl_fionread(&self.0.socket).unwrap_or(0);
        while left > 0 {
            match self.pass_on() {
                None | Some(0) => return,
                Some(count) => left = left.saturating_sub(count as u64),
            }
        }
    }

    /// Tells the guest the size that the terminal has now.
    pub(crate) fn resize(&self) {
        self.0.handle.resize(0, size());
    }
}

/// What is typed on a terminal, on its way to the device.
pub(crate) struct Typist {
    hvc: Hvc,
    /// Typed, but not in the socket yet.
    waiting: VecDeque<u8>,
}

impl Typist {
    pub(crate) const fn new(hvc: Hvc) -> Self {
        Self {
            hvc,
            waiting: VecDeque::new(),
        }
    }

    /// Takes input, without waiting.
    pub(crate) fn type_in(&mut self, input: &[u8]) {
        self.waiting.extend(input);
        self.hand_on();
    }

    /// Waits until there is something to read from `keys`, and hands on meanwhile what the guest takes.
    /// While more than `most` bytes wait for the guest, it does not look at the keys.
    pub(crate) fn wait_for_keys(&mut self, keys: impl AsFd, most: usize) {
        while !self.waiting.is_empty() {
            let mut fds = [
                PollFd::new(&self.hvc.0.socket, PollFlags::OUT),
                PollFd::new(&keys, PollFlags::IN),
            ];
            let looked_at = if self.waiting.len() > most { 1 } else { 2 };
            let ready = poll(fds.get_mut(..looked_at).unwrap_or_default(), None).is_ok();
            let [_, keys] = &fds;
            let pressed = ready && !keys.revents().is_empty();
            self.hand_on();
            if pressed {
                return;
            }
        }
    }

    /// Hands on what is left when there are no keys any more, as the guest takes it.
    pub(crate) fn finish(&mut self) {
        while !self.waiting.is_empty() {
            let _ = poll(&mut [PollFd::new(&self.hvc.0.socket, PollFlags::OUT)], None);
            self.hand_on();
        }
    }

    /// Hands on what the socket takes, without waiting.
    fn hand_on(&mut self) {
        while !self.waiting.is_empty() {
            let (first, _) = self.waiting.as_slices();
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(&self.hvc.0.socket, first, flags) {
                Ok(sent) => drop(self.waiting.drain(..sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // The device's end is open as long as the machine is.
                Err(_) => self.waiting.clear(),
            }
        }
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

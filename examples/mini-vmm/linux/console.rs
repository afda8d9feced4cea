// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the main thread does while the guest runs: it hands standard input to the serial port, and
//! waits for the end.

use std::collections::VecDeque;
use std::io;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::stdio::stdin;

use super::bell::{Bell, End};
use super::serial::SerialPort;

/// Ctrl-A, and what can follow it.
const ESCAPE: u8 = 0x01;

/// A guest whose port is in loopback mode takes no input; it is asked again after this time.
const LATER: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// Input on its way to the guest.
pub(crate) struct Console {
    port: SerialPort,
    bell: Bell,
    /// Whether keys are typed by a person, who may type the escape sequence.
    keys: Option<Keys>,
    /// Read, but not taken by the guest yet.
    waiting: VecDeque<u8>,
    /// Standard input has not come to its end.
    open: bool,
}

impl Console {
    pub(crate) fn new(port: SerialPort, bell: Bell, terminal: bool) -> Self {
        Self {
            port,
            bell,
            keys: terminal.then(Keys::default),
            waiting: VecDeque::new(),
            open: true,
        }
    }

    /// Serves the guest until its end, and returns why that came.
    pub(crate) fn serve(&mut self) -> io::Result<End> {
        loop {
            if let Some(end) = self.bell.listen() {
                return Ok(end);
            }
            self.hand_on();
            if self.wait()? {
                self.read();
            }
        }
    }

    /// Waits until something has happened; says whether there is input to be read.
    fn wait(&self) -> io::Result<bool> {
        let stdin = stdin();
        let mut fds = vec![PollFd::new(&self.bell, PollFlags::IN)];
        // Not even the end of the input is waited for while there is enough of it.
        if self.open && self.waiting.is_empty() {
            fds.push(PollFd::new(&stdin, PollFlags::IN));
        }
        let stuck = !self.waiting.is_empty() && self.port.room() > 0;
        match poll(&mut fds, stuck.then_some(&LATER)) {
            Ok(_) => Ok(fds.get(1).is_some_and(|fd| !fd.revents().is_empty())),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads what has been typed, as much as the port can take.
    fn read(&mut self) {
        let mut buffer = [0; 64];
        match rustix::io::read(stdin(), &mut buffer) {
            Ok(count @ 1..) => {
                let typed = buffer.iter().take(count).copied();
                match &mut self.keys {
                    None => self.waiting.extend(typed),
                    Some(keys) => {
                        for key in typed {
                            match keys.press(key) {
                                Pressed::Key(key) => self.waiting.push_back(key),
                                Pressed::Nothing => {}
                                Pressed::Quit => self.bell.end(End::Quit),
                            }
                        }
                    }
                }
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            // The end of the input is not the end of the guest.
            Ok(_) | Err(_) => self.open = false,
        }
    }

    /// Gives the port what it can take.
    fn hand_on(&mut self) {
        while !self.waiting.is_empty() && self.port.room() > 0 {
            let (first, _) = self.waiting.as_slices();
            let taken = self.port.type_in(first);
            if taken == 0 {
                return;
            }
            self.waiting.drain(..taken);
        }
    }
}

/// Finds the escape sequence among keys.
#[derive(Debug, Default)]
struct Keys {
    escaped: bool,
}

/// What a key comes to.
#[derive(Debug, PartialEq, Eq)]
enum Pressed {
    Key(u8),
    Nothing,
    Quit,
}

impl Keys {
    fn press(&mut self, key: u8) -> Pressed {
        if !self.escaped {
            self.escaped = key == ESCAPE;
            return if self.escaped {
                Pressed::Nothing
            } else {
                Pressed::Key(key)
            };
        }
        self.escaped = false;
        match key {
            b'x' | b'X' => Pressed::Quit,
            ESCAPE | b'a' => Pressed::Key(ESCAPE),
            // Not one of ours; it is lost with the escape key.
            _ => Pressed::Nothing,
        }
    }
}

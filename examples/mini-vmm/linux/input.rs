// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Standard input: what comes from there is typed into the console.

use std::io;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::stdio::stdin;

use super::bell::{Bell, End};
use super::hvc::Hvc;
use super::serial::SerialPort;

/// Ctrl-A, and what can follow it.
const ESCAPE: u8 = 0x01;

/// What is typed into.
pub(crate) enum Keyboard {
    Serial(SerialPort),
    Hvc(Hvc),
}

impl Keyboard {
    /// Takes input, without waiting.
    fn type_in(&self, input: &[u8]) {
        match self {
            Self::Serial(port) => port.type_in(input),
            Self::Hvc(hvc) => hvc.type_in(input),
        }
    }
}

/// Has a thread hand standard input on to the console.
///
/// On a terminal it reads on when the guest takes nothing, because a person may type the escape
/// sequence. From elsewhere it reads no more than the guest takes.
pub(crate) fn start(keyboard: Keyboard, bell: Bell, terminal: bool) -> io::Result<()> {
    let read = move || match (terminal, &keyboard) {
        (true, _) => type_keys(&keyboard, &bell),
        (false, Keyboard::Serial(port)) => loop {
            port.wait_until_taken();
            match next() {
                Some(input) => port.type_in(&input),
                // The end of the input is not the end of the guest.
                None => break,
            }
        },
        // The device reads it by itself.
        (false, Keyboard::Hvc(_)) => {}
    };
    let thread = thread::Builder::new().name("input".to_owned());
    thread.spawn(read).map(drop)
}

fn type_keys(keyboard: &Keyboard, bell: &Bell) {
    let mut keys = Keys::default();
    while let Some(typed) = next() {
        for key in typed {
            match keys.press(key) {
                Pressed::Key(key) => keyboard.type_in(&[key]),
                Pressed::Nothing => {}
                Pressed::Quit => bell.end(End::Quit),
            }
        }
    }
}

/// Waits for more input; none if there will not be any.
fn next() -> Option<Vec<u8>> {
    let mut buffer = [0; 64];
    loop {
        match rustix::io::read(stdin(), &mut buffer) {
            Ok(0) => return None,
            Ok(count) => return buffer.get(..count).map(<[u8]>::to_vec),
            Err(Errno::INTR) => {}
            // Somebody else has made it non-blocking.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(&stdin(), PollFlags::IN)], None);
            }
            Err(_) => return None,
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

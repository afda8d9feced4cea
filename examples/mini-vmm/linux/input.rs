// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Standard input: what comes from there is typed into the console.

use std::io;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::stdio::stdin;

use super::bell::{Bell, End};
use super::hvc::{Hvc, Typist};
use super::serial::SerialPort;

/// Ctrl-A, and what can follow it.
const ESCAPE: u8 = 0x01;

/// Most bytes that are typed on a terminal and wait for the guest. With more of them no key is read,
/// the escape sequence included: whatever is pasted is lost nowhere.
const MOST_INPUT: usize = 1 << 20;

/// What is typed into.
pub(crate) enum Keyboard {
    Serial(SerialPort),
    Hvc(Hvc),
}

/// Has a thread hand standard input on to the console.
///
/// On a terminal it reads on when the guest takes nothing, because a person may type the escape
/// sequence. From elsewhere it reads no more than the guest takes.
pub(crate) fn start(keyboard: Keyboard, bell: Bell, terminal: bool) -> io::Result<()> {
    let read = move || match (terminal, keyboard) {
        (true, Keyboard::Serial(port)) => type_keys(&bell, |keys| {
            port.type_in(keys);
            port.wait_until_left(MOST_INPUT);
        }),
        (true, Keyboard::Hvc(hvc)) => {
            let mut typist = Typist::new(hvc);
            type_keys(&bell, |keys| {
                typist.type_in(keys);
                typist.wait_for_keys(stdin(), MOST_INPUT);
            });
            typist.finish();
        }
        (false, Keyboard::Serial(port)) => loop {
            port.wait_until_left(0);
            match next(&mut [0; 64]) {
                Some(input) => port.type_in(input),
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

/// Hands on what is typed, a piece at a time, without the escape sequence.
fn type_keys(bell: &Bell, mut type_in: impl FnMut(&[u8])) {
    let mut keys = Keys::default();
    let mut buffer = [0; 4096];
    while let Some(typed) = next(&mut buffer) {
        let mut pressed = Vec::with_capacity(typed.len());
        for &key in typed {
            match keys.press(key) {
                Pressed::Key(key) => pressed.push(key),
                Pressed::Nothing => {}
                Pressed::Quit => bell.end(End::Quit),
            }
        }
        type_in(&pressed);
    }
}

/// Waits for more input; none if there will not be any.
fn next(buffer: &mut [u8]) -> Option<&[u8]> {
    let count = loop {
        match rustix::io::read(stdin(), &mut *buffer) {
            Ok(0) => return None,
            Ok(count) => break count,
            Err(Errno::INTR) => {}
            // Somebody else has made it non-blocking.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(&stdin(), PollFlags::IN)], None);
            }
            Err(_) => return None,
        }
    };
    buffer.get(..count)
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

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A source of bytes that fails in every way there is, when it is told to.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;

/// What the source does instead of filling the room that it is given.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Fault {
    Short(u8),
    Error,
    WouldBlock,
    Interrupted,
    End,
    Lie,
    Panic,
}

#[derive(Default)]
pub(crate) struct Script {
    pub(crate) faults: VecDeque<Fault>,
    /// What each read gave, until it is found in memory.
    pub(crate) given: VecDeque<Vec<u8>>,
    count: u32,
    /// The source has failed in a way that ends the device.
    pub(crate) fatal: bool,
    pub(crate) panicked: bool,
}

pub(crate) struct Source(pub(crate) Arc<Mutex<Script>>);

impl Read for Source {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let mut script = self.0.lock().unwrap();
        let mut len = data.len();
        // What is written by a read that fails must reach nobody.
        data.fill(0xee);
        match script.faults.pop_front() {
            None => {}
            Some(Fault::Short(most)) => len = len.min(usize::from(most).max(1)),
            Some(Fault::Error) => return Err(io::Error::other("broken")),
            Some(Fault::WouldBlock) => return Err(ErrorKind::WouldBlock.into()),
            Some(Fault::Interrupted) => return Err(ErrorKind::Interrupted.into()),
            Some(fatal) => {
                script.fatal = true;
                match fatal {
                    Fault::End => return Ok(0),
                    Fault::Lie => return Ok(len + 1),
                    _ => script.panicked = true,
                }
                drop(script);
                // No hook is called, which would end the fuzzer.
                std::panic::resume_unwind(Box::new("the source panics"));
            }
        }
        for byte in &mut data[..len] {
            script.count = script.count.wrapping_mul(1_664_525).wrapping_add(12_345);
            *byte = (script.count >> 24) as u8;
        }
        script.given.push_back(data[..len].to_vec());
        Ok(len)
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A bound for tests whose threads wait for each other.

use std::io::{self, Write};
use std::process;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Longer than any test takes, on however busy a machine.
const WHOLE_TEST: Duration = Duration::from_secs(600);

/// Ends the program when it is not dropped in time: threads that wait for each other cannot be ended
/// in any other way.
pub(crate) struct Limit {
    // The watching thread ends when this is dropped.
    alive: Option<Sender<()>>,
    watch: Option<JoinHandle<()>>,
}

impl Limit {
    /// A limit for the calling test, which waits for `what`.
    pub(crate) fn new(what: &'static str) -> Self {
        let test = thread::current().name().unwrap_or("a test").to_owned();
        let (alive, ended) = mpsc::channel();
        let watch = move || {
            if ended.recv_timeout(WHOLE_TEST) == Err(RecvTimeoutError::Timeout) {
                let line = format!("{test}: not within {WHOLE_TEST:?}: {what}\n");
                let _ = io::stderr().write_all(line.as_bytes());
                process::abort();
            }
        };
        Self {
            alive: Some(alive),
            // Miri's clock counts instructions, not seconds.
            watch: (!cfg!(miri)).then(|| thread::spawn(watch)),
        }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        drop(self.alive.take());
        let _ = self.watch.take().map(JoinHandle::join);
    }
}

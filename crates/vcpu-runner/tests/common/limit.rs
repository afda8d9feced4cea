// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Waiting with a bound, so that a test that hangs fails and says what it waited for.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    clippy::panic,
    clippy::unwrap_used,
    reason = "each test program uses its own part of this"
)]

use std::io::{self, Write};
use std::process;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Longer than anything takes that is not stuck, on however busy a machine.
pub const SOON: Duration = Duration::from_secs(60);

/// Longer than any test takes as a whole.
const WHOLE_TEST: Duration = Duration::from_secs(600);

/// Waits until `condition` holds; panics with `what` if it does not.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The next message; panics with `what` if none comes.
#[track_caller]
pub fn receive<T>(what: &str, messages: &Receiver<T>) -> T {
    match messages.recv_timeout(SOON) {
        Ok(message) => message,
        Err(error) => panic!("{what}: {error}"),
    }
}

/// What a thread returns; panics with `what` if it does not end.
#[track_caller]
pub fn join<T>(what: &str, thread: JoinHandle<T>) -> T {
    wait_until(what, || thread.is_finished());
    thread.join().unwrap()
}

/// Ends the program when it is not dropped in time.
///
/// For tests that call something that blocks, such as a vCPU's loop on the test's own thread:
/// nothing but the end of the process ends that.
pub struct Limit {
    // The watching thread ends when this is dropped.
    alive: Option<Sender<()>>,
    watch: Option<JoinHandle<()>>,
}

impl Limit {
    /// A limit for the calling test, which waits for `what`.
    pub fn new(what: &'static str) -> Self {
        let test = thread::current().name().unwrap_or("a test").to_owned();
        let (alive, ended) = mpsc::channel();
        let watch = thread::spawn(move || {
            if ended.recv_timeout(WHOLE_TEST) == Err(RecvTimeoutError::Timeout) {
                let line = format!("{test}: not within {WHOLE_TEST:?}: {what}\n");
                let _ = io::stderr().write_all(line.as_bytes());
                process::abort();
            }
        });
        Self {
            alive: Some(alive),
            watch: Some(watch),
        }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        drop(self.alive.take());
        let _ = self.watch.take().map(JoinHandle::join);
    }
}

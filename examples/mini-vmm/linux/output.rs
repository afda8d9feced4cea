// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Standard output and standard error while a guest runs.
//!
//! To write to either can take for ever, for instance if it is a pipe that nobody reads. So a thread
//! of its own does that, and nobody else waits for it but a vCPU that has written more than fits
//! into a buffer: without holding a lock, and not beyond the end of the machine.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::bell::Bell;
use crate::stdio::write_all;

/// With more bytes than this in the buffer, a vCPU that writes waits, unless [`Output::allow`] says
/// otherwise.
const ENOUGH: usize = 64 << 10;

/// Most bytes in one system call, so that it can be seen whether they get on.
const PIECE: usize = 4 << 10;

/// When the program is to end, it gives up a stream in which nothing has moved for this long.
const STUCK: Duration = Duration::from_millis(500);

/// A stream, and what waits to be written to it.
#[derive(Clone, Debug)]
pub(crate) struct Output(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    bell: Bell,
}

#[derive(Debug)]
struct State {
    waiting: Vec<u8>,
    /// With more bytes than this in the buffer, writers that can wait do.
    most: usize,
    /// Whether the thread is in the middle of a write.
    writing: bool,
    /// How many pieces have been written.
    pieces: u64,
    /// The machine has come to its end, so no vCPU waits.
    released: bool,
    failed: bool,
    line_open: bool,
}

impl Output {
    /// Starts the thread that writes to `fd`; what `fail` says is done when that is impossible.
    pub(crate) fn start(
        name: &str,
        fd: impl AsFd + Send + 'static,
        bell: &Bell,
        fail: impl FnOnce(&io::Error) + Send + 'static,
    ) -> io::Result<Self> {
        let output = Self(Arc::new(Inner {
            state: Mutex::new(State {
                waiting: Vec::new(),
                most: ENOUGH,
                writing: false,
                pieces: 0,
                released: false,
                failed: false,
                line_open: false,
            }),
            changed: Condvar::new(),
            bell: bell.clone(),
        }));
        let thread = output.clone();
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                if let Err(error) = thread.write_on(&fd) {
                    // Before anybody can see that nothing is left to wait for.
                    fail(&error);
                    thread.give_up();
                }
            })?;
        Ok(output)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `data` into the buffer, without waiting.
    pub(crate) fn push(&self, data: &[u8]) {
        let mut state = self.state();
        if let Some(last) = data.last() {
            state.line_open = *last != b'\n';
        }
        if !state.failed {
            state.waiting.extend(data);
            self.0.changed.notify_all();
        }
    }

    /// Ends the last line, so that the next begins at the left margin.
    pub(crate) fn finish_line(&self) {
        if self.state().line_open {
            self.push(b"\n");
        }
    }

    /// Lets up to `most` bytes wait before a vCPU does.
    pub(crate) fn allow(&self, most: usize) {
        self.state().most = most;
    }

    /// Waits until there is room for more, or the machine comes to its end.
    pub(crate) fn wait_for_room(&self) {
        let full = |state: &mut State| state.waiting.len() > state.most && !state.released;
        let state = self.0.changed.wait_while(self.state(), full);
        drop(state.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until there is room for more and the machine runs: for those who would otherwise hand on
    /// without bound what a guest leaves behind at its end.
    pub(crate) fn wait_for_room_while_running(&self) {
        let full = |state: &mut State| state.released || state.waiting.len() > state.most;
        let state = self.0.changed.wait_while(self.state(), full);
        drop(state.unwrap_or_else(PoisonError::into_inner));
    }

    /// Has no vCPU wait any more.
    pub(crate) fn release(&self) {
        self.state().released = true;
        self.0.changed.notify_all();
    }

    /// Has vCPUs wait again, as soon as there is room or somebody wants the program to end.
    pub(crate) fn hold(&self) {
        loop {
            let mut state = self.state();
            let full = state.waiting.len() > state.most && !state.failed;
            if !full || self.0.bell.is_urgent() {
                state.released = false;
                self.0.changed.notify_all();
                return;
            }
            drop(state);
            self.0.bell.wait(None);
        }
    }

    /// Waits until everything is written, or cannot be. Once somebody wants the program to end it
    /// only goes on waiting while it sees that the stream is read. Says whether all is written.
    pub(crate) fn drain(&self) -> bool {
        self.release();
        loop {
            let state = self.state();
            if state.failed || state.waiting.is_empty() && !state.writing {
                return !state.failed;
            }
            let pieces = state.pieces;
            drop(state);
            let urgent = self.0.bell.is_urgent();
            let rang = self.0.bell.wait(urgent.then_some(STUCK));
            if !rang && self.state().pieces == pieces {
                return false;
            }
        }
    }

    fn give_up(&self) {
        let mut state = self.state();
        state.failed = true;
        state.writing = false;
        state.waiting.clear();
        self.0.changed.notify_all();
        drop(state);
        self.0.bell.ring();
    }

    /// Writes whatever there is, again and again.
    fn write_on(&self, fd: &impl AsFd) -> io::Result<()> {
        let mut taken = Vec::new();
        loop {
            let mut state = self.state();
            state.writing = false;
            if state.released {
                // The main thread may wait for this.
                drop(state);
                self.0.bell.ring();
                state = self.state();
            }
            let nothing = |state: &mut State| state.waiting.is_empty();
            let woken = self.0.changed.wait_while(state, nothing);
            state = woken.unwrap_or_else(PoisonError::into_inner);
            std::mem::swap(&mut state.waiting, &mut taken);
            state.writing = true;
            self.0.changed.notify_all();
            drop(state);
            for piece in taken.chunks(PIECE) {
                write_all(fd, piece)?;
                self.state().pieces += 1;
            }
            taken.clear();
        }
    }
}

/// Writes to the buffer, without waiting.
impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.push(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The barrier at the start of a group's threads.

use std::io;

use crate::sync::{Condvar, Deadline, Mutex, lock, wait};

/// Shared by threads that start together and the thread that starts them.
pub(super) struct Start {
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default)]
struct Progress {
    /// Threads whose hook has returned, and that wait for the others.
    ready: usize,
    /// The first thread that ended before the start, by its position.
    ended: Option<usize>,
    /// What has become of the start.
    done: Option<Done>,
}

#[derive(Clone, Copy, PartialEq)]
enum Done {
    Started,
    GivenUp,
}

impl Start {
    pub(super) fn new() -> Self {
        Self {
            progress: Mutex::new(Progress::default()),
            changed: Condvar::new(),
        }
    }

    fn change<R>(&self, change: impl FnOnce(&mut Progress) -> R) -> R {
        let result = change(&mut lock(&self.progress));
        self.changed.notify_all();
        result
    }

    /// Waits for the other threads.
    pub(super) fn pass(&self) {
        self.change(|progress| progress.ready += 1);
        let mut progress = lock(&self.progress);
        while progress.done.is_none() {
            progress = wait(&self.changed, progress);
        }
    }

    /// Lets the threads run, or end if it was given up.
    pub(super) fn open(&self, started: bool) {
        let done = if started {
            Done::Started
        } else {
            Done::GivenUp
        };
        self.change(|progress| progress.done = Some(done));
    }

    /// Notes that a thread has ended; whether that was after the start.
    pub(super) fn ended(&self, index: usize) -> bool {
        self.change(|progress| {
            progress.ended.get_or_insert(index);
            progress.done == Some(Done::Started)
        })
    }

    /// Waits until `count` threads are ready, one has failed, or the deadline has passed.
    pub(super) fn wait_for(&self, count: usize, deadline: Deadline) -> Result<(), StartFailure> {
        let mut progress = lock(&self.progress);
        loop {
            if let Some(index) = progress.ended {
                return Err(StartFailure::Ended { index });
            }
            if progress.ready == count {
                return Ok(());
            }
            progress = deadline
                .wait(&self.changed, progress)
                .ok_or(StartFailure::Timeout)?;
        }
    }
}

/// Why the barrier is not opened for the guests.
pub(super) enum StartFailure {
    Spawn { index: usize, error: io::Error },
    Ended { index: usize },
    Timeout,
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The barrier at the start of a group's threads.

use std::io;

use crate::sync::{Condvar, Deadline, Mutex, lock, wait};

/// What each thread of a group shares with whoever starts them.
pub(crate) struct Start {
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default)]
pub(crate) struct Progress {
    /// Threads whose hook has returned, and that wait for the others.
    ready: usize,
    /// The first thread that ended before the start, by its position.
    pub(crate) ended: Option<usize>,
    /// The barrier is open.
    pub(crate) open: bool,
}

impl Start {
    pub(crate) fn new() -> Self {
        Self {
            progress: Mutex::new(Progress::default()),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut lock(&self.progress));
        self.changed.notify_all();
    }

    /// Waits for the other threads.
    pub(crate) fn pass(&self) {
        self.change(|progress| progress.ready += 1);
        let mut progress = lock(&self.progress);
        while !progress.open {
            progress = wait(&self.changed, progress);
        }
    }

    /// Waits until `count` threads are ready, one has failed, or the deadline has passed.
    pub(crate) fn wait_for(&self, count: usize, deadline: Deadline) -> Result<(), StartFailure> {
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
pub(crate) enum StartFailure {
    Spawn { index: usize, error: io::Error },
    Ended { index: usize },
    Timeout,
}

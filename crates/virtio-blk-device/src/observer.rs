// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Watching what the host fails at.

use std::io;
use std::ops::Range;
use std::sync::Arc;

/// What the host has failed at for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Reading sectors.
    Read,
    /// Writing sectors.
    Write,
    /// Making writes stable.
    Flush,
    /// Giving the room of sectors back.
    Discard,
    /// Writing zeroes.
    WriteZeroes,
}

/// Receives what the host fails at. The guest sees an I/O error, and decides what becomes of it.
///
/// Called on a worker's thread: it must not wait, and must not call the device. A failing disk has it
/// called as often as the guest likes. `()` ignores all failures.
pub trait BlockObserver: Send + Sync {
    /// An operation on a range of bytes has failed; a flush is of all of them.
    fn failed(&self, operation: Operation, range: &Range<u64>, error: &io::Error);
}

impl BlockObserver for () {
    fn failed(&self, _operation: Operation, _range: &Range<u64>, _error: &io::Error) {}
}

impl<T: BlockObserver + ?Sized> BlockObserver for Arc<T> {
    fn failed(&self, operation: Operation, range: &Range<u64>, error: &io::Error) {
        (**self).failed(operation, range, error);
    }
}

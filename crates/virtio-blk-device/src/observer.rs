// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Watching what the host fails at.

use std::io;
use std::ops::Range;
use std::sync::Arc;

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Reading sectors.
    Read,
    /// Writing sectors.
    Write,
    /// Making writes stable.
    Flush,
    /// Asking for the device's id.
    GetId,
    /// Giving the room of sectors back.
    Discard,
    /// Writing zeroes.
    WriteZeroes,
}

/// Something that a VMM may want to know about a disk.
#[derive(Debug)]
#[non_exhaustive]
pub enum BlockEvent<'a> {
    /// The host has failed at a request about these bytes of the disk. The guest sees that, and decides
    /// what becomes of it.
    Failed(Operation, &'a Range<u64>, &'a io::Error),
}

/// Receives [`BlockEvent`]s.
///
/// Called on a worker's thread: it must not wait, and must not call the device. A failing disk has it
/// called as often as the guest likes.
pub trait BlockObserver: Send + Sync {
    /// Takes note of `event`.
    fn event(&self, event: &BlockEvent<'_>);
}

impl<T: BlockObserver + ?Sized> BlockObserver for Arc<T> {
    fn event(&self, event: &BlockEvent<'_>) {
        (**self).event(event);
    }
}

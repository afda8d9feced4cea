// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A disk in the host's memory.

use std::fmt;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::backend::{Backend, Buffers};

/// A disk in the host's memory: for tests, and for what need not last.
pub struct MemoryDisk(RwLock<Vec<u8>>);

impl MemoryDisk {
    /// A disk that holds `bytes`.
    #[must_use]
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(RwLock::new(bytes))
    }

    /// All of it, to be looked at.
    pub fn bytes(&self) -> RwLockReadGuard<'_, Vec<u8>> {
        // Whoever panicked with the lock held has left bytes behind.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it, to be changed. Tell the device afterwards if it has another length.
    pub fn bytes_mut(&self) -> RwLockWriteGuard<'_, Vec<u8>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place(offset: u64, len: u64) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    Some(start..start.checked_add(usize::try_from(len).ok()?)?)
}

impl Backend for MemoryDisk {
    fn capacity(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }

    fn read(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        let bytes = self.bytes();
        let place = place(offset, buffers.len()).and_then(|place| bytes.get(place));
        let mut rest = place.ok_or(ErrorKind::UnexpectedEof)?;
        for slice in buffers.slices() {
            let (now, later) = rest.split_at_checked(slice.len()).unwrap_or_default();
            slice.copy_from(now);
            rest = later;
        }
        Ok(())
    }

    fn write(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        let mut bytes = self.bytes_mut();
        let place = place(offset, buffers.len()).and_then(|place| bytes.get_mut(place));
        let mut rest = place.ok_or(ErrorKind::WriteZero)?;
        for slice in buffers.slices() {
            let (now, later) = rest.split_at_mut_checked(slice.len()).unwrap_or_default();
            slice.copy_to(now);
            rest = later;
        }
        Ok(())
    }

    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.write_zeroes(range, true)
    }

    fn write_zeroes(&self, range: Range<u64>, _unmap: bool) -> io::Result<()> {
        let mut bytes = self.bytes_mut();
        let len = range.end.saturating_sub(range.start);
        let place = place(range.start, len).and_then(|place| bytes.get_mut(place));
        place.ok_or(ErrorKind::WriteZero)?.fill(0);
        Ok(())
    }
}

/// Says nothing of what is on the disk.
impl fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDisk").finish_non_exhaustive()
    }
}

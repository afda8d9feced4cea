// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A back end in a few lines: a disk in the host's memory.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "each test uses a part of it"
)]

use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use virtio_blk_device::{Backend, Buffers};

/// A disk in the host's memory, for what need not last.
#[derive(Debug)]
pub struct MemoryDisk(RwLock<Vec<u8>>);

impl MemoryDisk {
    /// A disk that holds `bytes`.
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(RwLock::new(bytes))
    }

    /// All of it, to be looked at.
    pub fn bytes(&self) -> RwLockReadGuard<'_, Vec<u8>> {
        // Whoever panicked with the lock held has left bytes behind, which is all there is to a disk.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it, to be changed. Tell the device afterwards if it has another length.
    pub fn bytes_mut(&self) -> RwLockWriteGuard<'_, Vec<u8>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where bytes of a disk are.
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
        let place = place(offset, buffers.bytes()).and_then(|place| bytes.get(place));
        buffers.copy_from(0, place.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        let mut bytes = self.bytes_mut();
        let place = place(offset, buffers.bytes()).and_then(|place| bytes.get_mut(place));
        buffers.copy_to(0, place.ok_or(ErrorKind::WriteZero)?);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, range: Range<u64>, _unmap: bool) -> io::Result<()> {
        let mut bytes = self.bytes_mut();
        let place = place(range.start, range.end.saturating_sub(range.start));
        let place = place.and_then(|place| bytes.get_mut(place));
        place.ok_or(ErrorKind::WriteZero)?.fill(0);
        Ok(())
    }
}

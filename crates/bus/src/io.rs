// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The data of one access, and the call into the device.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{AccessError, BusDeviceSync, Direction};

/// What comes of an access.
pub(crate) type Outcome = Result<(), AccessError>;

/// The data of an access.
pub(crate) enum Io<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

impl Io<'_> {
    #[inline(always)]
    pub(crate) fn width(&self) -> usize {
        match self {
            Self::Read(data) => data.len(),
            Self::Write(data) => data.len(),
        }
    }

    pub(crate) fn direction(&self) -> Direction {
        match self {
            Self::Read(_) => Direction::Read,
            Self::Write(_) => Direction::Write,
        }
    }

    /// What the reader is going to see; nothing for a write.
    #[inline(always)]
    pub(crate) fn buffer(&mut self) -> &mut [u8] {
        match self {
            Self::Read(data) => data,
            Self::Write(_) => &mut [],
        }
    }

    /// Overwrites the buffer and tells whether the width is one that a bus carries.
    #[inline(always)]
    pub(crate) fn prepare(&mut self, fill: [u8; 8]) -> bool {
        let width = self.width();
        let data = self.buffer();
        // A known length makes each of these a single store.
        match width {
            1 => fill_chunk::<1>(data, fill),
            2 => fill_chunk::<2>(data, fill),
            4 => fill_chunk::<4>(data, fill),
            8 => fill_chunk::<8>(data, fill),
            _ => {
                data.fill(fill[0]);
                return false;
            }
        }
        true
    }

    /// Calls a device; `None` if it panicked.
    #[inline(always)]
    pub(crate) fn call(&mut self, device: &dyn BusDeviceSync, offset: u64) -> Option<Outcome> {
        // Costs nothing as long as nobody panics. What the handler may have left half-done is not
        // used: the buffer is filled anew, and the device is given up.
        let called = catch_unwind(AssertUnwindSafe(|| match self {
            Self::Read(data) => device.read(offset, data),
            Self::Write(data) => device.write(offset, data),
        }));
        called.map_err(discard).ok()
    }
}

#[inline(always)]
fn fill_chunk<const N: usize>(data: &mut [u8], fill: [u8; 8]) {
    if let (Some(chunk), Some(fill)) = (data.first_chunk_mut::<N>(), fill.first_chunk()) {
        *chunk = *fill;
    }
}

/// Drops what a handler panicked with, which could panic again.
#[cold]
fn discard(payload: Box<dyn Any + Send>) {
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(payload)));
    std::mem::forget(dropped.err());
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One access: what it is, and what may come of it.

use std::fmt;
use std::ops::Range;

use crate::width::pieces;
use crate::{BusDeviceSync, RegionInfo};

/// Why an access did not reach a device, or was refused by it.
///
/// An access that fails is never fatal: a read leaves the fill value of the bus in the buffer, a
/// write is dropped, and the guest goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AccessError {
    /// No device claims the address.
    Unclaimed,
    /// The access starts inside a region and ends outside of it, or beyond the address space.
    CrossesEnd,
    /// The bus, the region or the device does not take accesses of this width.
    Width,
    /// The region or the device does not take accesses at this alignment.
    Misaligned,
    /// The device has nothing at this offset.
    Offset,
    /// The device's register at this offset cannot be written.
    ReadOnly,
    /// The device's register at this offset cannot be read.
    WriteOnly,
    /// The device takes no such access at all.
    Refused,
    /// The device could not answer, for a reason of its own.
    Failed,
    /// The device's handler panicked, now or earlier; it is not called any more.
    Panicked,
    /// The device was called again from inside its own handler, or accesses nest too deep.
    Reentrant,
    /// The handler that made this access holds its device's lock, and whoever holds the lock of the
    /// accessed device waits for that, or for this handler to end: both would wait for ever.
    Deadlock,
}

impl fmt::Display for AccessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unclaimed => "no device at this address",
            Self::CrossesEnd => "access crosses the end of the region",
            Self::Width => "access width not supported",
            Self::Misaligned => "access not aligned",
            Self::Offset => "no register at this offset",
            Self::ReadOnly => "register is read-only",
            Self::WriteOnly => "register is write-only",
            Self::Refused => "device refuses the access",
            Self::Failed => "device failed",
            Self::Panicked => "device panicked",
            Self::Reentrant => "device called from inside its own handler",
            Self::Deadlock => "device is locked by who waits for the caller",
        })
    }
}

impl std::error::Error for AccessError {}

/// One finished access, as an observer sees it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Access<'a, K> {
    /// Where the access started.
    pub addr: K,
    /// How many bytes it was for: whatever the caller passed, also 0 or more than 8.
    pub width: usize,
    /// Whether the guest wrote; otherwise it read.
    pub is_write: bool,
    /// The region that it started in.
    pub region: Option<&'a RegionInfo<K>>,
    /// What came of it.
    pub outcome: Result<(), AccessError>,
}

/// The bytes of an access.
pub(crate) enum Data<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

impl Data<'_> {
    pub(crate) fn width(&self) -> usize {
        match self {
            Self::Read(data) => data.len(),
            Self::Write(data) => data.len(),
        }
    }

    /// Calls the device for each piece. The first that fails ends the access; otherwise the answer
    /// to the last is the answer.
    #[inline(always)]
    pub(crate) fn pass<R>(
        &mut self,
        device: &dyn BusDeviceSync<R>,
        initiator: Option<u32>,
        offset: u64,
    ) -> Result<R, AccessError> {
        match self.width().is_power_of_two() {
            true => self.pass_piece(device, initiator, offset, 0..self.width()),
            false => self.pass_split(device, initiator, offset),
        }
    }

    #[cold]
    #[inline(never)]
    fn pass_split<R>(
        &mut self,
        device: &dyn BusDeviceSync<R>,
        initiator: Option<u32>,
        offset: u64,
    ) -> Result<R, AccessError> {
        let mut outcome = Err(AccessError::Width);
        for piece in pieces(offset, self.width()) {
            let at = offset + piece.start as u64;
            outcome = self.pass_piece(device, initiator, at, piece);
            if outcome.is_err() {
                break;
            }
        }
        outcome
    }

    #[inline(always)]
    fn pass_piece<R>(
        &mut self,
        device: &dyn BusDeviceSync<R>,
        initiator: Option<u32>,
        offset: u64,
        piece: Range<usize>,
    ) -> Result<R, AccessError> {
        match self {
            Self::Read(data) => {
                let data = data.get_mut(piece).unwrap_or_default();
                device.read_by(initiator, offset, data)
            }
            Self::Write(data) => {
                let data = data.get(piece).unwrap_or_default();
                device.write_by(initiator, offset, data)
            }
        }
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The bytes of one access, and their way to the device.

use std::ops::Range;

use crate::width::pieces;
use crate::{AccessError, BusDeviceSync};

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

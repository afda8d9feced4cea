// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that tell of each call, and what a bus must make of an access to a region.

use std::sync::{Arc, Mutex};

use bus::{AccessError, BusDeviceSync, RegionId};

use super::program::Rules;

/// One call of a device.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    pub(super) device: usize,
    pub(super) initiator: Option<u32>,
    pub(super) offset: u64,
    /// What was written, or how many bytes were to be read.
    pub(super) data: Result<Vec<u8>, usize>,
}

pub(super) type Calls = Arc<Mutex<Vec<Call>>>;

pub(super) struct Device {
    pub(super) number: usize,
    pub(super) calls: Calls,
}

/// What a device reads at an offset, for the device and its model.
pub(super) fn content(device: usize, offset: u64) -> u8 {
    (offset as u8).wrapping_mul(7).wrapping_add(device as u8)
}

/// Where the devices fail.
pub(super) fn fails(offset: u64) -> bool {
    offset % 16 == 13
}

impl Device {
    fn call(
        &self,
        initiator: Option<u32>,
        offset: u64,
        data: Result<Vec<u8>, usize>,
    ) -> Result<u64, AccessError> {
        self.calls.lock().unwrap().push(Call {
            device: self.number,
            initiator,
            offset,
            data,
        });
        match fails(offset) {
            true => Err(AccessError::Failed),
            false => Ok(offset),
        }
    }
}

impl BusDeviceSync<u64> for Device {
    fn read_by(
        &self,
        initiator: Option<u32>,
        offset: u64,
        data: &mut [u8],
    ) -> Result<u64, AccessError> {
        for (at, byte) in (offset..).zip(&mut *data) {
            *byte = content(self.number, at);
        }
        self.call(initiator, offset, Err(data.len()))
    }

    fn write_by(
        &self,
        initiator: Option<u32>,
        offset: u64,
        data: &[u8],
    ) -> Result<u64, AccessError> {
        self.call(initiator, offset, Ok(data.to_vec()))
    }
}

/// A region of the model; its arithmetic has room to spare.
#[derive(Clone)]
pub(super) struct Interval {
    pub(super) id: RegionId,
    pub(super) base: u128,
    pub(super) len: u64,
    pub(super) device: usize,
    pub(super) rules: Rules,
    /// Reads, writes, and those of both that failed.
    pub(super) counts: [u64; 3],
}

impl Interval {
    pub(super) fn end(&self) -> u128 {
        self.base + u128::from(self.len)
    }

    fn takes(&self, width: usize) -> bool {
        let mask = self.rules.widths.unwrap_or(0xf);
        (0..4).any(|log| width == 1 << log && mask & 1 << log != 0)
    }

    /// Where in the region an access is, if the region takes it.
    pub(super) fn route(&self, addr: u128, width: usize) -> Result<u64, AccessError> {
        let offset = u64::try_from(addr - self.base).unwrap();
        let whole = width.is_power_of_two();
        if !(1..=8).contains(&width) || !pieces(offset, width).iter().all(|it| self.takes(it.1)) {
            Err(AccessError::Width)
        } else if addr + width as u128 > self.end() {
            Err(AccessError::CrossesEnd)
        } else if self.rules.aligned && whole && offset % width as u64 != 0 {
            Err(AccessError::Misaligned)
        } else {
            Ok(offset)
        }
    }
}

/// The accesses of a device, offset and width, that an access is made of.
pub(super) fn pieces(offset: u64, width: usize) -> Vec<(u64, usize)> {
    if width.is_power_of_two() {
        return vec![(offset, width)];
    }
    let (mut at, mut left, mut all) = (offset, width, Vec::new());
    while left > 0 {
        let fits = |len: &usize| *len <= left && at % *len as u64 == 0;
        let len = [4, 2, 1].into_iter().find(fits).unwrap();
        all.push((at, len));
        (at, left) = (at.wrapping_add(len as u64), left - len);
    }
    all
}

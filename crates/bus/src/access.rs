// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One access: what it carries, and what an observer sees of it.

use crate::{AccessError, BusDeviceSync, RegionInfo};

/// What comes of an access.
pub(crate) type Outcome = Result<(), AccessError>;

/// One finished access, as an observer sees it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Access<'a, K> {
    /// Where the access started.
    pub addr: K,
    /// How many bytes it was for: whatever the caller passed, also 0 or more than 8.
    pub width: usize,
    /// Whether it was a read or a write.
    pub direction: Direction,
    /// The region that it started in.
    pub region: Option<&'a RegionInfo<K>>,
    /// What came of it.
    pub outcome: Result<(), AccessError>,
}

/// Which way an access goes, from the guest's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The guest reads.
    Read,
    /// The guest writes.
    Write,
}

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

    /// What an observer sees.
    pub(crate) fn seen<'a, K>(
        &self,
        addr: K,
        region: Option<&'a RegionInfo<K>>,
        outcome: Outcome,
    ) -> Access<'a, K> {
        Access {
            addr,
            width: self.width(),
            direction: match self {
                Self::Read(_) => Direction::Read,
                Self::Write(_) => Direction::Write,
            },
            region,
            outcome,
        }
    }

    /// Overwrites what the reader is going to see.
    #[inline(always)]
    pub(crate) fn fill(&mut self, fill: [u8; 8]) {
        if let Self::Read(data) = self {
            // A known length makes each of these a single store.
            match data.len() {
                1 => fill_chunk::<1>(data, fill),
                2 => fill_chunk::<2>(data, fill),
                4 => fill_chunk::<4>(data, fill),
                8 => fill_chunk::<8>(data, fill),
                _ => data.fill(fill[0]),
            }
        }
    }

    #[inline(always)]
    pub(crate) fn call(&mut self, device: &dyn BusDeviceSync, offset: u64) -> Outcome {
        match self {
            Self::Read(data) => device.read(offset, data),
            Self::Write(data) => device.write(offset, data),
        }
    }
}

#[inline(always)]
fn fill_chunk<const N: usize>(data: &mut [u8], fill: [u8; 8]) {
    if let (Some(chunk), Some(fill)) = (data.first_chunk_mut::<N>(), fill.first_chunk()) {
        *chunk = *fill;
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a driver asks for, and how it is answered (VIRTIO 1.3, section 5.2.6).

use std::ops::Range;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_device_core::{BadRequest, Chain, Reader, RingMemory};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory};

use crate::config::{MAX_DISCARD_SECTORS, MAX_ZEROES_SECTORS};
use crate::observer::Operation;

/// Bytes of a sector, whatever the block size.
pub(crate) const SECTOR: u64 = 512;
/// Bytes of the header, and of a range to discard.
pub(crate) const HEADER: u64 = 16;
/// Bytes of the device's name for itself.
pub(crate) const ID_LEN: usize = 20;

/// What requests are measured against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disk {
    /// Bytes, whole sectors.
    pub(crate) capacity: u64,
    pub(crate) read_only: bool,
}

/// What a request comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Read(Range<u64>),
    Write(Range<u64>),
    Flush,
    Id,
    Discard(Range<u64>),
    WriteZeroes(Range<u64>, bool),
}

impl Action {
    /// Bytes of the data that it moves, in either direction.
    pub(crate) fn moved(&self) -> u64 {
        match self {
            Self::Read(range) | Self::Write(range) => range.end - range.start,
            _ => 0,
        }
    }

    /// What the host does for it, and to which bytes of the disk.
    pub(crate) fn operation(&self) -> Option<(Operation, Range<u64>)> {
        match self {
            Self::Read(range) => Some((Operation::Read, range.clone())),
            Self::Write(range) => Some((Operation::Write, range.clone())),
            Self::Flush => Some((Operation::Flush, 0..u64::MAX)),
            Self::Discard(range) => Some((Operation::Discard, range.clone())),
            Self::WriteZeroes(range, _) => Some((Operation::WriteZeroes, range.clone())),
            Self::Id => None,
        }
    }

    /// Bytes that it writes into the driver's buffers.
    pub(crate) fn data(&self) -> u64 {
        match self {
            Self::Read(range) => range.end - range.start,
            Self::Id => ID_LEN as u64,
            _ => 0,
        }
    }
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The chain is not one of a request.
    Bad(BadRequest),
    /// The disk does not have it.
    Failed,
    /// The device does not know it.
    Unsupported,
}

impl From<BadRequest> for Refusal {
    fn from(error: BadRequest) -> Self {
        Self::Bad(error)
    }
}

/// How a request has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With so many bytes written into its data buffers.
    Done(u64),
    Failed,
    Unsupported,
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Bad(_) | Refusal::Failed => Self::Failed,
            Refusal::Unsupported => Self::Unsupported,
        }
    }
}

/// Where the answer goes: the last byte that the driver lets the device write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    status: GuestAddress,
    /// The device-writable bytes before the status.
    pub(crate) room: u64,
}

impl Answer {
    /// The place for the answer, if the chain has one.
    pub(crate) fn find(chain: &Chain) -> Option<Self> {
        let mut buffers = chain.buffers().iter().rev();
        let last = buffers.find(|buffer| buffer.writable && buffer.len != 0)?;
        Some(Self {
            status: last.addr.checked_add(u64::from(last.len) - 1)?,
            room: chain.writable_len() - 1,
        })
    }

    /// Writes the status, after everything else, and returns the used length: how much was written
    /// from the first device-writable byte on.
    pub(crate) fn give(self, memory: &impl GuestMemory, outcome: Outcome) -> u32 {
        let (status, written) = match outcome {
            Outcome::Done(written) => (VIRTIO_BLK_S_OK, written),
            Outcome::Failed => (VIRTIO_BLK_S_IOERR, 0),
            Outcome::Unsupported => (VIRTIO_BLK_S_UNSUPP, 0),
        };
        let [status, ..] = status.to_le_bytes();
        // The order is the driver's to rely on only once the request is used, which comes later still.
        let answered = memory.write_obj(status, self.status).is_ok();
        let status = u64::from(answered && written == self.room);
        u32::try_from(written + status).unwrap_or(u32::MAX)
    }
}

/// Reads what is asked for; nothing has been touched if it is refused.
pub(crate) fn parse<R: RingMemory>(
    chain: &Chain,
    rings: &R,
    answer: Option<Answer>,
    disk: Disk,
) -> Result<Action, Refusal> {
    chain.check(rings)?;
    let Answer { room, .. } = answer.ok_or(BadRequest::Layout)?;
    let direction = |buffer: &virtio_device_core::Buffer| buffer.writable;
    if !chain.buffers().is_sorted_by_key(direction) {
        return Err(BadRequest::Layout.into());
    }
    let mut reader = chain.reader(rings.memory());
    let [a, b, c, d, _, _, _, _, sector @ ..] = reader.read_array::<16>()?;
    let kind = u32::from_le_bytes([a, b, c, d]);
    let sector = u64::from_le_bytes(sector);
    match kind {
        VIRTIO_BLK_T_IN => Ok(Action::Read(disk.range(sector, room)?)),
        VIRTIO_BLK_T_OUT => {
            let range = disk.range(sector, reader.remaining())?;
            disk.writable().map(|()| Action::Write(range))
        }
        VIRTIO_BLK_T_FLUSH => Ok(Action::Flush),
        VIRTIO_BLK_T_GET_ID if room >= ID_LEN as u64 => Ok(Action::Id),
        VIRTIO_BLK_T_GET_ID => Err(Refusal::Failed),
        VIRTIO_BLK_T_DISCARD => {
            let (range, unmap) = disk.segment(&mut reader, 0, MAX_DISCARD_SECTORS)?;
            debug_assert!(!unmap, "no flag is known");
            Ok(Action::Discard(range))
        }
        VIRTIO_BLK_T_WRITE_ZEROES => {
            let known = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
            let (range, unmap) = disk.segment(&mut reader, known, MAX_ZEROES_SECTORS)?;
            Ok(Action::WriteZeroes(range, unmap))
        }
        _ => Err(Refusal::Unsupported),
    }
}

impl Disk {
    /// The bytes of whole sectors that the disk has.
    fn range(self, sector: u64, len: u64) -> Result<Range<u64>, Refusal> {
        let start = sector.checked_mul(SECTOR).ok_or(Refusal::Failed)?;
        let end = start.checked_add(len).ok_or(Refusal::Failed)?;
        if len % SECTOR != 0 || end > self.capacity {
            return Err(Refusal::Failed);
        }
        Ok(start..end)
    }

    fn writable(self) -> Result<(), Refusal> {
        match self.read_only {
            true => Err(Refusal::Failed),
            false => Ok(()),
        }
    }

    /// The one range of a request to discard or to zero, and whether it may be unmapped.
    fn segment<M: GuestMemory>(
        self,
        reader: &mut Reader<'_, M>,
        known_flags: u32,
        most: u32,
    ) -> Result<(Range<u64>, bool), Refusal> {
        self.writable()?;
        if reader.remaining() != HEADER {
            return Err(Refusal::Failed);
        }
        let words: [u8; 16] = reader.read_array()?;
        let (sector, rest) = words.split_at(8);
        let (count, flags) = rest.split_at(4);
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap_or_default());
        let (count, flags) = (word(count), word(flags));
        if flags & !known_flags != 0 {
            return Err(Refusal::Unsupported);
        }
        if count > most {
            return Err(Refusal::Failed);
        }
        let sector = u64::from_le_bytes(sector.try_into().unwrap_or_default());
        let range = self.range(sector, u64::from(count) * SECTOR)?;
        Ok((range, flags != 0))
    }
}

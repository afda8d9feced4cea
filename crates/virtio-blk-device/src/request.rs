// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a driver asks for, and how it is answered (VIRTIO 1.3, section 5.2.6).

use std::ops::Range;

use virtio_bindings::virtio_blk as blk;
use virtio_device_core::{BadRequest, Chain, ChainStream, RingMemory};
use vm_memory::GuestMemory;

use crate::config::{MAX_DISCARD_SECTORS, MAX_ZEROES_SECTORS};
use crate::observer::Operation;

/// Bytes of a sector, whatever the block size.
pub(crate) const SECTOR: u64 = 512;
/// Bytes of the header, and of a range to discard.
pub(crate) const HEADER: usize = 16;
/// Bytes of the device's name for itself.
pub(crate) const ID_LEN: usize = 20;

/// What requests are measured against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disk {
    /// Bytes, whole sectors.
    pub(crate) capacity: u64,
    pub(crate) read_only: bool,
}

/// A request that the device can try to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) operation: Operation,
    /// Bytes of the disk.
    pub(crate) range: Range<u64>,
    /// Whether the room of zeroes may be given back.
    pub(crate) unmap: bool,
}

/// Why a request has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The chain is not one of a request.
    Bad(BadRequest),
    /// The disk does not have it, or the host has failed.
    Failed,
    /// The device or the host does not know it.
    Unsupported,
}

impl From<BadRequest> for Refusal {
    fn from(error: BadRequest) -> Self {
        Self::Bad(error)
    }
}

/// The status byte of a request that has ended like this.
pub(crate) const fn status(outcome: Result<u64, Refusal>) -> u8 {
    let status = match outcome {
        Ok(_) => blk::VIRTIO_BLK_S_OK,
        Err(Refusal::Unsupported) => blk::VIRTIO_BLK_S_UNSUPP,
        Err(_) => blk::VIRTIO_BLK_S_IOERR,
    };
    status.to_le_bytes()[0]
}

impl Request {
    /// Reads what is asked for; nothing has been touched if it is refused.
    pub(crate) fn parse<R: RingMemory>(
        chain: &Chain,
        rings: &R,
        disk: Disk,
    ) -> Result<Self, Refusal> {
        chain.check(rings)?;
        // The last byte is the status.
        let room = chain.writable_len().checked_sub(1);
        let room = room
            .filter(|_| chain.is_ordered())
            .ok_or(BadRequest::Layout)?;
        let mut reader = chain.reader(rings);
        let [a, b, c, d, _, _, _, _, sector @ ..] = reader.read_array::<16>()?;
        let sector = u64::from_le_bytes(sector);
        let kind = u32::from_le_bytes([a, b, c, d]);
        let (operation, (range, unmap)) = match kind {
            blk::VIRTIO_BLK_T_OUT | blk::VIRTIO_BLK_T_DISCARD | blk::VIRTIO_BLK_T_WRITE_ZEROES
                if disk.read_only =>
            {
                return Err(Refusal::Failed);
            }
            blk::VIRTIO_BLK_T_IN => (Operation::Read, (disk.range(sector, room)?, false)),
            blk::VIRTIO_BLK_T_OUT => {
                let range = disk.range(sector, reader.remaining())?;
                (Operation::Write, (range, false))
            }
            blk::VIRTIO_BLK_T_FLUSH => (Operation::Flush, (0..disk.capacity, false)),
            blk::VIRTIO_BLK_T_GET_ID if room < ID_LEN as u64 => return Err(Refusal::Failed),
            blk::VIRTIO_BLK_T_GET_ID => (Operation::GetId, (0..ID_LEN as u64, false)),
            blk::VIRTIO_BLK_T_DISCARD => {
                let limits = (MAX_DISCARD_SECTORS, 0);
                (Operation::Discard, disk.segment(&mut reader, limits)?)
            }
            blk::VIRTIO_BLK_T_WRITE_ZEROES => {
                let limits = (MAX_ZEROES_SECTORS, blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP);
                (Operation::WriteZeroes, disk.segment(&mut reader, limits)?)
            }
            _ => return Err(Refusal::Unsupported),
        };
        Ok(Self {
            operation,
            range,
            unmap,
        })
    }

    /// Bytes of the data that move between the disk and the driver's buffers.
    pub(crate) const fn moved(&self) -> u64 {
        match self.operation {
            Operation::Read | Operation::Write => self.range.end - self.range.start,
            _ => 0,
        }
    }

    /// Bytes that are written into the driver's buffers, if all goes well.
    pub(crate) const fn written(&self) -> u64 {
        match self.operation {
            Operation::Read | Operation::GetId => self.range.end - self.range.start,
            _ => 0,
        }
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

    /// The one range to discard or to zero, of so many sectors at most and with these flags, and whether
    /// there are any.
    fn segment<M: GuestMemory>(
        self,
        reader: &mut ChainStream<'_, M, false>,
        (most, known_flags): (u32, u32),
    ) -> Result<(Range<u64>, bool), Refusal> {
        if reader.remaining() != HEADER as u64 {
            return Err(Refusal::Failed);
        }
        let sector = u64::from_le_bytes(reader.read_array()?);
        let count = u32::from_le_bytes(reader.read_array()?);
        let flags = u32::from_le_bytes(reader.read_array()?);
        if flags & !known_flags != 0 {
            return Err(Refusal::Unsupported);
        }
        if count > most {
            return Err(Refusal::Failed);
        }
        let range = self.range(sector, u64::from(count) * SECTOR)?;
        Ok((range, flags != 0))
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A back end of one's own in a few lines: a disk in the host's memory, for what need not last.
//!
//! `cargo run -p virtio-blk-device --example memory_disk`
#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "a benchmark uses the disk, and not the program"
)]

use std::error::Error;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::Arc;

use virtio_blk_device::{Backend, Block, Buffers};
use virtio_device_core::StepLoop;
use vm_memory::{MmapRegion, VolatileMemory as _, VolatileSlice};

/// Anonymous memory, mapped as guest memory is. Nobody locks it: two requests for one sector at the same
/// time have no order on any disk.
#[derive(Debug)]
pub struct MemoryDisk(MmapRegion<()>);

impl MemoryDisk {
    /// A disk of `len` zeroes.
    ///
    /// # Errors
    ///
    /// If there is no such room.
    pub fn new(len: usize) -> io::Result<Self> {
        Ok(Self(MmapRegion::new(len).map_err(io::Error::other)?))
    }

    fn place(&self, offset: u64, len: u64) -> io::Result<VolatileSlice<'_>> {
        let place = usize::try_from(offset).ok().zip(usize::try_from(len).ok());
        let place = place.and_then(|(offset, len)| self.0.get_slice(offset, len).ok());
        place.ok_or_else(|| ErrorKind::UnexpectedEof.into())
    }
}

impl Backend for MemoryDisk {
    fn capacity(&self) -> io::Result<u64> {
        Ok(self.0.size() as u64)
    }

    fn read(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        let mut rest = self.place(offset, buffers.bytes())?;
        for slice in buffers.slices() {
            rest.copy_to_volatile_slice(slice);
            rest = rest.offset(slice.len()).map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn write(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        let mut rest = self.place(offset, buffers.bytes())?;
        for slice in buffers.slices() {
            slice.copy_to_volatile_slice(rest);
            rest = rest.offset(slice.len()).map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, range: Range<u64>, _unmap: bool) -> io::Result<()> {
        let place = self.place(range.start, range.end - range.start)?;
        for at in (0..place.len()).step_by(SECTOR.len()) {
            let sector = place.subslice(at, SECTOR.len()).map_err(io::Error::other)?;
            sector.copy_from(SECTOR);
        }
        Ok(())
    }
}

/// A sector without anything in it.
const SECTOR: &[u8] = &[0; 512];

fn main() -> Result<(), Box<dyn Error>> {
    let workers = StepLoop::new()?;
    let disk = Arc::new(MemoryDisk::new(64 << 20)?);
    let device = Block::new(disk, workers.handle())?.with_id("memory")?;
    println!("{} bytes", device.handle().refresh()?);
    // Now put `device` behind a transport, and step `workers`.
    Ok(())
}

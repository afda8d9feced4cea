// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An image file or a block device.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    AtFlags, FallocateFlags, OFlags, SeekFrom, StatxFlags, fallocate, fcntl_getfl, fdatasync,
    ioctl_blkpbszget, ioctl_blksszget, seek, statx,
};
use rustix::io::Errno;

use crate::backend::{Backend, Buffers, Geometry};
use crate::raw;

/// What is written where holes cannot be punched.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// How a [`FileBackend`] uses its file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileOptions {
    /// The guest cannot write. Any number of those can share a file, but not with a writer.
    pub read_only: bool,
    /// Past the host's page cache (`O_DIRECT`), where a request is aligned as that needs. Others,
    /// which a driver that heeds the block size does not make, go through the cache.
    pub direct: bool,
}

/// A disk that is a file, sector by sector, or a block device.
///
/// Data moves between the file and guest memory without a copy. Holes are punched for what the
/// driver discards. A file is locked as long as the back end lives (an open file description lock of
/// all of it), so that two of them never write to one image. Once a flush has failed, the kernel may
/// have dropped what it could not write: from then on every flush fails.
#[derive(Debug)]
pub struct FileBackend {
    file: File,
    direct: Option<Direct>,
    read_only: bool,
    is_device: bool,
    geometry: Geometry,
    /// Whether something that the driver has written may be lost.
    lost: AtomicBool,
}

/// The same file past the page cache.
#[derive(Debug)]
struct Direct {
    file: File,
    /// What memory and offsets must be multiples of: powers of two.
    memory: usize,
    offset: usize,
}

/// An error that says what could not be done.
fn failed(what: &str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, what)
}

impl FileBackend {
    /// Opens the file at `path`.
    ///
    /// # Errors
    ///
    /// If it cannot be opened, and as [`FileBackend::new`].
    pub fn open(path: impl AsRef<Path>, options: FileOptions) -> io::Result<Self> {
        let write = !options.read_only;
        let file = File::options().read(true).write(write).open(path)?;
        Self::new(file, options)
    }

    /// Uses a file that is open, as its open mode allows.
    ///
    /// # Errors
    ///
    /// If it is neither a file nor a block device, is not open for what the options want, is used by
    /// somebody else ([`ErrorKind::ResourceBusy`]), or cannot do direct I/O.
    pub fn new(file: File, options: FileOptions) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let is_device = metadata.file_type().is_block_device();
        if !is_device && !metadata.is_file() {
            return Err(invalid("neither a regular file nor a block device"));
        }
        if !options.read_only && !fcntl_getfl(&file)?.contains(OFlags::RDWR) {
            return Err(invalid("not open for reading and writing"));
        }
        raw::lock(file.as_fd(), !options.read_only).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::PermissionDenied => {
                io::Error::new(ErrorKind::ResourceBusy, "somebody else is using it")
            }
            _ => failed("it cannot be locked")(error),
        })?;
        let direct = match options.direct {
            true => Some(Direct::open(&file, is_device, options.read_only)?),
            false => None,
        };
        let (mut logical, physical) = match is_device {
            true => (ioctl_blksszget(&file)?, ioctl_blkpbszget(&file)?),
            false => (512, u32::try_from(metadata.blksize()).unwrap_or(4096)),
        };
        if let Some(direct) = &direct {
            let needed = u32::try_from(direct.offset).unwrap_or(4096);
            logical = logical.max(needed).min(4096);
        }
        // What makes no sense is left out: it is advice.
        let geometry = Geometry::new(logical, physical)
            .or_else(|| Geometry::new(logical, logical.max(4096)))
            .unwrap_or_default();
        Ok(Self {
            file,
            direct,
            read_only: options.read_only,
            is_device,
            geometry,
            lost: AtomicBool::new(false),
        })
    }

    /// The descriptor that a transfer goes through.
    pub(crate) fn descriptor(&self, offset: u64, buffers: &Buffers<'_>) -> BorrowedFd<'_> {
        match &self.direct {
            Some(direct) if direct.takes(offset, buffers) => direct.file.as_fd(),
            _ => self.file.as_fd(),
        }
    }

    /// Takes note of how a flush has ended.
    pub(crate) fn flushed(&self, result: io::Result<()>) -> io::Result<()> {
        if result.is_err() {
            self.lost.store(true, Ordering::SeqCst);
        }
        if self.lost.load(Ordering::SeqCst) {
            return result.and_then(|()| Err(io::Error::other("an earlier flush has failed")));
        }
        result
    }

    fn fallocate(&self, flags: FallocateFlags, range: &Range<u64>) -> io::Result<()> {
        let flags = flags | FallocateFlags::KEEP_SIZE;
        let len = range.end.saturating_sub(range.start);
        loop {
            match fallocate(&self.file, flags, range.start, len) {
                Err(Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    fn write_zeroes_by_hand(&self, range: &Range<u64>) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let len = usize::try_from(range.end - at).unwrap_or(usize::MAX);
            let zeroes = ZEROES.get(..len).unwrap_or(&ZEROES);
            self.file.write_all_at(zeroes, at)?;
            at += zeroes.len() as u64;
        }
        Ok(())
    }
}

impl Direct {
    fn open(file: &File, is_device: bool, read_only: bool) -> io::Result<Self> {
        // The very same file, whatever has become of its path.
        let same = format!("/proc/self/fd/{}", file.as_raw_fd());
        let file = File::options()
            .read(true)
            .write(!read_only)
            .custom_flags(i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0))
            .open(same)
            .map_err(failed("it cannot be opened for direct I/O"))?;
        let (memory, offset) = match statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
            Ok(it) if it.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
                (it.stx_dio_mem_align, it.stx_dio_offset_align)
            }
            // A kernel or a file system that does not say.
            _ if is_device => (ioctl_blksszget(&file)?, ioctl_blksszget(&file)?),
            _ => (4096, 4096),
        };
        if !memory.is_power_of_two() || !offset.is_power_of_two() {
            return Err(invalid("its file system has no direct I/O for it"));
        }
        Ok(Self {
            file,
            memory: memory as usize,
            offset: offset as usize,
        })
    }

    fn takes(&self, offset: u64, buffers: &Buffers<'_>) -> bool {
        offset & (self.offset as u64 - 1) == 0 && buffers.is_aligned(self.memory, self.offset)
    }
}

impl Backend for FileBackend {
    fn capacity(&self) -> io::Result<u64> {
        match self.is_device {
            true => Ok(seek(&self.file, SeekFrom::End(0))?),
            false => Ok(self.file.metadata()?.len()),
        }
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        raw::read(self.descriptor(offset, buffers), offset, buffers)
    }

    fn write(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        raw::write(self.descriptor(offset, buffers), offset, buffers)
    }

    fn flush(&self) -> io::Result<()> {
        let result = loop {
            match fdatasync(&self.file) {
                Err(Errno::INTR) => {}
                result => break result,
            }
        };
        self.flushed(result.map_err(io::Error::from))
    }

    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.fallocate(FallocateFlags::PUNCH_HOLE, &range)
    }

    fn write_zeroes(&self, range: Range<u64>, unmap: bool) -> io::Result<()> {
        let way = if unmap {
            FallocateFlags::PUNCH_HOLE
        } else {
            FallocateFlags::ZERO_RANGE
        };
        match self.fallocate(way, &range) {
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                self.write_zeroes_by_hand(&range)
            }
            result => result,
        }
    }

    fn as_file(&self) -> Option<&FileBackend> {
        Some(self)
    }
}

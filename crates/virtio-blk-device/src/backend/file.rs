// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An image file or a block device.

use std::fs::{File, FileType};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{self, AtFlags, FallocateFlags, Mode, OFlags, SeekFrom, StatxFlags};
use rustix::io::retry_on_intr;

use crate::backend::{Backend, Buffers, Geometry, is_unsupported};
use crate::raw;

/// What is written where holes cannot be punched.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// How a [`FileBackend`] uses its file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileOptions {
    /// The guest cannot write (`VIRTIO_BLK_F_RO`). Any number of read-only back ends can share a
    /// file, but none of them with one that writes.
    pub read_only: bool,
    /// Bypasses the host's page cache (`O_DIRECT`). A request that is not aligned to the block
    /// size, which a driver that respects `VIRTIO_BLK_F_BLK_SIZE` does not make, still goes through
    /// the cache.
    pub direct: bool,
}

/// A raw image file, or a block device.
///
/// Data moves between the file and guest memory without a copy. What the driver discards becomes a
/// hole. The file is locked for as long as the back end lives (an open file description lock of all
/// of it), so that no two of them write to one image. Once a flush has failed, the kernel may have
/// dropped data that it could not write: from then on every flush fails.
///
/// The file may be truncated on the host at any time: requests beyond its new end fail, and no
/// write extends it again. For that its length is read before each write; so that no write is in
/// flight between the two, pause the device while you truncate the file, and call
/// [`BlockHandle::refresh`](crate::BlockHandle::refresh) afterwards.
///
/// ```
/// use virtio_blk_device::{Backend, FileBackend, FileOptions};
///
/// # fn size(path: &std::path::Path) -> std::io::Result<u64> {
/// let options = FileOptions { read_only: true, ..FileOptions::default() };
/// let image = FileBackend::open(path, options)?;
/// # assert!(image.is_read_only());
/// image.capacity()
/// # }
/// # let path = std::env::current_exe()?;
/// # assert_eq!(size(&path)?, std::fs::metadata(&path)?.len());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct FileBackend {
    file: File,
    /// The same file past the page cache, and what everything must be a multiple of.
    direct: Option<(File, u32)>,
    read_only: bool,
    is_device: bool,
    geometry: Geometry,
    /// Whether something that the driver has written may be lost.
    lost: AtomicBool,
    /// Held by a flush until it is noted how that ended: of two at the same time, the kernel tells one
    /// alone of what it could not write.
    flushing: Mutex<()>,
    /// As for flushes, for those that nobody waits for.
    #[cfg(feature = "io-uring")]
    pub(crate) syncs: crate::uring::Syncs,
}

impl FileBackend {
    /// Opens the file at `path`.
    ///
    /// # Errors
    ///
    /// If it cannot be opened, and as [`FileBackend::new`].
    pub fn open(path: impl AsRef<Path>, options: FileOptions) -> io::Result<Self> {
        let write = !options.read_only;
        // A pipe without a writer would keep whoever opens it.
        check_type(std::fs::metadata(&path)?.file_type())?;
        let file = File::options().read(true).write(write).open(path)?;
        Self::new(file, options)
    }

    /// Takes over an open file.
    ///
    /// # Errors
    ///
    /// If it is neither a regular file nor a block device, is not open in the mode that the options
    /// need, is locked by another user ([`ErrorKind::ResourceBusy`]), or does not support direct
    /// I/O.
    pub fn new(file: File, options: FileOptions) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let is_device = check_type(metadata.file_type())?;
        if !options.read_only && !fs::fcntl_getfl(&file)?.contains(OFlags::RDWR) {
            let why = "not open for writing";
            return Err(io::Error::new(ErrorKind::InvalidInput, why));
        }
        raw::lock(file.as_fd(), !options.read_only)?;
        let (logical, physical) = match is_device {
            true => (fs::ioctl_blksszget(&file)?, fs::ioctl_blkpbszget(&file)?),
            false => (512, u32::try_from(metadata.blksize()).unwrap_or(4096)),
        };
        let direct = (options.direct).then(|| open_direct(&file, logical, options.read_only));
        let none = |it: io::Error| io::Error::new(it.kind(), format!("it has no direct I/O: {it}"));
        let direct = direct.transpose().map_err(none)?;
        let align = direct.as_ref().map_or(0, |(_, align)| *align);
        Ok(Self {
            file,
            direct,
            read_only: options.read_only,
            is_device,
            geometry: Geometry::of(logical.max(align), physical),
            lost: AtomicBool::new(false),
            flushing: Mutex::default(),
            #[cfg(feature = "io-uring")]
            syncs: crate::uring::Syncs::default(),
        })
    }

    /// The descriptor that a transfer goes through.
    pub(crate) fn descriptor(&self, offset: u64, buffers: &Buffers<'_>) -> BorrowedFd<'_> {
        match &self.direct {
            Some((file, align)) if is_aligned(offset, buffers, *align) => file.as_fd(),
            _ => self.file.as_fd(),
        }
    }

    /// The descriptor for everything else.
    #[cfg(feature = "io-uring")]
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Refuses a change of what is beyond the end as it is now: a file that somebody has made shorter
    /// would be as long again as it was.
    pub(crate) fn check_end(&self, range: &Range<u64>) -> io::Result<()> {
        match self.is_device || range.end <= self.capacity()? {
            true => Ok(()),
            false => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Takes note of how a sync has ended, and says how that is told.
    pub(crate) fn synced(&self, result: io::Result<()>) -> io::Result<()> {
        let before = self.lost.fetch_or(loses_data(&result), Ordering::SeqCst);
        result.and_then(|()| match before {
            true => Err(io::Error::other("an earlier flush has failed")),
            false => Ok(()),
        })
    }

    fn fallocate(&self, flags: FallocateFlags, range: &Range<u64>) -> io::Result<()> {
        self.check_end(range)?;
        let flags = flags | FallocateFlags::KEEP_SIZE;
        // The kernel refuses a length of 0.
        let len = range.end.saturating_sub(range.start);
        Ok(retry_on_intr(|| {
            fs::fallocate(&self.file, flags, range.start, len)
        })?)
    }
}

/// Whether the place on the disk and every piece are aligned to `align`, a power of two.
fn is_aligned(offset: u64, buffers: &Buffers<'_>, align: u32) -> bool {
    let mut pieces = buffers.vectors().iter();
    let unaligned = |it: usize| it & (align as usize - 1) != 0;
    offset % u64::from(align) == 0 && !pieces.any(|it| unaligned(it.iov_base.addr() | it.iov_len))
}

/// Whether something may be lost that was written before a sync that has ended like this. The kernel
/// tells once of what it could not write; who was interrupted, or is to come again, was not told.
fn loses_data(synced: &io::Result<()>) -> bool {
    let error = synced.as_ref().err().map(io::Error::raw_os_error);
    error.is_some_and(|code| !matches!(code, Some(libc::EINTR | libc::EAGAIN)))
}

/// Opens the very same file, whatever has become of its path, for direct I/O; says what memory, offsets
/// and lengths must be multiples of, on a disk with blocks of `block` bytes.
fn open_direct(file: &File, block: u32, read_only: bool) -> io::Result<(File, u32)> {
    let same = format!("/proc/self/fd/{}", file.as_raw_fd());
    let access = match read_only {
        true => OFlags::RDONLY,
        false => OFlags::RDWR,
    };
    let flags = access | OFlags::DIRECT | OFlags::CLOEXEC;
    let file = File::from(fs::open(same, flags, Mode::empty())?);
    let align = match fs::statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(it) if it.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
            it.stx_dio_mem_align.max(it.stx_dio_offset_align).max(block)
        }
        // A kernel or a file system that does not say.
        _ => block.max(4096),
    };
    match align.is_power_of_two() {
        true => Ok((file, align)),
        false => Err(ErrorKind::Unsupported.into()),
    }
}

/// Whether it is a block device; otherwise it is a regular file.
fn check_type(file: FileType) -> io::Result<bool> {
    if !file.is_block_device() && !file.is_file() {
        let what = "neither a regular file nor a block device";
        return Err(io::Error::new(ErrorKind::InvalidInput, what));
    }
    Ok(file.is_block_device())
}

impl Backend for FileBackend {
    fn capacity(&self) -> io::Result<u64> {
        // Nobody else uses the position, and this works for both kinds of file.
        Ok(fs::seek(&self.file, SeekFrom::End(0))?)
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        buffers.read_exact_at(self.descriptor(offset, buffers), offset)
    }

    fn write(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        self.check_end(&(offset..offset.saturating_add(buffers.bytes())))?;
        buffers.write_all_at(self.descriptor(offset, buffers), offset)
    }

    fn flush(&self) -> io::Result<()> {
        let _turn = self.flushing.lock();
        #[cfg(feature = "io-uring")]
        let _sync = self.syncs.begin();
        self.synced(retry_on_intr(|| fs::fdatasync(&self.file)).map_err(io::Error::from))
    }

    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.fallocate(FallocateFlags::PUNCH_HOLE, &range)
    }

    fn write_zeroes(&self, mut range: Range<u64>, unmap: bool) -> io::Result<()> {
        let way = match unmap {
            true => FallocateFlags::PUNCH_HOLE,
            false => FallocateFlags::ZERO_RANGE,
        };
        match self.fallocate(way, &range) {
            Err(error) if is_unsupported(&error) => {}
            result => return result,
        }
        while !range.is_empty() {
            let left = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            let zeroes = ZEROES.get(..left).unwrap_or(&ZEROES);
            self.file.write_all_at(zeroes, range.start)?;
            range.start += zeroes.len() as u64;
        }
        Ok(())
    }

    fn as_file(&self) -> Option<&FileBackend> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sync_that_was_carried_out_and_failed_loses_data() {
        assert!(!loses_data(&Ok(())));
        for (code, loses) in [
            (libc::EINTR, false),
            (libc::EAGAIN, false),
            (libc::EIO, true),
            (libc::ENOSPC, true),
            (libc::EDQUOT, true),
            (libc::EOPNOTSUPP, true),
        ] {
            let error = io::Error::from_raw_os_error(code);
            assert_eq!(loses_data(&Err(error)), loses, "{code}");
        }
        assert!(loses_data(&Err(ErrorKind::Other.into())));
    }

    #[test]
    fn a_sync_that_has_failed_is_remembered_and_one_that_was_interrupted_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let disk = FileBackend::open(file.path(), FileOptions::default()).unwrap();
        let failed = |code| Err(io::Error::from_raw_os_error(code));
        for code in [libc::EINTR, libc::EAGAIN] {
            assert_eq!(
                disk.synced(failed(code)).unwrap_err().raw_os_error(),
                Some(code)
            );
            disk.synced(Ok(())).unwrap();
            disk.flush().unwrap();
        }
        disk.synced(failed(libc::EIO)).unwrap_err();
        disk.synced(Ok(())).unwrap_err();
        disk.flush().unwrap_err();
    }
}

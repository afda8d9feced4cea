// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the sectors are.

mod file;

use std::io::{self, ErrorKind};
use std::ops::Range;

pub use file::{FileBackend, FileOptions};
pub use virtio_device_core::Buffers;

/// Where a disk's sectors are stored: in a file, in memory, in an image format, on another machine.
///
/// The workers of all queues call it concurrently; what one call waits for or fails at affects that
/// request alone. Offsets and lengths are in bytes, multiples of 512, and within the capacity that
/// [`capacity`](Self::capacity) returned last, although the back end may have shrunk since.
///
/// A whole back end, a disk in the host's memory:
///
/// ```
/// use std::io::{self, ErrorKind};
/// use std::ops::Range;
/// use std::sync::RwLock;
/// use virtio_blk_device::{Backend, Buffers};
///
/// struct MemoryDisk(RwLock<Vec<u8>>);
///
/// impl Backend for MemoryDisk {
///     fn capacity(&self) -> io::Result<u64> {
///         Ok(self.0.read().unwrap().len() as u64)
///     }
///
///     fn read(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
///         let place = offset as usize..(offset + buffers.bytes()) as usize;
///         let bytes = self.0.read().unwrap();
///         buffers.copy_from(0, bytes.get(place).ok_or(ErrorKind::UnexpectedEof)?);
///         Ok(())
///     }
///
///     fn write(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
///         let place = offset as usize..(offset + buffers.bytes()) as usize;
///         let mut bytes = self.0.write().unwrap();
///         buffers.copy_to(0, bytes.get_mut(place).ok_or(ErrorKind::WriteZero)?);
///         Ok(())
///     }
///
///     fn flush(&self) -> io::Result<()> {
///         Ok(())
///     }
///
///     fn write_zeroes(&self, range: Range<u64>, _unmap: bool) -> io::Result<()> {
///         let range = range.start as usize..range.end as usize;
///         self.0.write().unwrap().get_mut(range).ok_or(ErrorKind::WriteZero)?.fill(0);
///         Ok(())
///     }
/// }
/// ```
pub trait Backend: Send + Sync + 'static {
    /// The capacity in bytes at present; a partial sector at the end is not used. Called when the
    /// device is made, and by [`BlockHandle::refresh`](crate::BlockHandle::refresh).
    ///
    /// # Errors
    ///
    /// If the capacity cannot be determined.
    fn capacity(&self) -> io::Result<u64>;

    /// Fills all of `buffers` with what is at `offset`: guest memory, in the driver's order, which the
    /// driver can change at any time.
    ///
    /// # Errors
    ///
    /// If not all of it could be read, whatever the reason: the request fails, and the device goes
    /// on.
    fn read(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()>;

    /// Whether the disk is read-only (`VIRTIO_BLK_F_RO`). If so, `write`, `flush`, `write_zeroes`
    /// and `discard` are never called.
    fn is_read_only(&self) -> bool {
        false
    }

    /// The block sizes that the driver is told (`VIRTIO_BLK_F_BLK_SIZE`, `VIRTIO_BLK_F_TOPOLOGY`).
    fn geometry(&self) -> Geometry {
        Geometry::default()
    }

    /// Writes all of `buffers` at `offset`. The data need not be on stable storage before a
    /// [`flush`](Self::flush).
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read).
    fn write(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()>;

    /// Brings all writes that were complete before the call to stable storage.
    ///
    /// # Errors
    ///
    /// If one of them may not be on stable storage.
    fn flush(&self) -> io::Result<()>;

    /// Makes `range` read as zeroes. With `unmap` its blocks may be deallocated.
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read); [`Unsupported`](io::ErrorKind::Unsupported) becomes
    /// `VIRTIO_BLK_S_UNSUPP`.
    fn write_zeroes(&self, range: Range<u64>, unmap: bool) -> io::Result<()>;

    /// Deallocates the blocks of `range`. What it reads as afterwards is not defined.
    ///
    /// # Errors
    ///
    /// As for [`write_zeroes`](Self::write_zeroes).
    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.write_zeroes(range, true)
    }

    /// The [`FileBackend`] that serves all of this without a change, if there is one: `io_uring`
    /// works on its file.
    fn as_file(&self) -> Option<&FileBackend> {
        None
    }
}

/// Block sizes that I/O should be aligned to. They are hints: requests are in sectors of 512 bytes,
/// and are served at any of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Geometry {
    /// Blocks of 512 bytes.
    #[default]
    Native512,
    /// Logical blocks of 512 bytes in physical ones of 4096.
    Emulated512,
    /// Blocks of 4096 bytes.
    Native4096,
}

impl Geometry {
    /// What comes closest to these sizes in bytes.
    pub(crate) const fn of(logical: u32, physical: u32) -> Self {
        match (logical, physical) {
            (..=512, ..=512) => Self::Native512,
            (..=512, _) => Self::Emulated512,
            _ => Self::Native4096,
        }
    }

    /// The logical and the physical block size in bytes.
    pub(crate) const fn sizes(self) -> (u32, u32) {
        match self {
            Self::Native512 => (512, 512),
            Self::Emulated512 => (512, 4096),
            Self::Native4096 => (4096, 4096),
        }
    }
}

/// Whether the host does not have an operation. Older standard libraries have no kind for the error.
pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    error.kind() == ErrorKind::Unsupported || error.raw_os_error() == Some(libc::EOPNOTSUPP)
}

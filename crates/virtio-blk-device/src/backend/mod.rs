// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the sectors are.

mod file;

use std::io::{self, ErrorKind};
use std::ops::Range;

pub use crate::raw::Buffers;
pub use file::{FileBackend, FileOptions};

/// Where the sectors are: a file, memory, an image format, something remote.
///
/// The workers of all queues call it at the same time, and whatever it returns, waits for or fails at
/// is the business of that one request. Offsets and lengths are bytes, in multiples of 512, and lie
/// within the capacity that was last told, which the back end need not have any more.
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
///         let bytes = self.0.read().unwrap();
///         let mut at = offset as usize;
///         for slice in buffers.slices() {
///             let bytes = bytes.get(at..at + slice.len()).ok_or(ErrorKind::UnexpectedEof)?;
///             slice.copy_from(bytes);
///             at += slice.len();
///         }
///         Ok(())
///     }
///
///     fn write(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
///         let mut bytes = self.0.write().unwrap();
///         let mut at = offset as usize;
///         for slice in buffers.slices() {
///             let bytes = bytes.get_mut(at..at + slice.len()).ok_or(ErrorKind::WriteZero)?;
///             slice.copy_to(bytes);
///             at += slice.len();
///         }
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
    /// The present capacity in bytes; what is beyond the last whole sector is not used. Asked when the
    /// device is made, and when it is told that there is a change.
    ///
    /// # Errors
    ///
    /// If it cannot be found out.
    fn capacity(&self) -> io::Result<u64>;

    /// Fills `buffers` with what is at `offset`.
    ///
    /// # Errors
    ///
    /// Anything that kept some of it from being read; the request fails, and the device goes on.
    fn read(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()>;

    /// Whether nothing can be written: then no other method than these is called.
    fn is_read_only(&self) -> bool {
        false
    }

    /// Sizes that I/O should be aligned to.
    fn geometry(&self) -> Geometry {
        Geometry::default()
    }

    /// Writes `buffers` to `offset`; it need not be stable before a [`flush`](Self::flush).
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read).
    fn write(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()>;

    /// Makes all writes stable that were complete before.
    ///
    /// # Errors
    ///
    /// If that cannot be said of one of them.
    fn flush(&self) -> io::Result<()>;

    /// Has a range read as zeroes; `unmap` says that its room may be given back.
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read); [`Unsupported`](io::ErrorKind::Unsupported) is told to the driver
    /// as such.
    fn write_zeroes(&self, range: Range<u64>, unmap: bool) -> io::Result<()>;

    /// Gives the room of a range back. What is read from there afterwards may be anything.
    ///
    /// # Errors
    ///
    /// As for [`write_zeroes`](Self::write_zeroes).
    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.write_zeroes(range, true)
    }

    /// The file that all of this comes down to, unchanged: what `io_uring` needs.
    fn as_file(&self) -> Option<&FileBackend> {
        None
    }
}

/// The block sizes that I/O should be aligned to, which change nothing of what is served: requests are
/// in sectors of 512 bytes in any case.
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

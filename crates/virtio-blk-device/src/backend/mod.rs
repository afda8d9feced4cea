// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the sectors are.

mod file;
mod memory;

use std::io;
use std::ops::Range;
use std::sync::Arc;

pub use crate::raw::Buffers;
pub use file::{FileBackend, FileOptions};
pub use memory::MemoryDisk;

/// Where the sectors are: a file, memory, an image format, something remote.
///
/// The workers of all queues call it at the same time, and whatever it returns, waits for or fails at
/// is the business of that one request. Offsets and lengths are bytes, in multiples of 512, and lie
/// within the capacity that was last told, which the back end need not have any more.
///
/// A whole back end, of memory that cannot be written:
///
/// ```
/// use std::io;
/// use virtio_blk_device::{Backend, Buffers};
///
/// struct Rom(&'static [u8]);
///
/// impl Backend for Rom {
///     fn capacity(&self) -> io::Result<u64> {
///         Ok(self.0.len() as u64)
///     }
///
///     fn is_read_only(&self) -> bool {
///         true
///     }
///
///     fn read(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
///         let rest = self.0.get(offset as usize..).unwrap_or_default();
///         let mut rest = rest.get(..buffers.len() as usize).ok_or(io::ErrorKind::UnexpectedEof)?;
///         for slice in buffers.slices() {
///             let (now, later) = rest.split_at(slice.len());
///             slice.copy_from(now);
///             rest = later;
///         }
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

    /// Whether nothing can be written: then none of the methods below is called.
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
    fn write(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        let _ = (offset, buffers);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes all writes stable that were complete before.
    ///
    /// # Errors
    ///
    /// If that cannot be said of one of them.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Gives the room of a range back. What is read from there afterwards may be anything.
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read); [`Unsupported`](io::ErrorKind::Unsupported) is told to the driver
    /// as such.
    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        let _ = range;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Has a range read as zeroes; `unmap` says that its room may be given back.
    ///
    /// # Errors
    ///
    /// As for [`discard`](Self::discard).
    fn write_zeroes(&self, range: Range<u64>, unmap: bool) -> io::Result<()> {
        let _ = (range, unmap);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The file that all of this comes down to, unchanged: what `io_uring` needs.
    fn as_file(&self) -> Option<&FileBackend> {
        None
    }
}

impl<B: Backend + ?Sized> Backend for Arc<B> {
    fn capacity(&self) -> io::Result<u64> {
        (**self).capacity()
    }

    fn read(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        (**self).read(offset, buffers)
    }

    fn is_read_only(&self) -> bool {
        (**self).is_read_only()
    }

    fn geometry(&self) -> Geometry {
        (**self).geometry()
    }

    fn write(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        (**self).write(offset, buffers)
    }

    fn flush(&self) -> io::Result<()> {
        (**self).flush()
    }

    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        (**self).discard(range)
    }

    fn write_zeroes(&self, range: Range<u64>, unmap: bool) -> io::Result<()> {
        (**self).write_zeroes(range, unmap)
    }

    fn as_file(&self) -> Option<&FileBackend> {
        (**self).as_file()
    }
}

/// Sizes that I/O should be aligned to, which change nothing of what is served: requests are in
/// sectors of 512 bytes in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    logical: u32,
    physical: u32,
}

impl Geometry {
    /// Blocks of `logical` bytes, as the driver should use them, in physical blocks of `physical`
    /// bytes, which is also what discarded ranges should be aligned to.
    ///
    /// Both are powers of two from 512 on, `logical` up to 4096, which is the most that Linux takes,
    /// `physical` from `logical` up to 1 MiB; `None` if not.
    #[must_use]
    pub const fn new(logical: u32, physical: u32) -> Option<Self> {
        let powers = logical.is_power_of_two() && physical.is_power_of_two();
        let logical_fits = 512 <= logical && logical <= 4096;
        if powers && logical_fits && logical <= physical && physical <= 1 << 20 {
            Some(Self { logical, physical })
        } else {
            None
        }
    }

    /// The logical block size in bytes.
    #[must_use]
    pub const fn logical(self) -> u32 {
        self.logical
    }

    /// The physical block size in bytes.
    #[must_use]
    pub const fn physical(self) -> u32 {
        self.physical
    }
}

impl Default for Geometry {
    /// Blocks of 512 bytes.
    fn default() -> Self {
        Self {
            logical: 512,
            physical: 512,
        }
    }
}

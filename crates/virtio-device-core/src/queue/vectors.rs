// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The buffers of a request as the kernel takes them: vectored I/O between a descriptor and guest
//! memory, without a copy.
#![expect(
    unsafe_code,
    reason = "the kernel reads and writes guest memory by its address"
)]

use std::borrow::Cow;
use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use libc::{c_int, iovec, off_t};
use vm_memory::{GuestMemory, VolatileSlice};

use super::stream::ChainStream;
use crate::fault::BadRequest;

/// Room for the buffers of one request after the other, so that no request allocates.
#[derive(Default)]
pub struct Vectors(Vec<iovec>);

// SAFETY: the addresses are used by nobody but `Buffers`, which borrow what they lead to.
unsafe impl Send for Vectors {}

impl Vectors {
    /// Begins a request: there are no buffers so far.
    #[inline]
    pub fn begin(&mut self) -> Buffers<'_> {
        self.0.clear();
        Buffers {
            vectors: &mut self.0,
            bytes: 0,
        }
    }
}

impl fmt::Debug for Vectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vectors").finish_non_exhaustive()
    }
}

/// Buffers that data is moved to or from, in pieces wherever the driver has them.
///
/// The driver can change what is in its memory at any time. What is written there reaches the guest;
/// [`Chain::mark_written`](crate::Chain::mark_written) takes note of it.
///
/// ```
/// use std::fs::File;
/// use std::io;
/// use virtio_device_core::{Chain, RingMemory, Vectors};
///
/// /// Fills all buffers of a request with what is at the beginning of a file.
/// fn read(chain: &Chain, memory: &impl RingMemory, file: &File) -> io::Result<u64> {
///     let mut vectors = Vectors::default(); // A device keeps it.
///     let mut buffers = vectors.begin();
///     let all = chain.writer(memory);
///     buffers.add(all, u64::MAX).map_err(io::Error::other)?;
///     buffers.read_exact_at(file, 0)?;
///     Ok(buffers.bytes())
/// }
/// ```
pub struct Buffers<'a> {
    vectors: &'a mut Vec<iovec>,
    bytes: u64,
}

impl<'a> Buffers<'a> {
    /// Most pieces that the kernel takes at once (`UIO_MAXIOV`).
    pub const MAX_PIECES: usize = 1024;

    /// Adds the next `len` bytes of a chain, or as many as are left.
    ///
    /// # Errors
    ///
    /// [`BadRequest::BufferMemory`] if some of them are not in guest memory: forget the request then.
    #[inline]
    pub fn add<M: GuestMemory, const WRITABLE: bool>(
        &mut self,
        mut stream: ChainStream<'a, M, WRITABLE>,
        len: u64,
    ) -> Result<(), BadRequest> {
        stream.pieces(len, |base, len| self.push(base, len))
    }

    /// Adds memory of the device's own, which no driver can change.
    #[inline]
    pub fn add_own(&mut self, bytes: &'a mut [u8]) {
        self.push(bytes.as_mut_ptr(), bytes.len());
    }

    #[inline]
    fn push(&mut self, base: *mut u8, len: usize) {
        // A read into nothing but empty pieces returns 0, which would be taken for the end of the file.
        if len == 0 {
            return;
        }
        self.bytes += len as u64;
        self.vectors.push(iovec {
            iov_base: base.cast(),
            iov_len: len,
        });
    }

    /// Takes the last pieces away until there are no more than `most`.
    pub fn truncate(&mut self, most: usize) {
        let removed = self.vectors.drain(most.min(self.vectors.len())..);
        self.bytes -= removed.map(|it| it.iov_len as u64).sum::<u64>();
    }

    /// Number of bytes, in all pieces together.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Address and length of each piece, for system calls that are not made here.
    #[must_use]
    pub fn vectors(&self) -> &[iovec] {
        self.vectors
    }

    /// The pieces, none of them empty.
    #[inline]
    pub fn slices(&self) -> impl Iterator<Item = VolatileSlice<'a>> {
        self.vectors.iter().map(|vector| {
            // SAFETY: the vector was made of memory that is borrowed for `'a`.
            unsafe { VolatileSlice::new(vector.iov_base.cast(), vector.iov_len) }
        })
    }

    /// The pieces of what comes after the first `offset` bytes.
    #[inline]
    fn slices_from(&self, mut offset: usize) -> impl Iterator<Item = VolatileSlice<'a>> {
        self.slices().filter_map(move |slice| {
            let behind = offset.min(slice.len());
            offset -= behind;
            slice.offset(behind).ok()
        })
    }

    /// Copies what comes after the first `offset` bytes to `data`, as much as fits, and returns how much
    /// that was.
    #[inline]
    pub fn copy_to(&self, offset: usize, data: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in self.slices_from(offset) {
            done += slice.copy_to(data.get_mut(done..).unwrap_or_default());
            if done == data.len() {
                break;
            }
        }
        done
    }

    /// Copies `data` to what comes after the first `offset` bytes, as much as fits, and returns how much
    /// that was.
    #[inline]
    pub fn copy_from(&self, offset: usize, data: &[u8]) -> usize {
        let mut rest = data;
        for slice in self.slices_from(offset) {
            let (now, later) = rest.split_at(rest.len().min(slice.len()));
            slice.copy_from(now);
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        data.len() - rest.len()
    }

    /// Fills the buffers, or as many pieces as the kernel takes at once, by one `readv`, and returns how
    /// much was read.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says.
    pub fn read_from(&self, fd: impl AsFd) -> io::Result<usize> {
        let (fd, vectors) = (fd.as_fd().as_raw_fd(), self.vectors.as_ptr());
        // SAFETY: the vectors are memory that outlives the call, and may change under anybody's hands.
        moved(unsafe { libc::readv(fd, vectors, count(self.vectors)) })
    }

    /// Writes the buffers, or as many pieces as the kernel takes at once, by one `writev`, and returns how
    /// much was written.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says.
    pub fn write_to(&self, fd: impl AsFd) -> io::Result<usize> {
        let (fd, vectors) = (fd.as_fd().as_raw_fd(), self.vectors.as_ptr());
        // SAFETY: as for reading.
        moved(unsafe { libc::writev(fd, vectors, count(self.vectors)) })
    }

    /// Fills all of the buffers from `offset` of a file on, in as many calls as that takes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnexpectedEof`] if the file is too short, and whatever the kernel says.
    pub fn read_exact_at(&self, file: impl AsFd, offset: u64) -> io::Result<()> {
        self.transfer(file.as_fd(), false, offset)
    }

    /// Writes all of the buffers from `offset` of a file on, in as many calls as that takes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::WriteZero`] if the file takes nothing more, and whatever the kernel says.
    pub fn write_all_at(&self, file: impl AsFd, offset: u64) -> io::Result<()> {
        self.transfer(file.as_fd(), true, offset)
    }

    fn transfer(&self, fd: BorrowedFd<'_>, write: bool, offset: u64) -> io::Result<()> {
        let (fd, mut done) = (fd.as_raw_fd(), 0);
        while done < self.bytes {
            let vectors = self.rest(done);
            let at = offset.checked_add(done).map(off_t::try_from);
            let at = at.and_then(Result::ok).ok_or(ErrorKind::InvalidInput)?;
            // SAFETY: as for `read_from`.
            let result = moved(unsafe {
                match (&*vectors, write) {
                    // One piece, as requests of a page have it, takes a shorter way in the kernel.
                    ([it], true) => libc::pwrite(fd, it.iov_base, it.iov_len, at),
                    ([it], false) => libc::pread(fd, it.iov_base, it.iov_len, at),
                    (all, true) => libc::pwritev(fd, all.as_ptr(), count(all), at),
                    (all, false) => libc::preadv(fd, all.as_ptr(), count(all), at),
                }
            });
            match result {
                Ok(0) if write => return Err(ErrorKind::WriteZero.into()),
                // The file has become shorter.
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(moved) => done += moved as u64,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The vectors of what comes after the first `done` bytes.
    fn rest(&self, mut done: u64) -> Cow<'_, [iovec]> {
        if done == 0 {
            return self.vectors.as_slice().into();
        }
        let mut rest = self.vectors.clone();
        rest.retain_mut(|vector| {
            // It is no more than the vector has.
            let behind = usize::try_from(done).map_or(vector.iov_len, |it| it.min(vector.iov_len));
            done -= behind as u64;
            vector.iov_base = vector.iov_base.wrapping_byte_add(behind);
            vector.iov_len -= behind;
            vector.iov_len != 0
        });
        rest.into()
    }
}

impl fmt::Debug for Buffers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffers({} bytes)", self.bytes)
    }
}

/// How many vectors the kernel is given at once.
fn count(vectors: &[iovec]) -> c_int {
    c_int::try_from(vectors.len().min(Buffers::MAX_PIECES)).unwrap_or(0)
}

fn moved(count: isize) -> io::Result<usize> {
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

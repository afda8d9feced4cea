// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory as the kernel takes it, and the system calls that no safe crate has for it.
#![expect(
    unsafe_code,
    reason = "the kernel reads and writes guest memory by its address"
)]

use std::fmt;
use std::io::{self, ErrorKind};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, iovec, off_t};
use virtio_device_core::BadRequest;
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Most vectors that the kernel takes at once (`UIO_MAXIOV`).
const MAX_VECTORS: usize = 1024;

/// The part of a request's buffers that holds data: guest memory, in the driver's order.
///
/// A back end moves exactly [`len`](Self::len) bytes between it and the disk. The driver can change
/// these bytes at any time.
pub struct Buffers<'a> {
    vectors: &'a [iovec],
    len: u64,
    memory: PhantomData<&'a ()>,
}

impl<'a> Buffers<'a> {
    /// Number of bytes, in all slices together.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is not a byte.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces, none of them empty. What is written to them reaches the guest; that it was written
    /// is noted by the device.
    pub fn slices(&self) -> impl Iterator<Item = VolatileSlice<'a>> {
        self.vectors.iter().map(|vector| {
            // SAFETY: the vector was made of a slice of guest memory that outlives `'a`.
            unsafe { VolatileSlice::new(vector.iov_base.cast(), vector.iov_len) }
        })
    }

    /// Whether every piece begins and ends at a multiple of these, both powers of two.
    pub(crate) fn is_aligned(&self, memory: usize, len: usize) -> bool {
        let mut vectors = self.vectors.iter();
        vectors.all(|it| it.iov_base.addr() & (memory - 1) == 0 && it.iov_len & (len - 1) == 0)
    }

    /// The vectors of what comes after the first `done` bytes.
    fn rest(&self, mut done: u64) -> Vec<iovec> {
        let mut rest = Vec::with_capacity(self.vectors.len());
        for vector in self.vectors {
            let skip = usize::try_from(done).map_or(vector.iov_len, |it| it.min(vector.iov_len));
            done -= skip as u64;
            if skip < vector.iov_len {
                rest.push(iovec {
                    iov_base: vector.iov_base.wrapping_byte_add(skip),
                    iov_len: vector.iov_len - skip,
                });
            }
        }
        rest
    }

    /// Has `call` move all bytes, as many times as that takes.
    fn transfer(
        &self,
        offset: u64,
        at_the_end: ErrorKind,
        call: impl Fn(&[iovec], off_t) -> isize,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < self.len {
            let at = offset
                .checked_add(done)
                .and_then(|at| off_t::try_from(at).ok());
            let at = at.ok_or(ErrorKind::InvalidInput)?;
            let rest;
            let vectors = match done {
                0 => self.vectors,
                _ => {
                    rest = self.rest(done);
                    &rest
                }
            };
            let now = vectors.get(..MAX_VECTORS).unwrap_or(vectors);
            match u64::try_from(call(now, at)) {
                // The file has become shorter, or takes no more.
                Ok(0) => return Err(at_the_end.into()),
                Ok(moved) => done += moved,
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Buffers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffers")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// Reads all of `buffers` from `offset` of a file on.
pub(crate) fn read(fd: BorrowedFd<'_>, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
    buffers.transfer(offset, ErrorKind::UnexpectedEof, |vectors, at| {
        let fd = fd.as_raw_fd();
        // SAFETY: the vectors are guest memory, which may change under anybody's hands.
        unsafe { libc::preadv(fd, vectors.as_ptr(), count(vectors), at) }
    })
}

/// Writes all of `buffers` from `offset` of a file on.
pub(crate) fn write(fd: BorrowedFd<'_>, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
    buffers.transfer(offset, ErrorKind::WriteZero, |vectors, at| {
        let fd = fd.as_raw_fd();
        // SAFETY: as for reading.
        unsafe { libc::pwritev(fd, vectors.as_ptr(), count(vectors), at) }
    })
}

fn count(vectors: &[iovec]) -> c_int {
    c_int::try_from(vectors.len()).unwrap_or(c_int::MAX)
}

/// Locks a whole file, for as long as its open file description lives, or fails at once.
pub(crate) fn lock(fd: BorrowedFd<'_>, exclusive: bool) -> io::Result<()> {
    // SAFETY: a structure of integers, for which 0 is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    let kind = if exclusive {
        libc::F_WRLCK
    } else {
        libc::F_RDLCK
    };
    // From 0 to the end, wherever that moves to.
    (lock.l_type, lock.l_whence) = (small(kind), small(libc::SEEK_SET));
    // SAFETY: `lock` is what this command reads.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// A constant of `fcntl`, as `struct flock` has it.
fn small(constant: c_int) -> i16 {
    i16::try_from(constant).unwrap_or(0)
}

/// Room for the vectors of one request, kept from one to the next.
#[derive(Default)]
pub(crate) struct Vectors(Vec<iovec>);

// SAFETY: the addresses are used by nobody but `Buffers`, which borrow guest memory.
unsafe impl Send for Vectors {}

impl Vectors {
    /// Makes vectors of `len` bytes of some slices of guest memory, after the first `skip` bytes.
    pub(crate) fn gather<'a, B: BitmapSlice>(
        &'a mut self,
        slices: impl Iterator<Item = Result<VolatileSlice<'a, B>, BadRequest>>,
        mut skip: u64,
        len: u64,
    ) -> Result<Buffers<'a>, BadRequest> {
        self.0.clear();
        let mut left = len;
        for slice in slices {
            if left == 0 {
                break;
            }
            let slice = slice?;
            let behind = usize::try_from(skip).map_or(slice.len(), |skip| skip.min(slice.len()));
            skip -= behind as u64;
            let size = usize::try_from(left).map_or(usize::MAX, |left| left);
            let size = size.min(slice.len() - behind);
            if size != 0 {
                left -= size as u64;
                self.0.push(iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().wrapping_add(behind).cast(),
                    iov_len: size,
                });
            }
        }
        Ok(Buffers {
            vectors: &self.0,
            len: len - left,
            memory: PhantomData,
        })
    }
}

impl Default for Buffers<'_> {
    /// No buffers.
    fn default() -> Self {
        Self {
            vectors: &[],
            len: 0,
            memory: PhantomData,
        }
    }
}

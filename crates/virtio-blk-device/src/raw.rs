// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory as the kernel takes it, and the system calls that no safe crate has for it.
#![expect(
    unsafe_code,
    reason = "the kernel reads and writes guest memory by its address"
)]

use std::borrow::Cow;
use std::fmt;
use std::io::{self, ErrorKind};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, iovec, off_t};
use virtio_bindings::virtio_blk::virtio_blk_config;
use virtio_device_core::{BadRequest, ChainStream};
use vm_memory::{GuestMemory, VolatileSlice};

use crate::config;

/// Most vectors that the kernel takes at once (`UIO_MAXIOV`).
const MAX_VECTORS: usize = 1024;

/// The part of a request's buffers that holds data: guest memory, in the driver's order.
///
/// A back end moves exactly [`bytes`](Self::bytes) bytes between it and the disk. The driver can change
/// these bytes at any time.
#[derive(Default)]
pub struct Buffers<'a> {
    vectors: &'a [iovec],
    len: u64,
    memory: PhantomData<&'a ()>,
}

impl<'a> Buffers<'a> {
    /// Number of bytes, in all slices together.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.len
    }

    /// The pieces, none of them empty. What is written to them reaches the guest; that it was written
    /// is noted by the device.
    pub fn slices(&self) -> impl Iterator<Item = VolatileSlice<'a>> {
        self.vectors.iter().map(|vector| {
            // SAFETY: the vector was made of a slice of guest memory that outlives `'a`.
            unsafe { VolatileSlice::new(vector.iov_base.cast(), vector.iov_len) }
        })
    }

    /// The vectors, and how many there are, if that is a number that the kernel takes at once.
    #[cfg(feature = "io-uring")]
    pub(crate) fn vectors(&self) -> Option<(*const iovec, u32)> {
        let count = u32::try_from(self.vectors.len()).ok();
        let count = count.filter(|_| self.vectors.len() <= MAX_VECTORS)?;
        Some((self.vectors.as_ptr(), count))
    }

    /// Whether the place on the disk and every piece are aligned to `align`, a power of two.
    pub(crate) fn is_aligned(&self, offset: u64, align: u32) -> bool {
        let is_aligned = |it: &iovec| (it.iov_base.addr() | it.iov_len) & (align as usize - 1) == 0;
        offset & (u64::from(align) - 1) == 0 && self.vectors.iter().all(is_aligned)
    }

    /// The vectors of what comes after the first `done` bytes.
    fn rest(&self, mut done: u64) -> Cow<'_, [iovec]> {
        if done == 0 {
            return self.vectors.into();
        }
        let mut rest = self.vectors.to_vec();
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

    /// Reads or writes all bytes, from `offset` of a file on, in as many calls as that takes.
    pub(crate) fn transfer(&self, fd: BorrowedFd<'_>, write: bool, offset: u64) -> io::Result<()> {
        let (fd, mut done) = (fd.as_raw_fd(), 0);
        while done < self.len {
            let vectors = self.rest(done);
            let at = off_t::try_from(offset + done).map_err(io::Error::other)?;
            let count = c_int::try_from(vectors.len().min(MAX_VECTORS)).unwrap_or(0);
            // SAFETY: the vectors are guest memory, which may change under anybody's hands.
            let moved = unsafe {
                match (&*vectors, write) {
                    // One piece, as requests of a page have it, takes a shorter way in the kernel.
                    ([it], true) => libc::pwrite(fd, it.iov_base, it.iov_len, at),
                    ([it], false) => libc::pread(fd, it.iov_base, it.iov_len, at),
                    (all, true) => libc::pwritev(fd, all.as_ptr(), count, at),
                    (all, false) => libc::preadv(fd, all.as_ptr(), count, at),
                }
            };
            match u64::try_from(moved) {
                Ok(0) if write => return Err(ErrorKind::WriteZero.into()),
                // The file has become shorter.
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
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
        write!(f, "Buffers({} bytes)", self.len)
    }
}

/// Makes vectors of the next `len` bytes of a request.
pub(crate) fn gather<'a, M: GuestMemory, const WRITABLE: bool>(
    vectors: &'a mut Vec<iovec>,
    mut data: ChainStream<'a, M, WRITABLE>,
    len: u64,
) -> Result<Buffers<'a>, BadRequest> {
    vectors.clear();
    data.pieces(len, |base, len| {
        vectors.push(iovec {
            iov_base: base.cast(),
            iov_len: len,
        });
    })?;
    Ok(Buffers {
        vectors,
        len,
        memory: PhantomData,
    })
}

/// Locks a whole file, for as long as its open file description lives, or fails at once.
pub(crate) fn lock(fd: BorrowedFd<'_>, exclusive: bool) -> io::Result<()> {
    // SAFETY: a structure of integers, for which 0 is a value: all of the file, here.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    let kind = match exclusive {
        true => libc::F_WRLCK,
        false => libc::F_RDLCK,
    };
    lock.l_type = i16::try_from(kind).unwrap_or(0);
    // SAFETY: `lock` is what this command reads.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => {
            io::Error::new(ErrorKind::ResourceBusy, "somebody else is using it")
        }
        _ => error,
    })
}

/// The beginning of a configuration space.
pub(crate) fn config_bytes(config: virtio_blk_config) -> [u8; config::LEN] {
    // SAFETY: integers without a gap between them, because the structure is packed.
    let bytes: [u8; size_of::<virtio_blk_config>()] = unsafe { std::mem::transmute(config) };
    *bytes.first_chunk().unwrap_or(&[0; config::LEN])
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory as the kernel takes it, and the system calls that no safe crate has for it.
#![expect(
    unsafe_code,
    reason = "the kernel reads and writes guest memory by its address"
)]

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use libc::{c_int, c_short, c_ulong, iovec};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, VolatileSlice};

use crate::header::HEADER;

/// Most vectors that the kernel takes at once (`UIO_MAXIOV`), but for one to spare.
const MAX_VECTORS: usize = 1023;

/// A packet on its way between a queue and a back end: a header of 12 bytes (`struct virtio_net_hdr`
/// with `num_buffers`), then the frame, in pieces wherever the driver has them.
///
/// The driver can change the frame at any time, but not the header.
pub struct Packet<'a> {
    /// The first is the header, as a whole.
    vectors: &'a [iovec],
    len: usize,
    memory: PhantomData<&'a ()>,
}

impl<'a> Packet<'a> {
    /// Number of bytes with the header; for a packet that is received, how much room there is.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "there is always a header")]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// All pieces, the header first.
    pub fn slices(&self) -> impl Iterator<Item = VolatileSlice<'a>> {
        slices(self.vectors)
    }

    /// The pieces of the frame, from its destination address on.
    pub fn frame(&self) -> impl Iterator<Item = VolatileSlice<'a>> {
        slices(self.vectors.get(1..).unwrap_or_default())
    }

    /// Copies the frame to `data`, as much as fits, and returns how much that was.
    pub fn copy_frame_to(&self, data: &mut [u8]) -> usize {
        copy_to(self.frame(), data)
    }

    /// Copies `data` to the frame, as much as fits, and returns how much that was.
    pub fn copy_frame_from(&self, data: &[u8]) -> usize {
        let mut rest = data;
        for slice in self.frame() {
            let (now, later) = rest.split_at(rest.len().min(slice.len()));
            slice.copy_from(now);
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        data.len() - rest.len()
    }

    /// Copies everything to `data`, as much as fits.
    pub(crate) fn copy_to(&self, data: &mut [u8]) {
        copy_to(self.slices(), data);
    }

    /// Fills the pieces, the header included, by one `readv`: for a descriptor that does not block,
    /// and gives one packet a call.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says, but for interruptions.
    pub fn read_from(&self, fd: impl AsFd) -> io::Result<usize> {
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: the vectors are memory that outlives the call, and may change under anybody's hands.
        retry(|| unsafe { libc::readv(fd, self.vectors.as_ptr(), count(self.vectors)) })
    }

    /// Writes the pieces, the header included, by one `writev`: for a descriptor that does not block,
    /// and takes one packet a call.
    ///
    /// # Errors
    ///
    /// As for [`read_from`](Self::read_from).
    pub fn write_to(&self, fd: impl AsFd) -> io::Result<usize> {
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: as for reading.
        retry(|| unsafe { libc::writev(fd, self.vectors.as_ptr(), count(self.vectors)) })
    }
}

impl fmt::Debug for Packet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packet")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

fn slices<'a>(vectors: &'a [iovec]) -> impl Iterator<Item = VolatileSlice<'a>> {
    vectors.iter().map(|vector| {
        // SAFETY: the vector was made of memory that is borrowed for `'a`.
        unsafe { VolatileSlice::new(vector.iov_base.cast(), vector.iov_len) }
    })
}

fn copy_to<'a>(slices: impl Iterator<Item = VolatileSlice<'a>>, data: &mut [u8]) -> usize {
    let mut done = 0;
    for slice in slices {
        // A slice that is at its end is read from in vain.
        match data.get_mut(done..).filter(|rest| !rest.is_empty()) {
            Some(rest) => done += slice.read(rest, 0).unwrap_or(0),
            None => break,
        }
    }
    done
}

fn count(vectors: &[iovec]) -> c_int {
    c_int::try_from(vectors.len()).unwrap_or(c_int::MAX)
}

fn retry(call: impl Fn() -> isize) -> io::Result<usize> {
    loop {
        let error = match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => io::Error::last_os_error(),
        };
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Room for the vectors of one packet, kept from one to the next.
#[derive(Default)]
pub(crate) struct Vectors(Vec<iovec>);

// SAFETY: the addresses are used by nobody but `Gather`, which borrows what they lead to.
unsafe impl Send for Vectors {}

impl Vectors {
    /// Begins a packet whose header is in the VMM's own memory, where no driver can change it.
    pub(crate) fn gather<'a>(&'a mut self, header: &'a mut [u8; HEADER]) -> Gather<'a> {
        self.0.clear();
        let mut gather = Gather {
            vectors: &mut self.0,
            len: 0,
            memory: PhantomData,
        };
        gather.own(header);
        gather
    }
}

/// A packet that is being put together.
pub(crate) struct Gather<'a> {
    vectors: &'a mut Vec<iovec>,
    len: usize,
    memory: PhantomData<&'a mut ()>,
}

impl<'a> Gather<'a> {
    /// Adds memory of the VMM's own.
    pub(crate) fn own(&mut self, bytes: &'a mut [u8]) {
        self.push(bytes.as_mut_ptr(), bytes.len());
    }

    /// Adds guest memory, unless there are as many pieces as the kernel takes.
    pub(crate) fn guest<B: BitmapSlice>(&mut self, slice: &VolatileSlice<'a, B>, skip: usize) {
        if self.vectors.len() < MAX_VECTORS && skip < slice.len() {
            let base = slice.ptr_guard_mut().as_ptr().wrapping_add(skip);
            self.push(base, slice.len() - skip);
        }
    }

    fn push(&mut self, base: *mut u8, len: usize) {
        self.len += len;
        self.vectors.push(iovec {
            iov_base: base.cast(),
            iov_len: len,
        });
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn packet(&self) -> Packet<'_> {
        Packet {
            vectors: self.vectors,
            len: self.len,
            memory: PhantomData,
        }
    }
}

/// Makes `fd`, an open `/dev/net/tun`, a queue of the tap `name`.
pub(crate) fn tap_attach(fd: BorrowedFd<'_>, name: &str, flags: c_int) -> io::Result<()> {
    let mut request = no_request();
    // The last byte stays 0.
    let room = request.ifr_name.len() - 1;
    if name.is_empty() || name.len() > room || name.contains('\0') {
        let reason = "an interface has a name of 1 to 15 bytes";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = short(flags);
    // SAFETY: `request` is what this call reads and writes.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// The flags of the tap that `fd` belongs to.
pub(crate) fn tap_flags(fd: BorrowedFd<'_>) -> io::Result<c_int> {
    let mut request = no_request();
    // SAFETY: `request` is what this call writes.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: the call has written this field; of integers, every value is one.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(c_int::from(u16::from_ne_bytes(flags.to_ne_bytes())))
}

/// Has the kernel steer packets to this queue of a tap, or none.
pub(crate) fn tap_steer(fd: BorrowedFd<'_>, attached: bool) -> io::Result<()> {
    let mut request = no_request();
    request.ifr_ifru.ifru_flags = short(match attached {
        true => libc::IFF_ATTACH_QUEUE,
        false => libc::IFF_DETACH_QUEUE,
    });
    // SAFETY: `request` is what this call reads.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
}

/// Sets the length of the header before each packet, and that its fields are little-endian.
pub(crate) fn tap_header(fd: BorrowedFd<'_>, len: c_int) -> io::Result<()> {
    let (fd, little) = (fd.as_raw_fd(), 1);
    // SAFETY: this call reads an integer.
    checked(unsafe { libc::ioctl(fd, libc::TUNSETVNETHDRSZ, &raw const len) })?;
    // SAFETY: as before.
    checked(unsafe { libc::ioctl(fd, libc::TUNSETVNETLE, &raw const little) })
}

/// Sets what packets from the tap may need of their reader.
pub(crate) fn tap_offloads(fd: BorrowedFd<'_>, offloads: u32) -> io::Result<()> {
    // SAFETY: this call takes a number, and no pointer.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, c_ulong::from(offloads)) })
}

fn no_request() -> libc::ifreq {
    // SAFETY: a structure of integers and a union of such, for which 0 is a value.
    unsafe { std::mem::zeroed() }
}

/// Flags of 16 bits, as `struct ifreq` has them.
fn short(flags: c_int) -> c_short {
    let [a, b, ..] = flags.to_le_bytes();
    c_short::from_le_bytes([a, b])
}

fn checked(result: c_int) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

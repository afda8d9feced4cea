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

use libc::{Ioctl, c_int, c_short, c_ulong, iovec};
use virtio_device_core::{BadRequest, ChainStream};
use vm_memory::{GuestMemory, VolatileSlice};

use crate::header::{HEADER, Header};

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

    /// All pieces: the header, then those of the frame, from its destination address on.
    pub fn slices(&self) -> impl Iterator<Item = VolatileSlice<'a>> {
        self.vectors.iter().map(|vector| {
            // SAFETY: the vector was made of memory that is borrowed for `'a`.
            unsafe { VolatileSlice::new(vector.iov_base.cast(), vector.iov_len) }
        })
    }

    pub(crate) fn header(&self) -> Header {
        let mut header = [0; HEADER];
        if let Some(slice) = self.slices().next() {
            slice.copy_to(&mut header);
        }
        header
    }

    /// Copies the frame to `data`, as much as fits, and returns how much that was.
    pub fn copy_frame_to(&self, data: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in self.slices().skip(1) {
            done += slice.copy_to(data.get_mut(done..).unwrap_or_default());
            if done == data.len() {
                break;
            }
        }
        done
    }

    /// Copies `data` to the frame, as much as fits, and returns how much that was.
    pub fn copy_frame_from(&self, data: &[u8]) -> usize {
        let mut rest = data;
        for slice in self.slices().skip(1) {
            let (now, later) = rest.split_at(rest.len().min(slice.len()));
            slice.copy_from(now);
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        data.len() - rest.len()
    }

    /// Fills the pieces, the header included, by one `readv`: for a descriptor that does not block,
    /// and gives one packet a call.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says.
    pub fn read_from(&self, fd: impl AsFd) -> io::Result<usize> {
        let (fd, vectors) = (fd.as_fd().as_raw_fd(), self.vectors.as_ptr());
        // SAFETY: the vectors are memory that outlives the call, and may change under anybody's hands.
        moved(unsafe { libc::readv(fd, vectors, self.count()) })
    }

    /// Writes the pieces, the header included, by one `writev`: for a descriptor that does not block,
    /// and takes one packet a call.
    ///
    /// # Errors
    ///
    /// As for [`read_from`](Self::read_from).
    pub fn write_to(&self, fd: impl AsFd) -> io::Result<usize> {
        let (fd, vectors) = (fd.as_fd().as_raw_fd(), self.vectors.as_ptr());
        // SAFETY: as for reading.
        moved(unsafe { libc::writev(fd, vectors, self.count()) })
    }

    fn count(&self) -> c_int {
        c_int::try_from(self.vectors.len()).unwrap_or(c_int::MAX)
    }
}

impl fmt::Debug for Packet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packet")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

fn moved(count: isize) -> io::Result<usize> {
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Room for the vectors of one packet, kept from one to the next.
#[derive(Default)]
pub(crate) struct Vectors(Vec<iovec>);

// SAFETY: the addresses are used by nobody but `Gather`, which borrows what they lead to.
unsafe impl Send for Vectors {}

impl Vectors {
    /// Begins a packet.
    pub(crate) fn gather<'a>(&'a mut self) -> Gather<'a> {
        self.0.clear();
        let mut gather = Gather {
            vectors: &mut self.0,
            len: 0,
            memory: PhantomData,
        };
        // The place of the header.
        gather.push(std::ptr::null_mut(), HEADER);
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

    /// Adds the rest of a chain, but for pieces beyond as many as the kernel takes.
    pub(crate) fn guest<M: GuestMemory, const WRITABLE: bool>(
        &mut self,
        mut rest: ChainStream<'a, M, WRITABLE>,
    ) -> Result<(), BadRequest> {
        rest.pieces(u64::MAX, |base, len| {
            if self.vectors.len() < MAX_VECTORS && len != 0 {
                self.push(base, len);
            }
        })
    }

    fn push(&mut self, base: *mut u8, len: usize) {
        self.len += len;
        self.vectors.push(iovec {
            iov_base: base.cast(),
            iov_len: len,
        });
    }

    /// Bytes so far, with the header.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// The packet, with its header in the VMM's own memory, where no driver can change it.
    pub(crate) fn packet<'b>(&'b mut self, header: &'b mut Header) -> Packet<'b> {
        if let Some(place) = self.vectors.first_mut() {
            place.iov_base = header.as_mut_ptr().cast();
        }
        Packet {
            vectors: self.vectors,
            len: self.len,
            memory: PhantomData,
        }
    }
}

/// Makes `fd`, an open `/dev/net/tun`, a queue of the tap `name`.
pub(crate) fn tap_attach(fd: BorrowedFd<'_>, name: &str, flags: c_int) -> io::Result<()> {
    interface(fd, libc::TUNSETIFF, name, flags).map(drop)
}

/// The flags of the tap that `fd` belongs to.
pub(crate) fn tap_flags(fd: BorrowedFd<'_>) -> io::Result<c_int> {
    interface(fd, libc::TUNGETIFF, "-", 0)
}

/// Has the kernel steer packets to this queue of a tap, or none.
pub(crate) fn tap_steer(fd: BorrowedFd<'_>, attached: bool) -> io::Result<()> {
    let flags = match attached {
        true => libc::IFF_ATTACH_QUEUE,
        false => libc::IFF_DETACH_QUEUE,
    };
    interface(fd, libc::TUNSETQUEUE, "-", flags).map(drop)
}

/// Sets the length of the header before each packet, and that its fields are little-endian.
pub(crate) fn tap_header(fd: BorrowedFd<'_>) -> io::Result<()> {
    // It is small.
    let len = c_int::try_from(HEADER).unwrap_or(0);
    for (request, value) in [(libc::TUNSETVNETHDRSZ, len), (libc::TUNSETVNETLE, 1)] {
        // SAFETY: these calls read an integer.
        checked(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw const value) })?;
    }
    Ok(())
}

/// Sets what packets from the tap may need of their reader.
pub(crate) fn tap_offloads(fd: BorrowedFd<'_>, offloads: u32) -> io::Result<()> {
    // SAFETY: this call takes a number, and no pointer.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, c_ulong::from(offloads)) })
}

/// Makes one of the requests that take a `struct ifreq` with a name and flags, and returns the flags.
fn interface(fd: BorrowedFd<'_>, request: Ioctl, name: &str, flags: c_int) -> io::Result<c_int> {
    // SAFETY: a structure of integers and a union of such, for which 0 is a value.
    let mut argument: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0.
    let room = argument.ifr_name.len() - 1;
    if name.is_empty() || name.len() > room || name.contains('\0') {
        let reason = "an interface has a name of 1 to 15 bytes";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    for (to, from) in argument.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let [low, high, ..] = flags.to_le_bytes();
    argument.ifr_ifru.ifru_flags = c_short::from_le_bytes([low, high]);
    // SAFETY: `argument` is what these requests read and write.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut argument) })?;
    // SAFETY: this field was written above, and of integers every value is one.
    let flags = unsafe { argument.ifr_ifru.ifru_flags };
    Ok(c_int::from(u16::from_ne_bytes(flags.to_ne_bytes())))
}

fn checked(result: c_int) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Streams and slices over the buffers of a chain, whatever pieces the driver has cut them into.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};

use vm_memory::bitmap::{BS, Bitmap as _};
use vm_memory::{Address, GuestAddress, GuestMemory, Permissions, VolatileSlice};

use super::chain::{Buffer, Chain};
use super::memory::{Regions, RingMemory};
use crate::fault::BadRequest;

impl Chain {
    /// A stream of the device-readable bytes, in the driver's order. What is read twice may differ,
    /// because the driver can change it meanwhile.
    pub fn reader<'a, R: RingMemory>(&'a self, memory: &'a R) -> ChainStream<'a, R::Memory, false> {
        ChainStream(Cursor::new(memory, self.buffers(), false))
    }

    /// A stream into the device-writable bytes, in the driver's order.
    pub fn writer<'a, R: RingMemory>(&'a self, memory: &'a R) -> ChainStream<'a, R::Memory, true> {
        ChainStream(Cursor::new(memory, self.buffers(), true))
    }

    /// The device-readable bytes as slices of guest memory, in the driver's order, for vectored I/O
    /// without a copy. The driver can change them at any time.
    ///
    /// A buffer that lies in several regions gives several slices, an empty one none. Items after an
    /// error mean nothing, so collect all before any byte moves:
    ///
    /// ```
    /// # use virtio_device_core::{BadRequest, Chain};
    /// # use vm_memory::GuestMemory;
    /// # fn example(chain: &Chain, memory: &impl GuestMemory) -> Result<(), BadRequest> {
    /// let slices = chain.readable_slices(memory).collect::<Result<Vec<_>, _>>()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn readable_slices<'a, M: GuestMemory>(
        &'a self,
        memory: &'a M,
    ) -> impl Iterator<Item = Result<VolatileSlice<'a, BS<'a, M::Bitmap>>, BadRequest>> {
        slices(self.buffers(), memory, false)
    }

    /// The device-writable bytes as slices of guest memory; see
    /// [`readable_slices`](Self::readable_slices).
    pub fn writable_slices<'a, M: GuestMemory>(
        &'a self,
        memory: &'a M,
    ) -> impl Iterator<Item = Result<VolatileSlice<'a, BS<'a, M::Bitmap>>, BadRequest>> {
        slices(self.buffers(), memory, true)
    }

    /// Notes that the first `len` device-writable bytes were written behind the back of whoever takes
    /// notes, if anybody does: by the kernel, by address.
    pub fn mark_written<M: GuestMemory>(&self, memory: &M, len: u64) {
        // Fast path: notes have no place to be in.
        if size_of::<BS<'_, M::Bitmap>>() == 0 {
            return;
        }
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        for slice in self.writable_slices(memory).flatten() {
            let part = left.min(slice.len());
            slice.bitmap().mark_dirty(0, part);
            left -= part;
        }
    }
}

fn slices<'a, M: GuestMemory>(
    buffers: &'a [Buffer],
    memory: &'a M,
    writable: bool,
) -> impl Iterator<Item = Result<VolatileSlice<'a, BS<'a, M::Bitmap>>, BadRequest>> {
    let access = access(writable);
    let mine =
        (buffers.iter()).filter(move |buffer| buffer.writable == writable && buffer.len != 0);
    mine.flat_map(move |&Buffer { addr, len, .. }| {
        let error = BadRequest::BufferMemory {
            addr: addr.raw_value(),
            len,
        };
        let (slices, refused) = match memory.get_slices(addr, len as usize, access) {
            Ok(slices) => (Some(slices), None),
            Err(_) => (None, Some(Err(error))),
        };
        let slices = slices.into_iter().flatten();
        slices
            .map(move |slice| slice.map_err(|_| error))
            .chain(refused)
    })
}

/// The bytes of a chain in one direction, as a stream: the device-readable ones are [read](Read), the
/// device-writable ones, with `WRITABLE`, are [written](Write). See [`Chain::reader`] and
/// [`Chain::writer`].
///
/// It ends, or is full, where they end. A buffer outside of guest memory is an error, which does not
/// occur after [`Chain::check`].
///
/// ```
/// use std::io::Write;
/// use virtio_device_core::{BadRequest, Chain, vm_memory::GuestMemoryMmap};
///
/// /// A request begins with a number of four bytes; the answer is its square.
/// fn square(chain: &Chain, memory: &GuestMemoryMmap) -> Result<u32, BadRequest> {
///     let number = u32::from_le_bytes(chain.reader(memory).read_array()?);
///     let mut answer = chain.writer(memory);
///     let _ = answer.write_all(&number.wrapping_mul(number).to_le_bytes());
///     Ok(answer.written())
/// }
/// ```
pub struct ChainStream<'a, M: GuestMemory, const WRITABLE: bool>(Cursor<'a, M>);

impl<M: GuestMemory, const WRITABLE: bool> ChainStream<'_, M, WRITABLE> {
    /// Number of bytes that are left.
    #[must_use]
    #[inline]
    pub fn remaining(&self) -> u64 {
        self.0.remaining()
    }

    /// Passes over the next `count` bytes, or as many as are left: those of a request that is served
    /// in several parts.
    ///
    /// The length that a request is completed with covers only what was written from the first byte
    /// on (section 2.7.8.2), so bytes that are not written here must be written by another stream
    /// before.
    pub fn skip(&mut self, count: u64) {
        self.0.skip(count);
    }

    /// Passes over the next `count` bytes, or as many as are left, and names where they are: `each` is
    /// called with the address in the host's memory and the length of each piece, in the driver's order,
    /// for vectored I/O without a copy.
    ///
    /// An address is good for as long as guest memory is borrowed, and memory that the driver can change
    /// at any time. That something was written there is not noted; see [`Chain::mark_written`].
    ///
    /// # Errors
    ///
    /// [`BadRequest::BufferMemory`] if some of them are not in guest memory; forget the others then.
    pub fn pieces(
        &mut self,
        count: u64,
        mut each: impl FnMut(*mut u8, usize),
    ) -> Result<(), BadRequest> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let moved = self.0.transfer(count, |regions, address, _, count| {
            regions.pieces(address, count, access(WRITABLE), &mut each)
        });
        moved.map(|_| ())
    }
}

const fn access(writable: bool) -> Permissions {
    match writable {
        true => Permissions::Write,
        false => Permissions::Read,
    }
}

impl<M: GuestMemory> ChainStream<'_, M, false> {
    /// The next `N` bytes: a header.
    ///
    /// # Errors
    ///
    /// [`BadRequest::Layout`] if there are fewer, and [`BadRequest::BufferMemory`] if they are not
    /// in guest memory.
    pub fn read_array<const N: usize>(&mut self) -> Result<[u8; N], BadRequest> {
        let mut bytes = [0; N];
        match self.0.transfer(N, |regions, address, done, count| {
            let part = bytes.get_mut(done..done + count).unwrap_or_default();
            regions.read(part, address)
        })? {
            count if count == N => Ok(bytes),
            _ => Err(BadRequest::Layout),
        }
    }
}

impl<M: GuestMemory> ChainStream<'_, M, true> {
    /// Number of bytes written so far: the length to complete the request with, if everything up to
    /// here was written and not skipped.
    #[must_use]
    pub const fn written(&self) -> u32 {
        self.0.done
    }
}

impl<M: GuestMemory> Read for ChainStream<'_, M, false> {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let moved = self
            .0
            .transfer(data.len(), |regions, address, done, count| {
                let part = data.get_mut(done..done + count).unwrap_or_default();
                regions.read(part, address)
            });
        moved.map_err(|_| ErrorKind::InvalidData.into())
    }
}

impl<M: GuestMemory> Write for ChainStream<'_, M, true> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let moved = self
            .0
            .transfer(data.len(), |regions, address, done, count| {
                let part = data.get(done..done + count).unwrap_or_default();
                regions.write(part, address)
            });
        moved.map_err(|_| ErrorKind::InvalidData.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A place in the buffers of one direction.
struct Cursor<'a, M: GuestMemory> {
    regions: Regions<'a, M>,
    /// The buffers from the present one on, of both directions.
    buffers: &'a [Buffer],
    writable: bool,
    /// How much of the present buffer is behind.
    offset: u32,
    /// How many bytes were moved.
    done: u32,
}

impl<'a, M: GuestMemory> Cursor<'a, M> {
    fn new<R>(memory: &'a R, buffers: &'a [Buffer], writable: bool) -> Self
    where
        R: RingMemory<Memory = M>,
    {
        Self {
            regions: Regions::near(memory),
            buffers,
            writable,
            offset: 0,
            done: 0,
        }
    }

    #[inline]
    fn remaining(&self) -> u64 {
        let buffers = self.buffers.iter();
        let mine = buffers.filter(|buffer| buffer.writable == self.writable);
        let all: u64 = mine.map(|buffer| u64::from(buffer.len)).sum();
        all - u64::from(self.offset)
    }

    /// The present buffer, and how much of it is left: not 0.
    fn present(&mut self) -> Option<(Buffer, u32)> {
        while let Some((buffer, later)) = self.buffers.split_first() {
            if buffer.writable == self.writable && self.offset < buffer.len {
                return Some((*buffer, buffer.len - self.offset));
            }
            (self.buffers, self.offset) = (later, 0);
        }
        None
    }

    /// Has `copy` move up to `len` bytes, buffer by buffer: from the address, this many bytes after
    /// `done` others.
    fn transfer(
        &mut self,
        len: usize,
        mut copy: impl FnMut(&mut Regions<'a, M>, GuestAddress, usize, usize) -> bool,
    ) -> Result<usize, BadRequest> {
        let mut done = 0;
        while done < len {
            let Some((Buffer { addr, len: all, .. }, left)) = self.present() else {
                break;
            };
            let count = left.min(u32::try_from(len - done).unwrap_or(u32::MAX));
            let copied = addr
                .checked_add(u64::from(self.offset))
                .is_some_and(|start| copy(&mut self.regions, start, done, count as usize));
            if !copied {
                let addr = addr.raw_value();
                return Err(BadRequest::BufferMemory { addr, len: all });
            }
            self.offset += count;
            self.done = self.done.saturating_add(count);
            done += count as usize;
        }
        Ok(done)
    }

    fn skip(&mut self, mut count: u64) {
        while let Some((_, left)) = self.present().filter(|_| count != 0) {
            let step = u64::from(left).min(count);
            // At most `left`, which has 32 bits.
            self.offset += u32::try_from(step).unwrap_or(left);
            count -= step;
        }
    }
}

impl<M: GuestMemory, const WRITABLE: bool> fmt::Debug for ChainStream<'_, M, WRITABLE> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ChainStream").field(&self.0).finish()
    }
}

impl<M: GuestMemory> fmt::Debug for Cursor<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor")
            .field("buffers", &self.buffers)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

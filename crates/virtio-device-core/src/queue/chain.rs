// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Descriptor chains, walked strictly (VIRTIO 1.3, section 2.7.5).

use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes as _, GuestAddress, GuestMemory, Permissions};

use super::layout::QueueLayout;
use super::memory::{self, Regions, RingMemory};
use crate::fault::{BadRequest, RingFault};

const DESCRIPTOR_SIZE: u32 = 16;

/// The name of a chain that the device has taken and must give back exactly once, through
/// [`Virtqueue::complete`](crate::Virtqueue::complete), which consumes it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a chain that is not given back is lost to the driver"]
pub struct Head(pub(crate) u16);

impl Head {
    /// Index of the chain's first descriptor.
    #[must_use]
    pub const fn index(&self) -> u16 {
        self.0
    }
}

/// One buffer of a chain, as the driver described it: not yet known to be in guest memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffer {
    pub(super) addr: GuestAddress,
    pub(super) len: u32,
    /// Whether the device may write it (and must not read it).
    pub(super) writable: bool,
}

/// The buffers of one descriptor chain, in the driver's order. A device keeps one and has each
/// chain read into it, so that no request allocates.
#[derive(Debug, Default)]
pub struct Chain {
    buffers: Vec<Buffer>,
}

impl Chain {
    /// Makes an empty chain with room for a queue of `size` descriptors.
    #[must_use]
    pub fn with_capacity(size: u16) -> Self {
        Self {
            buffers: Vec::with_capacity(size.into()),
        }
    }

    /// Number of buffers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffers.len()
    }

    /// Whether there is no chain here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// Guest address and length in bytes of each buffer that the device may read, in the driver's
    /// order; not yet known to be in guest memory.
    pub fn readable(&self) -> impl Iterator<Item = (GuestAddress, u32)> {
        let readable = self.buffers.iter().filter(|buffer| !buffer.writable);
        readable.map(|buffer| (buffer.addr, buffer.len))
    }

    /// Guest address and length in bytes of each buffer that the device may write, and must not read,
    /// in the driver's order; not yet known to be in guest memory.
    pub fn writable(&self) -> impl Iterator<Item = (GuestAddress, u32)> {
        let writable = self.buffers.iter().filter(|buffer| buffer.writable);
        writable.map(|buffer| (buffer.addr, buffer.len))
    }

    /// Whether all buffers that the device may read come before those that it may write, as section
    /// 2.7.4.2 has it. A device that reads and writes by [`reader`](Self::reader) and
    /// [`writer`](Self::writer) need not mind.
    #[must_use]
    pub fn is_ordered(&self) -> bool {
        self.buffers.is_sorted_by_key(|buffer| buffer.writable)
    }

    pub(super) fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// Forgets the buffers.
    pub(crate) fn clear(&mut self) {
        self.buffers.clear();
    }

    /// Number of bytes that the device may read.
    #[must_use]
    pub fn readable_len(&self) -> u64 {
        self.readable().map(|(_, len)| u64::from(len)).sum()
    }

    /// Number of bytes that the device may write.
    #[must_use]
    pub fn writable_len(&self) -> u64 {
        self.writable().map(|(_, len)| u64::from(len)).sum()
    }

    /// Checks that every byte of every buffer lies in `memory`, so that a request can be refused
    /// before the first byte moves.
    ///
    /// # Errors
    ///
    /// The first buffer that does not.
    pub fn check<M: RingMemory>(&self, memory: &M) -> Result<(), BadRequest> {
        let mut regions = Regions::near(memory);
        for &Buffer {
            addr,
            len,
            writable,
        } in &self.buffers
        {
            let access = if writable {
                Permissions::Write
            } else {
                Permissions::Read
            };
            let size = len as usize;
            let known = size == 0 || regions.find(addr, size).is_some();
            if !known && !memory.memory().check_range(addr, size, access) {
                return Err(BadRequest::BufferMemory {
                    addr: addr.raw_value(),
                    len,
                });
            }
        }
        Ok(())
    }

    /// Writes `data` into the device-writable buffers from the first byte on and returns how much
    /// fitted: the length to complete the request with.
    ///
    /// # Errors
    ///
    /// [`BadRequest`] if a buffer is not in `memory`; nothing needs to be given up then but this
    /// request. After [`Chain::check`] on the same memory this does not happen.
    pub fn write<M: RingMemory>(&self, memory: &M, mut data: &[u8]) -> Result<u32, BadRequest> {
        let mut regions = Regions::near(memory);
        let mut written = 0;
        for (addr, len) in self.writable() {
            let count = data.len().min(len as usize);
            let (now, later) = data.split_at(count);
            if count != 0 && !regions.write(now, addr) {
                let addr = addr.raw_value();
                return Err(BadRequest::BufferMemory { addr, len });
            }
            // At most `len`, so it fits; the sum is at most `data.len()`.
            written += u32::try_from(count).unwrap_or(u32::MAX);
            data = later;
            if data.is_empty() {
                break;
            }
        }
        Ok(written)
    }

    /// Writes the last byte that the device may write: the status, as several devices have it.
    ///
    /// # Errors
    ///
    /// [`BadRequest::Layout`] if there is none, and [`BadRequest::BufferMemory`] if it is not in
    /// `memory`.
    pub fn write_last<M: RingMemory>(&self, memory: &M, byte: u8) -> Result<(), BadRequest> {
        let last = self.writable().filter(|(_, len)| *len != 0).last();
        let (addr, len) = last.ok_or(BadRequest::Layout)?;
        let place = addr.checked_add(u64::from(len) - 1);
        let mut regions = Regions::near(memory);
        match place.is_some_and(|place| regions.write(&[byte], place)) {
            true => Ok(()),
            false => Err(BadRequest::BufferMemory {
                addr: addr.raw_value(),
                len,
            }),
        }
    }

    /// Reads the chain that starts at `head`. Every descriptor is read once; what the driver
    /// changes afterwards has no effect.
    ///
    /// # Errors
    ///
    /// Any breach of section 2.7.5; the buffers are empty then.
    pub(crate) fn read<M: RingMemory>(
        &mut self,
        memory: &M,
        layout: &QueueLayout,
        indirect: bool,
        head: u16,
    ) -> Result<(), RingFault> {
        self.buffers.clear();
        let walk = self.walk(memory, layout, indirect, head);
        if walk.is_err() {
            self.buffers.clear();
        }
        walk
    }

    fn walk<M: RingMemory>(
        &mut self,
        memory: &M,
        layout: &QueueLayout,
        indirect: bool,
        head: u16,
    ) -> Result<(), RingFault> {
        let (size, mut index) = (layout.size(), head);
        loop {
            if index >= size {
                return Err(RingFault::DescriptorIndex { index, size });
            }
            let descriptor = memory::descriptor(memory, layout, index)?;
            if descriptor.refers_to_indirect_table() {
                if !indirect {
                    return Err(RingFault::IndirectNotNegotiated);
                }
                if descriptor.has_next() {
                    return Err(RingFault::IndirectWithNext);
                }
                // Its WRITE flag means nothing (section 2.7.5.3.2).
                let (base, len) = (descriptor.addr(), descriptor.len());
                return self.walk_table(memory.memory(), base, len, size);
            }
            match self.add(descriptor, size)? {
                Some(next) => index = next,
                None => return Ok(()),
            }
        }
    }

    /// Reads the rest of a chain, which lies in a table. Out of line, so that chains without one keep
    /// the registers.
    #[inline(never)]
    fn walk_table<M: GuestMemory>(
        &mut self,
        memory: &M,
        base: GuestAddress,
        len: u32,
        size: u16,
    ) -> Result<(), RingFault> {
        let (table, mut index) = (Table::enter(memory, base, len)?, 0);
        loop {
            let descriptor = table.read(memory, index)?;
            if descriptor.refers_to_indirect_table() {
                return Err(RingFault::IndirectNested);
            }
            match self.add(descriptor, size)? {
                Some(next) => index = next,
                None => return Ok(()),
            }
        }
    }

    /// Adds the buffer that `descriptor` describes to a chain in a queue of `size`; returns the index
    /// of the next descriptor, if there is one.
    #[inline]
    fn add(&mut self, descriptor: Descriptor, size: u16) -> Result<Option<u16>, RingFault> {
        if self.buffers.len() >= usize::from(size) {
            return Err(RingFault::ChainTooLong);
        }
        self.buffers.push(Buffer {
            addr: descriptor.addr(),
            len: descriptor.len(),
            writable: descriptor.is_write_only(),
        });
        Ok(descriptor.has_next().then(|| descriptor.next()))
    }
}

/// The indirect table that a walk is in.
struct Table {
    base: GuestAddress,
    /// May be more than `next` can name; never less than one.
    entries: u32,
}

impl Table {
    fn read<M: GuestMemory>(&self, memory: &M, index: u16) -> Result<Descriptor, RingFault> {
        if u32::from(index) >= self.entries {
            let size = u16::try_from(self.entries).unwrap_or(u16::MAX);
            return Err(RingFault::DescriptorIndex { index, size });
        }
        let offset = u64::from(index) * u64::from(DESCRIPTOR_SIZE);
        let lost = RingFault::IndirectMemory(self.base.raw_value());
        let addr = self.base.checked_add(offset).ok_or(lost)?;
        let raw: RawDescriptor = memory.read_obj(addr).map_err(|_| lost)?;
        Ok(Descriptor::from(raw))
    }

    /// The table that an indirect descriptor points to. It needs no alignment.
    fn enter<M: GuestMemory>(memory: &M, base: GuestAddress, len: u32) -> Result<Self, RingFault> {
        if len == 0 || len % DESCRIPTOR_SIZE != 0 {
            return Err(RingFault::IndirectLength(len));
        }
        if !memory.check_range(base, len as usize, Permissions::Read) {
            return Err(RingFault::IndirectMemory(base.raw_value()));
        }
        Ok(Self {
            base,
            entries: len / DESCRIPTOR_SIZE,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_the_longest_chain() {
        assert!(Chain::with_capacity(256).buffers.capacity() >= 256);
    }
}

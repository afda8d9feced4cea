// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The way from a queue to the guest memory that it lives in.

use std::fmt;
use std::sync::atomic::Ordering;

use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, AtomicAccess, ByteValued, Bytes, GuestAddress, GuestMemory};

use crate::chain::RingFault;
use crate::layout::{QueueLayout, QueuePart};
use crate::regions::{RegionSlice, Regions};

/// Guest memory as a queue reaches it: guest memory itself, in which every access looks its region
/// up, or [`Rings`], which has looked them up before.
pub trait RingMemory {
    /// Guest memory.
    type Memory: GuestMemory;

    /// All of guest memory.
    fn memory(&self) -> &Self::Memory;

    /// Loads a field of a part, if its place was looked up before.
    fn known_load<T: AtomicAccess>(
        &self,
        part: QueuePart,
        offset: usize,
        order: Ordering,
    ) -> Option<T> {
        let _ = (part, offset, order);
        None
    }

    /// Stores a field of a part, if its place was looked up before; says whether it was.
    fn known_store<T: AtomicAccess>(
        &self,
        part: QueuePart,
        offset: usize,
        value: T,
        order: Ordering,
    ) -> bool {
        let _ = (part, offset, value, order);
        false
    }

    /// Reads an object from a part, if its place was looked up before.
    fn known_read<T: ByteValued>(&self, part: QueuePart, offset: usize) -> Option<T> {
        let _ = (part, offset);
        None
    }
}

impl<M: GuestMemory> RingMemory for M {
    type Memory = M;

    fn memory(&self) -> &M {
        self
    }
}

/// The three parts of a queue, looked up in guest memory once: for a device that makes many
/// accesses to them and holds on to one view of guest memory meanwhile, such as for one wake-up.
///
/// A part that does not lie in one region, or lies behind an IOMMU, is looked up at each access all
/// the same.
pub struct Rings<'m, M: GuestMemory> {
    memory: &'m M,
    desc_table: Option<RegionSlice<'m, M>>,
    avail_ring: Option<RegionSlice<'m, M>>,
    used_ring: Option<RegionSlice<'m, M>>,
}

impl<'m, M: GuestMemory> Rings<'m, M> {
    /// Looks up the queue that lives at `layout`.
    #[must_use]
    pub fn new(memory: &'m M, layout: &QueueLayout) -> Self {
        let entries = usize::from(layout.size());
        let mut regions = Regions::new(memory);
        Self {
            memory,
            desc_table: regions.slice(layout.desc_table(), 16 * entries),
            avail_ring: regions.slice(layout.avail_ring(), 6 + 2 * entries),
            used_ring: regions.slice(layout.used_ring(), 6 + 8 * entries),
        }
    }

    #[inline]
    const fn part(&self, part: QueuePart) -> Option<&RegionSlice<'m, M>> {
        match part {
            QueuePart::DescTable => self.desc_table.as_ref(),
            QueuePart::AvailRing => self.avail_ring.as_ref(),
            QueuePart::UsedRing => self.used_ring.as_ref(),
        }
    }
}

impl<M: GuestMemory> RingMemory for Rings<'_, M> {
    type Memory = M;

    fn memory(&self) -> &M {
        self.memory
    }

    #[inline]
    fn known_load<T: AtomicAccess>(
        &self,
        part: QueuePart,
        offset: usize,
        order: Ordering,
    ) -> Option<T> {
        self.part(part)?.load(offset, order).ok()
    }

    #[inline]
    fn known_store<T: AtomicAccess>(
        &self,
        part: QueuePart,
        offset: usize,
        value: T,
        order: Ordering,
    ) -> bool {
        self.part(part)
            .is_some_and(|part| part.store(value, offset, order).is_ok())
    }

    #[inline]
    fn known_read<T: ByteValued>(&self, part: QueuePart, offset: usize) -> Option<T> {
        self.part(part)?.read_obj(offset).ok()
    }
}

impl<M: GuestMemory> fmt::Debug for Rings<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rings").finish_non_exhaustive()
    }
}

const fn base(layout: &QueueLayout, part: QueuePart) -> GuestAddress {
    match part {
        QueuePart::DescTable => layout.desc_table(),
        QueuePart::AvailRing => layout.avail_ring(),
        QueuePart::UsedRing => layout.used_ring(),
    }
}

fn address(
    layout: &QueueLayout,
    part: QueuePart,
    offset: usize,
) -> Result<GuestAddress, RingFault> {
    let base = base(layout, part);
    base.checked_add(offset as u64).ok_or(RingFault::RingMemory)
}

/// Reads a field of a ring, in one access.
#[inline]
pub(crate) fn load<R: RingMemory>(
    rings: &R,
    layout: &QueueLayout,
    part: QueuePart,
    offset: usize,
    order: Ordering,
) -> Result<u16, RingFault> {
    let value = match rings.known_load(part, offset, order) {
        Some(value) => value,
        None => {
            let addr = address(layout, part, offset)?;
            let load = rings.memory().load(addr, order);
            load.map_err(|_| RingFault::RingMemory)?
        }
    };
    Ok(u16::from_le(value))
}

/// Writes a field of the used ring, in one access; `value` is little-endian already.
#[inline]
pub(crate) fn store<R: RingMemory, T: AtomicAccess>(
    rings: &R,
    layout: &QueueLayout,
    offset: usize,
    value: T,
    order: Ordering,
) -> Result<(), RingFault> {
    let part = QueuePart::UsedRing;
    if rings.known_store(part, offset, value, order) {
        return Ok(());
    }
    let addr = address(layout, part, offset)?;
    let store = rings.memory().store(value, addr, order);
    store.map_err(|_| RingFault::RingMemory)
}

/// Reads descriptor `index` of the queue's own table.
#[inline]
pub(crate) fn descriptor<R: RingMemory>(
    rings: &R,
    layout: &QueueLayout,
    index: u16,
) -> Result<Descriptor, RingFault> {
    let (part, offset) = (QueuePart::DescTable, 16 * usize::from(index));
    let raw: RawDescriptor = match rings.known_read(part, offset) {
        Some(raw) => raw,
        None => {
            let addr = address(layout, part, offset)?;
            let read = rings.memory().read_obj(addr);
            read.map_err(|_| RingFault::RingMemory)?
        }
    };
    Ok(Descriptor::from(raw))
}

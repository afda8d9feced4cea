// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Chains that were taken to put packets into, and are put back if there is none.

use virtio_device_core::{BadRequest, Buffers, Chain, Head, RingFault, RingMemory, Virtqueue};

use super::Done;
use crate::header::HEADER;

/// Chains in the driver's order, in places that are used again and again.
#[derive(Default)]
pub(super) struct Stock {
    slots: Vec<Slot>,
    /// How many of the slots hold a chain.
    filled: usize,
    /// Bytes in all of them.
    room: usize,
}

#[derive(Default)]
struct Slot {
    chain: Chain,
    head: Option<Head>,
    room: usize,
}

impl Stock {
    /// Bytes that fit into all chains.
    pub(super) const fn room(&self) -> usize {
        self.room
    }

    /// Those of the slots that hold a chain.
    fn chains(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().take(self.filled)
    }

    /// Descriptors that the chains are made of.
    pub(super) fn buffers(&self) -> usize {
        self.chains().map(|slot| slot.chain.len()).sum()
    }

    /// Takes chains until there is room for `wanted` bytes, or there are no more. Those that no packet
    /// can be put into go straight to `done`.
    pub(super) fn fill(
        &mut self,
        ring: &mut Virtqueue,
        rings: &impl RingMemory,
        wanted: usize,
        done: &mut Done<'_>,
    ) -> Result<(), RingFault> {
        while self.room < wanted {
            if self.filled == self.slots.len() {
                self.slots.push(Slot::default());
            }
            let Some(slot) = self.slots.get_mut(self.filled) else {
                break;
            };
            let Some(head) = ring.take(rings, &mut slot.chain)? else {
                break;
            };
            match room(&slot.chain, rings) {
                Ok(room) => {
                    (slot.head, slot.room) = (Some(head), room);
                    self.filled += 1;
                    self.room += room;
                }
                Err(error) => done.refuse(head, error),
            }
        }
        Ok(())
    }

    /// The room behind the header, as pieces of a packet: as many as the kernel takes, but for one.
    pub(super) fn gather<'a>(&'a self, rings: &'a impl RingMemory, packet: &mut Buffers<'a>) {
        const MOST: usize = Buffers::MAX_PIECES - 1;
        // Each has room for the header.
        let mut skip = HEADER as u64;
        for slot in self.chains() {
            if packet.vectors().len() >= MOST {
                break;
            }
            let mut writer = slot.chain.writer(rings);
            writer.skip(std::mem::take(&mut skip));
            // It was found to be in memory.
            let _ = packet.add(writer, u64::MAX);
        }
        packet.truncate(MOST);
    }

    /// How many chains a packet of `len` bytes takes.
    pub(super) fn count(&self, mut len: usize) -> u16 {
        let mut count = 1;
        for slot in self.chains() {
            if len <= slot.room {
                break;
            }
            (count, len) = (count + 1, len - slot.room);
        }
        count
    }

    /// Gives the chains away that a packet of `len` bytes is in, with its first bytes from `data`; the
    /// others are there already.
    pub(super) fn give(
        &mut self,
        rings: &impl RingMemory,
        mut data: &[u8],
        mut len: usize,
        done: &mut Done<'_>,
    ) {
        let mut used = 0;
        for slot in self.slots.iter_mut().take(self.filled) {
            let part = len.min(slot.room);
            let (now, later) = data.split_at(part.min(data.len()));
            // It was found to be in memory, with this much room.
            let _ = slot.chain.write(rings, now);
            slot.chain.mark_written(rings.memory(), part as u64);
            if let Some(head) = slot.head.take() {
                done.push(head, u32::try_from(part).unwrap_or(u32::MAX));
            }
            used += 1;
            self.room -= slot.room;
            (data, len) = (later, len - part);
            if len == 0 {
                break;
            }
        }
        let filled = self.slots.get_mut(..self.filled).unwrap_or_default();
        filled.rotate_left(used);
        self.filled -= used;
    }

    /// Puts all chains back, the last one first.
    pub(super) fn put_back(&mut self, ring: &mut Virtqueue) {
        let slots = self.slots.get_mut(..self.filled).unwrap_or_default();
        for head in slots.iter_mut().rev().filter_map(|slot| slot.head.take()) {
            ring.put_back(head);
        }
        (self.filled, self.room) = (0, 0);
    }
}

/// How many bytes of a packet fit into a chain.
fn room(chain: &Chain, rings: &impl RingMemory) -> Result<usize, BadRequest> {
    chain.check(rings)?;
    let room = usize::try_from(chain.writable_len()).map_err(|_| BadRequest::Layout)?;
    // A chain for packets holds nothing for the device to read, and a header at least.
    match room >= HEADER && chain.readable().next().is_none() {
        true => Ok(room),
        false => Err(BadRequest::Layout),
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Chains that were taken to put packets into, and are put back if there is none.

use std::io::Write;

use virtio_device_core::{BadRequest, Chain, Head, RingFault, RingMemory, Virtqueue};
use vm_memory::GuestMemory;
use vm_memory::bitmap::{BS, Bitmap as _};

use super::Bad;
use crate::header::HEADER;
use crate::raw::Gather;

/// Chains in the driver's order, in places that are used again and again.
#[derive(Default)]
pub(super) struct Stock {
    slots: Vec<Slot>,
    /// How many of the slots hold a chain.
    filled: usize,
    /// Bytes in all of them.
    room: usize,
    /// Descriptors in all of them.
    buffers: usize,
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

    pub(super) const fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Descriptors that the chains are made of.
    pub(super) const fn buffers(&self) -> usize {
        self.buffers
    }

    /// Takes chains until there is room for `wanted` bytes, or there are no more. Those that no packet
    /// can be put into go straight to `done`.
    pub(super) fn fill(
        &mut self,
        ring: &mut Virtqueue,
        rings: &impl RingMemory,
        wanted: usize,
        done: &mut Vec<(Head, u32)>,
        bad: Bad<'_>,
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
                    self.buffers += slot.chain.len();
                }
                Err(error) => {
                    bad(error);
                    done.push((head, 0));
                    // A driver that makes nothing else available must not keep this from ending.
                    if done.len() >= usize::from(ring.size()) {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// The room behind the first `skip` bytes, as pieces of a packet.
    pub(super) fn gather<'a, M: GuestMemory>(
        &'a self,
        memory: &'a M,
        mut skip: usize,
        packet: &mut Gather<'a>,
    ) {
        let slots = self.slots.iter().take(self.filled);
        // Each was found to be in memory.
        for slice in slots.flat_map(|slot| slot.chain.writable_slices(memory).flatten()) {
            packet.guest(&slice, skip);
            skip = skip.saturating_sub(slice.len());
        }
    }

    /// Writes the first bytes of a packet.
    pub(super) fn write_start(&self, rings: &impl RingMemory, data: &[u8]) {
        match self.slots.first() {
            // Fast path: all of them lie in the first chain, which was found to be in memory.
            Some(slot) if slot.room >= data.len() => drop(slot.chain.write(rings, data)),
            _ => self.write(rings.memory(), 0, data),
        }
    }

    /// Writes `data` from byte `at` on.
    pub(super) fn write<M: GuestMemory>(&self, memory: &M, mut at: usize, mut data: &[u8]) {
        for slot in self.slots.iter().take(self.filled) {
            if at < slot.room {
                let (now, later) = data.split_at(data.len().min(slot.room - at));
                let mut writer = slot.chain.writer(memory);
                writer.skip(at as u64);
                // It was found to be in memory, with this much room.
                let _ = writer.write_all(now);
                data = later;
            }
            if data.is_empty() {
                break;
            }
            at = at.saturating_sub(slot.room);
        }
    }

    /// How many chains a packet of `len` bytes takes.
    pub(super) fn count(&self, mut len: usize) -> u16 {
        let mut count = 0;
        for slot in self.slots.iter().take(self.filled) {
            count += 1;
            if len <= slot.room {
                break;
            }
            len -= slot.room;
        }
        count
    }

    /// Gives the chains away that a packet of `len` bytes is in.
    pub(super) fn use_up<M: GuestMemory>(
        &mut self,
        memory: &M,
        mut len: usize,
        done: &mut Vec<(Head, u32)>,
    ) {
        let mut used = 0;
        for slot in self.slots.iter_mut().take(self.filled) {
            let part = len.min(slot.room);
            if let Some(head) = slot.head.take() {
                done.push((head, u32::try_from(part).unwrap_or(u32::MAX)));
            }
            mark_written(&slot.chain, memory, part);
            self.room -= slot.room;
            self.buffers -= slot.chain.len();
            used += 1;
            len -= part;
            if len == 0 {
                break;
            }
        }
        self.slots
            .get_mut(..self.filled)
            .unwrap_or_default()
            .rotate_left(used);
        self.filled -= used;
    }

    /// Puts all chains back, the last one first.
    pub(super) fn put_back(&mut self, ring: &mut Virtqueue) {
        let slots = self.slots.get_mut(..self.filled).unwrap_or_default();
        for head in slots.iter_mut().rev().filter_map(|slot| slot.head.take()) {
            ring.put_back(head);
        }
        self.forget();
    }

    /// Forgets what was left of a ring that is broken.
    pub(super) const fn forget(&mut self) {
        (self.filled, self.room, self.buffers) = (0, 0, 0);
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

/// Notes that the kernel has written the first `len` bytes of a chain, if anybody keeps such notes.
fn mark_written<M: GuestMemory>(chain: &Chain, memory: &M, mut len: usize) {
    if size_of::<BS<'_, M::Bitmap>>() == 0 {
        return;
    }
    for slice in chain.writable_slices(memory).flatten() {
        let part = len.min(slice.len());
        slice.bitmap().mark_dirty(0, part);
        len -= part;
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Chains that were taken to put packets into, and are put back if there is none.

use std::collections::VecDeque;

use virtio_device_core::{BadRequest, Buffers, Chain, Head, RingFault, RingMemory, Virtqueue};
use vm_memory::GuestMemory;

use super::turn::Turn;
use crate::header::HEADER;

/// Chains in the driver's order.
#[derive(Default)]
pub(super) struct Stock {
    slots: VecDeque<Slot>,
    /// Bytes in all of them.
    room: usize,
    /// Places for chains, to be used again.
    spare: Vec<Chain>,
}

struct Slot {
    chain: Chain,
    head: Head,
    room: usize,
}

impl Stock {
    /// Bytes that fit into all chains.
    pub(super) const fn room(&self) -> usize {
        self.room
    }

    /// Descriptors that the chains are made of.
    pub(super) fn buffers(&self) -> usize {
        self.slots.iter().map(|slot| slot.chain.len()).sum()
    }

    /// Takes chains until there is room for `wanted` bytes, or there are no more. Those that no packet
    /// can be put into are refused.
    pub(super) fn fill<M: GuestMemory>(
        &mut self,
        turn: &mut Turn<'_, M>,
        wanted: usize,
    ) -> Result<(), RingFault> {
        while self.room < wanted {
            let mut chain = self.spare.pop().unwrap_or_default();
            let Some(head) = turn.take(&mut chain)? else {
                self.spare.push(chain);
                break;
            };
            match room(&chain, &turn.rings) {
                Ok(room) => {
                    self.room += room;
                    self.slots.push_back(Slot { chain, head, room });
                }
                Err(error) => {
                    turn.end(head, Err(error));
                    self.spare.push(chain);
                }
            }
        }
        Ok(())
    }

    /// The room behind the header, as pieces of a packet: as many as the kernel takes, but for one.
    pub(super) fn gather<'a>(&'a self, rings: &'a impl RingMemory, packet: &mut Buffers<'a>) {
        const MOST: usize = Buffers::MAX_PIECES - 1;
        // Each has room for the header.
        let mut skip = HEADER as u64;
        for slot in &self.slots {
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
    fn count(&self, mut len: usize) -> u16 {
        let mut count = 1;
        for slot in &self.slots {
            if len <= slot.room {
                break;
            }
            (count, len) = (count + 1, len - slot.room);
        }
        count
    }

    /// Gives the chains away that a packet of `len` bytes is in, which begins with `data`, a header at
    /// least; what comes after that is there already.
    pub(super) fn give<M: GuestMemory>(
        &mut self,
        turn: &mut Turn<'_, M>,
        data: &mut [u8],
        mut len: usize,
    ) {
        if let Some(place) = data.get_mut(HEADER - 2..HEADER) {
            place.copy_from_slice(&self.count(len).to_le_bytes());
        }
        let mut data = &*data;
        while let Some(slot) = self.slots.pop_front() {
            let part = len.min(slot.room);
            let (now, later) = data.split_at(part.min(data.len()));
            // It was found to be in memory, with this much room.
            let _ = slot.chain.write(&turn.rings, now);
            slot.chain.mark_written(turn.rings.memory(), part as u64);
            turn.end(slot.head, Ok(u32::try_from(part).unwrap_or(u32::MAX)));
            self.room -= slot.room;
            self.spare.push(slot.chain);
            (data, len) = (later, len - part);
            if len == 0 {
                break;
            }
        }
    }

    /// Puts all chains back, the last one first.
    pub(super) fn put_back(&mut self, queue: &mut Virtqueue) {
        while let Some(slot) = self.slots.pop_back() {
            queue.put_back(slot.head);
            self.spare.push(slot.chain);
        }
        self.room = 0;
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

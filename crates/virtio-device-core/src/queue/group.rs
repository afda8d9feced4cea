// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Giving chains back as a group.

use super::chain::Head;
use super::memory::RingMemory;
use super::taken::place;
use super::virtqueue::Virtqueue;
use crate::fault::RingFault;

impl Virtqueue {
    /// Gives a group of chains back with one store to the used index: the driver sees all of them
    /// at once, in this order. Cheaper than one [`complete`](Self::complete) each, and what a
    /// request needs that spans several chains (`VIRTIO_NET_F_MRG_RXBUF`).
    ///
    /// # Errors
    ///
    /// As [`Virtqueue::complete`]; the driver sees none of the group then.
    pub fn complete_all<M: RingMemory>(
        &mut self,
        memory: &M,
        used: impl IntoIterator<Item = (Head, u32)>,
    ) -> Result<(), RingFault> {
        self.latching(|queue| {
            let mut used = used.into_iter();
            let mut next = used.next();
            let Some((first, _)) = &next else {
                return Ok(());
            };
            let mut group = Group::new(queue, first);
            // Fast path: the place of the ring is known. A run ends where the ring wraps.
            'group: while let Some(slots) = memory.known_elements(group.slot()) {
                for slot in 0..slots.len() {
                    let Some((head, len)) = next else {
                        break 'group;
                    };
                    group.add(&head)?;
                    let element = u64::from(head.0) | u64::from(len) << 32;
                    slots.store(slot, element.to_le());
                    next = used.next();
                }
            }
            drop(group);
            while let Some((head, len)) = next {
                queue.add_used(memory, head, len)?;
                next = used.next();
            }
            queue.publish_used(memory)
        })
    }
}

/// A group of chains that is given back. What changes with each of them stays in registers, and is
/// written back in any case: if there is a fault, if the caller's iterator panics.
struct Group<'q> {
    queue: &'q mut Virtqueue,
    /// A word of the set of chains in flight: neighbours share one as a rule.
    word: u64,
    index: usize,
    next_used: u16,
    mask: u16,
}

impl<'q> Group<'q> {
    #[inline]
    fn new(queue: &'q mut Virtqueue, first: &Head) -> Self {
        let (index, _) = place(first.0);
        Self {
            word: queue.taken.word(index),
            index,
            next_used: queue.next_used,
            // The size is a power of two.
            mask: queue.size() - 1,
            queue,
        }
    }

    /// Where the next used element comes in the ring.
    #[inline]
    fn slot(&self) -> u16 {
        self.next_used & self.mask
    }

    #[inline]
    fn add(&mut self, head: &Head) -> Result<(), RingFault> {
        let (index, bit) = place(head.0);
        if index != self.index {
            self.word = self.queue.taken.exchange(self.index, self.word, index);
            self.index = index;
        }
        if self.word & bit == 0 {
            return Err(RingFault::HeadNotTaken(head.0));
        }
        self.word ^= bit;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(())
    }
}

impl Drop for Group<'_> {
    #[inline]
    fn drop(&mut self) {
        let queue = &mut *self.queue;
        queue.taken.set_word(self.index, self.word);
        let count = self.next_used.wrapping_sub(queue.next_used);
        queue.added = queue.added.saturating_add(count);
        queue.next_used = self.next_used;
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's side of a split virtqueue.

use std::fmt;

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

use super::chain::{Chain, Head};
use super::layout::{QueueLayout, QueuePart};
use super::memory::{RingMemory, load, store, store_used};
use crate::fault::RingFault;
use crate::negotiation::{Features, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC};
use crate::sync::{Ordering, fence};

/// How many used elements of a group are written with one access.
const USED_AT_ONCE: usize = 16;

/// A live split virtqueue as its device sees it: takes chains, gives them back.
///
/// Every check that section 2.7 lets a device make is made. The first [`RingFault`] is latched:
/// from then on every call returns it, until the driver resets the device and sets the queue up
/// anew.
pub struct Virtqueue {
    layout: QueueLayout,
    pub(super) event_idx: bool,
    indirect: bool,
    /// The available index up to which chains were taken.
    pub(super) next_avail: u16,
    /// The used index up to which chains were given back.
    pub(super) next_used: u16,
    /// One bit for each descriptor: whether it heads a chain that was taken and not given back.
    pub(super) taken: Vec<u64>,
    /// Chains that were put back, or taken before the queue was saved, last one first: they come
    /// before those of the available ring.
    pub(super) again: Vec<u16>,
    /// The queue as `virtio-queue` has it, which keeps count of what it owes an interrupt for.
    #[cfg(feature = "virtio-queue")]
    pub(super) lent: Option<virtio_queue::Queue>,
    /// Chains given back since the driver's wish for an interrupt was last looked at.
    added: u16,
    /// Whether a fence stands behind the last chain given back.
    fenced: bool,
    fault: Option<RingFault>,
}

/// How far a device has come with a queue: plain data, to be saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct QueueProgress {
    /// The available index up to which chains were taken.
    pub next_avail: u16,
    /// The used index up to which chains were given back.
    pub next_used: u16,
    /// Heads of the chains that were taken and not given back.
    pub taken: Vec<u16>,
}

/// Why a queue cannot go on from a saved state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProgressError {
    /// The chains that are taken are not as many as the indices are apart.
    Count {
        /// How far the indices are apart.
        expected: u16,
        /// How many chains are taken.
        taken: usize,
    },
    /// A chain that is taken has a head that the queue does not have, or is there twice.
    Head(u16),
}

impl fmt::Display for ProgressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count { expected, taken } => {
                write!(
                    f,
                    "{taken} chains are taken, and the indices say {expected}"
                )
            }
            Self::Head(head) => write!(f, "chain {head} cannot have been taken, or not twice"),
        }
    }
}

impl std::error::Error for ProgressError {}

impl Virtqueue {
    /// Makes the queue that lives at `layout`, under the negotiated `features`, both rings at
    /// index 0.
    #[must_use]
    pub fn new(layout: QueueLayout, features: Features) -> Self {
        Self {
            layout,
            event_idx: features.has(VIRTIO_F_EVENT_IDX),
            indirect: features.has(VIRTIO_F_INDIRECT_DESC),
            next_avail: 0,
            next_used: 0,
            taken: vec![0; usize::from(layout.size()).div_ceil(64)],
            again: Vec::with_capacity(1),
            #[cfg(feature = "virtio-queue")]
            lent: None,
            added: 0,
            fenced: false,
            fault: None,
        }
    }

    /// Makes the queue that lives at `layout` and goes on where `progress` says. Chains that were
    /// taken and not given back come first, so that each is served once.
    ///
    /// # Errors
    ///
    /// What in `progress` cannot be.
    pub fn resume(
        layout: QueueLayout,
        features: Features,
        progress: &QueueProgress,
    ) -> Result<Self, ProgressError> {
        let expected = progress.next_avail.wrapping_sub(progress.next_used);
        let taken = progress.taken.len();
        if taken != usize::from(expected) || expected > layout.size() {
            return Err(ProgressError::Count { expected, taken });
        }
        let mut queue = Self::new(layout, features);
        for &head in &progress.taken {
            if head >= queue.size() || !queue.mark(head, true) {
                return Err(ProgressError::Head(head));
            }
        }
        queue.taken.fill(0);
        queue.again = progress.taken.iter().rev().copied().collect();
        queue.next_avail = progress.next_avail;
        queue.next_used = progress.next_used;
        Ok(queue)
    }

    /// How far the device has come.
    #[must_use]
    pub fn progress(&self) -> QueueProgress {
        let heads = (0..self.size()).filter(|&head| self.is_taken(head));
        QueueProgress {
            next_avail: self.next_avail,
            next_used: self.next_used,
            taken: heads.chain(self.again.iter().rev().copied()).collect(),
        }
    }

    /// The fault that the queue has latched, if any.
    #[must_use]
    pub const fn fault(&self) -> Option<RingFault> {
        self.fault
    }

    pub(super) fn is_taken(&self, head: u16) -> bool {
        let word = self.taken.get(usize::from(head / 64));
        word.is_some_and(|word| word & 1 << (head % 64) != 0)
    }

    /// Notes whether `head` is taken; returns whether that is a change.
    #[inline]
    pub(super) fn mark(&mut self, head: u16, taken: bool) -> bool {
        let Some(word) = self.taken.get_mut(usize::from(head / 64)) else {
            return false;
        };
        let (before, bit) = (*word, 1 << (head % 64));
        *word = if taken { before | bit } else { before & !bit };
        *word != before
    }

    /// Where the queue lives.
    #[must_use]
    pub const fn layout(&self) -> &QueueLayout {
        &self.layout
    }

    /// Number of descriptors.
    #[must_use]
    pub const fn size(&self) -> u16 {
        self.layout.size()
    }

    /// Takes the next chain that the driver has made available into `chain`; `None` if there is
    /// none, and `chain` is empty then.
    ///
    /// # Errors
    ///
    /// [`RingFault`] if the driver has broken the ring, now or earlier.
    pub fn take<M: RingMemory>(
        &mut self,
        memory: &M,
        chain: &mut Chain,
    ) -> Result<Option<Head>, RingFault> {
        chain.clear();
        self.latching(|queue| {
            let head = match queue.again.pop() {
                Some(head) => head,
                None => match queue.next_head(memory)? {
                    Some(head) => head,
                    None => return Ok(None),
                },
            };
            if !queue.mark(head, true) {
                return Err(RingFault::HeadInUse(head));
            }
            chain.read(memory, &queue.layout, queue.indirect, head)?;
            Ok(Some(Head(head)))
        })
    }

    /// Puts back the chain that was taken last and cannot be served yet: the next
    /// [`Virtqueue::take`] takes it again, on this queue or on one that is restored from its state.
    pub fn put_back(&mut self, head: Head) {
        if self.mark(head.0, false) {
            self.again.push(head.0);
        }
    }

    /// Gives a chain back: `len` bytes were written from the first device-writable byte on.
    ///
    /// # Errors
    ///
    /// [`RingFault`] if the used ring is out of reach, or a fault was met earlier.
    pub fn complete<M: RingMemory>(
        &mut self,
        memory: &M,
        head: Head,
        len: u32,
    ) -> Result<(), RingFault> {
        self.latching(|queue| {
            queue.add_used(memory, head, len)?;
            queue.publish_used(memory)
        })
    }

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
            let before = queue.next_used;
            let mut used = used.into_iter();
            loop {
                let mut elements = [[0; 8]; USED_AT_ONCE];
                let room = queue.room_before_wrap().min(USED_AT_ONCE);
                let mut count = 0;
                for (element, (head, len)) in elements.iter_mut().take(room).zip(&mut used) {
                    *element = used_element(&head, len);
                    count += 1;
                }
                if count == 0 {
                    break;
                }
                queue.add_all_used(memory, elements.get(..count).unwrap_or_default())?;
            }
            if queue.next_used == before {
                return Ok(());
            }
            queue.publish_used(memory)
        })
    }

    /// How many used elements follow each other in memory from the next one on.
    fn room_before_wrap(&self) -> usize {
        usize::from(self.size() - (self.next_used & (self.size() - 1)))
    }

    /// Writes used elements that follow each other in memory, as [`used_element`] makes them.
    fn add_all_used<M: RingMemory>(
        &mut self,
        memory: &M,
        elements: &[[u8; 8]],
    ) -> Result<(), RingFault> {
        // As a rule neighbours share a word of the bit map, which stays in a register meanwhile.
        let (mut index, mut word) = (0, self.taken.first().copied().unwrap_or(0));
        for &[low, high, ..] in elements {
            let head = u16::from_le_bytes([low, high]);
            let bit = 1 << (head % 64);
            if usize::from(head / 64) != index {
                self.put_word(index, word);
                index = usize::from(head / 64);
                word = self.taken.get(index).copied().unwrap_or(0);
            }
            if word & bit == 0 {
                return Err(RingFault::HeadNotTaken(head));
            }
            word &= !bit;
        }
        self.put_word(index, word);
        let offset = self.used_offset();
        store_used(memory, &self.layout, offset, elements)?;
        // There are at most `USED_AT_ONCE`.
        let count = u16::try_from(elements.len()).unwrap_or(0);
        self.next_used = self.next_used.wrapping_add(count);
        self.added = self.added.saturating_add(count);
        Ok(())
    }

    fn put_word(&mut self, index: usize, word: u64) {
        if let Some(slot) = self.taken.get_mut(index) {
            *slot = word;
        }
    }

    /// Where the next used element is in the used ring.
    #[inline]
    fn used_offset(&self) -> usize {
        // The size is a power of two, so this is the modulo.
        4 + 8 * usize::from(self.next_used & (self.size() - 1))
    }

    /// Writes the next used element, which the driver does not see before the index covers it.
    #[inline]
    fn add_used<M: RingMemory>(
        &mut self,
        memory: &M,
        head: Head,
        len: u32,
    ) -> Result<(), RingFault> {
        if !self.mark(head.0, false) {
            return Err(RingFault::HeadNotTaken(head.0));
        }
        let (layout, element) = (&self.layout, self.used_offset());
        let id = u32::from(head.0).to_le();
        store(memory, layout, element, id, Ordering::Relaxed)?;
        store(memory, layout, element + 4, len.to_le(), Ordering::Relaxed)?;
        self.next_used = self.next_used.wrapping_add(1);
        self.added = self.added.saturating_add(1);
        Ok(())
    }

    #[inline]
    fn publish_used<M: RingMemory>(&mut self, memory: &M) -> Result<(), RingFault> {
        self.fenced = false;
        let index = self.next_used.to_le();
        // Release: buffers and elements are written before the index that covers them.
        store(memory, &self.layout, 2, index, Ordering::Release)
    }

    /// Takes over the progress of a server that has worked on the rings instead of this queue, such
    /// as a vhost back end: it says up to which available index it has taken chains, and the used
    /// index in the ring says up to which it has given them back.
    ///
    /// The chains between the two are taken to be the last ones it took: they come first in
    /// [`take`](Self::take), so that each is served once. The server must have completed all that it
    /// took, or have completed in order.
    ///
    /// # Errors
    ///
    /// [`RingFault`] if the used index does not fit `next_avail`, or the available ring does not
    /// hold the chains between them.
    pub fn handed_back<M: RingMemory>(
        &mut self,
        memory: &M,
        next_avail: u16,
    ) -> Result<(), RingFault> {
        self.latching(|queue| {
            let part = QueuePart::UsedRing;
            let next_used = load(memory, &queue.layout, part, 2, Ordering::Acquire)?;
            let in_flight = next_avail.wrapping_sub(next_used);
            if in_flight > queue.size() {
                return Err(RingFault::UsedIndex {
                    next: next_avail,
                    index: next_used,
                });
            }
            queue.taken.fill(0);
            queue.again.clear();
            // The chain to be taken first is the last in the list.
            for behind in 1..=in_flight {
                let head = queue.avail_entry(memory, next_avail.wrapping_sub(behind))?;
                if !queue.mark(head, true) {
                    return Err(RingFault::HeadInUse(head));
                }
                queue.again.push(head);
            }
            queue.taken.fill(0);
            queue.next_avail = next_avail;
            queue.next_used = next_used;
            queue.added = 0;
            Ok(())
        })
    }

    /// Whether the driver wants an interrupt for what was completed since this was last asked
    /// (section 2.7.7.2). Returns `false` if nothing was completed since the last call.
    ///
    /// # Errors
    ///
    /// As [`Virtqueue::complete`].
    pub fn needs_interrupt<M: RingMemory>(&mut self, memory: &M) -> Result<bool, RingFault> {
        self.latching(|queue| {
            let added = std::mem::take(&mut queue.added);
            if added == 0 {
                return Ok(false);
            }
            // The used index must be visible before the driver's wish is read.
            if !queue.fenced {
                fence(Ordering::SeqCst);
            }
            let (layout, part) = (queue.layout, QueuePart::AvailRing);
            if queue.event_idx {
                let used_event = 4 + 2 * usize::from(layout.size());
                let event = load(memory, &layout, part, used_event, Ordering::Relaxed)?;
                // Whether the index has passed the event since this was last asked.
                let passed = queue.next_used.wrapping_sub(event).wrapping_sub(1);
                return Ok(passed < added);
            }
            let flags = load(memory, &layout, part, 0, Ordering::Relaxed)?;
            Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
        })
    }

    /// Asks the driver not to notify: the device is looking at the ring anyway.
    ///
    /// # Errors
    ///
    /// As [`Virtqueue::complete`].
    pub fn disable_notification<M: RingMemory>(&mut self, memory: &M) -> Result<(), RingFault> {
        self.latching(|queue| {
            // An event index that is behind disables notifications by itself.
            if queue.event_idx {
                return Ok(());
            }
            #[expect(clippy::cast_possible_truncation, reason = "a flag of 16 bits")]
            const NO_NOTIFY: u16 = VRING_USED_F_NO_NOTIFY as u16;
            store(
                memory,
                &queue.layout,
                0,
                NO_NOTIFY.to_le(),
                Ordering::Relaxed,
            )
        })
    }

    /// Asks the driver to notify again, and returns whether a chain has come in the meantime: then
    /// no notification may ever follow, and the device must look once more.
    ///
    /// # Errors
    ///
    /// As [`Virtqueue::complete`].
    pub fn enable_notification<M: RingMemory>(&mut self, memory: &M) -> Result<bool, RingFault> {
        self.latching(|queue| {
            let (layout, next) = (queue.layout, queue.next_avail);
            if queue.event_idx {
                let avail_event = 4 + 8 * usize::from(layout.size());
                store(
                    memory,
                    &layout,
                    avail_event,
                    next.to_le(),
                    Ordering::Relaxed,
                )?;
            } else {
                store(memory, &layout, 0, 0_u16, Ordering::Relaxed)?;
            }
            // What was asked must be visible before the index is read.
            fence(Ordering::SeqCst);
            queue.fenced = true;
            let index = load(memory, &layout, QueuePart::AvailRing, 2, Ordering::Relaxed)?;
            Ok(index != next)
        })
    }

    fn next_head<M: RingMemory>(&mut self, memory: &M) -> Result<Option<u16>, RingFault> {
        let (layout, part) = (self.layout, QueuePart::AvailRing);
        // Acquire: the ring entry and the descriptors are read after the index that covers them.
        let index = load(memory, &layout, part, 2, Ordering::Acquire)?;
        let next = self.next_avail;
        match index.wrapping_sub(next) {
            0 => return Ok(None),
            ahead if ahead > self.size() => return Err(RingFault::AvailIndex { next, index }),
            _ => {}
        }
        let head = self.avail_entry(memory, next)?;
        self.next_avail = next.wrapping_add(1);
        Ok(Some(head))
    }

    /// The head in the available ring at `index`.
    #[inline]
    pub(super) fn avail_entry<M: RingMemory>(
        &self,
        memory: &M,
        index: u16,
    ) -> Result<u16, RingFault> {
        let (layout, size) = (&self.layout, self.size());
        // The size is a power of two, so this is the modulo, and no division by a guest's number.
        let entry = 4 + 2 * usize::from(index & (size - 1));
        let head = load(
            memory,
            layout,
            QueuePart::AvailRing,
            entry,
            Ordering::Relaxed,
        )?;
        if head >= size {
            return Err(RingFault::DescriptorIndex { index: head, size });
        }
        Ok(head)
    }

    #[inline]
    pub(super) fn latching<T>(
        &mut self,
        operation: impl FnOnce(&mut Self) -> Result<T, RingFault>,
    ) -> Result<T, RingFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let result = operation(self);
        if let Err(fault) = &result {
            self.fault = Some(*fault);
        }
        result
    }
}

/// An element of the used ring as it is in memory (section 2.7.8).
fn used_element(head: &Head, len: u32) -> [u8; 8] {
    (u64::from(head.0) | u64::from(len) << 32).to_le_bytes()
}

impl fmt::Debug for Virtqueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Virtqueue")
            .field("layout", &self.layout)
            .field("next_avail", &self.next_avail)
            .field("next_used", &self.next_used)
            .field("fault", &self.fault)
            .finish_non_exhaustive()
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's side of a split virtqueue.

use std::fmt;

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

use super::chain::{Chain, Head};
use super::layout::{QueueLayout, QueuePart};
use super::memory::{RingMemory, load, store};
use super::taken::Taken;
use crate::fault::RingFault;
use crate::negotiation::{Features, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC};
use crate::sync::{Ordering, fence};

/// The device's side of a live split virtqueue: takes chains and gives them back.
///
/// Every check that section 2.7 lets a device make is made. The first [`RingFault`] is latched:
/// from then on every call returns it, until the driver resets the device and sets the queue up
/// anew.
pub struct Virtqueue {
    pub(super) layout: QueueLayout,
    pub(super) event_idx: bool,
    indirect: bool,
    /// The available index up to which chains were taken.
    pub(super) next_avail: u16,
    /// The used index up to which chains were given back.
    pub(super) next_used: u16,
    /// Chains in flight. With those in `again` they are as many as the indices are apart, after
    /// every call: what is saved can be restored.
    pub(super) taken: Taken,
    /// Chains that were put back, or in flight when the queue was saved, the next one last: they
    /// come before those of the available ring.
    pub(super) again: Vec<u16>,
    /// The queue as `virtio-queue` has it, which keeps count of what it owes an interrupt for.
    #[cfg(feature = "virtio-queue")]
    pub(super) lent: Option<virtio_queue::Queue>,
    /// Chains given back since the driver was last asked whether it wants an interrupt.
    pub(super) added: u16,
    /// Whether a fence has been executed since the used index was last published.
    fenced: bool,
    fault: Option<RingFault>,
}

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
            taken: Taken::new(layout.size()),
            again: Vec::with_capacity(1),
            #[cfg(feature = "virtio-queue")]
            lent: None,
            added: 0,
            fenced: false,
            fault: None,
        }
    }

    /// The fault that the queue has latched, if any.
    #[must_use]
    pub const fn fault(&self) -> Option<RingFault> {
        self.fault
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
    /// none, and `chain` is empty then. Before it waits for the next one, a device calls
    /// [`enable_notification`](Self::enable_notification).
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
            let next = if queue.again.is_empty() {
                queue.next_head(memory)?
            } else {
                queue.take_again()
            };
            let Some(head) = next else { return Ok(None) };
            chain.read(memory, &queue.layout, queue.indirect, head)?;
            Ok(Some(Head(head)))
        })
    }

    /// Puts back the chain that was taken last and cannot be served yet. The next
    /// [`Virtqueue::take`] takes it again, on this queue or on one that is restored from its state.
    pub fn put_back(&mut self, head: Head) {
        if self.taken.remove(head.0) {
            self.again.push(head.0);
        }
    }

    /// Gives a chain back: `len` bytes were written from the first device-writable byte on.
    ///
    /// # Errors
    ///
    /// [`RingFault`] if the used ring is not in guest memory any more, if `head` was not taken from this
    /// queue, or if a fault is latched.
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

    /// Writes the next used element, which the driver does not see before the index covers it.
    #[inline]
    pub(super) fn add_used<M: RingMemory>(
        &mut self,
        memory: &M,
        head: Head,
        len: u32,
    ) -> Result<(), RingFault> {
        // The size is a power of two, so this is the modulo.
        let slot = self.next_used & (self.size() - 1);
        let (layout, element) = (&self.layout, 4 + 8 * usize::from(slot));
        let id = u32::from(head.0).to_le();
        store(memory, layout, element, id, Ordering::Relaxed)?;
        store(memory, layout, element + 4, len.to_le(), Ordering::Relaxed)?;
        if !self.taken.remove(head.0) {
            return Err(RingFault::HeadNotTaken(head.0));
        }
        self.next_used = self.next_used.wrapping_add(1);
        self.added = self.added.saturating_add(1);
        Ok(())
    }

    /// Shows the driver all used elements that have been written.
    #[inline]
    pub(super) fn publish_used<M: RingMemory>(&mut self, memory: &M) -> Result<(), RingFault> {
        self.fenced = false;
        let index = self.next_used.to_le();
        // Release: buffers and elements are written before the index that covers them.
        store(memory, &self.layout, 2, index, Ordering::Release)
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
            // The used index must be visible before the driver's event index or flags are read;
            // otherwise both sides may miss each other's store, and the interrupt is lost.
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
            // With event indices nothing is to be done: the index that was asked for is in the past.
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

    /// Asks the driver to notify of the next chain (section 2.7.10). Returns `true` if the ring is not
    /// empty: the driver may have added a chain without a notification, so the device must look once
    /// more before it sleeps.
    ///
    /// To be called whenever [`take`](Self::take) has found nothing, also by a device that never
    /// [disables](Self::disable_notification) notifications: with `VIRTIO_F_EVENT_IDX` each call asks
    /// for one, and a driver that is not asked again sends no more.
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
            // The request must be visible before the available index is read; otherwise both sides
            // may miss each other's store, and the notification is lost.
            fence(Ordering::SeqCst);
            queue.fenced = true;
            let index = load(memory, &layout, QueuePart::AvailRing, 2, Ordering::Relaxed)?;
            Ok(index != next)
        })
    }

    /// Takes the head of a chain that comes before those of the available ring.
    #[cold]
    fn take_again(&mut self) -> Option<u16> {
        let head = self.again.pop()?;
        // `put_back` removed it from the set; now it is taken again.
        self.taken.insert(head);
        Some(head)
    }

    /// Takes the next head from the available ring.
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
        if !self.taken.insert(head) {
            return Err(RingFault::HeadInUse(head));
        }
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

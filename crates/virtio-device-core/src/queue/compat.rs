// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A queue as the crate `virtio-queue` has it, for devices that are written against that.

use virtio_queue::{Queue, QueueState, QueueT};

use super::layout::QueuePart;
use super::memory::{RingMemory, load};
use super::taken::Taken;
use super::virtqueue::Virtqueue;
use crate::fault::RingFault;
use crate::sync::Ordering;

impl Virtqueue {
    /// Lends the queue as a [`virtio_queue::Queue`] to a device that is written against
    /// [`QueueT`], and takes over how far the device has come with it.
    ///
    /// ```
    /// # use virtio_device_core::{RingFault, Virtqueue};
    /// # use vm_memory::GuestMemoryMmap;
    /// use virtio_queue::{QueueOwnedT, QueueT};
    ///
    /// # fn example(queue: &mut Virtqueue, memory: &GuestMemoryMmap) -> Result<(), RingFault> {
    /// queue.as_queue(memory, |queue| {
    ///     while let Some(chain) = queue.pop_descriptor_chain(memory) {
    ///         let _ = queue.add_used(memory, chain.head_index(), 0);
    ///     }
    /// })
    /// # }
    /// ```
    ///
    /// `virtio-queue` checks less than this crate: a loop of descriptors ends a chain there, and a
    /// head that the table does not have is a chain without descriptors. What it took and gave back
    /// is checked when it returns. A device that keeps requests in flight between two calls must
    /// complete them in order, or take no more than one queue-length in one call: the rings hold no
    /// more of the past.
    ///
    /// Use either this or the queue's own methods between two resets; interrupts that the device
    /// owes for what one of them completed are not known to the other.
    ///
    /// # Errors
    ///
    /// [`RingFault`] if the driver has broken the ring, now or earlier; and
    /// [`RingFault::HeadNotTaken`] if requests were in flight when the queue was saved and it cannot
    /// lend them again, because they were completed out of order.
    pub fn as_queue<M: RingMemory, R>(
        &mut self,
        memory: &M,
        serve: impl FnOnce(&mut Queue) -> R,
    ) -> Result<R, RingFault> {
        self.latching(|queue| {
            let from = queue.before_those_put_back(memory)?;
            let mut lent = match queue.lent.take() {
                Some(lent) => lent,
                None => queue.to_lend()?,
            };
            lent.set_next_avail(from);
            lent.set_next_used(queue.next_used);
            let served = serve(&mut lent);
            // A device may reset its copy of the queue when it stops; then there is no progress to take.
            if lent.ready() {
                queue.take_over(memory, from, lent.next_avail(), lent.next_used())?;
                queue.again.clear();
                queue.lent = Some(lent);
            }
            Ok(served)
        })
    }

    fn to_lend(&self) -> Result<Queue, RingFault> {
        let layout = self.layout();
        let queue = Queue::try_from(QueueState {
            max_size: layout.size(),
            next_avail: self.next_avail,
            next_used: self.next_used,
            event_idx_enabled: self.event_idx,
            size: layout.size(),
            ready: true,
            desc_table: layout.desc_table().0,
            avail_ring: layout.avail_ring().0,
            used_ring: layout.used_ring().0,
        });
        // Does not occur: a `QueueLayout` has passed stricter checks than virtio-queue's.
        queue.map_err(|_| RingFault::RingMemory)
    }

    /// The available index from which on the lent queue finds the chains that were put back, or were
    /// in flight when the queue was saved: it knows of no others than those in the ring.
    fn before_those_put_back<M: RingMemory>(&self, memory: &M) -> Result<u16, RingFault> {
        let mut again = self.again.clone();
        again.sort_unstable();
        let mut from = self.next_avail;
        for _ in &again {
            from = from.wrapping_sub(1);
            let head = self.avail_entry(memory, from)?;
            if again.binary_search(&head).is_err() {
                return Err(RingFault::HeadNotTaken(head));
            }
        }
        Ok(from)
    }

    /// Takes over that the lent queue, which began at the available index `from`, has come to
    /// `next_avail` and `next_used`.
    fn take_over<M: RingMemory>(
        &mut self,
        memory: &M,
        from: u16,
        next_avail: u16,
        next_used: u16,
    ) -> Result<(), RingFault> {
        let size = self.size();
        let in_flight = next_avail.wrapping_sub(next_used);
        let contradiction = RingFault::UsedIndex {
            next: next_avail,
            index: next_used,
        };
        if in_flight > size {
            return Err(contradiction);
        }
        // A device may also have moved its index back (`go_to_previous_position`).
        let (first, taken) = match next_avail.wrapping_sub(from) {
            taken if taken <= size => (from, taken),
            _ => (next_avail, from.wrapping_sub(next_avail)),
        };
        let given_back = next_used.wrapping_sub(self.next_used);
        let avail_index = load(
            memory,
            self.layout(),
            QueuePart::AvailRing,
            2,
            Ordering::Acquire,
        )?;
        let nothing_overwritten =
            avail_index.wrapping_sub(first) <= size && taken <= size && given_back <= size;
        let mut in_use = Taken::new(size);
        if in_flight != 0 && nothing_overwritten {
            in_use.clone_from(&self.taken);
            // Taking and giving back alternate, so each entry flips whether its chain is taken.
            for step in 0..taken {
                let head = self.avail_entry(memory, first.wrapping_add(step))?;
                in_use.toggle(head);
            }
            for step in 0..given_back {
                let slot = self.next_used.wrapping_add(step) & (size - 1);
                let element = 4 + 8 * usize::from(slot);
                let part = QueuePart::UsedRing;
                let head = load(memory, self.layout(), part, element, Ordering::Relaxed)?;
                in_use.toggle(head);
            }
            if in_use.heads().count() != usize::from(in_flight) {
                return Err(contradiction);
            }
        } else {
            // Those in flight, if there are any, are the last that were taken.
            for behind in 1..=in_flight {
                let head = self.avail_entry(memory, next_avail.wrapping_sub(behind))?;
                if !in_use.insert(head) {
                    return Err(RingFault::HeadInUse(head));
                }
            }
        }
        self.taken = in_use;
        self.next_avail = next_avail;
        self.next_used = next_used;
        Ok(())
    }
}

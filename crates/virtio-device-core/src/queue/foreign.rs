// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rings that were served elsewhere, by vhost say.

use super::layout::QueuePart;
use super::memory::{RingMemory, load};
use super::taken::Taken;
use super::virtqueue::Virtqueue;
use crate::fault::RingFault;
use crate::sync::Ordering;

impl Virtqueue {
    /// Takes over the progress of a server that has worked on the rings instead of this queue, such
    /// as a vhost back end: it says up to which available index it has taken chains, and the used
    /// index in the ring says up to which it has given them back.
    ///
    /// The chains between the two are assumed to be the last ones it took: they come first in
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
            let mut seen = Taken::new(queue.size());
            let mut again = Vec::with_capacity(in_flight.into());
            // The list is popped from its end, so the oldest chain is pushed last.
            for behind in 1..=in_flight {
                let head = queue.avail_entry(memory, next_avail.wrapping_sub(behind))?;
                if !seen.insert(head) {
                    return Err(RingFault::HeadInUse(head));
                }
                again.push(head);
            }
            queue.taken = Taken::new(queue.size());
            queue.again = again;
            queue.next_avail = next_avail;
            queue.next_used = next_used;
            queue.added = 0;
            Ok(())
        })
    }
}

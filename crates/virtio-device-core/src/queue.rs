// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's side of a split virtqueue, and the lease by which a device holds it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestMemory};

use crate::chain::{Chain, Head, RingFault};
use crate::features::{VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC};
use crate::layout::QueueLayout;

/// The driver asks not to be interrupted (section 2.7.6).
const VIRTQ_AVAIL_F_NO_INTERRUPT: u16 = 1;

/// A live split virtqueue as its device sees it: takes chains, gives them back.
///
/// Every check that section 2.7 lets a device make is made. The first [`RingFault`] is latched:
/// from then on every call returns it, until the driver resets the device and sets the queue up
/// anew.
pub struct Virtqueue {
    layout: QueueLayout,
    queue: Queue,
    indirect: bool,
    fault: Option<RingFault>,
}

impl Virtqueue {
    /// Makes the queue that lives at `layout`, under the negotiated `features`, both rings at
    /// index 0.
    #[must_use]
    pub fn new(layout: QueueLayout, features: u64) -> Self {
        // A checked layout cannot be refused; a queue that was would stay at size 0 and not ready.
        let mut queue = Queue::new(layout.size()).unwrap_or_default();
        let halves = |address: vm_memory::GuestAddress| {
            let address = address.raw_value();
            (
                u32::try_from(address & 0xffff_ffff).ok(),
                u32::try_from(address >> 32).ok(),
            )
        };
        queue.set_size(layout.size());
        let (low, high) = halves(layout.desc_table());
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(layout.avail_ring());
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(layout.used_ring());
        queue.set_used_ring_address(low, high);
        queue.set_event_idx(features & VIRTIO_F_EVENT_IDX != 0);
        queue.set_ready(true);
        Self {
            layout,
            queue,
            indirect: features & VIRTIO_F_INDIRECT_DESC != 0,
            fault: None,
        }
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
    /// none.
    ///
    /// # Errors
    ///
    /// [`RingFault`] if the driver has broken the ring, now or earlier.
    pub fn take<M: GuestMemory>(
        &mut self,
        memory: &M,
        chain: &mut Chain,
    ) -> Result<Option<Head>, RingFault> {
        self.latching(|queue| {
            let Some(head) = queue.next_head(memory)? else {
                return Ok(None);
            };
            chain.read(memory, &queue.layout, queue.indirect, head)?;
            Ok(Some(Head(head)))
        })
    }

    /// Puts back the chain that was taken last and cannot be served yet: the next
    /// [`Virtqueue::take`] takes it again, on this queue or on one that is restored from its state.
    pub fn put_back(&mut self, head: Head) {
        let Head(_) = head;
        self.queue
            .set_next_avail(self.queue.next_avail().wrapping_sub(1));
    }

    /// Gives a chain back: `len` bytes were written from the first device-writable byte on.
    ///
    /// # Errors
    ///
    /// [`RingFault`] if the used ring is out of reach, or a fault was met earlier.
    pub fn complete<M: GuestMemory>(
        &mut self,
        memory: &M,
        head: Head,
        len: u32,
    ) -> Result<(), RingFault> {
        self.latching(|queue| {
            queue
                .queue
                .add_used(memory, head.0, len)
                .map_err(|_| RingFault::RingMemory)
        })
    }

    /// Whether the driver wants an interrupt for what was completed since this was last asked
    /// (section 2.7.7.2).
    ///
    /// # Errors
    ///
    /// As [`Virtqueue::complete`].
    pub fn needs_interrupt<M: GuestMemory>(&mut self, memory: &M) -> Result<bool, RingFault> {
        self.latching(|queue| {
            if queue.queue.event_idx_enabled() {
                return queue
                    .queue
                    .needs_notification(memory)
                    .map_err(|_| RingFault::RingMemory);
            }
            // The used index must be visible before the driver's flags are read.
            fence(Ordering::SeqCst);
            let flags: u16 = memory
                .load(queue.layout.avail_ring(), Ordering::Relaxed)
                .map_err(|_| RingFault::RingMemory)?;
            Ok(u16::from_le(flags) & VIRTQ_AVAIL_F_NO_INTERRUPT == 0)
        })
    }

    /// Asks the driver not to notify: the device is looking at the ring anyway.
    ///
    /// # Errors
    ///
    /// As [`Virtqueue::complete`].
    pub fn disable_notification<M: GuestMemory>(&mut self, memory: &M) -> Result<(), RingFault> {
        self.latching(|queue| {
            queue
                .queue
                .disable_notification(memory)
                .map_err(|_| RingFault::RingMemory)
        })
    }

    /// Asks the driver to notify again, and returns whether a chain has come in the meantime: then
    /// no notification may ever follow, and the device must look once more.
    ///
    /// # Errors
    ///
    /// As [`Virtqueue::complete`].
    pub fn enable_notification<M: GuestMemory>(&mut self, memory: &M) -> Result<bool, RingFault> {
        self.latching(|queue| {
            queue
                .queue
                .enable_notification(memory)
                .map_err(|_| RingFault::RingMemory)
        })
    }

    fn next_head<M: GuestMemory>(&mut self, memory: &M) -> Result<Option<u16>, RingFault> {
        let ring = self.layout.avail_ring();
        let at = |offset: u64| ring.checked_add(offset).ok_or(RingFault::RingMemory);
        // Acquire: the ring entry and the descriptors are read after the index that covers them.
        let index: u16 = memory
            .load(at(2)?, Ordering::Acquire)
            .map_err(|_| RingFault::RingMemory)?;
        let (index, next) = (u16::from_le(index), self.queue.next_avail());
        match index.wrapping_sub(next) {
            0 => return Ok(None),
            ahead if ahead > self.size() => return Err(RingFault::AvailIndex { next, index }),
            _ => {}
        }
        // The size is a power of two, so this is the modulo, and no division by a guest's number.
        let slot = next & (self.size() - 1);
        let head: u16 = memory
            .load(at(4 + 2 * u64::from(slot))?, Ordering::Relaxed)
            .map_err(|_| RingFault::RingMemory)?;
        let head = u16::from_le(head);
        if head >= self.size() {
            return Err(RingFault::DescriptorIndex {
                index: head,
                size: self.size(),
            });
        }
        self.queue.set_next_avail(next.wrapping_add(1));
        Ok(Some(head))
    }

    fn latching<T>(
        &mut self,
        operation: impl FnOnce(&mut Self) -> Result<T, RingFault>,
    ) -> Result<T, RingFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let result = operation(self);
        self.fault = result.as_ref().err().copied();
        result
    }
}

impl fmt::Debug for Virtqueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Virtqueue")
            .field("layout", &self.layout)
            .field("next_avail", &self.queue.next_avail())
            .field("next_used", &self.queue.next_used())
            .field("fault", &self.fault)
            .finish_non_exhaustive()
    }
}

/// A queue on loan to a device, until the transport wants it back.
///
/// A device touches guest memory only while it holds the lock of the queue that told it to, and
/// never waits for anything while it does. That makes taking a queue back quick and final, at
/// reset for one: once [`QueueLease::revoke`] has returned, no device that keeps this rule can
/// reach the driver's memory any more, whatever its worker is stuck in.
#[derive(Clone, Debug)]
pub struct QueueLease {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    revoked: AtomicBool,
    queue: Mutex<Option<Virtqueue>>,
}

impl QueueLease {
    /// Lends `queue`; for transports.
    #[must_use]
    pub fn new(queue: Virtqueue) -> Self {
        let queue = Mutex::new(Some(queue));
        Self {
            shared: Arc::new(Shared {
                revoked: AtomicBool::new(false),
                queue,
            }),
        }
    }

    /// Runs `look` on the queue under its lock; `None` once the queue has been taken back.
    ///
    /// `look` must not wait for anything but guest memory.
    pub fn with<T>(&self, look: impl FnOnce(&mut Virtqueue) -> T) -> Option<T> {
        // Asked before the lock, so that a busy worker does not keep the transport waiting.
        if self.is_revoked() {
            return None;
        }
        let mut queue = self
            .shared
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        queue.as_mut().map(look)
    }

    /// Whether the queue has been taken back, or is about to be.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.shared.revoked.load(Ordering::Acquire)
    }

    /// Takes the queue back, with its final state; `None` if that was done before.
    ///
    /// Waits for at most one critical section of the device.
    #[must_use = "the state of the queue is lost otherwise; drop it explicitly"]
    pub fn revoke(&self) -> Option<Virtqueue> {
        self.shared.revoked.store(true, Ordering::Release);
        self.shared
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

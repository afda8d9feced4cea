// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A queue in a turn of it: chains are taken one after the other, and given back all at once.

use std::io::{self, ErrorKind};
use std::time::Duration;

use virtio_device_core::{
    ActiveQueue, BadRequest, Chain, Head, InterruptHandle, RingFault, Rings, Virtqueue,
};
use vm_memory::GuestMemory;

/// Most packets, and bytes, that are moved in one turn, so that a pause never waits for more.
const TURN_PACKETS: usize = 128;
const TURN_BYTES: u64 = 1 << 20;

/// Why a queue was left before its turn was over.
#[derive(Debug)]
pub(super) enum End {
    /// The driver has made nothing more available. Its next notification comes, or this time passes.
    Drained(Option<Duration>),
    /// The host gives or takes nothing for now.
    HostBusy,
    /// It is too early for another packet.
    Wait(Duration),
    /// The back end does not work any more.
    Failed(io::Error),
    /// The driver has broken the ring.
    Fault(RingFault),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::Interrupted => Self::HostBusy,
            _ => Self::Failed(error),
        }
    }
}

impl From<RingFault> for End {
    fn from(fault: RingFault) -> Self {
        Self::Fault(fault)
    }
}

/// A queue, under its lock.
pub(super) struct Turn<'a, M: GuestMemory> {
    pub(super) queue: &'a mut Virtqueue,
    pub(super) rings: Rings<'a, M>,
    pub(super) active: &'a ActiveQueue,
    pub(super) interrupt: &'a InterruptHandle,
    /// Chains that are to be given back.
    pub(super) done: &'a mut Vec<(Head, u32)>,
}

impl<M: GuestMemory> Turn<'_, M> {
    /// Takes the next chain, if there is one.
    #[inline]
    pub(super) fn take(&mut self, chain: &mut Chain) -> Result<Option<Head>, RingFault> {
        self.queue.take(&self.rings, chain)
    }

    /// Has a chain given back, with its length; one that is not served with none.
    #[inline]
    pub(super) fn end(&mut self, head: Head, served: Result<u32, BadRequest>) {
        if let Err(error) = served {
            self.interrupt.bad_request(self.active.index, error);
        }
        self.done.push((head, served.unwrap_or(0)));
    }

    /// Has `one` move a packet after the other, and say how long it was, until it says why not. Gives back
    /// what is done, and interrupts at most once.
    pub(super) fn serve(
        &mut self,
        one: impl FnMut(&mut Self) -> Result<u64, End>,
    ) -> Result<(), End> {
        let served = self.move_packets(one);
        self.complete()?;
        if self.queue.needs_interrupt(&self.rings)? {
            self.active.signal_used();
        }
        served
    }

    fn move_packets(
        &mut self,
        mut one: impl FnMut(&mut Self) -> Result<u64, End>,
    ) -> Result<(), End> {
        self.queue.disable_notification(&self.rings)?;
        let mut bytes = 0_u64;
        for _ in 0..TURN_PACKETS {
            match one(self) {
                // A back end may say anything.
                Ok(len) => bytes = bytes.saturating_add(len),
                Err(End::Drained(wait)) => {
                    // The driver may make more available when it has got back what was done.
                    self.complete()?;
                    if !self.queue.enable_notification(&self.rings)? {
                        return Err(End::Drained(wait));
                    }
                }
                Err(end) => return Err(end),
            }
            if bytes >= TURN_BYTES {
                break;
            }
        }
        Ok(())
    }

    fn complete(&mut self) -> Result<(), RingFault> {
        self.queue.complete_all(&self.rings, self.done.drain(..))
    }
}

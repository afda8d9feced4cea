// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Packets from the back end to the driver.
//!
//! Nobody knows how long the next packet is. So as much of the driver's room is offered to the host as
//! the last packet took, and a buffer of the device's own behind it: what is longer than that is put
//! together there, and copied.

use std::time::{Duration, Instant};

use virtio_bindings::virtio_net as net;
use virtio_device_core::{Features, Vectors};
use vm_memory::GuestMemory;

use super::stock::Stock;
use super::turn::{End, Turn};
use crate::config::as_sent;
use crate::header::{HEADER, MAX_FRAME, TO_DRIVER, clean};
use crate::observer::count;
use crate::settings::START;
use crate::shared::{Pair, Port, Shared};

/// Longest packet.
const MAX_PACKET: usize = HEADER + MAX_FRAME;
/// How long a packet is kept for which the driver has too little room at the moment. Some drivers make
/// more available only when they have received what they have room for, so this must end; TCP takes
/// longer to notice that a packet has been lost.
const KEEP: Duration = Duration::from_millis(100);

pub(super) struct Receiver {
    agreed: Features,
    /// Whether a packet may lie in several chains.
    merges: bool,
    stock: Stock,
    vectors: Vectors,
    /// One byte more than the longest packet, so that one that is too long is found out.
    overflow: Box<[u8]>,
    /// A packet that the driver has too little room for, if there is any, and since when.
    kept: Vec<u8>,
    since: Option<Instant>,
    /// How much room the next packet needs, as far as anybody knows.
    expected: usize,
}

impl Receiver {
    pub(super) fn new(agreed: Features) -> Self {
        Self {
            agreed,
            merges: agreed.has(net::VIRTIO_NET_F_MRG_RXBUF),
            stock: Stock::default(),
            vectors: Vectors::default(),
            overflow: vec![0; MAX_PACKET + 1].into_boxed_slice(),
            kept: Vec::with_capacity(MAX_PACKET),
            since: None,
            expected: 1,
        }
    }

    #[inline(never)] // So that each loop has the registers to itself.
    pub(super) fn serve<M: GuestMemory>(
        &mut self,
        turn: &mut Turn<'_, M>,
        pair: &Pair,
        shared: &Shared,
    ) -> Result<(), End> {
        let port = &mut *pair.port();
        if pair.index >= port.settings.pairs {
            return Err(End::Drained(None));
        }
        let served = turn.serve(|turn| self.one(turn, port, shared));
        self.stock.put_back(turn.queue);
        served
    }

    /// Receives one packet, or drops it, and says how long it was; or says why not.
    fn one<M: GuestMemory>(
        &mut self,
        turn: &mut Turn<'_, M>,
        port: &mut Port,
        shared: &Shared,
    ) -> Result<u64, End> {
        let has_cable = shared.has_cable();
        if has_cable {
            shared.receive_limits.admit().map_err(End::Wait)?;
            if self.since.is_some() {
                return self.deliver_kept(turn, port, shared);
            }
            let wanted = if self.merges { self.expected } else { 1 };
            self.stock.fill(turn, wanted)?;
            if self.stock.room() == 0 {
                return Err(End::Drained(None));
            }
        } else {
            // What the host sends now is lost, and does not come when there is a cable again.
            self.since = None;
            self.stock.put_back(turn.queue);
        }
        let mut header = [0; HEADER];
        let mut packet = self.vectors.begin();
        packet.add_own(&mut header);
        self.stock.gather(&turn.rings, &mut packet);
        let room = packet.bytes();
        packet.add_own(&mut self.overflow);
        let len = port.backend.receive(&packet)?;
        let bytes = len as u64;
        // Also if there is one now: there was no room when there was none.
        if !has_cable || !shared.has_cable() {
            return Ok(bytes);
        }
        let mut header = [0; HEADER];
        packet.copy_to(0, &mut header);
        let allowed = || as_sent(port.settings.offloads);
        let frame = bytes.wrapping_sub(HEADER as u64);
        let Some(mut header) = clean(header, frame, TO_DRIVER, allowed) else {
            count(&shared.drops.received);
            return Ok(bytes);
        };
        if port.settings.filters(self.agreed) {
            let mut start = [0; START];
            packet.copy_to(HEADER, &mut start);
            if !port.settings.passes(start, self.agreed) {
                return Ok(bytes);
            }
        }
        self.expected = len;
        if bytes <= room {
            self.stock.give(turn, &mut header, len);
            shared.receive_limits.charge(bytes);
            return Ok(bytes);
        }
        self.kept.clear();
        self.kept.extend(header);
        self.kept.resize(len, 0);
        packet.copy_to(HEADER, self.kept.get_mut(HEADER..).unwrap_or_default());
        self.since = Some(Instant::now());
        self.deliver_kept(turn, port, shared)
    }

    /// Copies the packet that is kept to the driver, if there is room for it now.
    fn deliver_kept<M: GuestMemory>(
        &mut self,
        turn: &mut Turn<'_, M>,
        port: &Port,
        shared: &Shared,
    ) -> Result<u64, End> {
        let len = self.kept.len();
        self.stock.fill(turn, if self.merges { len } else { 1 })?;
        let age = self.since.map_or(KEEP, |since| since.elapsed());
        // The driver may want less by now than when the packet came.
        let allowed = || as_sent(port.settings.offloads);
        let frame = len.wrapping_sub(HEADER) as u64;
        let wanted = self.kept.first_chunk_mut().and_then(|header| {
            *header = clean(*header, frame, TO_DRIVER, allowed)?;
            Some(())
        });
        if wanted.is_none() {
            count(&shared.drops.received);
        } else if len <= self.stock.room() {
            self.stock.give(turn, &mut self.kept, len);
            shared.receive_limits.charge(len as u64);
        } else if self.merges && self.stock.buffers() < turn.queue.size().into() && age < KEEP {
            return Err(End::Drained(Some(KEEP - age)));
        } else {
            count(&shared.drops.received);
        }
        self.since = None;
        Ok(len as u64)
    }
}

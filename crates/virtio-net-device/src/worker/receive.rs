// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Packets from the back end to the driver.
//!
//! Nobody knows how long the next packet is. So as much of the driver's room is offered to the host as
//! the last packet took, and a buffer of the device's own behind it: what is longer than that is put
//! together there, and copied.

use std::io::Read;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_net as net;
use virtio_device_core::{Features, Vectors};
use vm_memory::GuestMemory;

use super::stock::Stock;
use super::turn::{End, Turn};
use crate::backend::Backend;
use crate::config::as_sent;
use crate::header::{HEADER, Header, MAX_FRAME, TO_DRIVER, clean};
use crate::observer::count;
use crate::settings::{START, Settings};
use crate::shared::{Pair, Shared};

/// Longest packet.
const MAX_PACKET: usize = HEADER + MAX_FRAME;
/// How long a packet is kept for which the driver has too little room at the moment. Some drivers make
/// more available only when they have received what they have room for, so this must end; TCP takes
/// longer to notice that a packet has been lost.
const KEEP: Duration = Duration::from_millis(100);

pub(super) struct Receiver {
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
        // Looked up under the back end's lock, which who changes them takes as well: by what held before
        // no packet is delivered once a command is answered.
        let backend = &mut **pair.backend();
        let settings = &*shared.settings();
        if pair.index >= settings.pairs {
            // Too old when the pair is used again.
            self.since = None;
            return Err(End::Drained(None));
        }
        let served = turn.serve(|turn| self.one(turn, backend, settings, shared));
        self.stock.put_back(turn.queue);
        served
    }

    /// Receives one packet, or drops it, and says how long it was; or says why not.
    fn one<M: GuestMemory>(
        &mut self,
        turn: &mut Turn<'_, M>,
        backend: &mut dyn Backend,
        settings: &Settings,
        shared: &Shared,
    ) -> Result<u64, End> {
        let has_cable = shared.has_cable();
        if has_cable {
            shared.receive_limits.admit().map_err(End::Wait)?;
            if self.since.is_some() {
                return self.deliver_kept(turn, settings, shared);
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
        let len = backend.receive(&packet)?;
        let bytes = len as u64;
        // Also if there is one now: there was no room when there was none.
        if !has_cable || !shared.has_cable() {
            return Ok(bytes);
        }
        let copy = |from, to: &mut [u8]| packet.copy_to(from, to);
        let Some(mut header) = accept(len, copy, settings, shared) else {
            return Ok(bytes);
        };
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
        self.deliver_kept(turn, settings, shared)
    }

    /// Copies the packet that is kept to the driver, if there is room for it now.
    fn deliver_kept<M: GuestMemory>(
        &mut self,
        turn: &mut Turn<'_, M>,
        settings: &Settings,
        shared: &Shared,
    ) -> Result<u64, End> {
        let len = self.kept.len();
        self.stock.fill(turn, if self.merges { len } else { 1 })?;
        let age = self.since.map_or(KEEP, |since| since.elapsed());
        let copy = |from, to: &mut [u8]| {
            let mut kept = self.kept.get(from..).unwrap_or_default();
            kept.read(to).unwrap_or(0)
        };
        // The driver may want less by now than when the packet came.
        if let Some(header) = accept(len, copy, settings, shared) {
            if len <= self.stock.room() {
                self.kept.splice(..HEADER, header);
                self.stock.give(turn, &mut self.kept, len);
                shared.receive_limits.charge(len as u64);
            } else if self.merges && self.stock.buffers() < turn.queue.size().into() && age < KEEP {
                return Err(End::Drained(Some(KEEP - age)));
            } else {
                count(&shared.drops.received);
            }
        }
        self.since = None;
        Ok(len as u64)
    }
}

/// The header of a packet as the driver may see it, if it wants the packet: `copy` copies what comes
/// after that many bytes of it.
fn accept(
    len: usize,
    copy: impl Fn(usize, &mut [u8]) -> usize,
    settings: &Settings,
    shared: &Shared,
) -> Option<Header> {
    let mut header = [0; HEADER];
    copy(0, &mut header);
    let frame = len.wrapping_sub(HEADER) as u64;
    let clean = clean(header, frame, TO_DRIVER, || as_sent(settings.offloads));
    if clean.is_none() {
        count(&shared.drops.received);
    } else if settings.filters() {
        let mut start = [0; START];
        copy(HEADER, &mut start);
        return clean.filter(|_| settings.passes(start));
    }
    clean
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Packets from the back end to the driver.
//!
//! Nobody knows how long the next packet is. So as much of the driver's room is offered to the host as
//! the last packet took, and a buffer of the device's own behind it: what is longer than that is put
//! together there, and copied.

use std::time::{Duration, Instant};

use virtio_bindings::virtio_net as net;
use virtio_device_core::{Features, RingFault, RingMemory, Vectors, Virtqueue};

use super::stock::Stock;
use super::{Done, End};
use crate::header::{FRAMES, HEADER, MAX_FRAME, TO_DRIVER, clean};
use crate::observer::count;
use crate::settings::START;
use crate::shared::{Port, Shared};

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

    /// Receives one packet, or drops it, and says how long it was; or says why not.
    pub(super) fn one(
        &mut self,
        ring: &mut Virtqueue,
        rings: &impl RingMemory,
        port: &mut Port,
        shared: &Shared,
        done: &mut Done<'_>,
    ) -> Result<Result<usize, End>, RingFault> {
        let has_cable = shared.has_cable();
        if has_cable {
            if let Err(wait) = shared.receive_limits.admit() {
                return Ok(Err(End::Wait(wait)));
            }
            if self.since.is_some() {
                return self.deliver_kept(ring, rings, shared, done);
            }
            let wanted = if self.merges { self.expected } else { 1 };
            self.stock.fill(ring, rings, wanted, done)?;
            if self.stock.room() == 0 {
                return Ok(Err(End::Drained(None)));
            }
        } else {
            // What the host sends now is lost, and does not come when there is a cable again.
            self.since = None;
            self.stock.put_back(ring);
        }
        let mut header = [0; HEADER];
        let mut packet = self.vectors.begin();
        packet.add_own(&mut header);
        self.stock.gather(rings, &mut packet);
        let room = packet.bytes();
        packet.add_own(&mut self.overflow);
        let len = match port.backend.receive(&packet) {
            Ok(len) => len,
            Err(error) => return Ok(Err(End::of(error))),
        };
        // Also if there is one now: there was no room when there was none.
        if !has_cable || !shared.has_cable() {
            return Ok(Ok(len));
        }
        let frame = len.wrapping_sub(HEADER);
        let mut header = [0; HEADER];
        packet.copy_to(0, &mut header);
        let header = Some(header).filter(|_| FRAMES.contains(&frame));
        let agreed = shared.offloads();
        let Some(mut header) = header.and_then(|it| clean(it, frame, agreed, TO_DRIVER)) else {
            count(&shared.drops.received);
            return Ok(Ok(len));
        };
        if port.settings.filters(self.agreed) {
            let mut start = [0; START];
            packet.copy_to(HEADER, &mut start);
            if !port.settings.passes(start, self.agreed) {
                return Ok(Ok(len));
            }
        }
        self.expected = len;
        if len as u64 <= room {
            let [.., low, high] = &mut header;
            [*low, *high] = self.stock.count(len).to_le_bytes();
            self.stock.give(rings, &header, len, done);
            shared.receive_limits.charge(len as u64);
            return Ok(Ok(len));
        }
        self.kept.clear();
        self.kept.extend(header);
        self.kept.resize(len, 0);
        packet.copy_to(HEADER, self.kept.get_mut(HEADER..).unwrap_or_default());
        self.since = Some(Instant::now());
        self.deliver_kept(ring, rings, shared, done)
    }

    /// Copies the packet that is kept to the driver, if there is room for it now.
    fn deliver_kept(
        &mut self,
        ring: &mut Virtqueue,
        rings: &impl RingMemory,
        shared: &Shared,
        done: &mut Done<'_>,
    ) -> Result<Result<usize, End>, RingFault> {
        let len = self.kept.len();
        let wanted = if self.merges { len } else { 1 };
        self.stock.fill(ring, rings, wanted, done)?;
        let age = self.since.map_or(KEEP, |since| since.elapsed());
        if len <= self.stock.room() {
            let chains = self.stock.count(len).to_le_bytes();
            if let Some(place) = self.kept.get_mut(HEADER - 2..HEADER) {
                place.copy_from_slice(&chains);
            }
            self.stock.give(rings, &self.kept, len, done);
            shared.receive_limits.charge(len as u64);
        } else if !self.merges || self.stock.buffers() >= ring.size().into() || age >= KEEP {
            count(&shared.drops.received);
        } else {
            return Ok(Err(End::Drained(Some(KEEP - age))));
        }
        self.since = None;
        Ok(Ok(len))
    }

    /// Ends a turn.
    pub(super) fn put_back(&mut self, ring: &mut Virtqueue) {
        self.stock.put_back(ring);
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Packets from the back end to the driver.
//!
//! Nobody knows how long the next packet is. So as much of the driver's room is offered to the host as
//! the last packet took, and a buffer of the device's own behind it: what is longer than that is put
//! together there, and copied.

use std::time::{Duration, Instant};

use virtio_device_core::{ActiveQueue, Features, Head, RingFault, RingMemory, Virtqueue};

use super::stock::Stock;
use super::{Bad, End, TURN_BYTES, TURN_PACKETS, drained};
use crate::backend::Backend;
use crate::config::QUEUE_SIZE;
use crate::header::{HEADER, MAX_FRAME, MIN_FRAME, to_guest};
use crate::observer::count;
use crate::raw::Vectors;
use crate::settings::{START, Settings};
use crate::shared::Shared;

/// Longest packet.
const MAX_PACKET: usize = HEADER + MAX_FRAME;
/// One byte more, so that a packet that is too long is found out.
const OVERFLOW: usize = MAX_PACKET + 1;
/// How long a packet is kept for which the driver has too little room at the moment. TCP takes longer
/// to notice that it has been lost.
const KEEP: Duration = Duration::from_millis(100);

pub(super) struct Receiver {
    /// Whether a packet may lie in several chains.
    merges: bool,
    stock: Stock,
    vectors: Vectors,
    /// The header, and what decides who gets a frame: seen before the driver can change it.
    start: [u8; HEADER + START],
    overflow: Box<[u8]>,
    /// A packet that the driver has too little room for, and since when.
    kept: Vec<u8>,
    since: Option<Instant>,
    /// How much room the next packet needs, as far as anybody knows.
    expected: usize,
    done: Vec<(Head, u32)>,
}

/// What the driver wants of packets, and who is told of those that it does not get.
pub(super) struct Wishes<'a, B> {
    pub(super) shared: &'a Shared<B>,
    pub(super) settings: &'a Settings,
    pub(super) features: Features,
    pub(super) active: &'a ActiveQueue,
    pub(super) bad: Bad<'a>,
}

impl Receiver {
    pub(super) fn new(merges: bool) -> Self {
        Self {
            merges,
            stock: Stock::default(),
            vectors: Vectors::default(),
            start: [0; HEADER + START],
            overflow: vec![0; OVERFLOW].into_boxed_slice(),
            kept: Vec::with_capacity(MAX_PACKET),
            since: None,
            expected: 1,
            done: Vec::with_capacity(QUEUE_SIZE.into()),
        }
    }

    /// The chains that are to be given back.
    pub(super) const fn done(&mut self) -> &mut Vec<(Head, u32)> {
        &mut self.done
    }

    /// Receives what there is, under the queue's lock.
    pub(super) fn turn<B: Backend>(
        &mut self,
        ring: &mut Virtqueue,
        rings: &impl RingMemory,
        backend: &mut B,
        wishes: &Wishes<'_, B>,
    ) -> Result<End, RingFault> {
        self.done.clear();
        self.stock.forget();
        ring.disable_notification(rings)?;
        let mut end = End::Turn;
        let mut bytes = 0;
        for _ in 0..TURN_PACKETS {
            if bytes >= TURN_BYTES {
                break;
            }
            match self.one(ring, rings, backend, wishes)? {
                Ok(len) => bytes += len,
                Err(why) => {
                    end = why;
                    break;
                }
            }
        }
        self.stock.put_back(ring);
        Ok(end)
    }

    /// Receives one packet, or says why not. What that is charged with, if it is anything, is its
    /// length.
    fn one<B: Backend>(
        &mut self,
        ring: &mut Virtqueue,
        rings: &impl RingMemory,
        backend: &mut B,
        wishes: &Wishes<'_, B>,
    ) -> Result<Result<usize, End>, RingFault> {
        let shared = wishes.shared;
        let has_cable = shared.has_cable();
        if !has_cable {
            // What the host sends now is lost, and does not come when there is a cable again.
            self.forget_kept();
            self.stock.put_back(ring);
        } else {
            if let Err(wait) = shared.receive_limits.admit() {
                return Ok(Err(End::Wait(wait)));
            }
            if self.since.is_some() {
                return self.deliver_kept(ring, rings, wishes);
            }
            let wanted = if self.merges { self.expected } else { 1 };
            let (done, bad) = (&mut self.done, wishes.bad);
            self.stock.fill(ring, rings, wanted, done, bad)?;
            if self.stock.is_empty() {
                return drained(ring, rings, &mut self.done, wishes.active, End::Drained);
            }
        }
        let memory = rings.memory();
        let Some((header, start)) = self.start.split_first_chunk_mut() else {
            return Ok(Err(End::Asleep));
        };
        *header = [0; HEADER];
        let mut packet = self.vectors.gather(header);
        packet.own(start);
        self.stock.gather(memory, HEADER + START, &mut packet);
        packet.own(&mut self.overflow);
        let len = match backend.receive(&packet.packet()) {
            Ok(len) => len,
            Err(error) => return Ok(Err(End::of(error))),
        };
        // The room that there was, in front of what is the device's own.
        let room = packet.len() - OVERFLOW;
        let fits = len <= room && len <= self.stock.room();
        if !fits && len <= MAX_PACKET && !self.stock.is_empty() {
            self.kept.resize(len, 0);
            packet.packet().copy_to(&mut self.kept);
        }
        // Also if there is one now: there was no room when there was none.
        if !has_cable || !shared.has_cable() {
            return Ok(Ok(len));
        }
        let Some((header, start)) = self.start.split_first_chunk_mut() else {
            return Ok(Err(End::Asleep));
        };
        let clean = match len.checked_sub(HEADER) {
            Some(frame @ MIN_FRAME..=MAX_FRAME) => to_guest(*header, frame, shared.offloads()),
            _ => None,
        };
        let passes = start
            .first_chunk()
            .is_some_and(|start| wishes.settings.passes(start, wishes.features));
        let Some(clean) = clean.filter(|_| passes) else {
            self.kept.clear();
            if clean.is_none() {
                count(&shared.drops.received);
            }
            return Ok(Ok(len));
        };
        *header = clean;
        self.expected = len;
        if fits {
            let [.., low, high] = header;
            [*low, *high] = self.stock.count(len).to_le_bytes();
            let start = self.start.get(..len).unwrap_or(&self.start);
            self.stock.write_start(rings, start);
            self.stock.use_up(memory, len, &mut self.done);
            shared.receive_limits.charge(len as u64);
            return Ok(Ok(len));
        }
        if let Some(place) = self.kept.first_chunk_mut::<HEADER>() {
            *place = clean;
        }
        self.since = Some(Instant::now());
        self.deliver_kept(ring, rings, wishes)
    }

    /// Copies the packet that is kept to the driver, if there is room for it now.
    fn deliver_kept<B: Backend>(
        &mut self,
        ring: &mut Virtqueue,
        rings: &impl RingMemory,
        wishes: &Wishes<'_, B>,
    ) -> Result<Result<usize, End>, RingFault> {
        let (shared, memory, len) = (wishes.shared, rings.memory(), self.kept.len());
        let wanted = if self.merges { len } else { 1 };
        let (done, bad) = (&mut self.done, wishes.bad);
        self.stock.fill(ring, rings, wanted, done, bad)?;
        if len <= self.stock.room() {
            let chains = self.stock.count(len).to_le_bytes();
            if let Some(place) = self.kept.get_mut(HEADER - 2..HEADER) {
                place.copy_from_slice(&chains);
            }
            self.stock.write(memory, 0, &self.kept);
            self.stock.use_up(memory, len, &mut self.done);
            self.forget_kept();
            shared.receive_limits.charge(len as u64);
            return Ok(Ok(len));
        }
        let age = self.since.map_or(KEEP, |since| since.elapsed());
        let hopeless = !self.merges || self.stock.buffers() >= usize::from(ring.size());
        if hopeless || age >= KEEP {
            self.forget_kept();
            count(&shared.drops.received);
            return Ok(Ok(len));
        }
        let later = End::Wait(KEEP - age);
        drained(ring, rings, &mut self.done, wishes.active, later)
    }

    fn forget_kept(&mut self) {
        self.kept.clear();
        self.since = None;
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Packets from the driver to the back end.

use std::io::ErrorKind;

use virtio_device_core::{BadRequest, Chain, Features, RingFault, RingMemory, Vectors, Virtqueue};

use super::{Done, End};
use crate::backend::{Backend, Buffers};
use crate::config::QUEUE_SIZE;
use crate::header::{FRAMES, HEADER, Header, TO_HOST, clean};
use crate::observer::count;
use crate::shared::Shared;

pub(super) struct Sender {
    chain: Chain,
    vectors: Vectors,
    agreed: Features,
}

impl Sender {
    pub(super) fn new(agreed: Features) -> Self {
        Self {
            chain: Chain::with_capacity(QUEUE_SIZE),
            vectors: Vectors::default(),
            agreed,
        }
    }

    /// Sends one packet, or drops it, and says how long it was; or says why not. There may be no back
    /// end.
    pub(super) fn one(
        &mut self,
        ring: &mut Virtqueue,
        rings: &impl RingMemory,
        backend: &mut Option<&mut dyn Backend>,
        shared: &Shared,
        done: &mut Done<'_>,
    ) -> Result<Result<usize, End>, RingFault> {
        if let Err(wait) = shared.send_limits.admit() {
            return Ok(Err(End::Wait(wait)));
        }
        let Some(head) = ring.take(rings, &mut self.chain)? else {
            return Ok(Err(End::Drained(None)));
        };
        let mut header = [0; HEADER];
        let vectors = &mut self.vectors;
        let packet = match packet(&self.chain, rings, self.agreed, vectors, &mut header) {
            Ok(packet) => packet,
            Err(error) => {
                count(&shared.drops.sent);
                done.refuse(head, error);
                return Ok(Ok(0));
            }
        };
        let dropped = match backend.as_mut().map(|it| it.send(&packet)) {
            Some(Ok(())) => false,
            Some(Err(error)) if error.kind() != ErrorKind::InvalidInput => {
                ring.put_back(head);
                return Ok(Err(End::of(error)));
            }
            _ => true,
        };
        if dropped {
            count(&shared.drops.sent);
        }
        shared.send_limits.charge(packet.bytes());
        let len = usize::try_from(packet.bytes());
        done.push(head, 0);
        Ok(Ok(len.unwrap_or(usize::MAX)))
    }
}

/// The packet in a chain, with a header as the host may see it: a copy, which the driver cannot change.
fn packet<'a>(
    chain: &'a Chain,
    rings: &'a impl RingMemory,
    agreed: Features,
    vectors: &'a mut Vectors,
    header: &'a mut Header,
) -> Result<Buffers<'a>, BadRequest> {
    let mut reader = chain.reader(rings);
    *header = reader.read_array()?;
    let frame = usize::try_from(reader.remaining()).unwrap_or(usize::MAX);
    let whole = FRAMES.contains(&frame) && chain.writable().next().is_none();
    let clean = clean(*header, frame, agreed, TO_HOST).filter(|_| whole);
    *header = clean.ok_or(BadRequest::Layout)?;
    let mut packet = vectors.begin();
    packet.add_own(header);
    packet.add(reader, u64::MAX)?;
    match packet.vectors().len() <= Buffers::MAX_PIECES {
        true => Ok(packet),
        false => Err(BadRequest::Layout),
    }
}

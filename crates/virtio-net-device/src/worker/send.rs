// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Packets from the driver to the back end.

use std::io::ErrorKind;

use virtio_device_core::{BadRequest, Chain, Features, RingFault, RingMemory, Virtqueue};

use super::{Done, End};
use crate::backend::Backend;
use crate::config::QUEUE_SIZE;
use crate::header::{FRAMES, HEADER, Header, TO_HOST, clean};
use crate::observer::count;
use crate::raw::{Gather, Vectors};
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
        let mut packet = self.vectors.gather();
        let mut header = match gather(&self.chain, rings, self.agreed, &mut packet) {
            Ok(header) => header,
            Err(error) => {
                count(&shared.drops.sent);
                done.refuse(head, error);
                return Ok(Ok(0));
            }
        };
        let len = packet.len();
        let dropped = match backend
            .as_mut()
            .map(|it| it.send(&packet.packet(&mut header)))
        {
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
        shared.send_limits.charge(len as u64);
        done.push(head, 0);
        Ok(Ok(len))
    }
}

/// Collects the pieces of a frame, and returns its header as the host may see it: a copy, which the
/// driver cannot change.
fn gather<'a>(
    chain: &'a Chain,
    rings: &'a impl RingMemory,
    agreed: Features,
    packet: &mut Gather<'a>,
) -> Result<Header, BadRequest> {
    let mut reader = chain.reader(rings);
    let header = reader.read_array()?;
    packet.guest(reader)?;
    let frame = packet.len() - HEADER;
    let whole = FRAMES.contains(&frame) && chain.writable().next().is_none();
    let header = whole.then(|| clean(header, frame, agreed, TO_HOST));
    header.flatten().ok_or(BadRequest::Layout)
}

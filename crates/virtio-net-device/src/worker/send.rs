// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Packets from the driver to the back end.

use std::io::ErrorKind;

use virtio_device_core::{BadRequest, Chain, Features, RingMemory, Vectors};
use vm_memory::GuestMemory;

use super::turn::{End, Turn};
use crate::backend::{Backend, Buffers};
use crate::config::QUEUE_SIZE;
use crate::header::{HEADER, Header, TO_HOST, clean};
use crate::observer::count;
use crate::shared::{Pair, Shared};

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

    #[inline(never)] // So that each loop has the registers to itself.
    pub(super) fn serve<M: GuestMemory>(
        &mut self,
        turn: &mut Turn<'_, M>,
        pair: &Pair,
        shared: &Shared,
    ) -> Result<(), End> {
        let backend = &mut **pair.backend();
        // Without a back end there is nothing to wait for.
        let up = !pair.has_failed() && shared.has_cable();
        let mut backend = up.then_some(backend);
        let served = turn.serve(|turn| self.one(turn, &mut backend, shared));
        if let (Some(backend), Ok(()) | Err(End::Drained(_) | End::Wait(_))) = (backend, &served) {
            backend.flush()?;
        }
        served
    }

    /// Sends one packet, or drops it, and says how long it was; or says why not. There may be no back
    /// end.
    fn one<M: GuestMemory>(
        &mut self,
        turn: &mut Turn<'_, M>,
        backend: &mut Option<&mut dyn Backend>,
        shared: &Shared,
    ) -> Result<u64, End> {
        shared.send_limits.admit().map_err(End::Wait)?;
        let head = turn.take(&mut self.chain)?.ok_or(End::Drained(None))?;
        let mut header = [0; HEADER];
        let packet = match self.packet(&turn.rings, &mut header) {
            Ok(packet) => packet,
            Err(error) => {
                count(&shared.drops.sent);
                turn.end(head, Err(error));
                return Ok(0);
            }
        };
        let len = packet.bytes();
        match backend.as_mut().map(|it| it.send(&packet)) {
            Some(Ok(())) => {}
            Some(Err(error)) if error.kind() != ErrorKind::InvalidInput => {
                turn.queue.put_back(head);
                return Err(error.into());
            }
            _ => count(&shared.drops.sent),
        }
        shared.send_limits.charge(len);
        turn.end(head, Ok(0));
        Ok(len)
    }

    /// The packet that was taken, with a header as the host may see it: a copy, which the driver cannot
    /// change.
    #[inline]
    fn packet<'a>(
        &'a mut self,
        rings: &'a impl RingMemory,
        header: &'a mut Header,
    ) -> Result<Buffers<'a>, BadRequest> {
        let mut reader = self.chain.reader(rings);
        *header = reader.read_array()?;
        let clean = clean(*header, reader.remaining(), TO_HOST, || self.agreed);
        *header = clean.ok_or(BadRequest::Layout)?;
        let mut packet = self.vectors.begin();
        packet.add_own(header);
        packet.add(reader, u64::MAX)?;
        let one_call = packet.vectors().len() <= Buffers::MAX_PIECES;
        match one_call && self.chain.writable().next().is_none() {
            true => Ok(packet),
            false => Err(BadRequest::Layout),
        }
    }
}

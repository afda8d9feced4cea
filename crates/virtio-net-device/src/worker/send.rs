// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Packets from the driver to the back end.

use std::io::ErrorKind;

use virtio_device_core::{
    ActiveQueue, BadRequest, Chain, Features, Head, RingFault, RingMemory, Virtqueue,
};

use super::{Bad, End, TURN_BYTES, TURN_PACKETS, drained};
use crate::backend::Backend;
use crate::header::{HEADER, MAX_FRAME, MIN_FRAME, to_host};
use crate::observer::count;
use crate::raw::Vectors;
use crate::shared::Shared;

#[derive(Default)]
pub(super) struct Sender {
    vectors: Vectors,
    header: [u8; HEADER],
    done: Vec<(Head, u32)>,
}

/// What was agreed on, and who is told of packets that cannot be sent.
pub(super) struct Wishes<'a, B> {
    pub(super) shared: &'a Shared<B>,
    /// Whether there is anybody to send to.
    pub(super) up: bool,
    pub(super) features: Features,
    pub(super) active: &'a ActiveQueue,
    pub(super) bad: Bad<'a>,
}

impl Sender {
    /// The chains that are to be given back.
    pub(super) const fn done(&mut self) -> &mut Vec<(Head, u32)> {
        &mut self.done
    }

    /// Sends what there is, under the queue's lock.
    pub(super) fn turn<B: Backend>(
        &mut self,
        ring: &mut Virtqueue,
        rings: &impl RingMemory,
        chain: &mut Chain,
        backend: &mut B,
        wishes: &Wishes<'_, B>,
    ) -> Result<End, RingFault> {
        self.done.clear();
        ring.disable_notification(rings)?;
        let mut end = End::Turn;
        let mut bytes = 0;
        for _ in 0..TURN_PACKETS {
            if bytes >= TURN_BYTES {
                break;
            }
            if let Err(wait) = wishes.shared.send_limits.admit() {
                end = End::Wait(wait);
                break;
            }
            let Some(head) = ring.take(rings, chain)? else {
                match drained(ring, rings, &mut self.done, wishes.active, End::Drained)? {
                    Ok(_) => continue,
                    Err(why) => end = why,
                }
                break;
            };
            match self.one(rings, chain, backend, wishes) {
                Ok(len) => {
                    bytes += len;
                    wishes.shared.send_limits.charge(len as u64);
                    self.done.push((head, 0));
                }
                Err(why) => {
                    ring.put_back(head);
                    end = why;
                    break;
                }
            }
        }
        if wishes.up && !matches!(end, End::HostBusy | End::Failed(_)) {
            if let Err(error) = backend.flush() {
                end = End::of(error);
            }
        }
        Ok(end)
    }

    /// Sends one packet, or drops it, and says how long it was; or says why it has to wait.
    fn one<B: Backend>(
        &mut self,
        rings: &impl RingMemory,
        chain: &Chain,
        backend: &mut B,
        wishes: &Wishes<'_, B>,
    ) -> Result<usize, End> {
        let shared = wishes.shared;
        let dropped = |len| {
            count(&shared.drops.sent);
            Ok(len)
        };
        let frame = match self.check(rings, chain, wishes.features) {
            Ok(frame) => frame,
            Err(error) => {
                (wishes.bad)(error);
                return dropped(0);
            }
        };
        if !wishes.up {
            return dropped(HEADER + frame);
        }
        let mut packet = self.vectors.gather(&mut self.header);
        let mut skip = HEADER;
        for slice in chain.readable_slices(rings.memory()).flatten() {
            packet.guest(&slice, skip);
            skip = skip.saturating_sub(slice.len());
        }
        match backend.send(&packet.packet()) {
            Ok(()) => Ok(HEADER + frame),
            Err(error) if error.kind() == ErrorKind::InvalidInput => dropped(HEADER + frame),
            Err(error) => Err(End::of(error)),
        }
    }

    /// Takes the header of a packet into memory that the driver cannot change, as the host may see it,
    /// and returns the length of the frame.
    fn check(
        &mut self,
        rings: &impl RingMemory,
        chain: &Chain,
        features: Features,
    ) -> Result<usize, BadRequest> {
        chain.check(rings)?;
        if chain.writable().next().is_some() {
            return Err(BadRequest::Layout);
        }
        let len = usize::try_from(chain.readable_len()).map_err(|_| BadRequest::Layout)?;
        let header = chain.reader(rings.memory()).read_array()?;
        match len - HEADER {
            frame @ MIN_FRAME..=MAX_FRAME => {
                self.header = to_host(header, frame, features).ok_or(BadRequest::Layout)?;
                Ok(frame)
            }
            _ => Err(BadRequest::Layout),
        }
    }
}

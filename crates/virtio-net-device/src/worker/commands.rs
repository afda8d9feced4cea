// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Commands of the driver.

use virtio_bindings::virtio_net as net;
use virtio_device_core::{BadRequest, Chain, RingMemory};
use vm_memory::GuestMemory;

use super::turn::{End, Turn};
use crate::control;
use crate::shared::Shared;

/// Does what the driver asks for by its control queue.
#[inline(never)] // So that each loop has the registers to itself.
pub(super) fn serve<M: GuestMemory>(
    turn: &mut Turn<'_, M>,
    command: &mut Chain,
    shared: &Shared,
) -> Result<(), End> {
    turn.serve(|turn| {
        let head = turn.take(command)?.ok_or(End::Drained(None))?;
        let answered = command.check(&turn.rings).and_then(|()| {
            // Without a place for the answer nothing is done.
            if command.writable_len() == 0 {
                return Err(BadRequest::Layout);
            }
            let answer = match run(command, &turn.rings, shared) {
                Some(()) => net::VIRTIO_NET_OK,
                None => net::VIRTIO_NET_ERR,
            };
            command.write(&turn.rings, &[u8::try_from(answer).unwrap_or(1)])
        });
        turn.end(head, answered);
        Ok(0)
    })
}

/// Runs a command. If it fails, nothing has changed.
fn run(chain: &Chain, rings: &impl RingMemory, shared: &Shared) -> Option<()> {
    let mut settings = (*shared.settings()).clone();
    let command = &mut chain.reader(rings);
    let class = control::obey(&mut settings, command, shared.most_pairs())?;
    if class == net::VIRTIO_NET_CTRL_ANNOUNCE {
        shared.announced();
    }
    shared.change_settings(settings.into()).ok()
}

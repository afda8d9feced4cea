// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Commands of the driver.

use std::sync::Arc;

use virtio_bindings::virtio_net as net;
use virtio_device_core::{BadRequest, Chain, Features, RingMemory};
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
    agreed: Features,
) -> Result<(), End> {
    turn.serve(|turn| {
        let head = turn.take(command)?.ok_or(End::Drained(None))?;
        let answered = command.check(&turn.rings).and_then(|()| {
            // Without a place for the answer nothing is done.
            if command.writable_len() == 0 {
                return Err(BadRequest::Layout);
            }
            let answer = match run(command, &turn.rings, shared, agreed) {
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
fn run(chain: &Chain, rings: &impl RingMemory, shared: &Shared, agreed: Features) -> Option<()> {
    let before = shared.settings();
    let mut settings = (*before).clone();
    let command = &mut chain.reader(rings);
    let class = control::obey(&mut settings, command, agreed, shared.most_pairs())?;
    let settings = Arc::new(settings);
    match class {
        net::VIRTIO_NET_CTRL_ANNOUNCE => shared.announced(),
        net::VIRTIO_NET_CTRL_GUEST_OFFLOADS => shared.set_offloads(&settings).ok()?,
        net::VIRTIO_NET_CTRL_MQ => {
            let used = shared.use_pairs(&settings);
            used.inspect_err(|_| {
                // Some back ends have done what others refused. Nothing can be done about one that now
                // refuses the opposite as well.
                let _ = shared.use_pairs(&before);
            })
            .ok()?;
        }
        _ => {}
    }
    if settings.pairs == before.pairs {
        shared.set_settings(settings);
    } else {
        // The link is that of the pairs in use.
        shared.update(|| shared.set_settings(settings));
    }
    Some(())
}

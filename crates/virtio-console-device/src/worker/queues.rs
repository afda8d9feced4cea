// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's queues: their numbers, and one turn of serving requests.

use virtio_device_core::{
    ActiveQueue, BadRequest, Chain, Context, DeviceFault, InterruptHandle, Progress, RingFault,
    Rings,
};
use vm_memory::GuestMemory;

/// The control queues: messages to the driver, and from it.
pub(super) const ANNOUNCE: u16 = 2;
pub(super) const OBEY: u16 = 3;

/// The number of the descriptor that wakes the worker; those of ports follow.
pub(super) const WAKE: u32 = 0;

pub(super) const fn receive_queue(port: usize) -> u16 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "there are at most 511 ports"
    )]
    let port = port as u16;
    if port == 0 { 0 } else { 2 * (port + 1) }
}

pub(crate) const fn transmit_queue(port: usize) -> u16 {
    receive_queue(port) + 1
}

/// The numbers of the sources of a port.
pub(super) const fn input_source(port: usize) -> u32 {
    receive_queue(port) as u32 + 1
}

pub(super) const fn output_source(port: usize) -> u32 {
    input_source(port) + 1
}

/// The port of a queue that is not for control, and whether it is for output.
pub(super) fn port_of(queue: u16) -> (usize, bool) {
    (usize::from(queue / 2).saturating_sub(1), queue % 2 == 1)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "there are at most 511 ports"
)]
pub(super) const fn number(port: usize) -> u32 {
    port as u32
}

/// Why a queue was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The driver has made nothing more available. Its next notification comes.
    Drained,
    /// The host gives or takes nothing for now.
    HostBusy,
    /// The host lacks what it takes to go on: memory, or room on a disk.
    HostShort,
    /// The host has hung up.
    HostGone,
    /// The device has nothing to say.
    Silent,
    /// Others have their turn.
    Turn,
    /// The queue is paused or was taken back. It is notified when it is there again.
    Unavailable,
}

/// What becomes of a request.
pub(super) enum Answer {
    Done(u32),
    Wait(End),
}

impl End {
    pub(super) const fn progress(self) -> Progress {
        match self {
            Self::Turn => Progress::More,
            _ => Progress::Idle,
        }
    }
}

/// Serves one queue-length of requests under the queue's lock, and interrupts at most once.
pub(super) fn serve<'m, M: GuestMemory>(
    active: &ActiveQueue,
    memory: &'m M,
    chain: &mut Chain,
    interrupt: &InterruptHandle,
    mut request: impl FnMut(&Chain, &'m M) -> Result<Answer, BadRequest>,
) -> Result<End, DeviceFault> {
    let served = active.lease.with(|queue| {
        let rings = Rings::new(memory, queue.layout());
        let mut end = End::Turn;
        queue.disable_notification(&rings)?;
        for _ in 0..queue.size() {
            let Some(head) = queue.take(&rings, chain)? else {
                if queue.enable_notification(&rings)? {
                    continue;
                }
                end = End::Drained;
                break;
            };
            match chain.check(&rings).and_then(|()| request(chain, memory)) {
                Ok(Answer::Done(len)) => queue.complete(&rings, head, len)?,
                Ok(Answer::Wait(why)) => {
                    queue.put_back(head);
                    end = why;
                    break;
                }
                Err(error) => {
                    interrupt.bad_request(active.index, error);
                    queue.complete(&rings, head, 0)?;
                }
            }
        }
        if queue.needs_interrupt(&rings)? {
            active.signal_used();
        }
        Ok::<_, RingFault>(end)
    });
    Ok(served.unwrap_or(Ok(End::Unavailable))?)
}

/// Has the worker look at another one of its queues.
pub(super) fn nudge(cx: &Context<'_>, queue: u16) {
    if let Some(queue) = cx.queue(queue) {
        // An error means that the counter is full, and then the fd is readable already.
        let _ = queue.kick.write(1);
    }
}

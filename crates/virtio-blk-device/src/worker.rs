// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device as a queue's worker sees it: one request after the other, waited for.

use std::sync::Arc;

use virtio_device_core::{
    ActiveQueue, BadRequest, Chain, Context, DeviceFault, Head, Progress, QueueHandler, RingFault,
    RingMemory, Rings, Virtqueue,
};
use vm_memory::bitmap::{BS, Bitmap as _};
use vm_memory::{GuestAddressSpace, GuestMemory};

use crate::backend::{Backend, Buffers};
use crate::config::QUEUE_SIZE;
use crate::raw::Vectors;
use crate::request::{Action, Answer, HEADER, ID_LEN, Outcome, Refusal, parse};
use crate::shared::{Shared, Stability};

/// Serves a queue by a back end that is waited for.
///
/// The queue is held for as long as a call takes: a reset or a pause waits for the one request that
/// is being served, without a lock, and finds the others where the driver has put them.
pub(crate) struct Handler<M, B> {
    memory: M,
    shared: Arc<Shared<B>>,
    stability: Stability,
    chain: Chain,
    vectors: Vectors,
}

/// What is to be done next, outside of the queue's lock.
pub(crate) enum Next {
    Serve(Head),
    End(Progress),
}

impl<M, B> Handler<M, B> {
    pub(crate) fn new(memory: M, shared: Arc<Shared<B>>, stability: Stability) -> Self {
        Self {
            memory,
            shared,
            stability,
            chain: Chain::with_capacity(QUEUE_SIZE),
            vectors: Vectors::default(),
        }
    }
}

impl<M: GuestAddressSpace, B: Backend> QueueHandler for Handler<M, B> {
    fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let Some(active) = cx.queue(queue) else {
            return Ok(Progress::Idle);
        };
        // While the device is paused, and once the queue has been taken back, there is nothing to do.
        let Ok(in_flight) = active.lease.hold() else {
            return Ok(Progress::Idle);
        };
        let memory = self.memory.memory();
        let (mut rings, mut budget, mut served) = (None, QUEUE_SIZE, None);
        loop {
            let looked = in_flight.with(|ring| {
                // Looked up once, for as long as this view of memory is held.
                let rings = rings.get_or_insert_with(|| Rings::new(&*memory, ring.layout()));
                if let Some((head, len)) = served.take() {
                    complete(ring, rings, active, head, len)?;
                } else {
                    ring.disable_notification(rings)?;
                }
                take(
                    ring,
                    rings,
                    active,
                    &self.shared,
                    &mut self.chain,
                    &mut budget,
                )
            });
            let head = match looked {
                Ok(Ok(Next::Serve(head))) => head,
                Ok(Ok(Next::End(progress))) => return Ok(progress),
                Ok(Err(fault)) => return Err(fault.into()),
                // There is nobody left who has asked.
                Err(_) => return Ok(Progress::Idle),
            };
            let Some(rings) = &rings else {
                return Ok(Progress::Idle);
            };
            let report = |error| cx.interrupt().bad_request(queue, error);
            served = Some((head, self.serve(rings, report)));
        }
    }
}

impl<M, B: Backend> Handler<M, B> {
    /// Serves the request that was taken last, and returns how much of its buffers was written.
    fn serve(&mut self, rings: &impl RingMemory, report: impl Fn(BadRequest)) -> u32 {
        let memory = rings.memory();
        let answer = Answer::find(&self.chain);
        let outcome = match parse(&self.chain, rings, answer, self.shared.disk()) {
            Ok(action) => {
                let outcome = match gather(&mut self.vectors, &self.chain, memory, &action) {
                    Ok(buffers) => self.shared.run(&action, &buffers, self.stability),
                    Err(_) => Outcome::Failed,
                };
                self.shared.limits.charge(action.moved());
                moved(&self.chain, memory, &action, &self.shared.id);
                outcome
            }
            Err(refusal) => refused(refusal, &self.shared, report),
        };
        answer.map_or(0, |answer| answer.give(memory, outcome))
    }
}

/// Ends a request that is not served.
pub(crate) fn refused<B>(
    refusal: Refusal,
    shared: &Shared<B>,
    report: impl Fn(BadRequest),
) -> Outcome {
    shared.limits.charge(0);
    if let Refusal::Bad(error) = refusal {
        report(error);
    }
    refusal.into()
}

/// The buffers of the data that an action moves.
pub(crate) fn gather<'a, M: GuestMemory>(
    vectors: &'a mut Vectors,
    chain: &'a Chain,
    memory: &'a M,
    action: &Action,
) -> Result<Buffers<'a>, BadRequest> {
    let len = action.moved();
    match action {
        Action::Read(_) => vectors.gather(chain.writable_slices(memory), 0, len),
        Action::Write(_) => vectors.gather(chain.readable_slices(memory), HEADER, len),
        _ => Ok(Buffers::default()),
    }
}

/// What is left to do in guest memory when an action has ended: the pages that the host has written
/// behind its back are noted as such, also if not all of them were.
pub(crate) fn moved<M: GuestMemory>(chain: &Chain, memory: &M, action: &Action, id: &[u8; ID_LEN]) {
    match action {
        Action::Id => {
            // It is there, as was checked.
            let _ = chain.write(memory, id);
        }
        // Not so if nobody notes anything.
        Action::Read(_) if size_of::<BS<'_, M::Bitmap>>() != 0 => {
            for slice in chain.writable_slices(memory).flatten() {
                slice.bitmap().mark_dirty(0, slice.len());
            }
        }
        _ => {}
    }
}

/// Takes the next request, if there is one that may be served now.
pub(crate) fn take<B>(
    ring: &mut Virtqueue,
    rings: &impl RingMemory,
    active: &ActiveQueue,
    shared: &Shared<B>,
    chain: &mut Chain,
    budget: &mut u16,
) -> Result<Next, RingFault> {
    if active.lease.is_paused() {
        return Ok(Next::End(Progress::Idle));
    }
    if *budget == 0 {
        return Ok(Next::End(Progress::More));
    }
    if let Err(wait) = shared.limits.admit() {
        return Ok(Next::End(Progress::After(wait)));
    }
    loop {
        if let Some(head) = ring.take(rings, chain)? {
            *budget -= 1;
            return Ok(Next::Serve(head));
        }
        if !ring.enable_notification(rings)? {
            return Ok(Next::End(Progress::Idle));
        }
    }
}

/// Gives a request back.
pub(crate) fn complete(
    ring: &mut Virtqueue,
    rings: &impl RingMemory,
    active: &ActiveQueue,
    head: Head,
    len: u32,
) -> Result<(), RingFault> {
    ring.complete(rings, head, len)?;
    if ring.needs_interrupt(rings)? {
        active.interrupt.trigger();
    }
    Ok(())
}

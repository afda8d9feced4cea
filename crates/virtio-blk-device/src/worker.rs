// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device as a queue's worker sees it: one request after the other, waited for.

use std::sync::Arc;

use virtio_device_core::{
    ActiveQueue, Chain, Context, DeviceFault, Head, Progress, QueueHandler, RingFault, RingMemory,
    Rings, Vectors, Virtqueue,
};
use vm_memory::{GuestAddressSpace, GuestMemory};

use crate::backend::Buffers;
use crate::config::QUEUE_SIZE;
use crate::observer::Operation;
use crate::request::{HEADER, Refusal, Request, status};
use crate::shared::Shared;

/// Serves a queue by a back end that is waited for.
///
/// The queue is held for as long as a call takes: a reset or a pause waits for the one request that
/// is being served, without a lock, and finds the others where the driver has put them.
pub(crate) struct Handler<M> {
    memory: M,
    shared: Arc<Shared>,
    job: Job,
}

/// A request on its way, in room that is used for one after the other.
#[derive(Default)]
pub(crate) struct Job {
    chain: Chain,
    vectors: Vectors,
}

impl<M> Handler<M> {
    pub(crate) fn new(memory: M, shared: Arc<Shared>) -> Self {
        Self {
            memory,
            shared,
            job: Job::default(),
        }
    }
}

impl<M: GuestAddressSpace> QueueHandler for Handler<M> {
    fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        // While the device is paused, and once the queue has been taken back, there is nothing to do.
        let held = cx.queue(queue).map(|active| (active, active.lease.hold()));
        let Some((active, Ok(in_flight))) = held else {
            return Ok(Progress::Idle);
        };
        let memory = self.memory.memory();
        let (mut rings, mut budget, mut served) = (None, QUEUE_SIZE, None);
        loop {
            let looked = in_flight.with(|ring| {
                // Looked up once, for as long as this view of memory is held.
                let rings = rings.get_or_insert_with(|| Rings::new(&*memory, ring.layout()));
                match served.take() {
                    Some((head, len)) => ring.complete(rings, head, len)?,
                    None => ring.disable_notification(rings)?,
                }
                let next = (self.job).take(ring, rings, active, &self.shared, &mut budget)?;
                // Afterwards, because looking into an empty ring has paid for the fence already.
                if ring.needs_interrupt(rings)? {
                    active.signal_used();
                }
                Ok::<_, RingFault>(next)
            });
            // An error means that there is nobody left who has asked.
            let head = match looked.unwrap_or(Ok(Err(Progress::Idle)))? {
                Ok(head) => head,
                Err(progress) => return Ok(progress),
            };
            if let Some(rings) = &rings {
                let request = self.job.begin(rings, &self.shared, queue, cx);
                let len = self.job.serve(rings, &self.shared, request);
                served = Some((head, len));
            }
        }
    }
}

impl Job {
    /// Takes the next request, if there is one that may be served now; says how to go on if not.
    pub(crate) fn take(
        &mut self,
        ring: &mut Virtqueue,
        rings: &impl RingMemory,
        active: &ActiveQueue,
        shared: &Shared,
        budget: &mut u16,
    ) -> Result<Result<Head, Progress>, RingFault> {
        if active.lease.is_paused() {
            return Ok(Err(Progress::Idle));
        }
        if let Err(wait) = shared.limits.admit() {
            return Ok(Err(Progress::After(wait)));
        }
        loop {
            // Also for a look that finds nothing: a driver that moves its index to and fro could have the
            // device look for as long as it likes.
            let Some(left) = budget.checked_sub(1) else {
                return Ok(Err(Progress::More));
            };
            *budget = left;
            if let Some(head) = ring.take(rings, &mut self.chain)? {
                return Ok(Ok(head));
            }
            if !ring.enable_notification(rings)? {
                return Ok(Err(Progress::Idle));
            }
        }
    }

    /// Reads what was taken, and charges for it.
    pub(crate) fn begin(
        &mut self,
        rings: &impl RingMemory,
        shared: &Shared,
        queue: u16,
        cx: &Context<'_>,
    ) -> Result<Request, Refusal> {
        let request = Request::parse(&self.chain, rings, shared.disk());
        let moved = request.as_ref().map_or(0, Request::moved);
        shared.limits.charge(moved);
        if let Err(Refusal::Bad(error)) = request {
            cx.interrupt().bad_request(queue, error);
        }
        request
    }

    /// The buffers of the data that a request moves.
    pub(crate) fn buffers<'a>(
        &'a mut self,
        rings: &'a impl RingMemory,
        request: &Request,
    ) -> Result<Buffers<'a>, Refusal> {
        let mut buffers = self.vectors.begin();
        match request.operation {
            Operation::Read => buffers.add(self.chain.writer(rings), request.moved())?,
            Operation::Write => {
                let mut data = self.chain.reader(rings);
                data.skip(HEADER as u64);
                buffers.add(data, request.moved())?;
            }
            _ => {}
        }
        Ok(buffers)
    }

    /// Does what is asked for, waits for it, and answers; returns how much of the buffers was written.
    pub(crate) fn serve(
        &mut self,
        rings: &impl RingMemory,
        shared: &Shared,
        request: Result<Request, Refusal>,
    ) -> u32 {
        let outcome = request.as_ref().map_err(|refusal| *refusal);
        let outcome = outcome.and_then(|it| shared.run(it, &self.buffers(rings, it)?));
        let request = request.ok();
        self.note(rings.memory(), request.as_ref());
        self.end(rings, shared, request, outcome)
    }

    /// Takes note of what has been read into the driver's memory, also for a request that has failed
    /// half-way.
    pub(crate) fn note(&self, memory: &impl GuestMemory, request: Option<&Request>) {
        if request.is_some_and(|request| request.operation == Operation::Read) {
            self.chain.mark_written(memory, u64::MAX);
        }
    }

    /// Writes the answer, and returns how much was written from the first device-writable byte on.
    pub(crate) fn end(
        &self,
        rings: &impl RingMemory,
        shared: &Shared,
        request: Option<Request>,
        outcome: Result<u64, Refusal>,
    ) -> u32 {
        if request.is_some_and(|request| request.operation == Operation::GetId) {
            // There is room, as was checked.
            let _ = self.chain.write(rings, &shared.id);
        }
        let answered = self.chain.write_last(rings, status(outcome)).is_ok();
        let written = outcome.unwrap_or(0);
        let all = answered && written + 1 == self.chain.writable_len();
        u32::try_from(written + u64::from(all)).unwrap_or(u32::MAX)
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The entropy device as its worker sees it: requests in, random bytes out.

use std::io::{self, Read};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use virtio_device_core::{
    Chain, Context, DeviceFault, Head, Progress, QueueHandler, QueueLease, RateLimits, RingFault,
    RingMemory, Rings, Unavailable, Virtqueue,
};
use vm_memory::GuestAddressSpace;

use crate::device::QUEUE_SIZE;
use crate::draw::{Manner, Place, Supply, wipe};
use crate::observer::{RngObserver, SourceFailure};

/// Most that one request is given, whatever its buffers add up to: with descriptors that overlap, a
/// driver can ask for far more memory than it has. Less than the whole buffer is legal (section
/// 5.4.6.2).
pub const MAX_REQUEST: usize = 64 * 1024;

/// Most that is drawn during a look at the queue, from a source that never waits.
const MAX_PROMPT: usize = 4 * 1024;

/// What a device keeps from one activation to the next.
pub(crate) struct Parts<S, O> {
    pub(crate) source: Mutex<Place<S>>,
    pub(crate) limits: RateLimits,
    pub(crate) observer: O,
}

/// Serves the only queue. Everything it needs is allocated here, once.
pub(crate) struct RequestQueue<M, S, O> {
    memory: M,
    parts: Arc<Parts<S, O>>,
    supply: Supply<S>,
    /// A request that could not be given back because the device was paused, and the lease that it
    /// belongs to.
    held: Option<(QueueLease, Drawn)>,
    /// Up to this many bytes the source is asked during a look at the queue.
    prompt: usize,
    /// Whether a request was found waiting for the limits, and none has been served since.
    throttled: bool,
    chain: Chain,
}

/// A request, and what came of the draw for it: so many bytes, or none, which ends the batch.
type Drawn = (Head, Result<usize, Ending>);

/// How a batch ends.
enum Ending {
    Progress(Progress),
    SourceLost(SourceFailure),
}

/// What is to be done next, outside of the queue's lock.
enum Next {
    /// Draw this many bytes for a request.
    Draw(Head, usize),
    End(Ending),
}

/// The work of one wake-up.
struct Batch<'a, S, O> {
    parts: &'a Parts<S, O>,
    supply: &'a mut Supply<S>,
    chain: &'a mut Chain,
    throttled: &'a mut bool,
    /// Looks that may still be taken at the available ring.
    budget: u16,
}

impl<M, S, O> RequestQueue<M, S, O> {
    pub(crate) fn new(memory: M, parts: Arc<Parts<S, O>>, manner: Manner) -> Self {
        Self {
            memory,
            parts,
            held: None,
            supply: Supply::new(manner.retry),
            prompt: if manner.prompt { MAX_PROMPT } else { 0 },
            throttled: false,
            chain: Chain::with_capacity(QUEUE_SIZE),
        }
    }
}

impl<M, S, O> QueueHandler for RequestQueue<M, S, O>
where
    M: GuestAddressSpace + Send,
    S: Read + Send,
    O: RngObserver,
{
    /// The source is asked between two looks at the queue, so it may take its time without keeping
    /// anybody from taking the queue back: only one that never does is asked during a look.
    fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let Some(active) = cx.queue(queue) else {
            return Ok(Progress::Idle);
        };
        // What was drawn for a queue that has been reset since goes to nobody.
        let held = self.held.take();
        let mut drawn: Option<Drawn> = held
            .filter(|(lease, _)| !lease.is_revoked())
            .map(|(_, drawn)| drawn);
        if drawn.is_none() {
            if let Some(left) = self.supply.wait() {
                return Ok(Progress::After(left));
            }
        }
        let memory = self.memory.memory();
        let mut batch = Batch {
            parts: &self.parts,
            supply: &mut self.supply,
            chain: &mut self.chain,
            throttled: &mut self.throttled,
            budget: QUEUE_SIZE,
        };
        // The rings are looked up once: nothing below holds on to them beyond this view of memory.
        let mut rings = None;
        loop {
            let look = |queue: &mut Virtqueue| {
                let rings = &*rings.get_or_insert_with(|| Rings::new(&*memory, queue.layout()));
                if drawn.is_none() {
                    queue.disable_notification(rings)?;
                }
                loop {
                    match batch.step(queue, rings, drawn.take())? {
                        Next::Draw(head, len) if len <= self.prompt => {
                            drawn = Some((head, batch.draw(len)));
                        }
                        Next::End(ending) => {
                            // One interrupt for the whole batch.
                            if queue.needs_interrupt(rings)? {
                                active.interrupt.trigger();
                            }
                            return Ok(Next::End(ending));
                        }
                        next => return Ok(next),
                    }
                }
            };
            match active.lease.with(look) {
                Ok(Ok(Next::Draw(head, len))) => drawn = Some((head, batch.draw(len))),
                Ok(Ok(Next::End(Ending::Progress(progress)))) => return Ok(progress),
                Ok(Ok(Next::End(Ending::SourceLost(failure)))) => {
                    return Err(DeviceFault::Backend(io::Error::other(failure)));
                }
                Ok(Err(fault)) => {
                    // It may hold bytes of a request that could not be given back.
                    self.supply.wipe();
                    self.parts.observer.ring_broken(fault);
                    return Err(DeviceFault::Ring(fault));
                }
                Err(Unavailable::Paused) => {
                    self.held = drawn.map(|drawn| (active.lease.clone(), drawn));
                    return Ok(Progress::Idle);
                }
                Err(Unavailable::Revoked) => {
                    self.supply.wipe();
                    return Ok(Progress::Idle);
                }
            }
        }
    }
}

impl Ending {
    /// The end of a batch whose source failed and may be asked again after `wait`, if ever.
    fn of(failure: SourceFailure, wait: Option<Duration>) -> Self {
        wait.map_or(Self::SourceLost(failure), |wait| {
            Self::Progress(Progress::After(wait))
        })
    }
}

impl<S: Read, O: RngObserver> Batch<'_, S, O> {
    /// Asks the source for up to `len` bytes.
    fn draw(&mut self, len: usize) -> Result<usize, Ending> {
        self.supply
            .draw(&self.parts.source, len)
            .map_err(|(failure, wait)| {
                self.parts.observer.source_failed(failure);
                Ending::of(failure, wait)
            })
    }

    /// Gives the request back that was drawn for, if there is one, and takes the next.
    #[inline]
    fn step<R: RingMemory>(
        &mut self,
        queue: &mut Virtqueue,
        rings: &R,
        drawn: Option<Drawn>,
    ) -> Result<Next, RingFault> {
        match drawn {
            None => {}
            Some((head, Ok(len))) => {
                let bytes = self.supply.bytes(len);
                // The chain was checked; if memory was taken away meanwhile, nothing may be claimed.
                let written = self.chain.write(rings, bytes).unwrap_or(0);
                wipe(bytes);
                self.complete(queue, rings, head, written)?;
            }
            Some((head, Err(ending))) => {
                queue.put_back(head);
                return Ok(Next::End(ending));
            }
        }
        self.next(queue, rings)
    }

    #[inline]
    fn complete<R: RingMemory>(
        &mut self,
        queue: &mut Virtqueue,
        rings: &R,
        head: Head,
        written: u32,
    ) -> Result<(), RingFault> {
        queue.complete(rings, head, written)?;
        self.parts.limits.charge(written.into());
        match written {
            0 => self.parts.observer.request_malformed(),
            bytes => self.parts.observer.request_served(bytes),
        }
        *self.throttled = false;
        Ok(())
    }

    /// Takes the next request that can be served. Those that cannot, because they have no writable
    /// byte or one outside of memory, go back with length 0.
    ///
    /// Every look at the ring costs budget, whatever it finds, so a driver that keeps changing it
    /// cannot hold the worker.
    #[inline]
    fn next<R: RingMemory>(&mut self, queue: &mut Virtqueue, rings: &R) -> Result<Next, RingFault> {
        while self.budget != 0 {
            self.budget -= 1;
            let Some(head) = queue.take(rings, self.chain)? else {
                if queue.enable_notification(rings)? {
                    queue.disable_notification(rings)?;
                    continue;
                }
                return Ok(Next::End(Ending::Progress(Progress::Idle)));
            };
            let most = match self.parts.limits.admit() {
                Ok(most) => most.min(MAX_REQUEST as u64),
                Err(wait) => {
                    queue.put_back(head);
                    if !std::mem::replace(self.throttled, true) {
                        self.parts.observer.request_throttled();
                    }
                    return Ok(Next::End(Ending::Progress(Progress::After(wait))));
                }
            };
            let checked = self.chain.check(rings);
            let wanted = checked.map_or(0, |()| self.chain.writable_len());
            let len = usize::try_from(wanted.min(most)).unwrap_or(MAX_REQUEST);
            if len != 0 {
                return Ok(Next::Draw(head, len));
            }
            self.complete(queue, rings, head, 0)?;
        }
        Ok(Next::End(Ending::Progress(Progress::More)))
    }
}

/// The source goes back to the device, and bytes that nobody took are wiped.
impl<M, S, O> Drop for RequestQueue<M, S, O> {
    fn drop(&mut self) {
        self.supply.release(&self.parts.source);
    }
}

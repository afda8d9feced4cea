// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The entropy device as its worker sees it: requests in, random bytes out.

use std::io::{self, Read};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use virtio_device_core::{
    ActiveQueue, Chain, DeviceFault, Head, InterruptHandle, Progress, QueueHandler, QueueLease,
    RingFault, RingMemory, Rings, Virtqueue,
};
use vm_memory::GuestAddressSpace;

use crate::device::QUEUE_SIZE;
use crate::draw::{Hold, Patience, Place, Retry, wipe};
use crate::limits::RateLimits;
use crate::observer::{RngObserver, SourceFailure};

/// Most that one request is given, whatever its buffers add up to: with descriptors that overlap, a
/// driver can ask for far more memory than it has. Less than the whole buffer is legal (section
/// 5.4.6.2).
pub const MAX_REQUEST: usize = 64 * 1024;

/// What a device keeps from one activation to the next.
pub(crate) struct Parts<S, O> {
    pub(crate) source: Mutex<Place<S>>,
    pub(crate) limits: RateLimits,
    pub(crate) observer: O,
}

/// Serves the only queue. Everything it needs is allocated here, once.
pub(crate) struct RequestQueue<M, S, O> {
    memory: M,
    queue: QueueLease,
    interrupt: InterruptHandle,
    parts: Arc<Parts<S, O>>,
    source: Hold<S>,
    patience: Patience,
    /// Whether a request was found waiting for the limits, and none has been served since.
    throttled: bool,
    chain: Chain,
    /// Holds random bytes only between their draw and their hand-over.
    scratch: Box<[u8]>,
}

/// What came of a draw for a request.
enum Drawn {
    /// This many bytes lie in the scratch buffer.
    Bytes(Head, usize),
    /// None; the request goes back into its queue, and so ends the batch.
    Nothing(Head, Ending),
}

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
struct Batch<'a, O> {
    limits: &'a RateLimits,
    observer: &'a O,
    throttled: &'a mut bool,
    /// Looks that may still be taken at the available ring.
    budget: u16,
    /// Whether a request has been given back.
    used: bool,
}

impl<M, S, O> RequestQueue<M, S, O> {
    pub(crate) fn new(
        memory: M,
        requestq: &ActiveQueue,
        interrupt: InterruptHandle,
        parts: Arc<Parts<S, O>>,
        retry: Retry,
    ) -> Self {
        Self {
            memory,
            queue: requestq.queue.clone(),
            interrupt,
            parts,
            source: Hold::none(),
            patience: Patience::new(retry),
            throttled: false,
            chain: Chain::with_capacity(QUEUE_SIZE),
            scratch: vec![0; MAX_REQUEST].into_boxed_slice(),
        }
    }
}

impl<M, S, O> QueueHandler for RequestQueue<M, S, O>
where
    M: GuestAddressSpace + Send,
    S: Read + Send,
    O: RngObserver,
{
    /// The source is asked between two looks at the queue, never during one, so it may take its
    /// time without keeping anybody from taking the queue back.
    fn process(&mut self, index: u16) -> Result<Progress, DeviceFault> {
        if let Some(left) = self.patience.left() {
            return Ok(Progress::After(left));
        }
        let memory = self.memory.memory();
        let mut batch = Batch {
            limits: &self.parts.limits,
            observer: &self.parts.observer,
            throttled: &mut self.throttled,
            budget: QUEUE_SIZE,
            used: false,
        };
        let mut drawn = None;
        // The rings are looked up once: nothing below holds on to them beyond this view of memory.
        let mut rings = None;
        loop {
            let look = |queue: &mut Virtqueue| {
                let rings = &*rings.get_or_insert_with(|| Rings::new(&*memory, queue.layout()));
                let next = match drawn.take() {
                    None => {
                        queue.disable_notification(rings)?;
                        batch.next(queue, rings, &mut self.chain)?
                    }
                    Some(Drawn::Bytes(head, len)) => {
                        let bytes = self.scratch.get_mut(..len).unwrap_or_default();
                        batch.hand_over(queue, rings, &self.chain, head, bytes)?;
                        batch.next(queue, rings, &mut self.chain)?
                    }
                    Some(Drawn::Nothing(head, ending)) => {
                        queue.put_back(head);
                        Next::End(ending)
                    }
                };
                // One interrupt for the whole batch.
                if matches!(next, Next::End(_)) && batch.used && queue.needs_interrupt(rings)? {
                    self.interrupt.used_buffers(index);
                }
                Ok(next)
            };
            match self.queue.with(look) {
                Some(Ok(Next::Draw(head, len))) => {
                    let room = self.scratch.get_mut(..len).unwrap_or_default();
                    drawn = Some(match self.source.draw(&self.parts.source, room) {
                        Ok(count) => {
                            self.patience.succeeded();
                            Drawn::Bytes(head, count)
                        }
                        Err(failure) => {
                            self.parts.observer.source_failed(failure);
                            let wait = self.patience.failed(failure);
                            Drawn::Nothing(head, Ending::of(failure, wait))
                        }
                    });
                }
                Some(Ok(Next::End(Ending::Progress(progress)))) => return Ok(progress),
                Some(Ok(Next::End(Ending::SourceLost(failure)))) => {
                    return Err(DeviceFault::Backend(io::Error::other(failure)));
                }
                Some(Err(fault)) => {
                    // It may hold bytes of a request that could not be given back.
                    wipe(&mut self.scratch);
                    self.parts.observer.ring_broken(fault);
                    return Err(DeviceFault::Ring(fault));
                }
                // The queue has been taken back.
                None => {
                    wipe(&mut self.scratch);
                    return Ok(Progress::Idle);
                }
            }
        }
    }

    fn needs_timer(&self) -> bool {
        true
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

impl<O: RngObserver> Batch<'_, O> {
    /// Gives a request back with `bytes`, and wipes them.
    fn hand_over<R: RingMemory>(
        &mut self,
        queue: &mut Virtqueue,
        rings: &R,
        chain: &Chain,
        head: Head,
        bytes: &mut [u8],
    ) -> Result<(), RingFault> {
        // The chain was checked; if memory was taken away meanwhile, nothing may be claimed.
        let written = chain.write(rings.memory(), bytes).unwrap_or(0);
        wipe(bytes);
        self.complete(queue, rings, head, written)
    }

    fn complete<R: RingMemory>(
        &mut self,
        queue: &mut Virtqueue,
        rings: &R,
        head: Head,
        written: u32,
    ) -> Result<(), RingFault> {
        queue.complete(rings, head, written)?;
        self.limits.charge(written);
        match written {
            0 => self.observer.request_malformed(),
            bytes => self.observer.request_served(bytes),
        }
        *self.throttled = false;
        self.used = true;
        Ok(())
    }

    /// Takes the next request that can be served. Those that cannot, because they have no writable
    /// byte or one outside of memory, go back with length 0.
    ///
    /// Every look at the ring costs budget, whatever it finds, so a driver that keeps changing it
    /// cannot hold the worker.
    fn next<R: RingMemory>(
        &mut self,
        queue: &mut Virtqueue,
        rings: &R,
        chain: &mut Chain,
    ) -> Result<Next, RingFault> {
        while self.budget != 0 {
            self.budget -= 1;
            let Some(head) = queue.take(rings, chain)? else {
                if queue.enable_notification(rings)? {
                    queue.disable_notification(rings)?;
                    continue;
                }
                return Ok(Next::End(Ending::Progress(Progress::Idle)));
            };
            let most = match self.limits.admit() {
                Ok(most) => most.min(MAX_REQUEST as u64),
                Err(wait) => {
                    queue.put_back(head);
                    if !std::mem::replace(self.throttled, true) {
                        self.observer.request_throttled();
                    }
                    return Ok(Next::End(Ending::Progress(Progress::After(wait))));
                }
            };
            let wanted = chain
                .check(rings.memory())
                .map_or(0, |()| chain.writable_len());
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
        self.source.release(&self.parts.source);
        wipe(&mut self.scratch);
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The entropy device as its worker sees it: requests in, random bytes out.

use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use virtio_device_core::{
    Chain, Context, DeviceFault, Head, Lease, Progress, QueueHandler, RateLimits, RingFault,
    RingMemory, Rings, Unavailable, Virtqueue, vmm_sys_util::epoll::EventSet,
};
use vm_memory::GuestAddressSpace;

use crate::device::QUEUE_SIZE;
use crate::observer::{RngEvent, RngObserver, SourceFailure};
use crate::reader::{EntropyReader, SourcePolicy, SourceSlot, wipe};

/// Most that one request is given, whatever its buffers add up to: with descriptors that overlap, a
/// driver can ask for far more memory than it has. Less than the whole buffer is legal (section
/// 5.4.6.2).
pub const MAX_REQUEST: usize = 64 * 1024;

/// Most that is drawn during a look at the queue, from a source that never waits.
const MAX_PROMPT: usize = 4 * 1024;

/// The only queue, and the number under which the source's descriptor is watched.
const REQUESTQ: u16 = 0;
const SOURCE: u32 = 0;

/// What a device keeps from one activation to the next.
pub(crate) struct Parts<S, O> {
    pub(crate) source: Mutex<SourceSlot<S>>,
    pub(crate) limits: RateLimits,
    pub(crate) observer: O,
}

/// How a device asks its source.
#[derive(Clone, Debug, Default)]
pub(crate) struct SourceOptions {
    pub(crate) policy: SourcePolicy,
    /// The source never waits for anything.
    pub(crate) prompt: bool,
    /// Readable when the source has something again.
    pub(crate) readiness: Option<Arc<OwnedFd>>,
}

/// Serves the only queue. Everything it needs is allocated here, once.
pub(crate) struct RequestQueue<M, S, O> {
    memory: M,
    requests: Requests<S, O>,
    readiness: Option<SourceFd>,
    /// A request that could not be given back because the device was paused, and the lease that it
    /// belongs to.
    held: Option<(Lease, Drawn)>,
}

/// The descriptor that says when an empty source has something again.
struct SourceFd {
    fd: Arc<OwnedFd>,
    /// Whether it is waited for: the source is not asked before it is ready.
    armed: bool,
    /// Whether it was ready just now. A source that has nothing all the same is not to be believed:
    /// this once, time is waited for.
    fired: bool,
}

/// Everything about requests but the memory that they are in.
struct Requests<S, O> {
    parts: Arc<Parts<S, O>>,
    reader: EntropyReader<S>,
    chain: Chain,
    /// Up to this many bytes the source is asked during a look at the queue.
    prompt: usize,
    /// Whether a request was found waiting for the limits, and none has been served since.
    throttled: bool,
}

/// A request, and what came of the draw for it: so many bytes, or none, which ends the batch.
type Drawn = (Head, Result<usize, Ending>);

/// How a batch ends.
#[derive(Clone, Copy)]
enum Ending {
    Progress(Progress),
    /// The source has nothing yet, and its descriptor says when it has.
    SourceEmpty(Duration),
    SourceLost(SourceFailure),
}

/// What is to be done next, outside of the queue's lock.
enum Next {
    /// Draw this many bytes for a request.
    Draw(Head, usize),
    End(Ending),
}

impl<M, S, O> RequestQueue<M, S, O> {
    pub(crate) fn new(memory: M, parts: Arc<Parts<S, O>>, options: &SourceOptions) -> Self {
        Self {
            memory,
            requests: Requests {
                parts,
                reader: EntropyReader::new(options.policy),
                chain: Chain::with_capacity(QUEUE_SIZE),
                prompt: if options.prompt { MAX_PROMPT } else { 0 },
                throttled: false,
            },
            readiness: options.readiness.clone().map(SourceFd::new),
            held: None,
        }
    }

    /// The request that a pause has kept from being given back, unless its queue was reset meanwhile.
    fn take_held(&mut self) -> Option<Drawn> {
        let (lease, drawn) = self.held.take()?;
        if lease.is_revoked() {
            // The queue was reset: the bytes that were drawn for it are wiped.
            self.requests.reader.wipe();
            return None;
        }
        Some(drawn)
    }

    /// Ends a batch, and decides what an empty source is waited for by.
    fn end(&mut self, ending: Ending, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        match ending {
            Ending::Progress(progress) => Ok(progress),
            Ending::SourceLost(failure) => Err(DeviceFault::Backend(io::Error::other(failure))),
            Ending::SourceEmpty(wait) => {
                let Some(source) = self.readiness.as_mut().filter(|source| !source.fired) else {
                    return Ok(Progress::After(wait));
                };
                if cx.set_interest(SOURCE, EventSet::IN).is_ok() {
                    source.armed = true;
                    return Ok(Progress::Idle);
                }
                // A descriptor that epoll does not take, such as a regular file's: a timer takes its
                // place. It stays watched without interest, because this call may be for it, and a call
                // is repeated only for a source that is watched.
                self.readiness = None;
                Ok(Progress::After(wait))
            }
        }
    }

    fn set_fired(&mut self, fired: bool) {
        if let Some(source) = &mut self.readiness {
            source.fired = fired;
            source.armed &= !fired;
        }
    }

    /// Whether the source's descriptor says when to ask it again.
    fn waits_for_source(&self) -> bool {
        self.readiness.as_ref().is_some_and(|source| source.armed)
    }
}

impl SourceFd {
    const fn new(fd: Arc<OwnedFd>) -> Self {
        Self {
            fd,
            armed: false,
            fired: false,
        }
    }
}

impl<M, S, O> QueueHandler for RequestQueue<M, S, O>
where
    M: GuestAddressSpace,
    S: Read,
    O: RngObserver,
{
    /// The source is asked between two looks at the queue, so it may take its time without keeping
    /// anybody from taking the queue back: only one that never does is asked during a look.
    fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let Some(active) = cx.queue(queue) else {
            return Ok(Progress::Idle);
        };
        let mut drawn = self.take_held();
        if drawn.is_none() {
            if self.waits_for_source() {
                return Ok(Progress::Idle);
            }
            if let Some(left) = self.requests.reader.wait() {
                return Ok(Progress::After(left));
            }
        }
        let memory = self.memory.memory();
        let (mut rings, mut budget) = (None, QUEUE_SIZE);
        loop {
            let looked = active.lease.with(|queue| {
                // The rings are looked up once, for as long as this view of memory is held.
                let rings = rings.get_or_insert_with(|| Rings::new(&*memory, queue.layout()));
                let next = self.requests.serve(queue, rings, &mut drawn, &mut budget)?;
                // One interrupt for the whole batch.
                if matches!(next, Next::End(_)) && queue.needs_interrupt(rings)? {
                    active.signal_used();
                }
                Ok(next)
            });
            match looked {
                Ok(Ok(Next::Draw(head, len))) => drawn = Some((head, self.requests.draw(len))),
                Ok(Ok(Next::End(ending))) => return self.end(ending, cx),
                Ok(Err(fault)) => return Err(self.requests.ring_broken(fault)),
                Err(Unavailable::Paused) => {
                    self.held = drawn.map(|drawn| (active.lease.clone(), drawn));
                    return Ok(Progress::Idle);
                }
                Err(Unavailable::Revoked) => {
                    self.requests.reader.wipe();
                    return Ok(Progress::Idle);
                }
            }
        }
    }

    fn start(&mut self, cx: &mut Context<'_>) -> Result<(), DeviceFault> {
        if let Some(source) = &self.readiness {
            // Without interest until the source is found empty.
            let watched = cx.watch(SOURCE, &source.fd, EventSet::empty());
            watched.map_err(DeviceFault::Backend)?;
        }
        Ok(())
    }

    fn ready(
        &mut self,
        source: u32,
        readiness: EventSet,
        cx: &mut Context<'_>,
    ) -> Result<Progress, DeviceFault> {
        // An empty set means that a wait is over, and not that the descriptor is ready.
        let fired = readiness != EventSet::empty();
        if fired {
            let disarmed = cx.set_interest(source, EventSet::empty());
            disarmed.map_err(DeviceFault::Backend)?;
            self.requests.reader.forget_wait();
        }
        self.set_fired(fired);
        let progress = self.process(REQUESTQ, cx);
        self.set_fired(false);
        progress
    }
}

impl<S: Read, O: RngObserver> Requests<S, O> {
    /// Asks the source for up to `len` bytes.
    fn draw(&mut self, len: usize) -> Result<usize, Ending> {
        let drawn = self.reader.draw(&self.parts.source, len);
        drawn.map_err(|(failure, wait)| {
            self.parts.observer.event(&RngEvent::SourceFailed(failure));
            match (wait, failure) {
                (None, _) => Ending::SourceLost(failure),
                (Some(wait), SourceFailure::Error(ErrorKind::WouldBlock))
                    if self.reader.has_source() =>
                {
                    Ending::SourceEmpty(wait)
                }
                (Some(wait), _) => Ending::Progress(Progress::After(wait)),
            }
        })
    }

    /// One look at the queue: gives the request back that was drawn for, if there is one, and goes on
    /// as long as the source need not be asked outside.
    #[inline]
    fn serve<R: RingMemory>(
        &mut self,
        queue: &mut Virtqueue,
        rings: &R,
        drawn: &mut Option<Drawn>,
        budget: &mut u16,
    ) -> Result<Next, RingFault> {
        match drawn.take() {
            None => queue.disable_notification(rings)?,
            Some(drawn) => {
                if let Some(ending) = self.settle(queue, rings, drawn)? {
                    return Ok(Next::End(ending));
                }
            }
        }
        loop {
            match self.next(queue, rings, budget)? {
                Next::Draw(head, len) if len <= self.prompt => {
                    let drawn = (head, self.draw(len));
                    if let Some(ending) = self.settle(queue, rings, drawn)? {
                        return Ok(Next::End(ending));
                    }
                }
                next => return Ok(next),
            }
        }
    }

    /// Gives a request back that was drawn for, or puts it back if nothing came of that, which ends
    /// the batch.
    #[inline]
    fn settle<R: RingMemory>(
        &mut self,
        queue: &mut Virtqueue,
        rings: &R,
        (head, drawn): Drawn,
    ) -> Result<Option<Ending>, RingFault> {
        match drawn {
            Ok(len) => self.give_back(queue, rings, head, len).map(|()| None),
            Err(ending) => {
                queue.put_back(head);
                Ok(Some(ending))
            }
        }
    }

    #[inline]
    fn give_back<R: RingMemory>(
        &mut self,
        queue: &mut Virtqueue,
        rings: &R,
        head: Head,
        len: usize,
    ) -> Result<(), RingFault> {
        let bytes = self.reader.bytes(len);
        // The chain was checked; if memory was taken away meanwhile, nothing may be claimed.
        let written = self.chain.write(rings, bytes).unwrap_or(0);
        wipe(bytes);
        self.complete(queue, rings, head, written)
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
        self.parts.observer.event(&match written {
            0 => RngEvent::RequestMalformed,
            bytes => RngEvent::RequestServed(bytes),
        });
        self.throttled = false;
        Ok(())
    }

    /// Takes the next request that can be served. Those that cannot, because they have no writable
    /// byte or one outside of memory, go back with length 0.
    ///
    /// Every look at the ring costs budget, whatever it finds, so a driver that keeps changing it
    /// cannot hold the worker.
    #[inline]
    fn next<R: RingMemory>(
        &mut self,
        queue: &mut Virtqueue,
        rings: &R,
        budget: &mut u16,
    ) -> Result<Next, RingFault> {
        while *budget != 0 {
            *budget -= 1;
            let Some(head) = queue.take(rings, &mut self.chain)? else {
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
                    if !std::mem::replace(&mut self.throttled, true) {
                        self.parts.observer.event(&RngEvent::RequestThrottled);
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

    fn ring_broken(&mut self, fault: RingFault) -> DeviceFault {
        // It may hold bytes of a request that could not be given back.
        self.reader.wipe();
        self.parts.observer.event(&RngEvent::RingBroken(fault));
        DeviceFault::Ring(fault)
    }
}

/// The source goes back to the device, and bytes that nobody took are wiped.
impl<S, O> Drop for Requests<S, O> {
    fn drop(&mut self) {
        self.reader.release(&self.parts.source);
    }
}

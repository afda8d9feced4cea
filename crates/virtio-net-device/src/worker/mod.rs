// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device as the worker of a pair of queues sees it: packets between rings and a back end.
//!
//! A packet moves without waiting, and under the same lock as its chains are completed: a pause finds
//! both done, or neither.

mod receive;
mod send;
mod stock;

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_net as net;
use virtio_device_core::{
    ActiveQueue, BadRequest, Chain, Context, DeviceFault, Features, Head, Progress, QueueHandler,
    RingFault, RingMemory, Rings, Unavailable, Virtqueue, vmm_sys_util::epoll::EventSet,
};
use vm_memory::GuestAddressSpace;

use crate::backend::Backend;
use crate::config::QUEUE_SIZE;
use crate::control::{Command, Terms};
use crate::observer::NetEvent;
use crate::shared::{Pair, Shared};
use receive::Receiver;
use send::Sender;

/// Most packets, and bytes, that are moved in one turn, so that a pause never waits for more.
const TURN_PACKETS: usize = 128;
const TURN_BYTES: usize = 1 << 20;
/// How long a back end that does not work is left alone.
const RETRY: Duration = Duration::from_millis(200);
/// How long a back end is left alone that nobody can wait for.
const NO_POLL: Duration = Duration::from_millis(10);

/// The numbers of a back end's descriptors.
const READABLE: u32 = 0;
const WRITABLE: u32 = 1;

/// Serves a pair of queues, and the control queue if it is the first.
pub(crate) struct Handler<M, B> {
    memory: M,
    shared: Arc<Shared<B>>,
    pair: u16,
    control: Option<u16>,
    features: Features,
    receiver: Receiver,
    sender: Sender,
    chain: Chain,
    /// The descriptors are always ready, as far as epoll knows, or there is no epoll.
    no_poll: bool,
    /// When to try again with a back end that does not work.
    retry: Option<Instant>,
}

/// Why a queue was left.
#[derive(Debug)]
enum End {
    /// Others have their turn.
    Turn,
    /// The driver has made nothing more available. Its next notification comes.
    Drained,
    /// The host gives or takes nothing for now.
    HostBusy,
    /// It is too early for another packet, or too early to give up one.
    Wait(Duration),
    /// The back end does not work any more.
    Failed(io::Error),
    /// There is nothing to do in this queue until somebody says so.
    Asleep,
}

impl End {
    fn of(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::WouldBlock => Self::HostBusy,
            _ => Self::Failed(error),
        }
    }
}

impl<M, B> Handler<M, B> {
    pub(crate) fn new(
        memory: M,
        shared: Arc<Shared<B>>,
        (pair, control): (u16, Option<u16>),
        features: Features,
    ) -> Self {
        Self {
            memory,
            shared,
            pair,
            control,
            features,
            receiver: Receiver::new(features.has(net::VIRTIO_NET_F_MRG_RXBUF)),
            sender: Sender::default(),
            chain: Chain::with_capacity(QUEUE_SIZE),
            no_poll: false,
            retry: None,
        }
    }
}

impl<M: GuestAddressSpace, B: Backend> QueueHandler for Handler<M, B> {
    fn start(&mut self, cx: &mut Context<'_>) -> Result<(), DeviceFault> {
        let shared = self.shared.clone();
        let moved = self.pair == 0
            && shared
                .moved
                .swap(false, std::sync::atomic::Ordering::AcqRel);
        if moved && self.features.has(net::VIRTIO_NET_F_GUEST_ANNOUNCE) {
            shared.set_announce(true);
        }
        let Some(pair) = shared.pairs.get(usize::from(self.pair)) else {
            return Ok(());
        };
        if pair.has_failed() {
            self.retry = Some(Instant::now());
        } else if let Err(error) = self.set_up(pair, cx) {
            self.fail(pair, error, cx);
        }
        Ok(())
    }

    fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let receive = 2 * self.pair;
        match queue {
            _ if self.control == Some(queue) => self.obey(cx),
            _ if queue == receive => self.receive(EventSet::empty(), cx),
            _ if queue == receive + 1 => self.send(EventSet::empty(), cx),
            _ => Ok(Progress::Idle),
        }
    }

    fn ready(
        &mut self,
        source: u32,
        readiness: EventSet,
        cx: &mut Context<'_>,
    ) -> Result<Progress, DeviceFault> {
        match source {
            READABLE => self.receive(readiness, cx),
            _ => self.send(readiness, cx),
        }
    }
}

impl<M: GuestAddressSpace, B: Backend> Handler<M, B> {
    /// Moves what the host has into the driver's buffers.
    fn receive(
        &mut self,
        readiness: EventSet,
        cx: &mut Context<'_>,
    ) -> Result<Progress, DeviceFault> {
        let (shared, memory) = (self.shared.clone(), self.memory.memory());
        let Some(pair) = shared.pairs.get(usize::from(self.pair)) else {
            return Ok(Progress::Idle);
        };
        if let Some(progress) = self.revive(pair, cx) {
            return Ok(progress);
        }
        let Some(active) = cx.queue(2 * self.pair) else {
            return Ok(Progress::Idle);
        };
        let bad = |error| cx.interrupt().bad_request(active.index, error);
        let receiver = &mut self.receiver;
        let settings = shared.settings();
        let looked = active.lease.with(|ring| {
            if self.pair >= settings.pairs {
                return Ok(End::Asleep);
            }
            let rings = Rings::new(&*memory, ring.layout());
            let mut backend = pair.backend();
            let wishes = receive::Wishes {
                shared: &shared,
                settings: &settings,
                features: self.features,
                active,
                bad: &bad,
            };
            let end = receiver.turn(ring, &rings, &mut *backend, &wishes)?;
            publish(ring, &rings, receiver.done(), active)?;
            Ok(end)
        });
        self.end(READABLE, looked, readiness, pair, cx)
    }

    /// Moves what the driver has made available to the host.
    fn send(&mut self, readiness: EventSet, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let (shared, memory) = (self.shared.clone(), self.memory.memory());
        let Some(pair) = shared.pairs.get(usize::from(self.pair)) else {
            return Ok(Progress::Idle);
        };
        // Without a back end there is all the less to wait for.
        let waits = self.revive(pair, cx);
        let Some(active) = cx.queue(2 * self.pair + 1) else {
            return Ok(Progress::Idle);
        };
        let bad = |error| cx.interrupt().bad_request(active.index, error);
        let (sender, chain) = (&mut self.sender, &mut self.chain);
        let looked = active.lease.with(|ring| {
            let rings = Rings::new(&*memory, ring.layout());
            let mut backend = pair.backend();
            let wishes = send::Wishes {
                shared: &shared,
                up: !pair.has_failed() && shared.has_cable(),
                features: self.features,
                active,
                bad: &bad,
            };
            let end = sender.turn(ring, &rings, chain, &mut *backend, &wishes)?;
            publish(ring, &rings, sender.done(), active)?;
            Ok(end)
        });
        let progress = self.end(WRITABLE, looked, readiness, pair, cx)?;
        match (progress, waits) {
            (Progress::Idle, Some(waits)) => Ok(waits),
            _ => Ok(progress),
        }
    }

    /// What comes after a turn.
    fn end(
        &mut self,
        source: u32,
        looked: Result<Result<End, RingFault>, Unavailable>,
        readiness: EventSet,
        pair: &Pair<B>,
        cx: &mut Context<'_>,
    ) -> Result<Progress, DeviceFault> {
        let end = looked.unwrap_or(Ok(End::Asleep))?;
        let (interest, progress) = match end {
            // Whatever is waited for is waited for still.
            End::Turn => return Ok(Progress::More),
            End::HostBusy if readiness.contains(EventSet::HANG_UP) => {
                return Ok(self.fail(pair, ErrorKind::ConnectionReset.into(), cx));
            }
            End::Failed(error) => return Ok(self.fail(pair, error, cx)),
            End::HostBusy if self.no_poll => (EventSet::empty(), Progress::After(NO_POLL)),
            End::HostBusy if source == READABLE => (EventSet::IN, Progress::Idle),
            End::HostBusy => (EventSet::OUT, Progress::Idle),
            // Back-pressure: nobody is woken for what there is no room for.
            End::Drained | End::Asleep => (EventSet::empty(), Progress::Idle),
            End::Wait(time) => (EventSet::empty(), Progress::After(time)),
        };
        match cx.set_interest(source, interest) {
            Ok(()) => Ok(progress),
            Err(error) => Ok(self.fail(pair, error, cx)),
        }
    }

    /// Has the back end do what was agreed on, and watches it, without interest for now.
    fn set_up(&mut self, pair: &Pair<B>, cx: &mut Context<'_>) -> io::Result<()> {
        let shared = self.shared.clone();
        if self.pair == 0 {
            shared.set_offloads(shared.wanted_offloads(self.features))?;
            shared.use_pairs(shared.settings().pairs)?;
        }
        let mut backend = pair.backend();
        backend.set_active(self.pair < shared.settings().pairs)?;
        let fds = [
            (READABLE, EventSet::IN, backend.readable()),
            (WRITABLE, EventSet::OUT, backend.writable()),
        ];
        self.no_poll = false;
        for (source, interest, fd) in fds {
            match cx.watch(source, fd, interest) {
                Ok(()) => cx.set_interest(source, EventSet::empty())?,
                Err(error) => match error.kind() {
                    ErrorKind::PermissionDenied | ErrorKind::Unsupported => self.no_poll = true,
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Takes the link down.
    fn fail(&mut self, pair: &Pair<B>, error: io::Error, cx: &mut Context<'_>) -> Progress {
        cx.unwatch(READABLE);
        cx.unwatch(WRITABLE);
        self.retry = Some(Instant::now() + RETRY);
        if !pair.has_failed() {
            let (pair_number, error) = (usize::from(self.pair), &error);
            self.shared.set_failed(pair, true);
            self.shared.event(&NetEvent::BackendFailed {
                pair: pair_number,
                error,
            });
        }
        Progress::After(RETRY)
    }

    /// Tries again with a back end that does not work; says how long to wait, if that is in vain.
    fn revive(&mut self, pair: &Pair<B>, cx: &mut Context<'_>) -> Option<Progress> {
        if !pair.has_failed() {
            return None;
        }
        let now = Instant::now();
        match self.retry {
            None => return Some(Progress::Idle),
            Some(at) if now < at => return Some(Progress::After(at - now)),
            Some(_) => {}
        }
        self.retry = Some(now + RETRY);
        // In a statement of its own, so that the lock is held for no longer.
        let reopened = pair.backend().reopen();
        // No longer failed, so that the first pair's offloads are set.
        match reopened {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                self.retry = None;
                return Some(Progress::Idle);
            }
            Err(_) => return Some(Progress::After(RETRY)),
        }
        self.shared.set_failed(pair, false);
        if let Err(error) = self.set_up(pair, cx) {
            return Some(self.fail(pair, error, cx));
        }
        let pair = usize::from(self.pair);
        self.shared.event(&NetEvent::BackendReturned { pair });
        None
    }

    /// Does what the driver asks for by its control queue.
    fn obey(&mut self, cx: &Context<'_>) -> Result<Progress, DeviceFault> {
        let (shared, memory) = (&self.shared, self.memory.memory());
        let Some(active) = self.control.and_then(|queue| cx.queue(queue)) else {
            return Ok(Progress::Idle);
        };
        let terms = Terms {
            agreed: self.features,
            pairs: u16::try_from(shared.pairs.len()).unwrap_or(1),
        };
        let chain = &mut self.chain;
        let looked = active.lease.with(|ring| {
            let rings = Rings::new(&*memory, ring.layout());
            let mut end = Progress::More;
            ring.disable_notification(&rings)?;
            for _ in 0..ring.size() {
                let Some(head) = ring.take(&rings, chain)? else {
                    if ring.enable_notification(&rings)? {
                        continue;
                    }
                    end = Progress::Idle;
                    break;
                };
                let answered = chain.check(&rings).and_then(|()| {
                    // Without a place for the answer nothing is done.
                    if chain.writable_len() == 0 {
                        return Err(BadRequest::Layout);
                    }
                    let command = Command::parse(&mut chain.reader(&*memory), terms);
                    let done = command.is_some_and(|command| run(shared, terms, command));
                    let answer = if done {
                        net::VIRTIO_NET_OK
                    } else {
                        net::VIRTIO_NET_ERR
                    };
                    chain.write(&rings, &[u8::try_from(answer).unwrap_or(1)])
                });
                let len = answered.unwrap_or_else(|error| {
                    cx.interrupt().bad_request(active.index, error);
                    0
                });
                ring.complete(&rings, head, len)?;
            }
            if ring.needs_interrupt(&rings)? {
                active.signal_used();
            }
            Ok::<_, RingFault>(end)
        });
        Ok(looked.unwrap_or(Ok(Progress::Idle))?)
    }
}

/// Runs a command; says whether it has succeeded. If not, nothing has changed.
fn run<B: Backend>(shared: &Shared<B>, terms: Terms, command: Command) -> bool {
    let before = shared.settings();
    match &command {
        Command::Announced => shared.set_announce(false),
        Command::Offloads(offloads) => {
            let wanted = Features::from(*offloads) & terms.agreed;
            if shared.set_offloads(wanted).is_err() {
                return false;
            }
        }
        Command::Pairs(pairs) if shared.use_pairs(*pairs).is_err() => return false,
        _ => {}
    }
    let wakes = matches!(command, Command::Pairs(_));
    let mut settings = (*before).clone();
    command.apply(&mut settings);
    shared.set_settings(settings);
    if wakes {
        shared.wake();
    }
    true
}

/// Gives chains back all at once, and interrupts at most once.
fn publish(
    ring: &mut Virtqueue,
    rings: &impl RingMemory,
    done: &mut Vec<(Head, u32)>,
    active: &ActiveQueue,
) -> Result<(), RingFault> {
    ring.complete_all(rings, done.drain(..))?;
    if ring.needs_interrupt(rings)? {
        active.signal_used();
    }
    Ok(())
}

/// Prepares to leave a queue that nothing more can be taken from: `end` says why, unless the driver has
/// made something available meanwhile, or may do so when it has got back what was done.
fn drained(
    ring: &mut Virtqueue,
    rings: &impl RingMemory,
    done: &mut Vec<(Head, u32)>,
    active: &ActiveQueue,
    end: End,
) -> Result<Result<usize, End>, RingFault> {
    if !done.is_empty() {
        publish(ring, rings, done, active)?;
        return Ok(Ok(0));
    }
    let more = ring.enable_notification(rings)?;
    Ok(if more { Ok(0) } else { Err(end) })
}

/// Reports a chain that is not served.
type Bad<'a> = &'a dyn Fn(BadRequest);

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
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_net as net;
use virtio_device_core::vmm_sys_util::epoll::EventSet;
use virtio_device_core::{
    ActiveQueue, BadRequest, Chain, Context, DeviceFault, Features, Head, InterruptHandle,
    Progress, QueueHandler, RingFault, RingMemory, Rings, Unavailable, Virtqueue,
};
use vm_memory::GuestAddressSpace;

use crate::config::QUEUE_SIZE;
use crate::control;
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

/// The numbers of a back end's descriptors, and of the queues of a pair.
const READABLE: u16 = 0;
const WRITABLE: u16 = 1;

/// Serves a pair of queues, and the control queue if it is the first.
pub(crate) struct Handler<M> {
    memory: M,
    shared: Arc<Shared>,
    pair: Arc<Pair>,
    index: u16,
    control: Option<u16>,
    agreed: Features,
    receiver: Receiver,
    sender: Sender,
    command: Chain,
    done: Vec<(Head, u32)>,
    /// The descriptors are always ready, as far as epoll knows, or there is no epoll.
    no_poll: bool,
    /// When to try again with a back end that does not work; never, if there is no use in it.
    retry: Option<Instant>,
}

/// Why a queue was left.
#[derive(Debug)]
enum End {
    /// Others have their turn.
    Turn,
    /// The driver has made nothing more available. Its next notification comes, or this time passes.
    Drained(Option<Duration>),
    /// The host gives or takes nothing for now.
    HostBusy,
    /// It is too early for another packet.
    Wait(Duration),
    /// The back end does not work any more.
    Failed(io::Error),
}

impl End {
    fn of(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::Interrupted => Self::HostBusy,
            _ => Self::Failed(error),
        }
    }
}

/// Chains that are to be given back, all at once.
struct Done<'a> {
    chains: &'a mut Vec<(Head, u32)>,
    queue: u16,
    interrupt: &'a InterruptHandle,
}

impl Done<'_> {
    fn push(&mut self, head: Head, len: u32) {
        self.chains.push((head, len));
    }

    /// Gives a chain back that is not served.
    fn refuse(&mut self, head: Head, error: BadRequest) {
        self.interrupt.bad_request(self.queue, error);
        self.push(head, 0);
    }
}

/// Has `one` move a packet after the other, under the queue's lock, until it says why not.
fn turn<M: RingMemory>(
    ring: &mut Virtqueue,
    rings: &M,
    done: &mut Done<'_>,
    mut one: impl FnMut(&mut Virtqueue, &mut Done<'_>) -> Result<Result<usize, End>, RingFault>,
) -> Result<End, RingFault> {
    ring.disable_notification(rings)?;
    let mut bytes = 0;
    for _ in 0..TURN_PACKETS {
        match one(ring, done)? {
            Ok(len) => bytes += len,
            Err(End::Drained(wait)) => {
                // The driver may make more available when it has got back what was done.
                ring.complete_all(rings, done.chains.drain(..))?;
                if !ring.enable_notification(rings)? {
                    return Ok(End::Drained(wait));
                }
            }
            Err(end) => return Ok(end),
        }
        if bytes >= TURN_BYTES {
            break;
        }
    }
    Ok(End::Turn)
}

/// Gives back what is done, and interrupts at most once a turn.
fn publish(
    ring: &mut Virtqueue,
    rings: &impl RingMemory,
    done: Done<'_>,
    active: &ActiveQueue,
) -> Result<(), RingFault> {
    ring.complete_all(rings, done.chains.drain(..))?;
    if ring.needs_interrupt(rings)? {
        active.signal_used();
    }
    Ok(())
}

impl<M> Handler<M> {
    /// Serves `pair`, which is number `index`.
    pub(crate) fn new(
        memory: M,
        shared: Arc<Shared>,
        (index, pair): (u16, Arc<Pair>),
        control: Option<u16>,
        agreed: Features,
    ) -> Self {
        Self {
            memory,
            shared,
            pair,
            index,
            control,
            agreed,
            receiver: Receiver::new(agreed),
            sender: Sender::new(agreed),
            command: Chain::with_capacity(QUEUE_SIZE),
            done: Vec::with_capacity(QUEUE_SIZE.into()),
            no_poll: false,
            retry: Some(Instant::now()),
        }
    }

    /// Has the back end do what was agreed on, and watches it, without interest for now.
    fn set_up(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let settings = self.shared.settings();
        if self.index == 0 {
            self.shared.set_offloads(&settings, self.agreed)?;
            self.shared.use_pairs(&settings)?;
        }
        let backend = &mut self.pair.port().backend;
        backend.set_active(self.index < settings.pairs)?;
        self.no_poll = false;
        // Watched with interest at first, so that epoll refuses what it cannot wait for.
        for (source, interest, fd) in [
            (READABLE, EventSet::IN, backend.readable()),
            (WRITABLE, EventSet::OUT, backend.writable()),
        ] {
            match cx
                .watch(source.into(), fd, interest)
                .map_err(|it| (it.kind(), it))
            {
                Ok(()) => cx.set_interest(source.into(), EventSet::empty())?,
                Err((ErrorKind::PermissionDenied | ErrorKind::Unsupported, _)) => {
                    self.no_poll = true;
                }
                Err((_, error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes the link down.
    fn fail(&mut self, error: &io::Error, cx: &mut Context<'_>) -> Progress {
        cx.unwatch(READABLE.into());
        cx.unwatch(WRITABLE.into());
        self.retry = Some(Instant::now() + RETRY);
        if !self.pair.has_failed() {
            self.shared.set_failed(&self.pair, true);
            let pair = self.index.into();
            self.shared.event(&NetEvent::BackendFailed { pair, error });
        }
        Progress::After(RETRY)
    }

    /// Tries again with a back end that does not work; says how long to wait, if that is in vain.
    fn revive(&mut self, cx: &mut Context<'_>) -> Option<Progress> {
        let now = Instant::now();
        match self.retry {
            None => return Some(Progress::Idle),
            Some(at) if now < at => return Some(Progress::After(at - now)),
            Some(_) => {}
        }
        // In a statement of its own, so that the lock is held for no longer.
        let reopened = self.pair.port().backend.reopen();
        if let Err(error) = reopened {
            let hopeless = error.kind() == ErrorKind::Unsupported;
            self.retry = (!hopeless).then_some(now + RETRY);
            return Some(match hopeless {
                true => Progress::Idle,
                false => Progress::After(RETRY),
            });
        }
        // No longer failed, so that the first pair's offloads are set.
        self.shared.set_failed(&self.pair, false);
        if let Err(error) = self.set_up(cx) {
            return Some(self.fail(&error, cx));
        }
        let pair = self.index.into();
        self.shared.event(&NetEvent::BackendReturned { pair });
        None
    }
}

impl<M: GuestAddressSpace> QueueHandler for Handler<M> {
    fn start(&mut self, cx: &mut Context<'_>) -> Result<(), DeviceFault> {
        let moved = self.index == 0 && self.shared.moved.swap(false, Ordering::AcqRel);
        if moved && self.agreed.has(net::VIRTIO_NET_F_GUEST_ANNOUNCE) {
            self.shared.announce();
        }
        if !self.pair.has_failed() {
            if let Err(error) = self.set_up(cx) {
                self.fail(&error, cx);
            }
        }
        Ok(())
    }

    fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        match self.control {
            Some(control) if control == queue => self.obey(control, cx),
            _ => self.serve(queue % 2, EventSet::empty(), cx),
        }
    }

    fn ready(
        &mut self,
        source: u32,
        readiness: EventSet,
        cx: &mut Context<'_>,
    ) -> Result<Progress, DeviceFault> {
        let side = if source == 0 { READABLE } else { WRITABLE };
        self.serve(side, readiness, cx)
    }
}

impl<M: GuestAddressSpace> Handler<M> {
    /// Moves packets in one direction.
    fn serve(
        &mut self,
        side: u16,
        readiness: EventSet,
        cx: &mut Context<'_>,
    ) -> Result<Progress, DeviceFault> {
        let waits = match self.pair.has_failed() {
            true => self.revive(cx),
            false => None,
        };
        let active = cx.queue(2 * self.index + side);
        let active = active.filter(|_| side == WRITABLE || waits.is_none());
        let Some(active) = active else {
            return Ok(waits.unwrap_or(Progress::Idle));
        };
        let memory = self.memory.memory();
        let mut done = Done {
            chains: &mut self.done,
            queue: active.index,
            interrupt: cx.interrupt(),
        };
        let (shared, pair, index) = (&*self.shared, &*self.pair, self.index);
        let (receiver, sender) = (&mut self.receiver, &mut self.sender);
        let looked = active.lease.with(|ring| {
            let rings = Rings::new(&*memory, ring.layout());
            let port = &mut *pair.port();
            let mut end;
            if side == READABLE {
                if index >= port.settings.pairs {
                    return Ok(End::Drained(None));
                }
                end = turn(ring, &rings, &mut done, |ring, done| {
                    receiver.one(ring, &rings, port, shared, done)
                })?;
                receiver.put_back(ring);
            } else {
                // Without a back end there is nothing to wait for.
                let up = !pair.has_failed() && shared.has_cable();
                let mut backend = up.then_some(&mut *port.backend);
                end = turn(ring, &rings, &mut done, |ring, done| {
                    sender.one(ring, &rings, &mut backend, shared, done)
                })?;
                if let Some(backend) =
                    backend.filter(|_| !matches!(end, End::HostBusy | End::Failed(_)))
                {
                    end = backend.flush().map_or_else(End::of, |()| end);
                }
            }
            publish(ring, &rings, done, active)?;
            Ok(end)
        });
        match self.end(side, looked, readiness, cx)? {
            Progress::Idle => Ok(waits.unwrap_or(Progress::Idle)),
            progress => Ok(progress),
        }
    }

    /// What comes after a turn.
    fn end(
        &mut self,
        side: u16,
        looked: Result<Result<End, RingFault>, Unavailable>,
        readiness: EventSet,
        cx: &mut Context<'_>,
    ) -> Result<Progress, DeviceFault> {
        let (interest, progress) = match looked.unwrap_or(Ok(End::Drained(None)))? {
            // Whatever is waited for is waited for still.
            End::Turn => return Ok(Progress::More),
            End::HostBusy if readiness.contains(EventSet::HANG_UP) => {
                return Ok(self.fail(&ErrorKind::ConnectionReset.into(), cx));
            }
            End::Failed(error) => return Ok(self.fail(&error, cx)),
            End::HostBusy if self.no_poll => (EventSet::empty(), Progress::After(NO_POLL)),
            End::HostBusy if side == READABLE => (EventSet::IN, Progress::Idle),
            End::HostBusy => (EventSet::OUT, Progress::Idle),
            // Back-pressure: nobody is woken for what there is no room for.
            End::Drained(None) => (EventSet::empty(), Progress::Idle),
            End::Drained(Some(time)) | End::Wait(time) => {
                (EventSet::empty(), Progress::After(time))
            }
        };
        match cx.set_interest(side.into(), interest) {
            Ok(()) => Ok(progress),
            Err(error) => Ok(self.fail(&error, cx)),
        }
    }

    /// Does what the driver asks for by its control queue.
    fn obey(&mut self, queue: u16, cx: &Context<'_>) -> Result<Progress, DeviceFault> {
        let Some(active) = cx.queue(queue) else {
            return Ok(Progress::Idle);
        };
        let (memory, shared, agreed) = (self.memory.memory(), &self.shared, self.agreed);
        let chain = &mut self.command;
        let mut done = Done {
            chains: &mut self.done,
            queue,
            interrupt: cx.interrupt(),
        };
        let looked = active.lease.with(|ring| {
            let rings = Rings::new(&*memory, ring.layout());
            let end = turn(ring, &rings, &mut done, |ring, done| {
                let Some(head) = ring.take(&rings, chain)? else {
                    return Ok(Err(End::Drained(None)));
                };
                let answered = chain.check(&rings).and_then(|()| {
                    // Without a place for the answer nothing is done.
                    if chain.writable_len() == 0 {
                        return Err(BadRequest::Layout);
                    }
                    let answer = match run(shared, agreed, chain, &rings) {
                        Some(()) => net::VIRTIO_NET_OK,
                        None => net::VIRTIO_NET_ERR,
                    };
                    chain.write(&rings, &[u8::try_from(answer).unwrap_or(1)])
                });
                match answered {
                    Ok(len) => done.push(head, len),
                    Err(error) => done.refuse(head, error),
                }
                Ok(Ok(0))
            })?;
            publish(ring, &rings, done, active)?;
            Ok::<_, RingFault>(end)
        });
        match looked.unwrap_or(Ok(End::Drained(None)))? {
            End::Turn => Ok(Progress::More),
            _ => Ok(Progress::Idle),
        }
    }
}

/// Runs a command. If it fails, nothing has changed.
fn run(shared: &Shared, agreed: Features, chain: &Chain, rings: &impl RingMemory) -> Option<()> {
    let mut settings = (*shared.settings()).clone();
    let most = shared.most_pairs();
    let command = &mut chain.reader(rings);
    let class = control::obey(&mut settings, command, agreed, most)?;
    match class {
        net::VIRTIO_NET_CTRL_ANNOUNCE => shared.announced(),
        net::VIRTIO_NET_CTRL_GUEST_OFFLOADS => shared.set_offloads(&settings, agreed).ok()?,
        net::VIRTIO_NET_CTRL_MQ => shared.use_pairs(&settings).ok()?,
        _ => {}
    }
    shared.set_settings(settings);
    if class == net::VIRTIO_NET_CTRL_MQ {
        shared.wake();
    }
    Some(())
}

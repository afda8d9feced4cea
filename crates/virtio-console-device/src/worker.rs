// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device as its worker sees it: bytes between queues and descriptors of the host.
//!
//! A byte is read or written without waiting, and under the same lock as the request that it belongs
//! to is completed: a pause finds both done, or neither.

mod queues;

use std::io::{self, ErrorKind, Read};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use virtio_device_core::{
    BadRequest, Chain, Context, DeviceFault, Progress, QueueHandler, vmm_sys_util::epoll::EventSet,
};
use vm_memory::GuestAddressSpace;

use crate::control::{Effect, HEADER, Message, PortState, obey};
use crate::host::HostFd;
use crate::observer::ConsoleEvent;
use crate::shared::Shared;

pub(crate) use queues::transmit_queue;
use queues::{
    ANNOUNCE, Answer, End, OBEY, WAKE, input_source, nudge, number, output_source, port_of,
    receive_queue, serve,
};

/// Most bytes that are moved by one call to the host.
const PIECE: usize = 16 << 10;
/// Most bytes of output that are moved in one turn, so that a pause never waits for more.
const TURN: usize = 16 * PIECE;
/// How long a terminal that has hung up is left alone.
const HANGUP_WAIT: Duration = Duration::from_millis(500);
/// How long until a descriptor is tried again of which epoll does not tell when: one that it does not take,
/// or one for which the host was short of something.
const NO_POLL_WAIT: Duration = Duration::from_millis(10);

pub(crate) struct Handler<M> {
    memory: M,
    shared: Arc<Shared>,
    multiport: bool,
    sides: Vec<Sides>,
    chain: Chain,
    piece: Box<[u8]>,
}

/// What the worker knows of the descriptors of one port.
#[derive(Clone, Copy, Debug, Default)]
struct Sides {
    input: Side,
    output: Side,
}

#[derive(Clone, Copy, Debug, Default)]
struct Side {
    /// It is always ready, as far as epoll knows: a file.
    no_poll: bool,
    /// It was found to have hung up.
    gone: bool,
}

impl<M> Handler<M> {
    pub(crate) fn new(memory: M, shared: Arc<Shared>, multiport: bool) -> Self {
        Self {
            memory,
            multiport,
            sides: vec![Sides::default(); shared.ports.len()],
            shared,
            chain: Chain::default(),
            piece: vec![0; PIECE].into_boxed_slice(),
        }
    }
}

impl<M: GuestAddressSpace> QueueHandler for Handler<M> {
    fn start(&mut self, cx: &mut Context<'_>) -> Result<(), DeviceFault> {
        let Self { shared, sides, .. } = self;
        if self.multiport {
            cx.watch(WAKE, &shared.wake, EventSet::IN)
                .map_err(DeviceFault::Worker)?;
        }
        for (index, (port, sides)) in shared.ports.iter().zip(sides).enumerate() {
            if index != 0 && !self.multiport {
                break;
            }
            let input = (input_source(index), &port.input, EventSet::IN);
            sides.input.no_poll = !watch(cx, input).map_err(DeviceFault::Worker)?;
            let output = (output_source(index), &port.output, EventSet::OUT);
            sides.output.no_poll = !watch(cx, output).map_err(DeviceFault::Worker)?;
        }
        Ok(())
    }

    fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        match (queue, port_of(queue)) {
            (2.., _) if !self.multiport => Ok(Progress::Idle),
            (ANNOUNCE, _) => self.announce(cx),
            (OBEY, _) => self.obey(cx),
            (_, (port, false)) => self.receive(port, cx),
            (_, (port, true)) => self.transmit(port, cx),
        }
    }

    fn ready(
        &mut self,
        source: u32,
        _readiness: EventSet,
        cx: &mut Context<'_>,
    ) -> Result<Progress, DeviceFault> {
        let Some(queue) = source.checked_sub(1) else {
            self.shared.clear_wake();
            self.discard_unplugged(cx)?;
            return self.announce(cx);
        };
        match port_of(u16::try_from(queue).unwrap_or(u16::MAX)) {
            (port, false) => self.receive(port, cx),
            (port, true) => self.transmit(port, cx),
        }
    }
}

impl<M: GuestAddressSpace> Handler<M> {
    /// Moves what the host has for port `index` into the driver's buffers.
    fn receive(&mut self, index: usize, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let (source, queue) = (input_source(index), receive_queue(index));
        let (shared, memory) = (&self.shared, self.memory.memory());
        let (Some(port), Some(sides)) = (shared.ports.get(index), self.sides.get_mut(index)) else {
            return Ok(Progress::Idle);
        };
        let listens = |state: &PortState| state.listens(port.console);
        if self.multiport && !shared.progress().ports.get(index).is_some_and(listens) {
            return wait(cx, source, EventSet::empty(), Progress::Idle);
        }
        let Some(active) = cx.queue(queue) else {
            return Ok(Progress::Idle);
        };
        let was_gone = sides.input.gone;
        let mut failure = None;
        let end = serve(
            active,
            &*memory,
            &mut self.chain,
            cx.interrupt(),
            |chain, memory| {
                let room = usize::try_from(chain.writable_len()).unwrap_or(PIECE);
                if room == 0 {
                    return Err(BadRequest::Layout);
                }
                // Locked until the input is read: nothing is once the port was taken away.
                let progress = shared.progress();
                if self.multiport && !progress.ports.get(index).is_some_and(listens) {
                    return Ok(Answer::Wait(End::Silent));
                }
                let piece = self.piece.get_mut(..room.min(PIECE)).unwrap_or_default();
                match port.input.read(piece) {
                    Ok(0) => Ok(Answer::Wait(End::HostGone)),
                    Ok(count) => {
                        let read = piece.get(..count).unwrap_or_default();
                        sides.input.gone = false;
                        chain.write(memory, read).map(Answer::Done)
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        sides.input.gone = false;
                        Ok(Answer::Wait(End::HostBusy))
                    }
                    Err(error) if is_shortage(&error) => Ok(Answer::Wait(End::HostShort)),
                    Err(error) => {
                        failure = Some(error);
                        Ok(Answer::Wait(End::HostGone))
                    }
                }
            },
        )?;
        if end == End::HostGone {
            sides.input.gone = true;
            if !was_gone {
                let (port, error) = (number(index), failure.as_ref());
                shared.event(&ConsoleEvent::InputEnded { port, error });
            }
        } else if was_gone && !sides.input.gone {
            let port = number(index);
            shared.event(&ConsoleEvent::HostReturned { port });
        }
        let side = sides.input;
        self.tell_host_side(index, cx);
        match end {
            End::Turn => Ok(Progress::More),
            End::HostBusy if !side.no_poll => wait(cx, source, EventSet::IN, Progress::Idle),
            End::HostBusy | End::HostShort => {
                wait(cx, source, EventSet::empty(), Progress::After(NO_POLL_WAIT))
            }
            End::HostGone if port_may_come_back(&self.shared, index) => {
                wait(cx, source, EventSet::empty(), Progress::After(HANGUP_WAIT))
            }
            _ => wait(cx, source, EventSet::empty(), Progress::Idle),
        }
    }

    /// Moves what the driver has written to port `index` to the host, which may have hung up.
    fn transmit(&mut self, index: usize, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let (source, queue) = (output_source(index), transmit_queue(index));
        let (shared, memory) = (&self.shared, self.memory.memory());
        let (Some(port), Some(sides)) = (shared.ports.get(index), self.sides.get_mut(index)) else {
            return Ok(Progress::Idle);
        };
        let Some(active) = cx.queue(queue) else {
            return Ok(Progress::Idle);
        };
        let was_gone = sides.output.gone;
        if was_gone && port.output.may_come_back() && !port.output.has_hung_up() {
            sides.output.gone = false;
        }
        let discards = |port: &PortState| port.discards;
        let discards = shared.progress().ports.get(index).map_or(0, discards);
        let mut failure = None;
        let mut moved = 0;
        let end = serve(
            active,
            &*memory,
            &mut self.chain,
            cx.interrupt(),
            |chain, memory| {
                let mut progress = shared.progress();
                let mut sent = progress.sent(index);
                let total = chain.readable_len();
                let is_there = |port: &PortState| port.plugged && port.discards == 0;
                let taken = !self.multiport || progress.ports.get(index).is_some_and(is_there);
                while taken && sent < total && !sides.output.gone {
                    if moved >= TURN {
                        return Ok(Answer::Wait(End::Turn));
                    }
                    let mut reader = chain.reader(memory);
                    reader.skip(sent);
                    let count = reader.read(&mut self.piece);
                    let count = count.map_err(|_| BadRequest::Layout)?;
                    match send(&port.output, self.piece.get(..count).unwrap_or_default()) {
                        Ok(count) => {
                            sent += count as u64;
                            moved += count;
                            progress.set_sent(index, sent, Some(&active.lease));
                        }
                        Err(error)
                            if error.kind() == ErrorKind::WouldBlock
                                && !port.output.has_hung_up() =>
                        {
                            return Ok(Answer::Wait(End::HostBusy));
                        }
                        Err(error) if is_shortage(&error) => {
                            return Ok(Answer::Wait(End::HostShort));
                        }
                        Err(error) => {
                            sides.output.gone = true;
                            failure = Some(error);
                        }
                    }
                }
                progress.set_sent(index, 0, None);
                Ok(Answer::Done(0))
            },
        )?;
        if end == End::Drained && discards != 0 {
            if let Some(port) = shared.progress().ports.get_mut(index) {
                // Unless the port was unplugged once more meanwhile.
                if port.discards == discards {
                    port.discards = 0;
                }
            }
        }
        let number = number(index);
        match &failure {
            Some(error) if !was_gone => shared.event(&ConsoleEvent::OutputEnded {
                port: number,
                error,
            }),
            None if was_gone && !sides.output.gone => {
                shared.event(&ConsoleEvent::HostReturned { port: number })
            }
            _ => {}
        }
        let Side { no_poll, gone } = sides.output;
        // Whether the host is back must not depend on the driver writing something.
        let may_come_back = gone && port.output.may_come_back();
        self.tell_host_side(index, cx);
        match end {
            End::Turn => Ok(Progress::More),
            End::HostBusy if !no_poll => wait(cx, source, EventSet::OUT, Progress::Idle),
            End::HostBusy | End::HostShort => {
                wait(cx, source, EventSet::empty(), Progress::After(NO_POLL_WAIT))
            }
            _ if may_come_back => wait(cx, source, EventSet::empty(), Progress::After(HANGUP_WAIT)),
            _ => wait(cx, source, EventSet::empty(), Progress::Idle),
        }
    }

    /// Tells the driver whether there is somebody on the host's side of a port, if that is news. Who
    /// says no more may still listen.
    fn tell_host_side(&self, index: usize, cx: &Context<'_>) {
        let sides = self.sides.get(index).filter(|_| self.multiport);
        let (Some(sides), Some(port)) = (sides, self.shared.ports.get(index)) else {
            return;
        };
        let listens = || !sides.input.gone || !port.output.has_hung_up();
        let open = !sides.output.gone && listens();
        let mut progress = self.shared.progress();
        if let Some(state) = progress.ports.get_mut(index) {
            if state.host_open != open {
                state.set_host_open(open);
                nudge(cx, ANNOUNCE);
            }
        }
    }

    /// Discards the output of ports that were taken away, before the driver hears of that.
    fn discard_unplugged(&mut self, cx: &mut Context<'_>) -> Result<(), DeviceFault> {
        for index in 0..self.sides.len() {
            let discards = |port: &PortState| port.discards != 0;
            if (self.shared.progress().ports.get(index)).is_some_and(discards) {
                self.transmit(index, cx)?;
                // The rest is discarded in the queue's own turns.
                nudge(cx, transmit_queue(index));
            }
        }
        Ok(())
    }

    /// Tells the driver what is news to it.
    fn announce(&mut self, cx: &Context<'_>) -> Result<Progress, DeviceFault> {
        let (shared, memory) = (&self.shared, self.memory.memory());
        let has_news = |port: &PortState| port.news.first().is_some();
        let Some(active) = cx
            .queue(ANNOUNCE)
            .filter(|_| shared.progress().ports.iter().any(has_news))
        else {
            return Ok(Progress::Idle);
        };
        let interrupt = cx.interrupt();
        let end = serve(
            active,
            &*memory,
            &mut self.chain,
            interrupt,
            |chain, memory| {
                // Locked until the message counts as told, so that a change in between is not lost.
                let mut progress = shared.progress();
                let mut ports = progress.ports.iter_mut().enumerate();
                let news = ports.find_map(|(index, port)| {
                    let first = port.news.first()?;
                    Some((index, port, first))
                });
                let Some((index, port, news)) = news else {
                    return Ok(Answer::Wait(End::Silent));
                };
                let facts = shared.facts(index).ok_or(BadRequest::Layout)?;
                let message = port.message(number(index), news, facts);
                if chain.writable_len() < message.len() as u64 {
                    return Err(BadRequest::Layout);
                }
                let len = chain.write(memory, &message)?;
                port.told(news);
                Ok(Answer::Done(len))
            },
        )?;
        Ok(end.progress())
    }

    /// Listens to what the driver has to say.
    fn obey(&mut self, cx: &Context<'_>) -> Result<Progress, DeviceFault> {
        let (shared, memory) = (&self.shared, self.memory.memory());
        let Some(active) = cx.queue(OBEY) else {
            return Ok(Progress::Idle);
        };
        let interrupt = cx.interrupt();
        let end = serve(
            active,
            &*memory,
            &mut self.chain,
            interrupt,
            |chain, memory| {
                let message: [u8; HEADER] = chain.reader(memory).read_array()?;
                let message = Message::parse(message);
                let facts = |port| shared.facts(port);
                let effect = obey(&mut shared.progress().ports, facts, message);
                let Message { port, event, .. } = message;
                match effect {
                    None => shared.event(&ConsoleEvent::BadControl { port, event }),
                    Some(Effect::Opened(open)) => {
                        shared.event(&ConsoleEvent::GuestOpened { port, open });
                    }
                    Some(Effect::Failed) => shared.event(&ConsoleEvent::PortFailed { port }),
                    Some(Effect::Nothing | Effect::Listens) => {}
                }
                if let Some(Effect::Listens | Effect::Opened(_)) = effect {
                    // The port is known, so it has a number that fits.
                    nudge(cx, receive_queue(port as usize));
                }
                Ok(Answer::Done(0))
            },
        )?;
        nudge(cx, ANNOUNCE);
        Ok(end.progress())
    }
}

/// Watches a descriptor without interest for now; returns whether that is possible at all.
fn watch(
    cx: &mut Context<'_>,
    (source, fd, interest): (u32, &HostFd, EventSet),
) -> io::Result<bool> {
    match cx.watch(source, fd, interest) {
        Ok(()) => cx.set_interest(source, EventSet::empty()).map(|()| true),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error),
    }
}

fn wait(
    cx: &mut Context<'_>,
    source: u32,
    interest: EventSet,
    progress: Progress,
) -> Result<Progress, DeviceFault> {
    match cx.set_interest(source, interest) {
        Ok(()) => Ok(progress),
        // The host has no room for one more descriptor to be watched.
        Err(_) => Ok(Progress::After(NO_POLL_WAIT)),
    }
}

/// Whether the host failed for want of something that comes back: what it was to do is still to be done.
fn is_shortage(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOBUFS | Errno::NOMEM | Errno::NOSPC | Errno::DQUOT)
    )
}

/// Nothing written is nothing taken.
fn send(output: &HostFd, data: &[u8]) -> io::Result<usize> {
    match output.write(data)? {
        0 => Err(ErrorKind::WouldBlock.into()),
        count => Ok(count),
    }
}

fn port_may_come_back(shared: &Shared, port: usize) -> bool {
    let port = shared.ports.get(port);
    port.is_some_and(|port| port.input.may_come_back())
}

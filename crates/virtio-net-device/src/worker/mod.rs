// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device as the worker of a pair of queues sees it: packets between rings and a back end.
//!
//! A packet moves without waiting, and under the same lock as its chains are completed: a pause finds
//! both done, or neither.

mod commands;
mod receive;
mod send;
mod stock;
mod turn;

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use virtio_device_core::vmm_sys_util::epoll::EventSet;
use virtio_device_core::{
    Chain, Context, DeviceFault, Features, Head, Progress, QueueHandler, Rings,
};
use vm_memory::GuestAddressSpace;

use crate::config::QUEUE_SIZE;
use crate::observer::NetEvent;
use crate::shared::{Pair, Shared};
use receive::Receiver;
use send::Sender;
use turn::{End, Turn};

/// How long a back end that does not work is left alone.
const RETRY: Duration = Duration::from_millis(200);
/// How long a back end is left alone that nobody can wait for.
const NO_POLL: Duration = Duration::from_millis(10);

/// What a worker serves: the queues of a pair and the descriptors of a back end by their numbers, and
/// the control queue.
const RECEIVE: u16 = 0;
const SEND: u16 = 1;
const CONTROL: u16 = 2;

/// Serves a pair of queues, and the control queue if it is the first.
pub(crate) struct Handler<M> {
    memory: M,
    shared: Arc<Shared>,
    pair: Arc<Pair>,
    receiver: Receiver,
    sender: Sender,
    command: Chain,
    done: Vec<(Head, u32)>,
    /// The descriptors are always ready, as far as epoll knows, or there is no epoll.
    no_poll: bool,
    /// When to try again with a back end that does not work; never, if there is no use in it.
    retry: Option<Instant>,
}

impl<M> Handler<M> {
    pub(crate) fn new(memory: M, shared: Arc<Shared>, pair: Arc<Pair>, agreed: Features) -> Self {
        Self {
            memory,
            shared,
            pair,
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
        let shared = &self.shared;
        if self.pair.index == 0 {
            shared.set_offloads()?;
            // Those that the driver does not use may have no worker to ask them. What they refuse is no
            // failure of this one.
            for other in shared.pairs.iter().skip(1) {
                let _ = shared.take_part(other);
            }
        }
        shared.take_part(&self.pair)?;
        let backend = self.pair.backend();
        self.no_poll = false;
        for (source, interest, fd) in [
            (RECEIVE, EventSet::IN, backend.readable()),
            (SEND, EventSet::OUT, backend.writable()),
        ] {
            // With interest at first, so that epoll refuses what it cannot wait for.
            match cx.watch(source.into(), fd, interest) {
                Ok(()) => cx.set_interest(source.into(), EventSet::empty())?,
                Err(error) => match error.kind() {
                    ErrorKind::PermissionDenied | ErrorKind::Unsupported => self.no_poll = true,
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Takes the link down.
    fn fail(&mut self, error: &io::Error, cx: &mut Context<'_>) -> Progress {
        cx.unwatch(RECEIVE.into());
        cx.unwatch(SEND.into());
        self.retry = Some(Instant::now() + RETRY);
        if !self.pair.has_failed() {
            self.shared.set_failed(&self.pair, true);
            let pair = self.pair.index.into();
            self.shared.event(&NetEvent::BackendFailed { pair, error });
        }
        Progress::After(RETRY)
    }

    /// Tries again with a back end that does not work; says how long to wait, if that is in vain.
    fn revive(&mut self, cx: &mut Context<'_>) -> Option<Progress> {
        if !self.pair.has_failed() {
            return None;
        }
        let Some(retry) = self.retry else {
            return Some(Progress::Idle);
        };
        let early = retry.saturating_duration_since(Instant::now());
        if !early.is_zero() {
            return Some(Progress::After(early));
        }
        // In a statement of its own, so that the lock is held for no longer.
        let reopened = self.pair.backend().reopen();
        let hopeless = |error: &io::Error| error.kind() == ErrorKind::Unsupported;
        if reopened.as_ref().is_err_and(hopeless) {
            self.retry = None;
            return Some(Progress::Idle);
        }
        let works = reopened.and_then(|()| {
            // No longer failed, so that the first pair's offloads are set.
            self.shared.set_failed(&self.pair, false);
            self.set_up(cx)
        });
        if let Err(error) = works {
            return Some(self.fail(&error, cx));
        }
        let pair = self.pair.index.into();
        self.shared.event(&NetEvent::BackendReturned { pair });
        None
    }
}

impl<M: GuestAddressSpace> QueueHandler for Handler<M> {
    fn start(&mut self, cx: &mut Context<'_>) -> Result<(), DeviceFault> {
        let moved = self.pair.index == 0 && self.shared.moved.swap(false, Ordering::AcqRel);
        if moved {
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
        match queue / 2 == self.pair.index {
            true => self.serve(queue, queue % 2, EventSet::empty(), cx),
            false => self.serve(queue, CONTROL, EventSet::empty(), cx),
        }
    }

    fn ready(
        &mut self,
        source: u32,
        readiness: EventSet,
        cx: &mut Context<'_>,
    ) -> Result<Progress, DeviceFault> {
        let side = if source == 0 { RECEIVE } else { SEND };
        self.serve(2 * self.pair.index + side, side, readiness, cx)
    }
}

impl<M: GuestAddressSpace> Handler<M> {
    /// Gives a queue its turn; says how to go on.
    fn serve(
        &mut self,
        queue: u16,
        side: u16,
        readiness: EventSet,
        cx: &mut Context<'_>,
    ) -> Result<Progress, DeviceFault> {
        let waits = self.revive(cx);
        if let Some(waits) = waits.filter(|_| side == RECEIVE) {
            return Ok(waits);
        }
        let (interest, progress) = match self.look(queue, side, cx) {
            // Whatever is waited for is waited for still.
            Ok(()) => return Ok(Progress::More),
            Err(End::Fault(fault)) => return Err(fault.into()),
            Err(End::Failed(error)) => return Ok(self.fail(&error, cx)),
            Err(End::HostBusy) if readiness.contains(EventSet::HANG_UP) => {
                return Ok(self.fail(&ErrorKind::ConnectionReset.into(), cx));
            }
            Err(End::HostBusy) if self.no_poll => (EventSet::empty(), Progress::After(NO_POLL)),
            Err(End::HostBusy) if side == RECEIVE => (EventSet::IN, Progress::Idle),
            Err(End::HostBusy) => (EventSet::OUT, Progress::Idle),
            // Back-pressure: nobody is woken for what there is no room for.
            Err(End::Drained(None)) => (EventSet::empty(), waits.unwrap_or(Progress::Idle)),
            Err(End::Drained(Some(time)) | End::Wait(time)) => {
                (EventSet::empty(), Progress::After(time))
            }
        };
        match cx.set_interest(side.into(), interest) {
            Ok(()) => Ok(progress),
            Err(error) => Ok(self.fail(&error, cx)),
        }
    }

    /// Looks at a queue, as long as its turn is.
    fn look(&mut self, queue: u16, side: u16, cx: &Context<'_>) -> Result<(), End> {
        let active = cx.queue(queue).ok_or(End::Drained(None))?;
        let memory = self.memory.memory();
        let looked = active.lease.with(|queue| {
            let mut turn = Turn {
                rings: Rings::new(&*memory, queue.layout()),
                queue,
                active,
                interrupt: cx.interrupt(),
                done: &mut self.done,
            };
            match side {
                RECEIVE => self.receiver.serve(&mut turn, &self.pair, &self.shared),
                SEND => self.sender.serve(&mut turn, &self.pair, &self.shared),
                _ => commands::serve(&mut turn, &mut self.command, &self.shared),
            }
        });
        // While the device is paused, and once the queue has been taken back, there is nothing to do.
        looked.unwrap_or(Err(End::Drained(None)))
    }
}

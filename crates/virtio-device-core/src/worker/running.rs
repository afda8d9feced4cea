// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A worker that has started, on the thread of its loop.

use std::os::fd::AsRawFd;
use std::time::Instant;

use vmm_sys_util::epoll::EventSet;

use crate::device::ActiveQueue;
use crate::fault::DeviceFault;
use crate::interrupt::InterruptHandle;
use crate::panics::{caught, discard};
use crate::sync::{clear_kick, write_kick};
use crate::worker::Worker;
use crate::worker::handler::{Context, Progress, QueueHandler};
use crate::worker::sources::{LOST, Poller, Sources};

/// What a handler is called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Queue(u16),
    Source(u32),
}

const SOURCE: u32 = 1 << 31;

impl Reason {
    /// The lower half of what an event carries.
    pub(crate) const fn to_bits(self) -> u32 {
        match self {
            Self::Queue(index) => index as u32,
            Self::Source(number) => number | SOURCE,
        }
    }

    pub(crate) fn from_bits(bits: u32) -> Self {
        match u16::try_from(bits) {
            Ok(index) => Self::Queue(index),
            Err(_) => Self::Source(bits & !SOURCE),
        }
    }

    /// A source's number has 31 bits.
    pub(crate) const fn is_out_of_range(self) -> bool {
        matches!(self, Self::Source(number) if number & SOURCE != 0)
    }
}

/// When a handler wants to be called again for a reason, without an event.
#[derive(Clone, Copy, Debug)]
struct Again {
    reason: Reason,
    at: When,
    /// Nothing, unless a pause has held back that a peer has hung up.
    readiness: EventSet,
}

#[derive(Clone, Copy, Debug)]
enum When {
    /// As soon as the loop comes round, or the pause has ended.
    Soon,
    At(Instant),
}

/// Whether a worker continues after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    GoesOn,
    Ended,
}

pub(crate) struct Running {
    key: u32,
    handler: Box<dyn QueueHandler>,
    queues: Vec<ActiveQueue>,
    sources: Sources,
    interrupt: InterruptHandle,
    /// At most one for each reason.
    again: Vec<Again>,
    /// Those that are due, while they are called: kept for its room.
    calls: Vec<Again>,
}

impl Running {
    /// Starts `worker` in the loop of `poller`; `None` if that failed, as the driver was told, or is
    /// not wanted any more.
    pub(crate) fn start(worker: Worker, poller: &Poller<'_>) -> Option<Self> {
        if worker.interrupt.has_ended() {
            worker.discard();
            return None;
        }
        let Worker {
            build,
            queues,
            interrupt,
            expected,
        } = worker;
        let started = caught(|| {
            let mut running = Self {
                key: poller.key,
                handler: build()?,
                queues,
                sources: Sources::default(),
                interrupt: interrupt.clone(),
                again: Vec::new(),
                calls: Vec::new(),
            };
            // If it fails or panics, its descriptors leave the epoll instance: the kicks outlive the worker.
            let begun = caught(|| running.begin(poller));
            let result = begun.unwrap_or(Err(DeviceFault::Panicked));
            if result.is_err() {
                running.leave(poller);
            }
            result.map(|()| running)
        });
        match started.unwrap_or(Err(DeviceFault::Panicked)) {
            Ok(running) => {
                drop(expected);
                Some(running)
            }
            Err(fault) => {
                interrupt.device_failed(&fault);
                discard(fault);
                None
            }
        }
    }

    fn begin(&mut self, poller: &Poller<'_>) -> Result<(), DeviceFault> {
        for queue in &self.queues {
            let fd = queue.kick.as_raw_fd();
            let added = poller.add(fd, EventSet::IN, Reason::Queue(queue.index));
            added.map_err(DeviceFault::Worker)?;
        }
        let mut cx = Context {
            queues: &self.queues,
            sources: &mut self.sources,
            poller,
            interrupt: &self.interrupt,
        };
        self.handler.start(&mut cx)
    }

    pub(crate) const fn key(&self) -> u32 {
        self.key
    }

    pub(crate) fn queues(&self) -> &[ActiveQueue] {
        &self.queues
    }

    /// Has every wait be over; returns whether there is any that a pause does not hold back.
    pub(crate) fn expire_all(&mut self) -> bool {
        self.again
            .iter_mut()
            .for_each(|again| again.at = When::Soon);
        !self.again.is_empty() && !self.interrupt.is_paused()
    }

    /// Whether the activation has ended, so that there is nothing left to do.
    pub(crate) fn has_ended(&self) -> bool {
        self.interrupt.has_ended()
    }

    /// Serves an event.
    pub(crate) fn event(
        &mut self,
        poller: &Poller<'_>,
        reason: Reason,
        readiness: EventSet,
    ) -> Life {
        match reason {
            Reason::Queue(index) => {
                let mut queues = self.queues.iter();
                let Some(queue) = queues.find(|queue| queue.index == index) else {
                    return Life::GoesOn;
                };
                clear_kick(&queue.kick);
                if self.interrupt.has_ended() {
                    // The notification may be for the worker of the next activation: put it back.
                    write_kick(&queue.kick);
                    return Life::Ended;
                }
            }
            Reason::Source(number) => {
                if !self.sources.takes_event(poller, number) {
                    return Life::GoesOn;
                }
            }
        }
        self.serve(poller, reason, readiness)
    }

    /// Calls the handler for every queue, notified or not.
    pub(crate) fn look(&mut self, poller: &Poller<'_>) -> Life {
        for place in 0..self.queues.len() {
            let Some(index) = self.queues.get(place).map(|queue| queue.index) else {
                break;
            };
            let reason = Reason::Queue(index);
            if self.serve(poller, reason, EventSet::empty()) == Life::Ended {
                return Life::Ended;
            }
        }
        Life::GoesOn
    }

    /// Calls the handler for everything that it has asked to be called for by now, and goes on with
    /// what a pause has held back.
    pub(crate) fn come_round(&mut self, poller: &Poller<'_>, now: Instant) -> Life {
        if self.interrupt.has_ended() {
            return Life::Ended;
        }
        let paused = self.interrupt.is_paused();
        let refused = self.sources.suspend(poller, paused);
        for number in refused.into_iter().filter(|_| !paused) {
            let reason = Reason::Source(number);
            if self.serve(poller, reason, LOST) == Life::Ended {
                return Life::Ended;
            }
        }
        let sources = &self.sources;
        let due = |again: &Again| match again.at {
            _ if paused && !sources.ends_requests(again.reason) => false,
            When::Soon => true,
            When::At(at) => at <= now,
        };
        // Only the calls that are due now. What asks to be called again waits for the next round.
        let calls = &mut self.calls;
        self.again.retain(|again| {
            if due(again) {
                calls.push(*again);
            }
            !due(again)
        });
        calls.reverse();
        while let Some(call) = self.calls.pop() {
            if self.serve(poller, call.reason, call.readiness) == Life::Ended {
                return Life::Ended;
            }
        }
        Life::GoesOn
    }

    /// Whether the loop must come round without waiting.
    pub(crate) fn is_due(&self) -> bool {
        let soon = |again: &Again| matches!(again.at, When::Soon) && self.is_served(again.reason);
        self.again.iter().any(soon)
    }

    /// The next moment that the handler waits for.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let times = self.again.iter().filter_map(|again| match again.at {
            When::At(at) if self.is_served(again.reason) => Some(at),
            _ => None,
        });
        times.min()
    }

    /// Whether the handler is called for this now. During a pause it is for what ends requests in
    /// flight: the pause waits for those.
    fn is_served(&self, reason: Reason) -> bool {
        !self.interrupt.is_paused() || self.sources.ends_requests(reason)
    }

    fn serve(&mut self, poller: &Poller<'_>, reason: Reason, readiness: EventSet) -> Life {
        // A sibling has failed, or a callback of this loop has reset the device.
        if self.interrupt.has_ended() {
            return Life::Ended;
        }
        let pauses = self.interrupt.pauses();
        if !self.is_served(reason) {
            self.hold_back(reason, readiness);
            self.sources.suspend(poller, true);
            return Life::GoesOn;
        }
        self.again.retain(|again| again.reason != reason);
        self.queues.iter_mut().for_each(ActiveQueue::refresh);
        let mut cx = Context {
            queues: &self.queues,
            sources: &mut self.sources,
            poller,
            interrupt: &self.interrupt,
        };
        let handler = &mut self.handler;
        // What comes of the call is taken apart here and not carried out of `caught`: a result that was
        // just written field by field and is copied as a whole stalls the processor.
        let (mut idle, mut again, mut fault) = (false, None, None);
        // The handler is dropped after a panic and never called again.
        let called = caught(|| {
            let result = match reason {
                Reason::Queue(index) => handler.process(index, &mut cx),
                Reason::Source(number) => handler.ready(number, readiness, &mut cx),
            };
            match result {
                Ok(Progress::Idle) => idle = true,
                Ok(Progress::More) => again = Some(When::Soon),
                // A time beyond the clock's range never comes.
                Ok(Progress::After(wait)) => {
                    again = Instant::now().checked_add(wait).map(When::At);
                }
                Err(failed) => fault = Some(failed),
            }
        });
        // Calls that were scheduled for a source which is not watched any more are dropped.
        while let Some(number) = self.sources.next_unwatched() {
            let other = |again: &Again| again.reason != Reason::Source(number);
            self.again.retain(other);
            self.calls.retain(other);
        }
        if called.is_none() {
            fault = Some(DeviceFault::Panicked);
        }
        if let Some(fault) = fault {
            return self.fail(fault);
        }
        // A pause may have kept it from its queues after it had consumed what woke it: call it again.
        if idle && self.interrupt.pauses() != pauses {
            again = Some(When::Soon);
        }
        if let Some(at) = again {
            self.call_again(reason, at);
        }
        Life::GoesOn
    }

    /// Takes note of a call that a pause holds back. A source that is ready needs none: that is reported
    /// again after the pause, if it still is.
    fn hold_back(&mut self, reason: Reason, readiness: EventSet) {
        let hung_up = readiness & EventSet::HANG_UP;
        if matches!(reason, Reason::Source(_)) && !readiness.is_empty() && hung_up.is_empty() {
            return;
        }
        self.again.retain(|again| again.reason != reason);
        self.again.push(Again {
            reason,
            at: When::Soon,
            readiness: hung_up,
        });
    }

    fn call_again(&mut self, reason: Reason, at: When) {
        if matches!(reason, Reason::Source(number) if !self.sources.contains(number)) {
            return;
        }
        self.again.push(Again {
            reason,
            at,
            readiness: EventSet::empty(),
        });
    }

    pub(crate) fn fail(&self, fault: DeviceFault) -> Life {
        self.interrupt.device_failed(&fault);
        discard(fault);
        Life::Ended
    }

    /// Leaves the loop, with no descriptor left in it.
    pub(crate) fn end(mut self, poller: &Poller<'_>) {
        self.leave(poller);
        // A panic on the way out harms nobody else in the loop.
        discard(self);
    }

    fn leave(&mut self, poller: &Poller<'_>) {
        for queue in &self.queues {
            poller.remove(queue.kick.as_raw_fd());
        }
        self.sources.clear(poller);
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The file descriptors of the host that wake a handler.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::worker::running::Reason;

/// What a descriptor can be waited for.
const INTERESTS: EventSet = EventSet::IN.union(EventSet::OUT);

/// What a source that cannot be waited for any more is told.
pub(crate) const LOST: EventSet = EventSet::HANG_UP;

/// What a handler is told for `events`.
pub(crate) fn readiness(events: EventSet) -> EventSet {
    let failed = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
    let hang_up = if failed {
        EventSet::HANG_UP
    } else {
        EventSet::empty()
    };
    events & INTERESTS | hang_up
}

/// A worker's part of its loop's epoll instance.
pub(crate) struct Poller<'a> {
    /// None in a loop that does not wait.
    pub(crate) epoll: Option<&'a Epoll>,
    /// The upper half of what its events carry.
    pub(crate) key: u32,
    /// How often events were taken from the epoll instance.
    pub(crate) round: u64,
}

impl Poller<'_> {
    pub(crate) fn add(&self, fd: RawFd, events: EventSet, reason: Reason) -> io::Result<()> {
        self.control(ControlOperation::Add, fd, events, reason)
    }

    fn control(
        &self,
        operation: ControlOperation,
        fd: RawFd,
        events: EventSet,
        reason: Reason,
    ) -> io::Result<()> {
        let data = u64::from(self.key) << 32 | u64::from(reason.to_bits());
        match (self.epoll, reason) {
            (Some(epoll), _) => epoll.ctl(operation, fd, EpollEvent::new(events, data)),
            // A loop without epoll looks at every queue in each step.
            (None, Reason::Queue(_)) => Ok(()),
            (None, Reason::Source(_)) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// An error means that it was not waited for, which is all that is wanted.
    pub(crate) fn remove(&self, fd: RawFd) {
        if let Some(epoll) = self.epoll {
            let _ = epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
    }
}

/// The descriptors that a worker watches.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    list: Vec<Source>,
    /// Nothing is waited for, because the device is paused.
    suspended: bool,
    /// Those that were unwatched since this was last asked.
    unwatched: Vec<u32>,
}

#[derive(Debug)]
struct Source {
    number: u32,
    fd: OwnedFd,
    interest: EventSet,
    /// Whether it is waited for during a pause as well.
    in_flight: bool,
    /// Whether it is in the epoll instance.
    polled: bool,
    /// The round in which that was last changed. An event that was taken before tells of what was there
    /// then, maybe of another descriptor; if it holds still, the next round has it again.
    since: u64,
}

impl Source {
    /// Makes the epoll instance agree with the interest; after an error it is as before.
    fn sync(&mut self, poller: &Poller<'_>, suspended: bool) -> io::Result<()> {
        let fd = self.fd.as_raw_fd();
        // Even with an empty interest, epoll would report that the peer has hung up.
        let wanted = (!suspended || self.in_flight) && !self.interest.is_empty();
        let operation = match (self.polled, wanted) {
            (_, false) => {
                if self.polled {
                    poller.remove(fd);
                }
                self.polled = false;
                return Ok(());
            }
            (false, true) => ControlOperation::Add,
            (true, true) => ControlOperation::Modify,
        };
        let reason = Reason::Source(self.number);
        poller.control(operation, fd, self.interest, reason)?;
        (self.polled, self.since) = (true, poller.round);
        Ok(())
    }
}

impl Sources {
    pub(crate) fn watch(
        &mut self,
        poller: &Poller<'_>,
        number: u32,
        fd: impl AsFd,
        interest: EventSet,
        in_flight: bool,
    ) -> io::Result<()> {
        if Reason::Source(number).is_out_of_range() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.unwatch(poller, number);
        let interest = interest & INTERESTS;
        let mut source = Source {
            number,
            fd: fd.as_fd().try_clone_to_owned()?,
            interest,
            in_flight,
            polled: false,
            since: 0,
        };
        source.sync(poller, self.suspended)?;
        self.list.push(source);
        Ok(())
    }

    pub(crate) fn set_interest(
        &mut self,
        poller: &Poller<'_>,
        number: u32,
        interest: EventSet,
    ) -> io::Result<()> {
        let interest = interest & INTERESTS;
        let mut list = self.list.iter_mut();
        match list.find(|source| source.number == number) {
            Some(source) if source.interest != interest => {
                let before = std::mem::replace(&mut source.interest, interest);
                let synced = source.sync(poller, self.suspended);
                if synced.is_err() {
                    source.interest = before;
                }
                synced
            }
            _ => Ok(()),
        }
    }

    /// A source that was unwatched and is not yet taken note of.
    pub(crate) fn next_unwatched(&mut self) -> Option<u32> {
        self.unwatched.pop()
    }

    pub(crate) fn contains(&self, number: u32) -> bool {
        self.list.iter().any(|source| source.number == number)
    }

    pub(crate) fn unwatch(&mut self, poller: &Poller<'_>, number: u32) {
        if self.contains(number) {
            self.unwatched.push(number);
        }
        self.list.retain(|source| {
            if source.number == number && source.polled {
                poller.remove(source.fd.as_raw_fd());
            }
            source.number != number
        });
    }

    /// Whether an event that was taken in the poller's round is for the source as it is now.
    pub(crate) fn takes_event(&self, poller: &Poller<'_>, number: u32) -> bool {
        let current = |source: &Source| source.polled && source.since != poller.round;
        let mut list = self.list.iter();
        list.any(|source| source.number == number && current(source))
    }

    /// Whether the handler is called for this while the device is paused: for a source that tells of
    /// the end of requests in flight, and for the queues of a worker that has such a source, as it may
    /// not have handed all requests on yet.
    pub(crate) fn ends_requests(&self, reason: Reason) -> bool {
        let mut in_flight = self.list.iter().filter(|source| source.in_flight);
        match reason {
            Reason::Source(number) => in_flight.any(|source| source.number == number),
            Reason::Queue(_) => in_flight.next().is_some(),
        }
    }

    /// Stops waiting, or goes on with it. Returns the sources that the kernel refuses to wait for
    /// again: their interest is empty from now on.
    pub(crate) fn suspend(&mut self, poller: &Poller<'_>, suspended: bool) -> Vec<u32> {
        let mut refused = Vec::new();
        if self.suspended == suspended {
            return refused;
        }
        self.suspended = suspended;
        for source in &mut self.list {
            if source.sync(poller, suspended).is_err() {
                source.interest = EventSet::empty();
                refused.push(source.number);
            }
        }
        refused
    }

    /// Stops waiting for good.
    pub(crate) fn clear(&mut self, poller: &Poller<'_>) {
        let polled = self.list.drain(..).filter(|source| source.polled);
        polled.for_each(|source| poller.remove(source.fd.as_raw_fd()));
    }
}

#[cfg(test)]
#[cfg(not(miri))] // Miri has no level-triggered epoll.
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::net::UnixStream;

    const NOWHERE: Poller<'_> = Poller {
        epoll: None,
        key: 0,
        round: 2,
    };

    fn poller(epoll: &Epoll) -> Poller<'_> {
        Poller {
            epoll: Some(epoll),
            key: 7,
            round: 1,
        }
    }

    #[test]
    fn an_interest_that_is_refused_leaves_the_one_before() {
        let epoll = Epoll::new().unwrap();
        let poller = poller(&epoll);
        let mut sources = Sources::default();
        // Regular files cannot be waited for.
        let file = File::open("/proc/self/exe").unwrap();
        sources
            .watch(&poller, 3, &file, EventSet::empty(), false)
            .unwrap();
        let error = sources.set_interest(&poller, 3, EventSet::IN);
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        // So a pause has nothing to restore, and the next attempt is refused as well.
        assert!(sources.suspend(&poller, true).is_empty());
        assert!(sources.suspend(&poller, false).is_empty());
        sources.set_interest(&poller, 3, EventSet::IN).unwrap_err();
    }

    #[test]
    fn an_interest_changes_without_a_moment_of_none() {
        let epoll = Epoll::new().unwrap();
        let poller = poller(&epoll);
        let (stream, _peer) = UnixStream::pair().unwrap();
        let mut sources = Sources::default();
        sources
            .watch(&poller, 0, &stream, EventSet::IN, false)
            .unwrap();
        let mut events = [EpollEvent::default(); 2];
        assert_eq!(epoll.wait(0, &mut events).unwrap(), 0);
        sources.set_interest(&poller, 0, EventSet::OUT).unwrap();
        assert_eq!(epoll.wait(0, &mut events).unwrap(), 1);
        assert_eq!(events.map(|event| event.data()), [7 << 32 | 1 << 31, 0]);
        sources.set_interest(&poller, 0, EventSet::empty()).unwrap();
        assert_eq!(epoll.wait(0, &mut events).unwrap(), 0);
    }

    #[test]
    fn a_source_that_cannot_be_waited_for_after_a_pause_is_told_apart_from_the_others() {
        let epoll = Epoll::new().unwrap();
        let (stream, _peer) = UnixStream::pair().unwrap();
        let mut sources = Sources::default();
        let poller = poller(&epoll);
        sources
            .watch(&poller, 1, &stream, EventSet::empty(), false)
            .unwrap();
        sources
            .watch(&poller, 2, &stream, EventSet::IN, false)
            .unwrap();
        assert!(sources.suspend(&poller, true).is_empty());
        // A loop that does not wait refuses every source.
        assert_eq!(sources.suspend(&NOWHERE, false), [2_u32]);
        assert!(!sources.takes_event(&NOWHERE, 2));
        sources.set_interest(&NOWHERE, 2, EventSet::IN).unwrap_err();
        sources.set_interest(&poller, 2, EventSet::IN).unwrap();
        assert!(sources.takes_event(&NOWHERE, 2));
    }
}

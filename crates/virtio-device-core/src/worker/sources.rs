// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The file descriptors of the host that wake a handler.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::worker::running::Reason;

/// What a watched file descriptor is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest(EventSet);

impl Interest {
    /// Nothing: back-pressure, until there is room again.
    pub const NONE: Self = Self(EventSet::empty());
    /// Something can be read, or the peer has hung up.
    pub const READ: Self = Self(EventSet::IN);
    /// Something can be written.
    pub const WRITE: Self = Self(EventSet::OUT);
    /// Either.
    pub const BOTH: Self = Self(EventSet::IN.union(EventSet::OUT));
}

/// What a watched file descriptor is ready for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Readiness {
    /// A read does not block; at the end of a stream it gives nothing.
    pub readable: bool,
    /// A write does not block.
    pub writable: bool,
    /// The peer has hung up, or the descriptor has an error. Reported whatever the interest is,
    /// again and again, until the descriptor is not watched any more.
    pub hangup: bool,
}

impl Readiness {
    pub(crate) fn of(events: EventSet) -> Self {
        Self {
            readable: events.contains(EventSet::IN),
            writable: events.contains(EventSet::OUT),
            hangup: events.intersects(EventSet::HANG_UP | EventSet::ERROR),
        }
    }
}

/// A worker's part of its loop's epoll instance.
pub(crate) struct Poller<'a> {
    /// None in a loop that does not wait.
    pub(crate) epoll: Option<&'a Epoll>,
    /// The upper half of what its events carry.
    pub(crate) key: u32,
}

impl Poller<'_> {
    pub(crate) fn add(&self, fd: RawFd, events: EventSet, reason: Reason) -> io::Result<()> {
        let data = u64::from(self.key) << 32 | u64::from(reason.to_bits());
        let event = EpollEvent::new(events, data);
        match (self.epoll, reason) {
            (Some(epoll), _) => epoll.ctl(ControlOperation::Add, fd, event),
            // It looks at every queue anyway.
            (None, Reason::Queue(_)) => Ok(()),
            (None, Reason::Source(_)) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// An error means that it is not waited for: just what is wanted.
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
}

#[derive(Debug)]
struct Source {
    number: u32,
    fd: OwnedFd,
    interest: Interest,
    /// Whether it is in the epoll instance.
    polled: bool,
}

impl Source {
    /// Makes the epoll instance agree with the interest.
    fn sync(&mut self, poller: &Poller<'_>, suspended: bool) -> io::Result<()> {
        if self.polled {
            poller.remove(self.fd.as_raw_fd());
            self.polled = false;
        }
        // Without any interest it would still report that its peer has hung up.
        if !suspended && self.interest != Interest::NONE {
            let reason = Reason::Source(self.number);
            poller.add(self.fd.as_raw_fd(), self.interest.0, reason)?;
            self.polled = true;
        }
        Ok(())
    }
}

impl Sources {
    pub(crate) fn watch(
        &mut self,
        poller: &Poller<'_>,
        number: u32,
        fd: impl AsFd,
        interest: Interest,
    ) -> io::Result<()> {
        if Reason::Source(number).is_out_of_range() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.unwatch(poller, number);
        let mut source = Source {
            number,
            fd: fd.as_fd().try_clone_to_owned()?,
            interest,
            polled: false,
        };
        source.sync(poller, self.suspended)?;
        self.list.push(source);
        Ok(())
    }

    pub(crate) fn set_interest(
        &mut self,
        poller: &Poller<'_>,
        number: u32,
        interest: Interest,
    ) -> io::Result<()> {
        let mut list = self.list.iter_mut();
        match list.find(|source| source.number == number) {
            Some(source) if source.interest != interest => {
                source.interest = interest;
                source.sync(poller, self.suspended)
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn unwatch(&mut self, poller: &Poller<'_>, number: u32) {
        self.list.retain(|source| {
            if source.number == number && source.polled {
                poller.remove(source.fd.as_raw_fd());
            }
            source.number != number
        });
    }

    pub(crate) fn is_watched(&self, number: u32) -> bool {
        let mut list = self.list.iter();
        list.any(|source| source.number == number && source.polled)
    }

    /// Stops waiting, or goes on with it. An error is of a source that cannot be waited for any more.
    pub(crate) fn suspend(&mut self, poller: &Poller<'_>, suspended: bool) -> io::Result<()> {
        if self.suspended == suspended {
            return Ok(());
        }
        self.suspended = suspended;
        let mut list = self.list.iter_mut();
        list.try_for_each(|source| source.sync(poller, suspended))
    }

    /// Stops waiting for good.
    pub(crate) fn clear(&mut self, poller: &Poller<'_>) {
        let polled = self.list.drain(..).filter(|source| source.polled);
        polled.for_each(|source| poller.remove(source.fd.as_raw_fd()));
    }
}

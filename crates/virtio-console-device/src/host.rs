// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A file descriptor of the host, read and written without ever waiting.
//!
//! `O_NONBLOCK` belongs to an open file description, and that of a terminal is shared with the shell
//! that started the VMM. So it is never set here; see [`Way`] for what is done instead.

use std::io::{self, ErrorKind, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketType};

/// What fits into any pipe that poll says is writable.
const PIPE_BUF: usize = 4096;

/// A descriptor, and how to use it without waiting.
#[derive(Debug)]
pub(crate) struct HostFd {
    fd: OwnedFd,
    way: Way,
    terminal: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Its description does not wait: it is one of our own, or a file, or is non-blocking already and
    /// nothing better can be had.
    Plain,
    /// A socket: each call says that it does not want to wait.
    Socket,
    /// Slow path: each call is preceded by poll, and moves so little at once that it cannot wait.
    Polled { most: usize },
}

impl Way {
    /// The way for a description that is shared with others.
    const fn of(flags: OFlags, most: usize) -> Self {
        if flags.contains(OFlags::NONBLOCK) {
            Self::Plain
        } else {
            Self::Polled { most }
        }
    }
}

impl HostFd {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&fd)?;
        let terminal = fd.is_terminal();
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        let (fd, way) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Socket => {
                if rustix::net::sockopt::socket_type(&fd)? != SocketType::STREAM {
                    let reason = "a console needs a stream, not a socket of messages";
                    return Err(io::Error::new(ErrorKind::InvalidInput, reason));
                }
                (fd, Way::Socket)
            }
            FileType::RegularFile => (fd, Way::Plain),
            // Also if it is non-blocking: another process that shares it may switch that off, as shells do.
            FileType::Fifo => own_description(fd, flags, PIPE_BUF),
            // Not the master of a pseudo terminal: opening that again would make another terminal.
            _ if terminal && !is_master(stat.st_rdev) => own_description(fd, flags, 1),
            _ if terminal => (fd, Way::of(flags, 1)),
            _ => (fd, Way::of(flags, PIPE_BUF)),
        };
        Ok(Self { fd, way, terminal })
    }

    /// Reads what there is; 0 at the end.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is nothing yet.
    pub(crate) fn read(&self, data: &mut [u8]) -> io::Result<usize> {
        retry(|| match self.way {
            Way::Plain => rustix::io::read(&self.fd, &mut *data),
            Way::Socket => {
                let (count, _) = rustix::net::recv(&self.fd, &mut *data, RecvFlags::DONTWAIT)?;
                Ok(count)
            }
            Way::Polled { .. } => {
                self.poll(PollFlags::IN)?;
                rustix::io::read(&self.fd, &mut *data)
            }
        })
    }

    /// Writes as much as goes.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if nothing goes for now.
    pub(crate) fn write(&self, data: &[u8]) -> io::Result<usize> {
        retry(|| match self.way {
            Way::Plain => rustix::io::write(&self.fd, data),
            Way::Socket => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                rustix::net::send(&self.fd, data, flags)
            }
            Way::Polled { most } => {
                self.poll(PollFlags::OUT)?;
                let some = data.get(..most).unwrap_or(data);
                rustix::io::write(&self.fd, some)
            }
        })
    }

    /// Whether somebody may connect again after a hang-up, as to the master of a pseudo terminal.
    pub(crate) const fn may_come_back(&self) -> bool {
        self.terminal
    }

    /// Whether nobody is there to take what is written: the other end is closed, and not for writing
    /// alone.
    pub(crate) fn has_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
        let polled = poll(&mut fds, Some(&Timespec::default()));
        let [fd] = fds;
        polled.is_ok() && fd.revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    fn poll(&self, events: PollFlags) -> Result<(), Errno> {
        let mut fds = [PollFd::new(&self.fd, events)];
        match poll(&mut fds, Some(&Timespec::default()))? {
            0 => Err(Errno::AGAIN),
            _ => Ok(()),
        }
    }
}

impl AsFd for HostFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The same terminal or pipe with a description of our own, which may be non-blocking.
fn own_description(fd: OwnedFd, flags: OFlags, most: usize) -> (OwnedFd, Way) {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let own = flags & OFlags::RWMODE | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match rustix::fs::open(path, own, Mode::empty()) {
        Ok(own) => (own, Way::Plain),
        // No /proc, or a terminal of another user.
        Err(_) => (fd, Way::of(flags, most)),
    }
}

fn is_master(device: u64) -> bool {
    (rustix::fs::major(device), rustix::fs::minor(device)) == (5, 2)
}

fn retry(mut call: impl FnMut() -> Result<usize, Errno>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{fcntl_getfl, fcntl_setfl};

    #[test]
    fn a_pipe_that_others_make_blocking_again_holds_nobody_up() -> io::Result<()> {
        let (_reader, shared) = io::pipe()?;
        fcntl_setfl(&shared, fcntl_getfl(&shared)? | OFlags::NONBLOCK)?;
        let host = HostFd::new(shared.try_clone()?.into())?;
        fcntl_setfl(&shared, fcntl_getfl(&shared)? - OFlags::NONBLOCK)?;
        assert!(fcntl_getfl(&host)?.contains(OFlags::NONBLOCK));
        while host.write(&[0; PIPE_BUF]).is_ok() {}
        Ok(())
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A stream socket, on which each frame follows its length.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::buffer::spare_capacity;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, socket_with,
};

use crate::backend::{Backend, Buffers};
use crate::header::{HEADER, MAX_FRAME};

/// The length before each frame: 32 bits, the highest first.
const PREFIX: usize = 4;
/// Bytes that are kept of each direction: one frame at least.
const ROOM: usize = 2 * (PREFIX + MAX_FRAME);

/// A stream socket that carries frames, each after its length: what passt and QEMU's `-netdev stream`
/// speak. It needs no privilege, and offloads nothing.
///
/// Up to 128 KiB are read ahead, and sent as a whole, so that a system call moves many packets.
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use virtio_device_core::WorkerThread;
/// use virtio_net_device::{Net, Stream};
///
/// // A cable between two guests.
/// let (one, other) = UnixStream::pair()?;
/// let mac = |last| [0x52, 0x54, 0, 0, 0, last];
/// let one = Net::new(vec![Stream::new(one)], mac(1), WorkerThread::named("net0")?)?;
/// let other = Net::new(vec![Stream::new(other)], mac(2), WorkerThread::named("net1")?)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Stream {
    socket: OwnedFd,
    /// Where to connect to again.
    path: Option<PathBuf>,
    /// What was read ahead, and how much of it has been received.
    incoming: Vec<u8>,
    received: usize,
    outgoing: Vec<u8>,
}

impl Stream {
    /// Connects to the Unix socket at `path`, and does so again whenever the connection is lost.
    ///
    /// # Errors
    ///
    /// If nobody listens there.
    pub fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        Ok(Self {
            path: Some(path.to_owned()),
            ..Self::new(open(path)?)
        })
    }

    /// Takes over a connected socket. Once the connection is lost, the link is down for good.
    #[must_use]
    pub fn new(socket: impl Into<OwnedFd>) -> Self {
        Self {
            socket: socket.into(),
            path: None,
            incoming: Vec::with_capacity(ROOM),
            received: 0,
            outgoing: Vec::with_capacity(ROOM),
        }
    }

    /// The next frame, once all of it is there.
    ///
    /// # Errors
    ///
    /// A length that no frame has: what follows means nothing.
    fn frame(&self) -> io::Result<Option<&[u8]>> {
        let next = self.incoming.get(self.received..).unwrap_or_default();
        let Some((len, rest)) = next.split_first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        match usize::try_from(u32::from_be_bytes(*len)) {
            Ok(len) if len <= MAX_FRAME => Ok(rest.get(..len)),
            _ => Err(io::Error::new(
                ErrorKind::InvalidData,
                "not a frame's length",
            )),
        }
    }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => Ok(socket),
        // That is a listener with too much to do, and no reason to wait for this socket.
        Err(rustix::io::Errno::AGAIN) => Err(ErrorKind::ConnectionRefused.into()),
        Err(error) => Err(error.into()),
    }
}

impl Backend for Stream {
    fn receive(&mut self, packet: &Buffers<'_>) -> io::Result<usize> {
        loop {
            if let Some(frame) = self.frame()? {
                packet.copy_from(HEADER, frame);
                let len = frame.len();
                self.received += PREFIX + len;
                return Ok(HEADER + len);
            }
            // What is left is less than a frame, so there is room behind it.
            self.incoming.drain(..self.received);
            self.received = 0;
            let room = spare_capacity(&mut self.incoming);
            if recv(&self.socket, room, RecvFlags::DONTWAIT)?.0 == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn send(&mut self, packet: &Buffers<'_>) -> io::Result<()> {
        let len = packet.bytes().checked_sub(HEADER as u64);
        let prefix = len.and_then(|len| u32::try_from(len).ok());
        let prefix = prefix.ok_or(ErrorKind::InvalidInput)?;
        let len = prefix as usize;
        if self.outgoing.len() + PREFIX + len > ROOM {
            self.flush()?;
        }
        self.outgoing.extend(prefix.to_be_bytes());
        let start = self.outgoing.len();
        self.outgoing.resize(start + len, 0);
        packet.copy_to(HEADER, self.outgoing.get_mut(start..).unwrap_or_default());
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        while !self.outgoing.is_empty() {
            let sent = send(&self.socket, &self.outgoing, flags)?;
            self.outgoing.drain(..sent);
        }
        Ok(())
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn reopen(&mut self) -> io::Result<()> {
        let path = self.path.as_ref().ok_or(ErrorKind::Unsupported)?;
        self.socket = open(path)?;
        // Half a frame belongs to the connection that was lost.
        self.incoming.clear();
        self.received = 0;
        self.outgoing.clear();
        Ok(())
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A stream socket, on which each frame follows its length.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

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
    incoming: Bytes,
    outgoing: Bytes,
}

/// Bytes on their way: those of `data` from `start` to `end`.
#[derive(Debug)]
struct Bytes {
    data: Box<[u8]>,
    start: usize,
    end: usize,
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
            incoming: Bytes::new(),
            outgoing: Bytes::new(),
        }
    }
}

impl Bytes {
    fn new() -> Self {
        Self {
            data: vec![0; ROOM].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    fn get(&self) -> &[u8] {
        self.data.get(self.start..self.end).unwrap_or_default()
    }

    /// The room behind, with what there is moved to the front.
    fn room(&mut self) -> &mut [u8] {
        self.data.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        self.data.get_mut(self.end..).unwrap_or_default()
    }

    /// The next frame, once all of it is there.
    ///
    /// # Errors
    ///
    /// A length that no frame has: what follows means nothing.
    fn frame(&self) -> io::Result<Option<&[u8]>> {
        let Some((len, rest)) = self.get().split_first_chunk::<PREFIX>() else {
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
            if let Some(frame) = self.incoming.frame()? {
                packet.copy_from(HEADER, frame);
                let len = frame.len();
                self.incoming.start += PREFIX + len;
                return Ok(HEADER + len);
            }
            let room = self.incoming.room();
            match recv(&self.socket, room, RecvFlags::DONTWAIT)? {
                (0, _) => return Err(ErrorKind::UnexpectedEof.into()),
                (count, _) => self.incoming.end += count,
            }
        }
    }

    fn send(&mut self, packet: &Buffers<'_>) -> io::Result<()> {
        let prefix = u32::try_from(packet.bytes() - HEADER as u64);
        let prefix = prefix.map_err(|_| ErrorKind::InvalidInput)?;
        let len = prefix as usize;
        if self.outgoing.end + PREFIX + len > ROOM {
            self.flush()?;
        }
        let room = self.outgoing.data.get_mut(self.outgoing.end..);
        let room = room.and_then(|room| room.get_mut(..PREFIX + len));
        let (place, frame) = room
            .and_then(|room| room.split_first_chunk_mut())
            .ok_or(ErrorKind::InvalidInput)?;
        *place = prefix.to_be_bytes();
        packet.copy_to(HEADER, frame);
        self.outgoing.end += PREFIX + len;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        while !self.outgoing.get().is_empty() {
            self.outgoing.start += send(&self.socket, self.outgoing.get(), flags)?;
        }
        (self.outgoing.start, self.outgoing.end) = (0, 0);
        Ok(())
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn reopen(&mut self) -> io::Result<()> {
        let path = self.path.as_ref().ok_or(ErrorKind::Unsupported)?;
        self.socket = open(path)?;
        // Half a frame belongs to the connection that was lost.
        for bytes in [&mut self.incoming, &mut self.outgoing] {
            (bytes.start, bytes.end) = (0, 0);
        }
        Ok(())
    }
}

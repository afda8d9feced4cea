// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two devices joined in memory.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::backend::{Backend, Packet};
use crate::header::HEADER;

/// Packets on the way in one direction; then the sender waits.
const PACKETS: usize = 256;
/// The largest value of an event fd: it is not writable then.
const FULL: u64 = u64::MAX - 1;

/// One end of a cable between two devices: what one sends, the other receives.
///
/// Nothing is lost on the way, and nothing is offloaded. An end that is dropped is a host that takes
/// some packets and gives none.
#[derive(Debug)]
pub struct MemoryLink {
    outgoing: Arc<Wire>,
    incoming: Arc<Wire>,
}

#[derive(Debug)]
struct Wire {
    frames: Mutex<Frames>,
    /// Readable while there is a packet.
    readable: OwnedFd,
    /// Writable while there is room for one.
    writable: OwnedFd,
}

/// A ring of buffers that are used again and again.
#[derive(Debug)]
struct Frames {
    slots: Vec<Vec<u8>>,
    first: usize,
    count: usize,
}

impl MemoryLink {
    /// Makes both ends of a cable.
    ///
    /// # Errors
    ///
    /// If event fds cannot be made.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = (Wire::new()?, Wire::new()?);
        let end = |outgoing: &Arc<Wire>, incoming: &Arc<Wire>| Self {
            outgoing: outgoing.clone(),
            incoming: incoming.clone(),
        };
        Ok((end(&a, &b), end(&b, &a)))
    }
}

impl Wire {
    fn new() -> io::Result<Arc<Self>> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let frames = Frames {
            slots: vec![Vec::new(); PACKETS],
            first: 0,
            count: 0,
        };
        Ok(Arc::new(Self {
            frames: Mutex::new(frames),
            readable: eventfd(0, flags)?,
            writable: eventfd(0, flags)?,
        }))
    }
}

/// Under the lock of the frames: an event fd that cannot be written or read is as it should be.
fn raise(fd: &OwnedFd, value: u64) {
    let _ = rustix::io::write(fd, &value.to_ne_bytes());
}

fn clear(fd: &OwnedFd) {
    let _ = rustix::io::read(fd, &mut [0; 8]);
}

impl Backend for MemoryLink {
    fn receive(&mut self, packet: &Packet<'_>) -> io::Result<usize> {
        let Wire {
            frames,
            readable,
            writable,
        } = &*self.incoming;
        let mut frames = frames.lock().unwrap_or_else(PoisonError::into_inner);
        if frames.count == 0 {
            clear(readable);
            return Err(ErrorKind::WouldBlock.into());
        }
        if frames.count == PACKETS {
            clear(writable);
        }
        let first = frames.first;
        (frames.first, frames.count) = ((first + 1) % PACKETS, frames.count - 1);
        let frame = frames.slots.get(first).map_or(&[][..], Vec::as_slice);
        packet.copy_frame_from(frame);
        Ok(HEADER + frame.len())
    }

    fn send(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        let Wire {
            frames,
            readable,
            writable,
        } = &*self.outgoing;
        let mut frames = frames.lock().unwrap_or_else(PoisonError::into_inner);
        if frames.count == PACKETS {
            raise(writable, FULL);
            return Err(ErrorKind::WouldBlock.into());
        }
        if frames.count == 0 {
            raise(readable, 1);
        }
        let slot = (frames.first + frames.count) % PACKETS;
        frames.count += 1;
        if let Some(frame) = frames.slots.get_mut(slot) {
            frame.resize(packet.len() - HEADER, 0);
            packet.copy_frame_to(frame);
        }
        Ok(())
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.incoming.readable.as_fd()
    }

    fn writable(&self) -> BorrowedFd<'_> {
        self.outgoing.writable.as_fd()
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where packets go to and come from.

mod stream;
mod tap;

use std::io;
use std::os::fd::BorrowedFd;

use virtio_device_core::Features;

pub use crate::raw::Packet;
pub use stream::Stream;
pub use tap::Tap;

/// The host's side of one pair of queues: a tap's queue, a socket, another device.
///
/// It never waits. It is called by one thread at a time, under a lock, when there is room for a packet
/// or a packet to send; its descriptors say when to call again.
///
/// # Errors
///
/// `WouldBlock` means later: when [`readable`](Self::readable) or [`writable`](Self::writable) is.
/// `InvalidInput` from [`send`](Self::send) means that this packet cannot be sent: it is dropped.
/// Everything else means that the back end does not work any more: the link is down, and
/// [`reopen`](Self::reopen) is called every now and then.
///
/// A whole back end, one end of a cable between two devices:
///
/// ```
/// use std::io;
/// use std::os::fd::{AsFd, BorrowedFd};
/// use std::os::unix::net::UnixDatagram;
/// use virtio_net_device::{Backend, Packet};
///
/// struct Cable(UnixDatagram);
///
/// impl Cable {
///     fn pair() -> io::Result<(Self, Self)> {
///         let (a, b) = UnixDatagram::pair()?;
///         a.set_nonblocking(true)?;
///         b.set_nonblocking(true)?;
///         Ok((Self(a), Self(b)))
///     }
/// }
///
/// impl Backend for Cable {
///     fn receive(&mut self, packet: &Packet<'_>) -> io::Result<usize> {
///         packet.read_from(&self.0)
///     }
///
///     fn send(&mut self, packet: &Packet<'_>) -> io::Result<()> {
///         packet.write_to(&self.0).map(drop)
///     }
///
///     fn readable(&self) -> BorrowedFd<'_> {
///         self.0.as_fd()
///     }
/// }
/// ```
pub trait Backend: Send + 'static {
    /// Puts the next packet of the host into `packet`, which has room for the longest there is, and
    /// returns how long it is with its header of 12 bytes. The header is all zeroes before: that of a
    /// packet that needs nothing.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is none; see the trait.
    fn receive(&mut self, packet: &Packet<'_>) -> io::Result<usize>;

    /// Sends a packet, whose header asks for nothing but what was agreed on of
    /// [`offloads`](Self::offloads).
    ///
    /// # Errors
    ///
    /// `WouldBlock` if the host does not take it now; see the trait.
    fn send(&mut self, packet: &Packet<'_>) -> io::Result<()>;

    /// Passes on what `send` has kept back, if it does such a thing. Called after a number of packets,
    /// and when [`writable`](Self::writable) is.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if the host does not take all of it now; see the trait.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Becomes readable when there is something to receive.
    fn readable(&self) -> BorrowedFd<'_>;

    /// Becomes writable when the host takes packets again.
    fn writable(&self) -> BorrowedFd<'_> {
        self.readable()
    }

    /// What the back end can do of checksums and segmentation, in either direction: by the numbers of
    /// the device's features, `VIRTIO_NET_F_CSUM` for packets to send, say, and
    /// `VIRTIO_NET_F_GUEST_CSUM` for those received.
    fn offloads(&self) -> Features {
        Features::NONE
    }

    /// Sets what received packets may need: some of the `VIRTIO_NET_F_GUEST_` features that
    /// [`offloads`](Self::offloads) has. Called on the back end of the first pair, for all of them.
    ///
    /// # Errors
    ///
    /// If that is not possible; nothing has changed then.
    fn set_offloads(&mut self, offloads: Features) -> io::Result<()> {
        let _ = offloads;
        Ok(())
    }

    /// Says whether the driver uses this pair of queues; if not, packets should come by another.
    ///
    /// # Errors
    ///
    /// If that is not possible; nothing has changed then.
    fn set_active(&mut self, active: bool) -> io::Result<()> {
        let _ = active;
        Ok(())
    }

    /// Tries to go on after a failure, without waiting. Its descriptors may be others afterwards.
    ///
    /// # Errors
    ///
    /// If it still does not work; `Unsupported` if it never will.
    fn reopen(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

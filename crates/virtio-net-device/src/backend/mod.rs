// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where packets go to and come from.

mod stream;
mod tap;

use std::io;
use std::os::fd::BorrowedFd;

use virtio_device_core::Features;

pub use stream::Stream;
pub use tap::Tap;
pub use virtio_device_core::Buffers;

/// The host's side of one pair of queues: a tap's queue, a socket, another device.
///
/// A packet is a header of 12 bytes (`struct virtio_net_hdr` with `num_buffers`), and then the frame from
/// its destination address on. The driver can change the frame at any time, but not the header.
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
/// use virtio_net_device::{Backend, Buffers};
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
///     fn receive(&mut self, packet: &Buffers<'_>) -> io::Result<usize> {
///         packet.read_from(&self.0)
///     }
///
///     fn send(&mut self, packet: &Buffers<'_>) -> io::Result<()> {
///         packet.write_to(&self.0).map(drop)
///     }
///
///     fn readable(&self) -> BorrowedFd<'_> {
///         self.0.as_fd()
///     }
/// }
/// ```
pub trait Backend: Send + 'static {
    /// Receives the host's next packet into `packet`, which has room for the longest possible one,
    /// and returns its length, the header of 12 bytes included. The header is all zeroes before the
    /// call, which asks for no offload.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is none; see the trait.
    fn receive(&mut self, packet: &Buffers<'_>) -> io::Result<usize>;

    /// Sends a packet. Its header asks for no offload but the negotiated ones of
    /// [`offloads`](Self::offloads).
    ///
    /// # Errors
    ///
    /// `WouldBlock` if the host does not take it now; see the trait.
    fn send(&mut self, packet: &Buffers<'_>) -> io::Result<()>;

    /// Sends what `send` has buffered, for a back end that does. Called after a batch of packets,
    /// and when [`writable`](Self::writable) is ready.
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

    /// The checksum and segmentation offloads that the back end supports, as feature bits of the
    /// device: `VIRTIO_NET_F_CSUM` for packets that it is given to send, for example, and
    /// `VIRTIO_NET_F_GUEST_CSUM` for packets that it receives.
    fn offloads(&self) -> Features {
        Features::NONE
    }

    /// Sets the offloads that received packets may ask for: a subset of the `VIRTIO_NET_F_GUEST_`
    /// features in [`offloads`](Self::offloads). Called on the back end of the first pair, for all
    /// of them.
    ///
    /// # Errors
    ///
    /// If that is not possible; nothing has changed then.
    fn set_offloads(&mut self, offloads: Features) -> io::Result<()> {
        let _ = offloads;
        Ok(())
    }

    /// Tells whether the driver uses this pair of queues (`VIRTIO_NET_CTRL_MQ`). While it does not,
    /// the host should send its packets through other pairs.
    ///
    /// # Errors
    ///
    /// If that is not possible; nothing has changed then.
    fn set_active(&mut self, active: bool) -> io::Result<()> {
        let _ = active;
        Ok(())
    }

    /// Tries to recover after a failure, without waiting. The descriptors may be different ones
    /// afterwards.
    ///
    /// # Errors
    ///
    /// If it still does not work; `Unsupported` if it never will.
    fn reopen(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

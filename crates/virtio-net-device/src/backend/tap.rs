// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A tap: an interface of the host's own network stack.
//!
//! The crates that open taps keep the header before each packet to themselves or know no offloads, so
//! the few calls are made here.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libc::{IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE, TUNGETIFF, TUNSETIFF, TUNSETQUEUE};
use libc::{IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, c_int};
use rustix::fs::{Mode, OFlags};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};
use virtio_bindings::virtio_net as net;
use virtio_device_core::Features;

use crate::backend::{Backend, Buffers};
use crate::config::{as_tap, guest_offloads, host_offloads};
use crate::raw::{interface, tap_header, tap_offloads};

/// Features that need Linux 6.2.
const USO: Features = Features::of(&[
    net::VIRTIO_NET_F_GUEST_USO4,
    net::VIRTIO_NET_F_GUEST_USO6,
    net::VIRTIO_NET_F_HOST_USO,
]);

/// Where packets come alone, the call that finds no second one is saved; but for one time in so many, by
/// which it turns out whether they still come alone.
const PROBE: u8 = 8;

/// A name where the descriptor says which tap is meant.
const THIS: &str = "-";

/// One queue of a tap.
///
/// ```no_run
/// use virtio_device_core::WorkerThread;
/// use virtio_net_device::{Net, Tap};
///
/// // Two queues, for two vCPUs, each served by a thread.
/// let taps = Tap::open("tap0", 2)?;
/// let threads = (0..2).map(|n| WorkerThread::named(format!("net{n}")));
/// let threads = threads.collect::<Result<Vec<_>, _>>()?;
/// let device = Net::new(taps, [0x52, 0x54, 0, 0x12, 0x34, 0x56], threads)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    /// How to open it again.
    name: Option<String>,
    flags: c_int,
    can: Features,
    /// How many packets have come since there was none.
    row: u8,
    /// How many times in a row one came alone.
    alone: u8,
}

impl Tap {
    /// Opens this many queues (at least one) of the tap `name`, for a device with as many pairs. A
    /// tap that does not exist is created, if the caller has the privilege (`CAP_NET_ADMIN`), and
    /// exists for as long as it is open.
    ///
    /// A tap that is deleted meanwhile is opened again once it exists again.
    ///
    /// # Errors
    ///
    /// If the caller lacks the privilege, if the tap is in use, or if it was not created with
    /// several queues (`IFF_MULTI_QUEUE`) and they are asked for.
    pub fn open(name: &str, queues: u16) -> io::Result<Vec<Self>> {
        let several = if queues > 1 { IFF_MULTI_QUEUE } else { 0 };
        let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | several;
        (0..queues.max(1))
            .map(|_| Self::set_up(attach(name, flags)?, Some(name.to_owned()), flags))
            .collect()
    }

    /// Takes over one queue of a tap that is open with `IFF_VNET_HDR`. Once the tap is deleted, the
    /// link is down for good.
    ///
    /// # Errors
    ///
    /// If `fd` is not such a queue.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = interface(fd.as_fd(), TUNGETIFF, THIS, 0)?;
        let needed = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        if flags & needed != needed {
            let reason = "a tap needs IFF_TAP, IFF_NO_PI and IFF_VNET_HDR";
            return Err(io::Error::new(ErrorKind::InvalidInput, reason));
        }
        let status = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, status | OFlags::NONBLOCK)?;
        Self::set_up(fd, None, flags)
    }

    fn set_up(fd: OwnedFd, name: Option<String>, flags: c_int) -> io::Result<Self> {
        tap_header(fd.as_fd())?;
        let all = guest_offloads() | host_offloads();
        let can = match tap_offloads(fd.as_fd(), as_tap(all)) {
            Ok(()) => all,
            Err(_) => all - USO,
        };
        // Nothing until there is a driver.
        tap_offloads(fd.as_fd(), 0)?;
        Ok(Self {
            fd,
            name,
            flags,
            can,
            row: 0,
            alone: 0,
        })
    }
}

fn attach(name: &str, flags: c_int) -> io::Result<OwnedFd> {
    let open = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open("/dev/net/tun", open, Mode::empty())?;
    interface(fd.as_fd(), TUNSETIFF, name, flags)?;
    Ok(fd)
}

impl Backend for Tap {
    fn receive(&mut self, packet: &Buffers<'_>) -> io::Result<usize> {
        // If another one is there after all, the descriptor is readable still.
        let received = match self.row == 1 && self.alone % PROBE != 0 {
            true => Err(ErrorKind::WouldBlock.into()),
            false => packet.read_from(&self.fd),
        };
        match received {
            Ok(_) => self.row = self.row.saturating_add(1),
            Err(_) => {
                self.alone = match std::mem::take(&mut self.row) {
                    0 => self.alone,
                    1 => self.alone.wrapping_add(1),
                    _ => 0,
                };
            }
        }
        received
    }

    fn send(&mut self, packet: &Buffers<'_>) -> io::Result<()> {
        match packet.write_to(&self.fd) {
            Ok(_) => Ok(()),
            Err(error) => Err(match error.raw_os_error() {
                // It is down, has no memory now, or does not like this one.
                Some(libc::EIO | libc::ENOBUFS | libc::ENOMEM | libc::EMSGSIZE | libc::EPROTO) => {
                    ErrorKind::InvalidInput.into()
                }
                _ => error,
            }),
        }
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn offloads(&self) -> Features {
        self.can
    }

    fn set_offloads(&mut self, offloads: Features) -> io::Result<()> {
        tap_offloads(self.fd.as_fd(), as_tap(offloads))
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        if self.flags & IFF_MULTI_QUEUE == 0 {
            return Ok(());
        }
        let steer = match active {
            true => IFF_ATTACH_QUEUE,
            false => IFF_DETACH_QUEUE,
        };
        match interface(self.fd.as_fd(), TUNSETQUEUE, THIS, steer) {
            Err(error) if error.kind() != ErrorKind::InvalidInput => Err(error),
            // Or it was so already.
            _ => Ok(()),
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        // It may have failed for another reason than that the tap is gone.
        if interface(self.fd.as_fd(), TUNGETIFF, THIS, 0).is_ok() {
            return Ok(());
        }
        let name = self.name.as_ref().ok_or(ErrorKind::Unsupported)?;
        // To make one is not the device's business: nobody would expect it. Whoever has mounted /sys
        // may be in another network namespace, so the socket's is asked.
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        name_to_index(&socket, name)?;
        // The offloads are the tap's, not this queue's: another one may have set them.
        let fd = attach(name, self.flags)?;
        tap_header(fd.as_fd())?;
        self.fd = fd;
        Ok(())
    }
}

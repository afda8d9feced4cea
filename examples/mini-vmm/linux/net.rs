// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The network: what the user says of it, and the device that is made of that.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Once;

use rustix::io::Errno;
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use virtio_device_core::{RateLimit, WorkerThread};
use virtio_net_device::{Backend, Mac, Net, NetEvent, NetObserver, Stream, Tap};

use super::given_once;
use crate::devices::NET;

/// The device, whatever its packets go to.
pub(crate) type Network = Net<Vec<WorkerThread>>;

/// Where packets go to.
#[derive(Debug, PartialEq, Eq)]
enum Where {
    /// The tap of this name.
    Tap(String),
    /// A descriptor that the program was started with: a tap's, or a connected stream socket.
    Fd(i32),
    /// A stream socket at this path, as of passt.
    Socket(PathBuf),
}

/// What the user says of the network.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NetOptions {
    place: Where,
    mac: Option<Mac>,
    mtu: Option<u16>,
    queues: u16,
    /// Bytes a second in each direction; what one second gives can be had at once.
    limit: Option<RateLimit>,
}

impl NetOptions {
    /// Reads `tap=NAME|fd=N|socket=PATH[,mac=MAC][,mtu=N][,queues=N][,limit=N]`.
    ///
    /// # Errors
    ///
    /// One line that says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (mut place, mut mac, mut mtu, mut queues, mut limit) = (None, None, None, 1, None);
        for part in given_once("--net", text.split(','))? {
            let wrong = |what: &str| format!("--net: '{part}' is no {what}");
            match part.split_once('=') {
                Some(("tap", name)) if place.is_none() => place = Some(Where::Tap(name.to_owned())),
                Some(("socket", "")) => return Err("--net: the path is empty".to_owned()),
                Some(("socket", path)) if place.is_none() => {
                    place = Some(Where::Socket(path.into()));
                }
                Some(("fd", fd)) if place.is_none() => {
                    let fd = fd.parse().ok().filter(|fd| *fd > 2);
                    place = Some(Where::Fd(fd.ok_or_else(|| wrong("descriptor above 2"))?));
                }
                Some(("mac", text)) => {
                    mac = Some(address(text).ok_or_else(|| wrong("MAC address"))?);
                }
                Some(("mtu", text)) => {
                    mtu = Some(text.parse().map_err(|_| wrong("MTU of 68 to 65535"))?);
                }
                Some(("queues", text)) => {
                    let count = text.parse().ok().filter(|count| (1..=8).contains(count));
                    queues = count.ok_or_else(|| wrong("number of 1 to 8 pairs of queues"))?;
                }
                Some(("limit", text)) => {
                    let bytes = text.parse().ok().and_then(|it| RateLimit::new(it, it));
                    limit = Some(bytes.ok_or_else(|| wrong("number of bytes a second"))?);
                }
                _ => {
                    return Err(format!(
                        "--net: '{part}' is none of mac=MAC, mtu=N, queues=N and limit=N behind \
                         one of tap=NAME, fd=N and socket=PATH"
                    ));
                }
            }
        }
        let place = place.ok_or("--net: there is none of tap=NAME, fd=N and socket=PATH")?;
        if queues > 1 && !matches!(place, Where::Tap(_)) {
            return Err("--net: only a tap=NAME has several queues".to_owned());
        }
        Ok(Self {
            place,
            mac,
            mtu,
            queues,
            limit,
        })
    }

    /// Opens what packets go to, and makes a device of it.
    ///
    /// # Errors
    ///
    /// One line that says what is wrong with it.
    pub(crate) fn open(&self) -> Result<Network, String> {
        self.try_open().map_err(|error| match &self.place {
            Where::Tap(name) => format!("--net tap={name}: {error}"),
            Where::Fd(fd) => format!("--net fd={fd}: {error}"),
            Where::Socket(path) => format!("--net socket={}: {error}", path.display()),
        })
    }

    fn try_open(&self) -> io::Result<Network> {
        let device = match &self.place {
            Where::Tap(name) => self.device(Tap::open(name, self.queues)?),
            Where::Socket(path) => self.device(vec![Stream::connect(path)?]),
            Where::Fd(fd) => {
                let program = pidfd_open(getpid(), PidfdFlags::empty())?;
                // The lowest number that was free: one that the program did not begin with.
                if program.as_raw_fd() == *fd {
                    return Err(Errno::BADF.into());
                }
                let fd = pidfd_getfd(program, *fd, PidfdGetfdFlags::empty())?;
                match socket_type(&fd) {
                    Ok(SocketType::STREAM) => self.device(vec![Stream::new(fd)]),
                    Ok(_) => return Err(io::Error::other("not a stream socket")),
                    Err(_) => self.device(vec![Tap::new(fd)?]),
                }
            }
        }?;
        for limits in [device.receive_limits(), device.send_limits()] {
            limits.set(self.limit, None);
        }
        match self.mtu {
            Some(mtu) => device.with_mtu(mtu),
            None => Ok(device),
        }
    }

    /// A device with a pair of queues, and a thread, for each back end.
    fn device(&self, backends: Vec<impl Backend>) -> io::Result<Network> {
        let mac = self.mac.map_or_else(any_address, Ok)?;
        let threads = backends.iter().map(|_| NET.worker());
        let pool = threads.collect::<Result<_, _>>()?;
        Net::new(backends, mac, pool)
    }
}

/// Reads six pairs of hexadecimal digits.
fn address(text: &str) -> Option<Mac> {
    let digits = |part: &str| part.len() == 2 && part.bytes().all(|it| it.is_ascii_hexdigit());
    let parts = text.split(':').map(|part| {
        let byte = u8::from_str_radix(part, 16);
        byte.ok().filter(|_| digits(part))
    });
    parts.collect::<Option<Vec<_>>>()?.try_into().ok()
}

/// An address that nobody else on the network has, with some luck.
fn any_address() -> io::Result<Mac> {
    let mut mac = [0x52, 0x54, 0, 0, 0, 0];
    let [.., a, b, c] = &mut mac;
    let mut bytes = [0; 3];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    [*a, *b, *c] = bytes;
    Ok(mac)
}

/// Tells the user when the host's side fails for the first time, and when it is back for the first time:
/// a peer that comes and goes does so for ever.
pub(crate) struct Complaint<F> {
    tell: F,
    failed: Once,
    returned: Once,
}

impl<F> Complaint<F> {
    pub(crate) const fn new(tell: F) -> Self {
        Self {
            tell,
            failed: Once::new(),
            returned: Once::new(),
        }
    }
}

impl<F: Fn(String) + Send + Sync> NetObserver for Complaint<F> {
    fn event(&self, event: &NetEvent<'_>) {
        let name = NET.name();
        match event {
            NetEvent::BackendFailed { error, .. } => {
                let line = format!("{name}: the link is down: {error}");
                self.failed.call_once(|| (self.tell)(line));
            }
            NetEvent::BackendReturned { .. } => {
                let line = format!("{name}: the link is up again");
                self.returned.call_once(|| (self.tell)(line));
            }
            _ => {}
        }
    }
}

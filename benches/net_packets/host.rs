// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What packets go to and come from: memory, or a tap.
#![expect(
    unsafe_code,
    reason = "guest memory is handed to the kernel as others do it"
)]

use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_net_device::{Backend, Buffers, Tap};
use vm_memory::VolatileSlice;

/// The host: as many packets to receive as it is told, and room for all.
#[derive(Clone)]
pub(crate) struct Host {
    left: Arc<AtomicU32>,
    sent: Arc<AtomicU32>,
    bytes: Vec<u8>,
    place: Place,
}

/// Where packets are.
#[derive(Clone)]
pub(crate) enum Place {
    Memory(Arc<File>),
    /// A queue of a tap, and a socket of the host that speaks to all stations behind it.
    Tap(Arc<File>, Arc<UdpSocket>),
}

/// Headers before what a datagram carries: ours, and those of Ethernet, IP and UDP.
const HEADERS: usize = 12 + 14 + 20 + 8;

impl Place {
    pub(crate) fn memory() -> Self {
        Self::Memory(Arc::new(File::open("/dev/null").unwrap()))
    }

    /// A tap in this process's network namespace, which nobody else speaks in.
    pub(crate) fn tap() -> io::Result<Self> {
        let run = |program: &str, arguments: &str| {
            let status = Command::new(program).args(arguments.split(' ')).status();
            let done = status.is_ok_and(|status| status.success());
            done.then_some(())
                .ok_or_else(|| io::Error::other(format!("{program} {arguments}")))
        };
        // Before there is an interface, so that it says nothing of its own.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        let tap = Tap::open("bench0", 1)?.remove(0);
        run(
            "ip",
            "address add 192.0.2.1/24 broadcast 192.0.2.255 dev bench0",
        )?;
        run("ip", "link set bench0 up")?;
        let socket = UdpSocket::bind("192.0.2.1:0")?;
        socket.set_broadcast(true)?;
        socket.connect("192.0.2.255:9")?;
        let file = File::from(tap.readable().try_clone_to_owned()?);
        Ok(Self::Tap(Arc::new(file), Arc::new(socket)))
    }
}

/// Starts this program anew in a network namespace of its own, if it may have one and has none yet.
pub(crate) fn enter_namespace() {
    const DONE: &str = "NET_PACKETS_NAMESPACE";
    if std::env::var_os(DONE).is_some() {
        return;
    }
    for how in ["-n", "-rn"] {
        let tried = Command::new("unshare").args([how, "true"]).output();
        if tried.is_ok_and(|output| output.status.success()) {
            let mut command = Command::new("unshare");
            let program = std::env::current_exe().unwrap();
            command
                .arg(how)
                .arg(program)
                .args(std::env::args_os().skip(1));
            let error = command.env(DONE, "1").exec();
            eprintln!("no network namespace: {error}");
        }
    }
}

impl Host {
    pub(crate) fn new(place: Place, len: usize) -> Self {
        Self {
            left: Arc::default(),
            sent: Arc::default(),
            bytes: vec![0; len],
            place,
        }
    }

    /// The same host for a device of this workspace.
    pub(crate) fn tap(&self) -> Option<Tap> {
        match &self.place {
            Place::Memory(_) => None,
            Place::Tap(tap, _) => Some(Tap::new(tap.try_clone().unwrap().into()).unwrap()),
        }
    }

    /// Has this many packets come.
    pub(crate) fn give(&self, count: u32) {
        self.left.store(count, Ordering::Relaxed);
        if let Place::Tap(_, socket) = &self.place {
            for _ in 0..count {
                socket.send(&self.bytes[HEADERS..]).unwrap();
            }
        }
    }

    /// How many were sent; a tap does not count them.
    pub(crate) fn sent(&self) -> Option<u32> {
        match &self.place {
            Place::Memory(_) => Some(self.sent.load(Ordering::Relaxed)),
            Place::Tap(..) => None,
        }
    }

    pub(crate) fn read<'a>(
        &self,
        mut slices: impl Iterator<Item = VolatileSlice<'a>>,
    ) -> io::Result<usize> {
        if let Place::Tap(tap, _) = &self.place {
            let vector = vector(slices.next());
            // SAFETY: the vector is memory that outlives the call.
            let count = unsafe { libc::readv(tap.as_raw_fd(), &raw const vector, 1) };
            return usize::try_from(count).map_err(|_| io::Error::last_os_error());
        }
        let left = self.left.load(Ordering::Relaxed);
        let left = left.checked_sub(1).ok_or(ErrorKind::WouldBlock)?;
        self.left.store(left, Ordering::Relaxed);
        let mut rest = &self.bytes[..];
        for slice in slices {
            let (now, later) = rest.split_at(rest.len().min(slice.len()));
            slice.copy_from(now);
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        Ok(self.bytes.len())
    }

    pub(crate) fn write<'a>(&mut self, mut slices: impl Iterator<Item = VolatileSlice<'a>>) {
        if let Place::Tap(tap, _) = &self.place {
            let vector = vector(slices.next());
            // SAFETY: the vector is memory that outlives the call.
            let count = unsafe { libc::writev(tap.as_raw_fd(), &raw const vector, 1) };
            assert_eq!(usize::try_from(count).unwrap(), self.bytes.len());
            return;
        }
        let mut at = 0;
        for slice in slices {
            slice.copy_to(&mut self.bytes[at..at + slice.len()]);
            at += slice.len();
        }
        let sent = self.sent.load(Ordering::Relaxed);
        self.sent.store(sent.wrapping_add(1), Ordering::Relaxed);
    }

    /// The same host, with the bytes taken out: for as long as a peer's slices borrow the rest of it.
    pub(crate) fn lend(&mut self) -> Self {
        Self {
            left: self.left.clone(),
            sent: self.sent.clone(),
            bytes: std::mem::take(&mut self.bytes),
            place: self.place.clone(),
        }
    }

    /// Ends [`lend`](Self::lend).
    pub(crate) fn take_back(&mut self, lent: Self) {
        self.bytes = lent.bytes;
    }
}

/// A packet in one piece, as the kernel takes it.
fn vector(slice: Option<VolatileSlice<'_>>) -> libc::iovec {
    let slice = slice.unwrap();
    libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    }
}

impl Backend for Host {
    fn receive(&mut self, packet: &Buffers<'_>) -> io::Result<usize> {
        self.read(packet.slices())
    }

    fn send(&mut self, packet: &Buffers<'_>) -> io::Result<()> {
        self.write(packet.slices());
        Ok(())
    }

    fn readable(&self) -> BorrowedFd<'_> {
        match &self.place {
            Place::Memory(file) | Place::Tap(file, _) => file.as_fd(),
        }
    }
}

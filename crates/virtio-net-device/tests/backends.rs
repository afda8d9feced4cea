// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The back ends, each with devices on threads of their own.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]
#![cfg(not(miri))] // Miri has no level-triggered epoll.

mod support;

use std::io::{self, ErrorKind, Read, Write};
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use support::{Buf, Guest, MAC, PLAIN, RX, TX, feature, frame, header, packet, wait};
use virtio_device_core::WorkerThread;
use virtio_net_device::{Backend, Buffers, Net, Stream, Tap};

type Device = Guest<WorkerThread>;

fn idle<B: Backend>(backends: Vec<B>) -> Device {
    let threads = WorkerThread::named("net").unwrap();
    Guest::in_memory(support::memory(), Net::new(backends, MAC, threads).unwrap())
}

fn device<B: Backend>(backend: B) -> Device {
    let mut guest = idle(vec![backend]);
    guest.start(!feature::MQ);
    guest
}

fn offer(guest: &mut Device, count: usize) -> Vec<support::Offered> {
    guest.offer(RX, count, 1526)
}

/// One end of a cable between two devices.
struct Cable(UnixDatagram);

impl Cable {
    fn pair() -> (Self, Self) {
        let (a, b) = UnixDatagram::pair().unwrap();
        for end in [&a, &b] {
            end.set_nonblocking(true).unwrap();
        }
        (Self(a), Self(b))
    }
}

impl Backend for Cable {
    fn receive(&mut self, packet: &Buffers<'_>) -> io::Result<usize> {
        packet.read_from(&self.0)
    }

    fn send(&mut self, packet: &Buffers<'_>) -> io::Result<()> {
        packet.write_to(&self.0).map(drop)
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[test]
fn two_devices_joined_in_memory_lose_and_double_nothing() {
    let (a, b) = Cable::pair();
    let (mut a, mut b) = (device(a), device(b));
    let bytes = |n: u8| frame(n, 1000 + usize::from(n));
    for _ in 0..4 {
        // More than are on the way at once: the sender waits for the receiver.
        for n in 0..250 {
            a.put(TX, &[Buf::R(packet(PLAIN, &bytes(n)))]);
        }
        a.notify(TX);
        let offered = offer(&mut b, 250);
        for (n, (used, offered)) in (0..).zip(b.used(RX, 250).iter().zip(&offered)) {
            let got = b.answer(offered, used.1).bytes;
            assert_eq!(got[12..used.1 as usize], bytes(n));
        }
        a.used(TX, 250);
        // And the other way round.
        offer(&mut a, 1);
        b.send(packet(PLAIN, &frame(7, 100)));
        assert_eq!(a.used(RX, 1)[0].1, 112);
    }
    assert_eq!((a.drops(), b.drops()), ((0, 0), (0, 0)));
}

#[test]
fn a_receiver_without_room_holds_the_sender_back() {
    let (a, b) = Cable::pair();
    let (mut a, mut b) = (device(a), device(b));
    for n in 0..250 {
        // More than the kernel keeps for a socket.
        a.put(TX, &[Buf::R(packet(PLAIN, &frame(n, 1500)))]);
    }
    a.notify(TX);
    std::thread::sleep(std::time::Duration::from_millis(20));
    let sent = a.queues[TX].take_used().len();
    assert!(sent < 250);
    offer(&mut b, 250);
    b.used(RX, 250);
    a.used(TX, 250 - sent);
    assert_eq!((a.drops(), b.drops()), ((0, 0), (0, 0)));
}

fn frames(frames: &[Vec<u8>]) -> Vec<u8> {
    let prefixed = |frame: &Vec<u8>| {
        let len = u32::try_from(frame.len()).unwrap().to_be_bytes();
        [&len[..], frame].concat()
    };
    frames.iter().flat_map(prefixed).collect()
}

#[test]
fn a_stream_carries_each_frame_after_its_length_however_it_is_cut() {
    let (mut host, socket) = UnixStream::pair().unwrap();
    let mut guest = device(Stream::new(socket));
    let sent: Vec<_> = (0..100)
        .map(|n| frame(n, 60 + 14 * usize::from(n)))
        .collect();
    for frame in &sent {
        guest.put(TX, &[Buf::R(packet(PLAIN, frame))]);
    }
    guest.notify(TX);
    let mut got = vec![0; frames(&sent).len()];
    host.read_exact(&mut got).unwrap();
    assert!(got == frames(&sent));
    guest.used(TX, 100);
    let offered = offer(&mut guest, 100);
    for piece in frames(&sent).chunks(97) {
        host.write_all(piece).unwrap();
    }
    for (used, (frame, offered)) in guest.used(RX, 100).iter().zip(sent.iter().zip(&offered)) {
        assert_eq!(
            guest.answer(offered, used.1).bytes[12..used.1 as usize],
            *frame
        );
    }
}

#[test]
fn a_peer_that_reads_nothing_holds_the_driver_back_and_gets_everything_later() {
    let (mut host, socket) = UnixStream::pair().unwrap();
    let mut guest = device(Stream::new(socket));
    let long = frame(1, 60_000);
    for _ in 0..40 {
        guest.put(TX, &[Buf::R(packet(PLAIN, &long))]);
    }
    guest.notify(TX);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(guest.queues[TX].take_used().len() < 40);
    let mut got = vec![0; 40 * 60_004];
    host.read_exact(&mut got).unwrap();
    for chunk in got.chunks(60_004) {
        assert!(chunk == frames(std::slice::from_ref(&long)));
    }
}

#[test]
fn a_length_that_no_frame_has_takes_the_link_down() {
    for len in [65_554_u32, 0x0100_0000, u32::MAX] {
        let (mut host, socket) = UnixStream::pair().unwrap();
        let mut guest = device(Stream::new(socket));
        offer(&mut guest, 1);
        host.write_all(&len.to_be_bytes()).unwrap();
        wait("the link", || guest.link() == 0);
        guest.send(packet(PLAIN, &frame(1, 60)));
        assert_eq!((guest.status(), guest.drops().1), (15, 1));
    }
}

#[test]
fn a_peer_that_goes_away_takes_the_link_down_until_it_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    assert_eq!(
        Stream::connect(&path).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    let listener = UnixListener::bind(&path).unwrap();
    let mut guest = device(Stream::connect(&path).unwrap());
    for round in 0..3 {
        let (mut host, _) = listener.accept().unwrap();
        wait("the link", || guest.link() & 1 == 1);
        offer(&mut guest, 1);
        host.write_all(&frames(&[frame(round, 60)])).unwrap();
        assert_eq!(guest.used(RX, 1)[0].1, 72);
        guest.send(packet(PLAIN, &frame(round, 70)));
        let mut got = [0; 74];
        host.read_exact(&mut got).unwrap();
        assert_eq!(got[..], frames(&[frame(round, 70)]));
        // Half a frame is nobody's.
        host.write_all(&[0, 0, 0, 60, 1, 2, 3]).unwrap();
        drop(host);
        offer(&mut guest, 1);
    }
}

/// Connects to passt at `path`, which ends when nobody uses it any more; none if it cannot run here.
fn passt(path: &Path) -> Option<Stream> {
    let mut command = Command::new("passt");
    command
        .args(["--foreground", "--one-off", "--socket"])
        .arg(path);
    let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut passt = match quiet.spawn() {
        Ok(passt) => passt,
        Err(error) => {
            eprintln!("skipped: passt is not installed: {error}");
            return None;
        }
    };
    let mut stream = None;
    wait("passt", || {
        stream = Stream::connect(path).ok();
        stream.is_some() || passt.try_wait().unwrap().is_some()
    });
    if stream.is_none() {
        eprintln!("skipped: passt does not run here");
    }
    stream
}

#[test]
fn passt_answers_a_driver_that_asks_for_its_address() {
    let directory = tempfile::tempdir().unwrap();
    // passt may be somebody else, and makes its socket as such.
    let everybody = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(directory.path(), everybody).unwrap();
    let Some(stream) = passt(&directory.path().join("socket")) else {
        return;
    };
    let mut guest = device(stream);
    let offered = offer(&mut guest, 16);
    // ARP (RFC 826): who has 192.0.2.1? Tell 192.0.2.2.
    let start = [&[0xff; 6][..], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4]].concat();
    let us = [&MAC[..], &[192, 0, 2, 2]].concat();
    let question = [&start, &[0, 1][..], &us, &[0; 6], &[192, 0, 2, 1]].concat();
    guest.send(packet(PLAIN, &question));
    let mut answers = Vec::new();
    wait("an answer", || {
        for (used, offered) in guest.queues[RX].take_used().iter().zip(&offered) {
            let bytes = guest.answer(offered, used.1).bytes;
            answers.push(bytes[12..used.1 as usize].to_vec());
        }
        !answers.is_empty()
    });
    let answer = &answers[0];
    assert_eq!((&answer[..6], &answer[12..14]), (&MAC[..], &[8, 6][..]));
    assert_eq!(answer[20..22], [0, 2], "a reply");
    assert_eq!(
        (&answer[28..32], &answer[32..42]),
        (&[192, 0, 2, 1][..], &us[..])
    );
}

#[test]
fn a_queue_is_reset_by_itself_and_a_pause_keeps_packets_where_they_are() {
    let (mut host, socket) = UnixStream::pair().unwrap();
    let mut guest = device(Stream::new(socket));
    offer(&mut guest, 3);
    assert!(guest.reset_queue(RX));
    host.write_all(&frames(&[frame(1, 60)])).unwrap();
    guest.send(packet(PLAIN, &frame(2, 60)));
    let mut got = [0; 64];
    host.read_exact(&mut got).unwrap();
    guest.restart_queue(RX);
    offer(&mut guest, 2);
    assert_eq!(guest.used(RX, 1)[0].1, 72);
    guest.transport().pause().unwrap();
    host.write_all(&frames(&[frame(3, 80)])).unwrap();
    guest.put(TX, &[Buf::R(packet(PLAIN, &frame(4, 60)))]);
    guest.notify(TX);
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert_eq!(guest.queues[RX].take_used(), []);
    assert_eq!(guest.queues[TX].take_used(), []);
    guest.transport().resume();
    assert_eq!(guest.used(RX, 1)[0].1, 92);
    guest.used(TX, 1);
    host.read_exact(&mut got).unwrap();
    assert_eq!(got[..], frames(&[frame(4, 60)]));
}

/// Runs `ip`; says whether that went well.
fn ip(arguments: &str) -> bool {
    let status = Command::new("ip").args(arguments.split(' ')).output();
    status.is_ok_and(|output| output.status.success())
}

fn make_tap(name: &str, more: &str) -> bool {
    ip(&format!("tuntap add {name} mode tap vnet_hdr{more}")) && ip(&format!("link set {name} up"))
}

/// A tap of this process' own, until it is dropped.
struct HostTap(String);

impl HostTap {
    /// `None` where this machine does not let us.
    fn new(kind: &str, more: &str) -> Option<Self> {
        let tap = Self(format!("{kind}{}", std::process::id()));
        if make_tap(&tap.0, more) {
            return Some(tap);
        }
        eprintln!("skipped: no tap can be made here");
        None
    }
}

impl Drop for HostTap {
    fn drop(&mut self) {
        ip(&format!("link del {}", self.0));
    }
}

#[test]
fn a_tap_takes_and_gives_packets_and_goes_and_comes() {
    let Some(tap) = HostTap::new("one", "") else {
        return;
    };
    let name = &tap.0;
    let mut guest = device(Tap::open(name, 1).unwrap().remove(0));
    let offered = offer(&mut guest, 64);
    // The host's own stack has something to say to an interface that is new to it.
    ip(&format!("address add 192.0.2.1/24 dev {name}"));
    let mut used = Vec::new();
    wait("a packet", || {
        used.extend(guest.queues[RX].take_used());
        !used.is_empty()
    });
    let bytes = guest.answer(&offered[0], used[0].1).bytes;
    assert!(used[0].1 >= 12 + 42 && bytes[10..12] == [1, 0], "{used:?}");
    assert!([[0x86, 0xdd], [8, 6], [8, 0]].contains(&[bytes[24], bytes[25]]));
    assert_eq!(guest.drops(), (0, 0));
    guest.send(packet(PLAIN, &frame(1, 60)));
    // One that the kernel refuses: no segments of such a frame can be made.
    guest.send(packet(header(1, 1, [54, 10, 34, 16]), &frame(1, 54)));
    assert_eq!((guest.link(), guest.status()), (1, 15));
    assert!(ip(&format!("link set {name} down")));
    guest.send(packet(PLAIN, &frame(1, 60)));
    assert_eq!((guest.link(), guest.status()), (1, 15));
    assert!(ip(&format!("link del {name}")));
    wait("the loss of the link", || guest.link() == 0);
    guest.send(packet(PLAIN, &frame(1, 60)));
    assert_eq!(guest.status(), 15);
    assert!(make_tap(name, ""));
    wait("the link", || guest.link() == 1);
    let before = guest.drops();
    guest.send(packet(PLAIN, &frame(1, 60)));
    assert_eq!(guest.drops(), before);
}

#[test]
fn a_tap_of_several_queues_serves_as_many_pairs() {
    let Some(tap) = HostTap::new("two", " multi_queue") else {
        return;
    };
    let name = &tap.0;
    let taps = Tap::open(name, 2).unwrap();
    let mut guest = idle(taps);
    guest.start(u64::MAX);
    assert_eq!(guest.command(4, 0, &[2, 0]), 0);
    for queue in [TX, 3] {
        guest.ask(queue, &[Buf::R(packet(PLAIN, &frame(1, 60)))]);
    }
    assert_eq!(guest.command(4, 0, &[1, 0]), 0);
    assert_eq!(guest.command(5, 0, &[0; 8]), 0);
    assert_eq!((guest.link(), guest.drops().1), (1, 0));
}

#[test]
fn packets_come_from_a_tap_one_at_a_time_and_many_at_once() {
    let Some(tap) = HostTap::new("row", "") else {
        return;
    };
    let name = &tap.0;
    let mut guest = device(Tap::open(name, 1).unwrap().remove(0));
    offer(&mut guest, 128);
    assert!(ip(&format!("address add 198.51.100.1/24 dev {name}")));
    let station = "198.51.100.2 lladdr 52:54:00:00:00:07";
    assert!(ip(&format!("neighbour add {station} dev {name}")));
    let socket = UdpSocket::bind("198.51.100.1:0").unwrap();
    for row in [vec![1; 20], vec![20], vec![2; 5], vec![1; 5], vec![3; 5]].concat() {
        for _ in 0..row {
            socket.send_to(&[7; 1000], "198.51.100.2:9").unwrap();
        }
        let mut come = 0;
        wait("a row", || {
            // The host's own stack has something to say as well.
            let used = guest.queues[RX].take_used().into_iter();
            come += used.filter(|(_, len)| *len == 12 + 42 + 1000).count();
            come >= row
        });
        assert_eq!(come, row);
    }
    assert_eq!((guest.link(), guest.drops()), (1, (0, 0)));
}

#[test]
fn what_is_no_tap_is_refused() {
    let file = std::fs::File::open("/dev/null").unwrap();
    Tap::new(file.into()).unwrap_err();
    for name in ["", "a name that is far too long", "zero\0inside"] {
        match Tap::open(name, 1) {
            Err(error) => assert_ne!(error.kind(), ErrorKind::WouldBlock),
            Ok(_) => unreachable!("{name}"),
        }
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can be on the host's side: terminals, pipes, files, nothing.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at the unexpected"
)]
#![expect(
    unsafe_code,
    reason = "a test exchanges a descriptor that the device has"
)]
#![cfg(not(miri))] // Miri has no level-triggered epoll.

mod support;

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::OptionalActions;
use support::{CONTROL_RX, Guest, RX, SIZE, TX, available, pattern};
use virtio_console_device::{Port, VIRTIO_CONSOLE_F_MULTIPORT};
use virtio_device_core::Features;

fn is_nonblocking(fd: impl AsFd) -> bool {
    rustix::fs::fcntl_getfl(fd)
        .unwrap()
        .contains(OFlags::NONBLOCK)
}

fn set_nonblocking(fd: impl AsFd) {
    let flags = rustix::fs::fcntl_getfl(&fd).unwrap();
    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK).unwrap();
}

/// A pseudo terminal, raw: its master and its terminal.
fn terminal() -> (File, File) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags).unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let terminal = open(&master);
    let mut modes = rustix::termios::tcgetattr(&terminal).unwrap();
    modes.make_raw();
    rustix::termios::tcsetattr(&terminal, OptionalActions::Now, &modes).unwrap();
    (master.into(), terminal)
}

fn open(master: impl AsFd) -> File {
    let name = rustix::pty::ptsname(master, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(name, flags, Mode::empty()).unwrap().into()
}

fn guest(input: impl Into<OwnedFd>, output: impl Into<OwnedFd>) -> Guest {
    let port = Port::new(input, output).unwrap();
    Guest::new(vec![port], Features::NONE).start()
}

/// Has the guest write until it is held back, and then the host read all of it.
fn output_waits_for_the_host(guest: &mut Guest, host: &mut impl Read) {
    let offered = guest.fill(TX);
    let mut got = Vec::new();
    guest.until("output", |guest| {
        got.extend(available(host, 3000));
        guest.queues[TX].take();
        got.len() == offered
    });
    assert_eq!(got, pattern(0, offered));
    guest.settle();
    guest.queues[TX].take();
    assert!(guest.queues[TX].offered.is_empty());
}

fn input_comes(guest: &mut Guest, host: &mut impl Write) {
    let before = guest.queues[RX].ring.used_index();
    guest.queues[RX].offer_room(&[100]);
    guest.kick(RX);
    guest.settle();
    host.write_all(b"hello").unwrap();
    guest.until("input", |guest| {
        guest.queues[RX].ring.used_index() != before
    });
    assert_eq!(guest.read(RX), b"hello");
}

#[test]
fn a_terminal_is_never_made_non_blocking_for_others() {
    let (mut master, terminal) = terminal();
    let clone = || terminal.try_clone().unwrap();
    let mut guest = guest(clone(), clone());
    set_nonblocking(&master);
    input_comes(&mut guest, &mut master);
    output_waits_for_the_host(&mut guest, &mut master);
    assert!(!is_nonblocking(&terminal));
}

#[test]
fn a_pipe_is_never_made_non_blocking_for_others() {
    let (input, mut to_guest) = std::io::pipe().unwrap();
    let (mut from_guest, output) = std::io::pipe().unwrap();
    let (shared_input, shared_output) = (input.try_clone().unwrap(), output.try_clone().unwrap());
    let mut guest = guest(input, output);
    set_nonblocking(&from_guest);
    input_comes(&mut guest, &mut to_guest);
    output_waits_for_the_host(&mut guest, &mut from_guest);
    assert!(!is_nonblocking(&shared_input) && !is_nonblocking(&shared_output));
}

#[test]
fn the_master_of_a_terminal_serves_whoever_opens_it_next() {
    let (master, mut first) = terminal();
    set_nonblocking(&master);
    let mut guest = guest(master.try_clone().unwrap(), master.try_clone().unwrap());
    input_comes(&mut guest, &mut first);
    set_nonblocking(&first);
    output_waits_for_the_host(&mut guest, &mut first);
    guest.queues[RX].offer_room(&[100]);
    guest.kick(RX);
    guest.settle();
    drop(first);
    guest.until("the hang-up", |guest| {
        guest
            .told
            .events()
            .iter()
            .any(|event| event.contains("InputEnded"))
    });
    assert!(guest.wakeups(Duration::from_millis(100)) <= 4, "it spins");
    // The guest is not held up by an audience that is not there.
    for _ in 0..40 {
        guest.say(TX, &pattern(0, 4096));
        guest.until("output", |guest| !guest.queues[TX].take().is_empty());
    }
    let mut second = open(&master);
    second.write_all(b"back\n").unwrap();
    guest.until("input", |guest| guest.queues[RX].ring.used_index() == 2);
    assert!(guest.read(RX).starts_with(b"back"));
    let events = guest.told.events();
    assert!(
        events.iter().any(|event| event.contains("HostReturned")),
        "{events:?}"
    );
}

#[test]
fn a_channel_on_the_master_of_a_terminal_opens_again_for_a_driver_that_waits() {
    const PORT_OPEN: u8 = 6;
    let (master, first) = terminal();
    set_nonblocking(&master);
    let clone = || master.try_clone().unwrap();
    let ports = [(); 2].map(|()| Port::new(clone(), clone()).unwrap().as_channel());
    let features = Features::of(&[VIRTIO_CONSOLE_F_MULTIPORT]);
    let mut guest = Guest::new(ports.into(), features).start();
    for _ in 0..SIZE {
        guest.queues[CONTROL_RX].offer_room(&[512]);
    }
    for (port, event) in [(0, 0), (0, 3), (0, 6)] {
        guest.control(port, event, 1);
    }
    drop(first);
    let mut told = guest.news();
    guest.until("the hang-up is told", |guest| {
        if guest.queues[TX].offered.is_empty() {
            guest.say(TX, &pattern(0, 4096));
        }
        guest.queues[TX].take();
        told.extend(guest.news());
        told.last() == Some(&vec![0, 0, 0, 0, PORT_OPEN, 0, 0, 0])
    });
    // Nobody in the guest writes from now on.
    let _second = open(&master);
    guest.until("the return is told", |guest| {
        told.extend(guest.news());
        told.last() == Some(&vec![0, 0, 0, 0, PORT_OPEN, 0, 1, 0])
    });
}

#[test]
fn a_blocking_master_is_used_without_waiting() {
    let (master, mut terminal) = terminal();
    let mut guest = guest(master.try_clone().unwrap(), master.try_clone().unwrap());
    input_comes(&mut guest, &mut terminal);
    set_nonblocking(&terminal);
    output_waits_for_the_host(&mut guest, &mut terminal);
    assert!(!is_nonblocking(&master));
}

#[test]
fn a_file_is_input_to_its_end_and_output_from_where_it_is() {
    let dir = std::env::temp_dir().join(format!("virtio-console-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (input, output) = (dir.join("input"), dir.join("output"));
    std::fs::write(&input, pattern(0, 10_000)).unwrap();
    let mut log = File::create(&output).unwrap();
    log.write_all(b"header ").unwrap();
    let mut guest = guest(File::open(&input).unwrap(), log.try_clone().unwrap());
    let mut got = Vec::new();
    guest.until("input", |guest| {
        guest.queues[RX].offer_room(&[3000]);
        guest.kick(RX);
        got.extend(guest.read(RX));
        got.len() == 10_000
    });
    assert_eq!(got, pattern(0, 10_000));
    guest.settle();
    assert!(
        guest.wakeups(Duration::from_millis(50)) <= 2,
        "it spins at the end"
    );
    guest.say(TX, b"body ");
    guest.until("output", |guest| guest.queues[TX].ring.used_index() == 1);
    log.write_all(b"footer").unwrap();
    log.rewind().unwrap();
    assert_eq!(std::fs::read(&output).unwrap(), b"header body footer");
    std::fs::remove_dir_all(&dir).unwrap();
}

/// A full disk, which the device asks now and then whether it is still that.
#[test]
fn output_waits_for_a_host_that_has_no_room_and_is_lost_for_none() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let number = full.as_raw_fd();
    let mut guest = guest(File::open("/dev/null").unwrap(), full);
    guest.say(TX, b"not lost");
    assert!(guest.wakeups(Duration::from_millis(200)) <= 100, "it spins");
    assert_eq!(guest.queues[TX].ring.used_index(), 0);
    assert!(!format!("{:?}", guest.told.events()).contains("OutputEnded"));

    // SAFETY: the device, which owns this descriptor, lives longer, and it is not closed here.
    let mut same = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
    rustix::io::dup2(&writer, &mut same).unwrap();
    guest.until("output", |guest| guest.queues[TX].ring.used_index() == 1);
    let mut got = [0; 8];
    reader.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"not lost");
}

#[test]
fn nothing_is_input_that_has_ended_and_output_that_takes_all() {
    let null = || {
        File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap()
    };
    let mut guest = guest(null(), null());
    guest.queues[RX].offer_room(&[100]);
    guest.kick(RX);
    for _ in 0..20 {
        guest.say(TX, &pattern(0, 4096));
        guest.until("output", |guest| !guest.queues[TX].take().is_empty());
    }
    assert_eq!(guest.read(RX), b"");
    assert!(guest.wakeups(Duration::from_millis(50)) <= 2, "it spins");
    assert!(!guest.session().is_broken());
}

#[test]
fn a_socket_of_messages_is_refused() {
    let (socket, _other) = UnixDatagram::pair().unwrap();
    let port = Port::new(socket.try_clone().unwrap(), socket);
    assert_eq!(port.unwrap_err().kind(), ErrorKind::InvalidInput);
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Several ports, and the messages that are about them.
#![expect(clippy::indexing_slicing, reason = "a test stops at the unexpected")]
#![cfg(not(miri))] // Miri has no level-triggered epoll.

mod support;

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use support::{CONTROL_RX, CONTROL_TX, Guest, RX, SOON, TX, available, pattern, port, socket};
use virtio_console_device::{Size, VIRTIO_CONSOLE_F_MULTIPORT};
use virtio_device_core::Features;

const DEVICE_READY: u16 = 0;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;

/// The queues of the second port.
const RX1: usize = 4;
const TX1: usize = 5;

fn multiport() -> Features {
    Features::of(&[VIRTIO_CONSOLE_F_MULTIPORT])
}

/// A console and a named channel: the guest, both hosts' ends and the devices'.
fn two_ports(features: Features) -> (Guest, [UnixStream; 2], [UnixStream; 2]) {
    let (console, console_host, console_device) = socket();
    let (channel, channel_host, channel_device) = socket();
    let console = console.with_size(Size { cols: 80, rows: 25 });
    let ports = vec![console, channel.as_channel().named("org.example")];
    let mut guest = Guest::new(ports, features).start();
    for _ in 0..8 {
        guest.queues[CONTROL_RX].offer_room(&[512]);
    }
    guest.kick(CONTROL_RX);
    guest.settle();
    let hosts = [console_host, channel_host];
    (guest, hosts, [console_device, channel_device])
}

fn message(port: u8, event: u8, value: u8, behind: &[u8]) -> Vec<u8> {
    [&[port, 0, 0, 0, event, 0, value, 0][..], behind].concat()
}

fn set_up(guest: &mut Guest) {
    guest.control(0, DEVICE_READY, 1);
    guest.control(0, PORT_READY, 1);
    guest.control(1, PORT_READY, 1);
    guest.news();
    for _ in 0..8 {
        guest.queues[CONTROL_RX].offer_room(&[512]);
    }
    guest.kick(CONTROL_RX);
    guest.settle();
}

#[test]
fn a_driver_learns_of_each_port_what_there_is_to_know() {
    let (mut guest, ..) = two_ports(multiport());
    assert_eq!(guest.news().len(), 0);
    guest.control(0, DEVICE_READY, 1);
    assert_eq!(guest.news(), [message(0, 1, 1, &[]), message(1, 1, 1, &[])]);
    guest.control(0, PORT_READY, 1);
    let console = [
        message(0, 4, 1, &[]),
        message(0, 5, 0, &[80, 0, 25, 0]),
        message(0, 6, 1, &[]),
    ];
    assert_eq!(guest.news(), console);
    guest.control(1, PORT_READY, 1);
    let channel = [message(1, 7, 1, b"org.example"), message(1, 6, 1, &[])];
    assert_eq!(guest.news(), channel);
}

#[test]
fn a_driver_without_ports_has_one_console() {
    let (mut guest, [mut host, mut other], _devices) = two_ports(Features::NONE);
    host.write_all(b"in").unwrap();
    other.write_all(b"elsewhere").unwrap();
    for queue in [RX, RX1] {
        guest.queues[queue].offer_room(&[100]);
        guest.kick(queue);
    }
    for queue in [TX, TX1, CONTROL_TX] {
        guest.say(queue, b"\0\0\0\0\0\0\x01\0");
    }
    guest.until("input", |guest| guest.queues[RX].ring.used_index() == 1);
    guest.settle();
    assert_eq!(guest.read(RX), b"in");
    assert_eq!(available(&mut host, 100).len(), 8);
    // Queues that the driver has not agreed on are nobody's.
    assert_eq!(available(&mut other, 100), b"");
    assert_eq!(guest.read(RX1), b"");
    assert_eq!(guest.news().len(), 0);
    assert!(guest.wakeups(Duration::from_millis(50)) <= 2);
}

#[test]
fn input_waits_until_the_driver_is_ready_and_a_program_listens() {
    let (mut guest, [mut console, mut channel], _devices) = two_ports(multiport());
    console.write_all(b"console").unwrap();
    channel.write_all(b"channel").unwrap();
    for queue in [RX, RX1] {
        guest.queues[queue].offer_room(&[100]);
        guest.queues[queue].offer_room(&[100]);
        guest.kick(queue);
    }
    guest.settle();
    assert!(guest.wakeups(Duration::from_millis(50)) <= 2, "it spins");
    assert_eq!(guest.read(RX), b"");
    set_up(&mut guest);
    guest.until("input", |guest| guest.queues[RX].ring.used_index() == 1);
    guest.settle();
    assert_eq!(guest.read(RX), b"console");
    assert_eq!(guest.read(RX1), b"");
    guest.control(1, PORT_OPEN, 1);
    guest.until("input", |guest| guest.queues[RX1].ring.used_index() == 1);
    assert_eq!(guest.read(RX1), b"channel");
    guest.control(1, PORT_OPEN, 0);
    channel.write_all(b"later").unwrap();
    guest.settle();
    assert!(guest.wakeups(Duration::from_millis(50)) <= 2, "it spins");
    assert_eq!(guest.read(RX1), b"");
    guest.control(1, PORT_OPEN, 1);
    guest.until("input", |guest| guest.queues[RX1].ring.used_index() == 2);
    assert_eq!(guest.read(RX1), b"later");
    let opened: Vec<_> = guest.told.events();
    let opened = opened.iter().filter(|event| event.contains("GuestOpened"));
    assert_eq!(opened.count(), 3);
}

#[test]
fn one_port_that_is_held_back_holds_no_other() {
    let (mut guest, [_console, mut channel], _devices) = two_ports(multiport());
    set_up(&mut guest);
    guest.fill(TX);
    let mut got = Vec::new();
    for round in 0..50 {
        guest.say(TX1, &pattern(1000 * round, 1000));
        guest.until("output", |guest| !guest.queues[TX1].take().is_empty());
        got.extend(available(&mut channel, usize::MAX));
    }
    assert_eq!(got, pattern(0, 50_000));
}

#[test]
fn a_driver_is_told_when_the_host_hangs_up() {
    let (mut guest, [_console, channel], _devices) = two_ports(multiport());
    set_up(&mut guest);
    guest.control(1, PORT_OPEN, 1);
    guest.queues[RX1].offer_room(&[100]);
    guest.kick(RX1);
    guest.settle();
    assert_eq!(guest.news().len(), 0);
    channel.shutdown(Shutdown::Both).unwrap();
    guest.until("the news", |guest| {
        guest.queues[CONTROL_RX].ring.used_index() == 6 + 2
    });
    assert_eq!(guest.news(), [message(1, 6, 0, &[])]);
}

#[test]
fn a_host_that_says_no_more_is_still_there_to_listen() {
    let (mut guest, [_console, mut channel], _devices) = two_ports(multiport());
    set_up(&mut guest);
    guest.control(1, PORT_OPEN, 1);
    guest.queues[RX1].offer_room(&[100]);
    guest.kick(RX1);
    channel.shutdown(Shutdown::Write).unwrap();
    guest.until("the end of input", |guest| {
        let events = guest.told.events();
        events.iter().any(|event| event.contains("InputEnded"))
    });
    guest.settle();
    assert_eq!(guest.news().len(), 0, "it is told that nobody is there");
    guest.say(TX1, b"heard");
    guest.settle();
    assert_eq!(available(&mut channel, 100), b"heard");
    drop(channel);
    guest.say(TX1, b"not heard");
    guest.settle();
    assert_eq!(guest.news(), [message(1, 6, 0, &[])]);
}

#[test]
fn a_port_that_is_taken_away_discards_output_and_reads_nothing() {
    let (mut guest, [_console, mut channel], devices) = two_ports(multiport());
    let handle = guest.device.handle();
    set_up(&mut guest);
    guest.control(1, PORT_OPEN, 1);
    guest.queues[RX1].offer_room(&[100]);
    guest.kick(RX1);
    // The host takes nothing, and so the guest's programs wait.
    guest.fill(TX1);
    handle.unplug(1);
    handle.unplug(7);
    guest.until_all_are_back(TX1);
    assert_eq!(guest.news(), [message(1, 2, 1, &[])]);
    channel.write_all(b"later").unwrap();
    available(&mut channel, usize::MAX);
    guest.say(TX1, b"nobody hears this");
    guest.settle();
    assert!(guest.wakeups(Duration::from_millis(50)) <= 2, "it spins");
    assert_eq!(guest.read(RX1), b"");
    assert_eq!(available(&mut channel, 100), b"");

    // So it stays in another machine, and for another driver.
    guest.pause();
    let saved = guest.save();
    let [console, channel_device] = [&devices[0], &devices[1]].map(port);
    let ports = vec![console, channel_device.as_channel().named("again")];
    let mut guest = guest.move_to(ports, &saved);
    guest.resume();
    guest.restart();
    for _ in 0..8 {
        guest.queues[CONTROL_RX].offer_room(&[512]);
    }
    guest.control(0, DEVICE_READY, 1);
    assert_eq!(guest.news(), [message(0, 1, 1, &[])]);

    guest.device.handle().plug(1);
    guest.settle();
    assert_eq!(guest.news(), [message(1, 1, 1, &[])]);
    guest.queues[RX1].offer_room(&[100]);
    guest.control(1, PORT_READY, 1);
    guest.control(1, PORT_OPEN, 1);
    let about = [message(1, 7, 1, b"again"), message(1, 6, 1, &[])];
    assert_eq!(guest.news(), about);
    guest.until("input", |guest| guest.queues[RX1].ring.used_index() == 1);
    assert_eq!(guest.read(RX1), b"later");
    guest.say(TX1, b"heard");
    guest.settle();
    assert_eq!(available(&mut channel, 100), b"heard");
}

#[test]
fn output_of_before_a_port_was_taken_away_is_discarded_though_it_is_back() {
    let (mut guest, [_console, mut channel], _devices) = two_ports(multiport());
    let handle = guest.device.handle();
    set_up(&mut guest);
    guest.fill(TX1);
    handle.unplug(1);
    handle.plug(1);
    guest.until_all_are_back(TX1);
    available(&mut channel, usize::MAX);
    guest.settle();
    assert_eq!(available(&mut channel, 1), b"");
    assert_eq!(guest.news(), [message(1, 2, 1, &[]), message(1, 1, 1, &[])]);
    guest.control(1, PORT_READY, 1);
    guest.say(TX1, b"heard");
    guest.settle();
    assert_eq!(available(&mut channel, 100), b"heard");
}

#[test]
fn output_is_discarded_again_if_a_port_was_taken_away_again_meanwhile() {
    let (mut guest, [_console, mut channel], _devices) = two_ports(multiport());
    let handle = guest.device.handle();
    set_up(&mut guest);
    // Until the host takes no more, and one chain waits.
    while guest.queues[TX1].offered.is_empty() {
        guest.say(TX1, &[0; 4096]);
        guest.settle();
        guest.queues[TX1].take();
    }
    handle.unplug(1);
    handle.plug(1);
    // Behind the last look at the queue, and before the end of what was to be discarded.
    *guest.told.on_used.lock().unwrap() = Some(Box::new(move || {
        handle.unplug(1);
        handle.plug(1);
    }));
    guest.until_all_are_back(TX1);
    available(&mut channel, usize::MAX);
    // The driver has yet to be told.
    guest.say(TX1, b"nobody hears this");
    guest.settle();
    assert!(guest.told.on_used.lock().unwrap().is_none());
    assert_eq!(available(&mut channel, 100), b"");
}

#[test]
fn a_new_size_is_told_to_each_console_once() {
    let (mut guest, ..) = two_ports(multiport());
    let handle = guest.device.handle();
    handle.resize(0, Size { cols: 1, rows: 1 });
    guest.settle();
    assert_eq!(guest.news().len(), 0, "nobody has asked");
    set_up(&mut guest);
    for cols in 1..100 {
        handle.resize(0, Size { cols, rows: 2 });
    }
    handle.resize(1, Size { cols: 5, rows: 5 });
    guest.settle();
    assert_eq!(guest.news(), [message(0, 5, 0, &[99, 0, 2, 0])]);
}

#[test]
fn news_wait_for_room_and_survive_a_pause_and_a_move() {
    let (mut guest, _hosts, devices) = two_ports(multiport());
    set_up(&mut guest);
    guest.pause();
    let handle = guest.device.handle();
    handle.resize(0, Size { cols: 9, rows: 9 });
    guest.settle();
    assert_eq!(guest.news().len(), 0);
    let saved = guest.save();
    let [console, channel] = [&devices[0], &devices[1]].map(port);
    let mut guest = guest.move_to(vec![console, channel.as_channel()], &saved);
    guest.settle();
    assert_eq!(guest.news().len(), 0);
    guest.resume();
    guest.settle();
    assert_eq!(guest.news(), [message(0, 5, 0, &[9, 0, 9, 0])]);

    // Without room, and with too little of it.
    guest.stop_queue(CONTROL_RX);
    guest.restart_queue(CONTROL_RX);
    guest.settle();
    let handle = guest.device.handle();
    handle.resize(0, Size { cols: 8, rows: 8 });
    guest.settle();
    assert!(guest.wakeups(Duration::from_millis(50)) <= 2, "it spins");
    guest.queues[CONTROL_RX].offer_room(&[11]);
    guest.queues[CONTROL_RX].offer_room(&[5, 7]);
    guest.kick(CONTROL_RX);
    guest.settle();
    assert_eq!(guest.news(), [vec![], message(0, 5, 0, &[8, 0, 8, 0])]);
}

#[test]
fn a_size_that_is_set_during_a_save_is_told_after_the_move() {
    let (mut guest, _hosts, devices) = two_ports(multiport());
    set_up(&mut guest);
    guest.pause();
    let (changed, to_be_saved) = channel();
    let (saved, goes_on) = channel();
    *guest.told.on_config.lock().unwrap() = Some(Box::new(move || {
        changed.send(()).unwrap();
        goes_on.recv_timeout(SOON).unwrap();
    }));
    let handle = guest.device.handle();
    let resize = thread::spawn(move || handle.resize(0, Size { cols: 9, rows: 9 }));
    to_be_saved.recv_timeout(SOON).unwrap();
    let state = guest.save();
    saved.send(()).unwrap();
    resize.join().unwrap();
    let [console, channel] = [&devices[0], &devices[1]].map(port);
    let mut guest = guest.move_to(vec![console, channel.as_channel()], &state);
    guest.resume();
    guest.settle();
    assert_eq!(guest.news(), [message(0, 5, 0, &[9, 0, 9, 0])]);
}

#[test]
fn a_hostile_driver_floods_nobody_with_control_messages() {
    let (mut guest, ..) = two_ports(multiport());
    for round in 0..300_u16 {
        for (port, event) in [
            (0, DEVICE_READY),
            (u32::from(round) % 4, PORT_READY),
            (u32::MAX, PORT_OPEN),
            (1, round),
        ] {
            assert!(guest.queues[CONTROL_TX].offer_bytes(&[
                &port.to_le_bytes(),
                &event.to_le_bytes(),
                &round.to_le_bytes()
            ]));
        }
        guest.queues[CONTROL_TX].offer_bytes(&[b"short"]);
        guest.kick(CONTROL_TX);
        guest.until("an answer", |guest| {
            guest.queues[CONTROL_TX].take();
            guest.queues[CONTROL_TX].offered.is_empty()
        });
    }
    assert!(!guest.session().is_broken());
    // It was told no more than there was room for.
    assert!(guest.news().len() <= 8);
    // And all is well once it behaves.
    guest.restart();
    for _ in 0..8 {
        guest.queues[CONTROL_RX].offer_room(&[512]);
    }
    guest.control(0, DEVICE_READY, 1);
    assert_eq!(guest.news(), [message(0, 1, 1, &[]), message(1, 1, 1, &[])]);
}

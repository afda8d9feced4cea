// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One console: bytes in, bytes out, whatever guest and host do.
#![cfg(not(miri))] // Miri has no level-triggered epoll.

mod support;

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::sync::atomic::Ordering;
use std::time::Duration;

use support::{Guest, Memory, RX, TX, available, pattern, port, socket};
use virtio_conformance::VIRTQ_DESC_F_NEXT;
use virtio_console_device::{
    Console, Port, Size, VIRTIO_CONSOLE_F_EMERG_WRITE, VIRTIO_CONSOLE_F_MULTIPORT,
    VIRTIO_CONSOLE_F_SIZE,
};
use virtio_device_core::{Features, VirtioDevice};

const A_WHILE: Duration = Duration::from_millis(60);

fn config(guest: &Guest) -> [u8; 12] {
    let mut bytes = [0; 12];
    VirtioDevice::<Memory>::read_config(&guest.device, 0, &mut bytes);
    bytes
}

#[test]
fn a_chain_of_any_length_is_written_in_turns() {
    let file = || File::options().read(true).write(true).open("/dev/null");
    let port = Port::new(file().unwrap(), file().unwrap()).unwrap();
    let mut guest = Guest::new(vec![port], Features::NONE).start();
    let ring = &mut guest.queues[TX].ring;
    for (descriptor, more) in [(0, true), (1, true), (2, true), (3, false)] {
        let flags = if more { VIRTQ_DESC_F_NEXT } else { 0 };
        ring.descriptor(descriptor, 0x20_0000, 0x2_0000, flags, descriptor + 1);
    }
    ring.offer(0);
    guest.kick(TX);
    guest.workers.dispatch().unwrap();
    assert_eq!(guest.queues[TX].ring.take_used(), [], "others have a turn");
    guest.until("the end", |guest| guest.queues[TX].ring.used_index() == 1);
    assert_eq!(guest.queues[TX].ring.take_used(), [(0, 0)]);
}

#[test]
fn the_emergency_write_alone_may_come_early() {
    let (port, ..) = socket();
    let guest = Guest::new(vec![port], Features::NONE);
    let early = |&offset: &u32| VirtioDevice::<Memory>::takes_early_write(&guest.device, offset);
    assert_eq!((0..20).filter(early).collect::<Vec<_>>(), [8]);
}

#[test]
fn a_console_says_what_it_is() {
    let (port, ..) = socket();
    let size = Size { cols: 80, rows: 25 };
    let guest = Guest::new(vec![port.with_size(size)], Features::NONE);
    let device: &dyn VirtioDevice<Memory> = &guest.device;
    assert_eq!(device.device_type(), 3);
    assert_eq!(device.queue_max_sizes().len(), 2);
    let features = Features::of(&[VIRTIO_CONSOLE_F_SIZE, VIRTIO_CONSOLE_F_EMERG_WRITE]);
    assert_eq!(device.features(), features);
    assert_eq!(config(&guest), [80, 0, 25, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let mut rows = [0; 2];
    device.read_config(2, &mut rows);
    assert_eq!(rows, [25, 0]);
}

#[test]
fn host_input_reaches_the_guest_as_it_comes() {
    let (port, mut host, _device) = socket();
    let mut guest = Guest::new(vec![port], Features::NONE).start();
    host.write_all(b"before there is room, ").unwrap();
    guest.settle();
    guest.queues[RX].offer_room(&[3, 4]);
    guest.queues[RX].offer_room(&[1000]);
    guest.kick(RX);
    let mut got = Vec::new();
    guest.until("input", |guest| {
        got.extend(guest.read(RX));
        got.len() == 22
    });
    guest.queues[RX].offer_room(&[100]);
    guest.kick(RX);
    guest.settle();
    assert_eq!(
        guest.read(RX),
        b"",
        "it waits for input, not with an empty answer"
    );
    host.write_all(b"and after").unwrap();
    guest.until("input", |guest| {
        got.extend(guest.read(RX));
        got.len() == 31
    });
    assert_eq!(got, b"before there is room, and after");
    assert!(guest.told.used.load(Ordering::SeqCst) >= 2);
}

#[test]
fn nothing_is_read_from_the_host_and_nobody_spins_while_the_guest_has_no_room() {
    let (port, mut host, _device) = socket();
    let mut guest = Guest::new(vec![port], Features::NONE).start();
    host.write_all(&pattern(0, 5000)).unwrap();
    guest.settle();
    assert!(guest.wakeups(A_WHILE) <= 2);
    for round in 0..5 {
        guest.queues[RX].offer_room(&[1000]);
        guest.kick(RX);
        guest.until("input", |guest| {
            guest.queues[RX].ring.used_index() == round + 1
        });
        assert_eq!(guest.read(RX), pattern(1000 * usize::from(round), 1000));
        assert!(guest.wakeups(A_WHILE / 4) <= 2);
    }
}

#[test]
fn guest_output_waits_for_the_host_and_no_byte_is_lost() {
    let (port, mut host, _device) = socket();
    let mut guest = Guest::new(vec![port], Features::QUEUE).start();
    let (mut offered, mut got) = (0, Vec::new());
    // Nobody reads: the guest is held back, and the worker sleeps.
    loop {
        let bytes = pattern(offered, 4096);
        let pieces: Vec<_> = bytes.chunks(1400).collect();
        if !guest.queues[TX].offer_bytes(&pieces) {
            guest.kick(TX);
            guest.settle();
            if guest.queues[TX].take().is_empty() {
                break;
            }
            continue;
        }
        offered += 4096;
    }
    assert!(guest.wakeups(A_WHILE) <= 2, "it spins");
    guest.until("output", |guest| {
        got.extend(available(&mut host, 3000));
        guest.queues[TX].take();
        got.len() == offered
    });
    assert_eq!(got, pattern(0, offered));
    guest.settle();
    guest.queues[TX].take();
    assert_eq!(guest.queues[TX].offered.len(), 0);
}

#[test]
fn a_paused_device_moves_no_byte() {
    let (port, mut host, _device) = socket();
    let mut guest = Guest::new(vec![port], Features::NONE).start();
    guest.queues[RX].offer_room(&[100]);
    guest.kick(RX);
    guest.settle();
    guest.pause();
    host.write_all(b"in").unwrap();
    guest.say(TX, b"out");
    guest.settle();
    assert!(guest.wakeups(A_WHILE) <= 2, "it spins");
    assert_eq!(guest.read(RX), b"");
    assert_eq!(available(&mut host, 100), b"");
    guest.resume();
    guest.until("input", |guest| guest.queues[RX].ring.used_index() == 1);
    assert_eq!(guest.read(RX), b"in");
    guest.until("output", |guest| guest.queues[TX].ring.used_index() == 1);
    assert_eq!(available(&mut host, 100), b"out");
}

#[test]
fn a_host_that_has_hung_up_neither_spins_nor_ends_the_device() {
    let (port, mut host, _device) = socket();
    let mut guest = Guest::new(vec![port], Features::NONE).start();
    guest.queues[RX].offer_room(&[100]);
    guest.queues[RX].offer_room(&[100]);
    guest.kick(RX);
    host.write_all(b"bye").unwrap();
    host.shutdown(Shutdown::Both).unwrap();
    guest.until("input", |guest| guest.queues[RX].ring.used_index() == 1);
    assert_eq!(
        guest.read(RX),
        b"bye",
        "what came before the end is not lost"
    );
    guest.settle();
    assert!(guest.wakeups(A_WHILE) <= 2, "it spins");
    // Its output goes nowhere, and its writer goes on.
    for _ in 0..40 {
        guest.say(TX, &pattern(0, 4096));
        guest.until("output", |guest| !guest.queues[TX].take().is_empty());
    }
    assert!(guest.wakeups(A_WHILE) <= 2, "it spins");
    assert!(!guest.session().is_broken());
    let events = guest.told.events();
    let count = |what| events.iter().filter(|event| event.contains(what)).count();
    assert_eq!(
        (count("InputEnded"), count("OutputEnded")),
        (1, 1),
        "{events:?}"
    );
}

#[test]
fn a_queue_that_is_reset_alone_loses_no_input() {
    let (port, mut host, _device) = socket();
    let mut guest = Guest::new(vec![port], Features::NONE).start();
    guest.queues[RX].offer_room(&[2]);
    guest.queues[RX].offer_room(&[2]);
    guest.kick(RX);
    host.write_all(b"abcdef").unwrap();
    guest.until("input", |guest| guest.queues[RX].ring.used_index() == 2);
    let mut got = guest.read(RX);
    guest.stop_queue(RX);
    guest.settle();
    assert!(guest.wakeups(A_WHILE) <= 2, "it spins");
    guest.restart_queue(RX);
    guest.queues[RX].offer_room(&[10]);
    guest.kick(RX);
    guest.until("input", |guest| guest.queues[RX].ring.used_index() == 1);
    got.extend(guest.read(RX));
    assert_eq!(got, b"abcdef");
}

#[test]
fn a_chain_half_sent_is_gone_with_its_queue_and_the_next_is_sent_whole() {
    let (port, mut host, _device) = socket();
    let mut guest = Guest::new(vec![port], Features::NONE).start();
    let mut sent = 0;
    while guest.queues[TX].offer_bytes(&[&[b'a'; 4096][..]; 3]) {
        guest.kick(TX);
        guest.settle();
        sent += guest.queues[TX].take().len() * 3 * 4096;
    }
    guest.stop_queue(TX);
    assert!(!guest.queues[TX].offered.is_empty());
    guest.restart_queue(TX);
    guest.say(TX, b"bcdefgh");
    let mut got = Vec::new();
    guest.until("output", |guest| {
        got.extend(available(&mut host, 100_000));
        guest.queues[TX].ring.used_index() == 1
    });
    got.extend(available(&mut host, 100_000));
    assert!(
        got.ends_with(b"abcdefgh"),
        "not from where the other was left"
    );
    assert!((sent + 1..sent + 3 * 4096).contains(&(got.len() - 7)));
}

#[test]
fn the_size_changes_before_while_and_after_the_device_is_live() {
    let (port, _host, device) = socket();
    let size = |cols, rows| Size { cols, rows };
    let guest = Guest::new(vec![port.with_size(size(80, 25))], Features::NONE);
    let handle = guest.device.handle();
    let told = guest.told.clone();
    let seen = || {
        let generation = told.generation.load(Ordering::SeqCst);
        (generation, told.config.load(Ordering::SeqCst))
    };
    handle.resize(0, size(100, 30));
    assert_eq!(seen(), (2, 0));
    assert_eq!(config(&guest)[..4], [100, 0, 30, 0]);
    let mut guest = guest.start();
    handle.resize(0, size(100, 30));
    assert_eq!(seen(), (2, 0), "nothing has changed");
    handle.resize(0, size(300, 30));
    assert_eq!(seen(), (4, 1));
    assert_eq!(config(&guest)[..4], [44, 1, 30, 0]);
    guest.pause();
    handle.resize(0, size(1, 2));
    assert_eq!(seen(), (6, 2));
    handle.resize(1, size(7, 7));
    assert_eq!(seen(), (6, 2), "there is no such port");
    // Another machine begins with what the guest knows.
    let saved = guest.save();
    let guest = guest.move_to(vec![support::port(&device)], &saved);
    assert_eq!(config(&guest)[..4], [1, 0, 2, 0]);
}

#[test]
fn a_driver_is_told_of_the_size_when_it_has_started() {
    let told = |features: &[u32], size| {
        let (port, _host, _device) = socket();
        let features = Features::of(features);
        let mut guest = Guest::new(vec![port.with_size(size)], features).start();
        let first = guest.told.config.load(Ordering::SeqCst);
        guest.restart();
        (first, guest.told.config.load(Ordering::SeqCst))
    };
    let size = Size { cols: 80, rows: 25 };
    assert_eq!(told(&[VIRTIO_CONSOLE_F_SIZE], size), (1, 2));
    assert_eq!(told(&[VIRTIO_CONSOLE_F_SIZE], Size::default()), (0, 0));
    assert_eq!(told(&[], size), (0, 0));
}

#[test]
fn a_character_is_written_through_the_configuration_space_alone() {
    let (port, mut host, device) = socket();
    let mut guest = Guest::new(vec![port], Features::NONE);
    let console: &mut dyn VirtioDevice<Memory> = &mut guest.device;
    console.write_config(8, b"P\0\0\0");
    console.write_config(8, b"a");
    console.write_config(6, b"\0\0n\0");
    // Nothing else can be written.
    console.write_config(0, &[1; 8]);
    console.write_config(9, &[1; 3]);
    assert_eq!(available(&mut host, 100), b"Pan");
    // A host that takes nothing holds no vCPU.
    device.set_nonblocking(true).unwrap();
    while (&device).write(&[0; 4096]).is_ok() {}
    while (&device).write(&[0]).is_ok() {}
    device.set_nonblocking(false).unwrap();
    console.write_config(8, b"c");
    assert_eq!(guest.told.events(), ["EmergencyLost"]);
}

#[test]
fn bad_chains_are_given_back_and_move_nothing() {
    use virtio_conformance::VIRTQ_DESC_F_WRITE;
    let (port, mut host, _device) = socket();
    let mut guest = Guest::new(vec![port], Features::NONE).start();
    host.write_all(b"input").unwrap();
    for (index, flags) in [(RX, VIRTQ_DESC_F_WRITE), (TX, 0)] {
        let ring = &mut guest.queues[index].ring;
        ring.descriptor(0, 0xffff_ffff_0000, 8, flags, 0);
        ring.offer(0);
        ring.descriptor(1, 0x3f_fff0, 0x100, flags, 0);
        ring.offer(1);
        // Of the wrong direction, and empty.
        ring.descriptor(2, 0x20_0000, 8, flags ^ VIRTQ_DESC_F_WRITE, 0);
        ring.offer(2);
        ring.descriptor(3, 0x20_0000, 0, flags, 0);
        ring.offer(3);
        guest.kick(index);
        guest.settle();
        let used: Vec<_> = (0..4).map(|head| (head, 0)).collect();
        assert_eq!(guest.queues[index].ring.take_used(), used);
    }
    assert_eq!(available(&mut host, 100), b"");
    let events = guest.told.events();
    let bad = events
        .iter()
        .filter(|event| event.starts_with("BadRequest"));
    assert_eq!(bad.count(), 6, "{events:?}");
    // The input is still there.
    guest.queues[RX].offer_room(&[100]);
    guest.kick(RX);
    guest.until("input", |guest| guest.queues[RX].ring.used_index() == 5);
}

#[test]
fn a_chain_of_terabytes_holds_nobody() {
    use virtio_conformance::VIRTQ_DESC_F_NEXT;
    let (port, mut host, _device) = socket();
    let mut guest = Guest::new(vec![port], Features::NONE).start();
    let ring = &mut guest.queues[TX].ring;
    for index in 0..15 {
        ring.descriptor(index, 0, 0x40_0000, VIRTQ_DESC_F_NEXT, index + 1);
    }
    ring.descriptor(15, 0, 0x40_0000, 0, 0);
    ring.offer(0);
    guest.kick(TX);
    let mut got = 0;
    for _ in 0..200 {
        // However fast the host is, one round moves no more than its share.
        guest.workers.dispatch().unwrap();
        let now = available(&mut host, usize::MAX).len();
        assert!(now <= 16 * (16 << 10), "{now}");
        got += now;
    }
    assert!(got > 100_000);
    guest.pause();
    assert_eq!(guest.queues[TX].ring.used_index(), 0);
}

#[test]
fn a_broken_ring_is_told_once() {
    let (port, ..) = socket();
    let mut guest = Guest::new(vec![port], Features::NONE).start();
    guest.queues[TX].ring.offer(99);
    guest.kick(TX);
    guest.until("failure", |guest| guest.session().is_broken());
    guest.settle();
    assert_eq!(guest.told.config.load(Ordering::SeqCst), 1);
    assert_eq!(guest.workers.workers(), 0);
    // The next driver finds a device that works.
    guest.restart();
    guest.say(TX, b"again");
    guest.until("output", |guest| guest.queues[TX].ring.used_index() == 1);
}

#[test]
fn ports_are_counted_when_the_device_is_made() {
    let workers = virtio_device_core::WorkerLoop::new().unwrap();
    let none = Console::with_ports(vec![], workers.handle());
    assert_eq!(none.unwrap_err().kind(), ErrorKind::InvalidInput);
    let (_, _, device) = socket();
    let ports: Vec<Port> = (0..3).map(|_| port(&device)).collect();
    let console = Console::with_ports(ports, workers.handle()).unwrap();
    let console: &dyn VirtioDevice<Memory> = &console;
    assert_eq!(console.queue_max_sizes().len(), 8);
    assert!(console.features().has(VIRTIO_CONSOLE_F_MULTIPORT));
}

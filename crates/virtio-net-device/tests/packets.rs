// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Packets in both directions, what the host and the driver make of them, and the cable.
#![expect(clippy::indexing_slicing, reason = "a test stops at the unexpected")]

mod support;

use support::feature::{CTRL_VQ, MAC as MAC_BIT, MRG_RXBUF, MTU, STATUS};
use support::{Buf, Guest, Host, MAC, PLAIN, RX, TX, feature, frame, header, packet, pattern};
use virtio_conformance::reg;
use virtio_device_core::{LoopHandle, RateLimit, WorkerThread};
use virtio_net_device::Net;

fn guest(features: u64) -> (Guest, Host) {
    let host = Host::new();
    (Guest::new(host.clone(), features), host)
}

/// The bytes of a packet that lies in these buffers.
fn received(guest: &Guest, offered: &[support::Offered], used: &[(u32, u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for ((head, len), offered) in used.iter().zip(offered) {
        assert_eq!(*head, u32::from(offered.head));
        // Behind it there may be what was left of a packet that did not fit.
        bytes.extend(&guest.answer(offered, *len).bytes[..*len as usize]);
    }
    bytes
}

/// The header of a packet in so many buffers.
fn merged(mut header: [u8; 12], buffers: u16) -> [u8; 12] {
    header[10..].copy_from_slice(&buffers.to_le_bytes());
    header
}

#[test]
fn a_packet_is_sent_as_it_is() {
    let (mut guest, host) = guest(0);
    for len in [14, 15, 60, 64, 1514, 9014, 65_549] {
        let frame = frame(1, len);
        assert_eq!(guest.send(packet(PLAIN, &frame)), 0);
        assert_eq!(host.take(), [packet(PLAIN, &frame)]);
    }
    assert_eq!(guest.drops(), (0, 0));
}

#[test]
fn a_packet_is_received_with_the_number_of_its_buffers() {
    for features in [0, MRG_RXBUF] {
        let (mut guest, host) = guest(features);
        for len in [14, 15, 18, 19, 60, 1514] {
            let frame = frame(2, len);
            host.give(PLAIN, &frame);
            let offered = guest.offer(RX, 1, 1526);
            let used = guest.used(RX, 1);
            let bytes = received(&guest, &offered, &used);
            assert_eq!(bytes, packet(merged(PLAIN, 1), &frame));
        }
    }
}

#[test]
fn nothing_is_asked_of_the_host_before_there_is_room() {
    let (mut guest, host) = guest(MRG_RXBUF);
    host.give(PLAIN, &frame(1, 60));
    (0..10).for_each(|_| guest.work());
    assert_eq!(host.state().asked, 0);
    guest.offer(RX, 1, 1526);
    assert_eq!(guest.used(RX, 1)[0].1, 72);
}

#[test]
fn a_long_packet_lies_in_as_many_buffers_as_it_takes_and_is_seen_at_once() {
    let (mut guest, host) = guest(MRG_RXBUF);
    for (round, len) in [(0, 9000), (1, 64_000), (2, 64_000), (3, 60), (4, 3000)] {
        let frame = frame(round, len);
        let count = (12 + len).div_ceil(1500);
        let offered = guest.offer(RX, 43, 1500);
        host.give(PLAIN, &frame);
        guest.notify(RX);
        let used = guest.used(RX, count);
        assert_eq!(
            received(&guest, &offered, &used),
            packet(merged(PLAIN, u16::try_from(count).unwrap()), &frame)
        );
        // What is left goes with the next ones.
        for _ in count..43 {
            host.give(PLAIN, &support::frame(9, 60));
        }
        guest.notify(RX);
        guest.used(RX, 43 - count);
    }
    assert_eq!(guest.drops(), (0, 0));
}

#[test]
fn a_packet_without_enough_buffers_waits_for_them_and_others_wait_behind_it() {
    let (mut guest, host) = guest(MRG_RXBUF);
    let mut offered = guest.offer(RX, 2, 1000);
    host.give(PLAIN, &frame(1, 3000));
    host.give(PLAIN, &frame(2, 60));
    guest.notify(RX);
    // A single step: a wait is over at the next.
    guest.workers.as_mut().unwrap().step();
    assert_eq!(guest.queues[RX].take_used(), []);
    assert_eq!(host.state().incoming.len(), 1);
    for _ in 0..3 {
        offered.push(guest.put(RX, &[Buf::W(1000)]));
    }
    guest.notify(RX);
    let used = guest.used(RX, 5);
    assert_eq!(
        received(&guest, &offered[..4], &used[..4]),
        packet(merged(PLAIN, 4), &frame(1, 3000))
    );
    assert_eq!(
        received(&guest, &offered[4..], &used[4..]),
        packet(merged(PLAIN, 1), &frame(2, 60))
    );
    assert_eq!(guest.drops(), (0, 0));
}

#[test]
fn a_packet_that_never_fits_is_dropped_and_the_next_one_comes() {
    for (features, count) in [(0, 1), (0, 5), (MRG_RXBUF, 2)] {
        let (mut guest, host) = guest(features);
        host.give(PLAIN, &frame(1, 5000));
        host.give(PLAIN, &frame(2, 60));
        let offered = guest.offer(RX, count, 1000);
        let used = guest.used(RX, 1);
        let bytes = received(&guest, &offered, &used);
        assert_eq!(bytes, packet(merged(PLAIN, 1), &frame(2, 60)));
        assert_eq!(guest.drops(), (1, 0));
    }
}

#[test]
fn a_full_ring_that_is_too_small_drops_at_once() {
    let (mut guest, host) = guest(MRG_RXBUF);
    for _ in 0..256 {
        guest.put(RX, &[Buf::W(20)]);
    }
    host.give(PLAIN, &frame(1, 6000));
    host.give(PLAIN, &frame(2, 20));
    guest.notify(RX);
    // No time has passed after one step.
    guest.workers.as_mut().unwrap().step();
    assert_eq!(guest.drops(), (1, 0));
    assert_eq!(guest.queues[RX].take_used().len(), 2);
}

#[test]
fn packets_that_are_no_frames_or_too_long_are_dropped_and_counted() {
    let (mut guest, host) = guest(MRG_RXBUF);
    for len in [0, 1, 13, 65_554, 66_000, 100_000] {
        host.give(PLAIN, &frame(1, len));
    }
    host.state().incoming.push_back(vec![0; 5]);
    host.give(PLAIN, &frame(3, 60));
    let offered = guest.offer(RX, 60, 1526);
    let used = guest.used(RX, 1);
    assert_eq!(
        received(&guest, &offered, &used),
        packet(merged(PLAIN, 1), &frame(3, 60))
    );
    assert_eq!(guest.drops(), (7, 0));
}

#[test]
fn what_the_host_does_not_take_waits_in_order_and_nobody_asks_meanwhile() {
    let (mut guest, host) = guest(0);
    host.state().room = 2;
    for n in 0..5 {
        guest.put(TX, &[Buf::R(packet(PLAIN, &frame(n, 60)))]);
    }
    guest.notify(TX);
    assert_eq!(guest.used(TX, 2).len(), 2);
    guest.work();
    assert_eq!(guest.queues[TX].take_used(), []);
    host.state().room = 100;
    guest.used(TX, 3);
    let sent = host.take();
    for (n, sent) in (0..).zip(&sent) {
        assert_eq!(*sent, packet(PLAIN, &frame(n, 60)));
    }
    assert_eq!(sent.len(), 5);
}

#[test]
fn a_packet_that_the_host_refuses_is_dropped_and_the_link_stays_up() {
    let (mut guest, host) = guest(STATUS);
    host.state().refuses = true;
    guest.send(packet(PLAIN, &frame(1, 60)));
    guest.send(packet(PLAIN, &frame(2, 60)));
    assert_eq!(host.take(), [packet(PLAIN, &frame(2, 60))]);
    assert_eq!((guest.drops(), guest.link()), ((0, 1), 1));
}

#[test]
fn a_header_goes_both_ways_as_far_as_it_was_agreed_on() {
    let (mut guest, host) = guest(!feature::MQ);
    let tso = header(1, 1, [54, 1448, 34, 16]);
    let frame = frame(1, 5000);
    guest.send(packet(tso, &frame));
    assert_eq!(host.take(), [packet(tso, &frame)]);
    let offered = guest.offer(RX, 4, 1526);
    host.give(tso, &frame);
    guest.notify(RX);
    let used = guest.used(RX, 4);
    assert_eq!(
        received(&guest, &offered, &used),
        packet(merged(tso, 4), &frame)
    );
}

#[test]
fn the_host_gets_exactly_the_offloads_that_were_agreed_on() {
    for features in [
        0,
        feature::GUEST_CSUM,
        feature::GUEST_CSUM | feature::GUEST_TSO4,
        feature::GUEST_CSUM | feature::GUEST_TSO6 | feature::GUEST_ECN | feature::HOST_TSO4 | 1,
        feature::GUEST_CSUM | feature::GUEST_USO4 | feature::GUEST_USO6 | feature::GUEST_UFO,
    ] {
        let (mut guest, host) = guest(features);
        guest.work();
        let guest_bits = 0b111_1000_0010 | feature::GUEST_USO4 | feature::GUEST_USO6;
        assert_eq!(host.state().offloads, [features & guest_bits]);
    }
}

#[test]
fn the_configuration_space_says_what_there_is() {
    let workers = virtio_device_core::StepLoop::new().unwrap();
    for mtu in [0, 1, 67] {
        let device = Net::new(vec![Host::new()], MAC, workers.handle()).unwrap();
        device.with_mtu(mtu).unwrap_err();
    }
    for mac in [[0; 6], [1, 2, 3, 4, 5, 6], [0xff; 6]] {
        Net::new(vec![Host::new()], mac, workers.handle()).unwrap_err();
    }
    Net::<LoopHandle>::new::<Host>(vec![], MAC, workers.handle()).unwrap_err();
    let too_many = (0..33).map(|_| Host::new()).collect();
    Net::new(too_many, MAC, workers.handle()).unwrap_err();
    let device = Net::new(vec![Host::new(), Host::new()], MAC, workers.handle()).unwrap();
    let device = device.with_mtu(1500).unwrap().with_mtu(9000).unwrap();
    let mut guest = Guest::in_memory(support::memory(), device);
    assert_eq!(
        guest.config(0),
        [0x52, 0x54, 0, 1, 2, 3, 1, 0, 2, 0, 0x28, 0x23]
    );
    let wanted = MTU | MAC_BIT | STATUS | CTRL_VQ | MRG_RXBUF | feature::MQ | feature::HOST_USO;
    assert_eq!(guest.offered() & wanted, wanted);
}

#[test]
fn a_cable_that_is_pulled_out_loses_packets_and_one_that_is_plugged_in_gives_new_ones() {
    let (mut guest, host) = guest(STATUS | MRG_RXBUF);
    guest.offer(RX, 4, 1526);
    assert_eq!(guest.link(), 1);
    let before = guest.get(reg::CONFIG_GENERATION);
    guest.handle.set_cable(false);
    assert_eq!((guest.link(), guest.get(reg::INTERRUPT_STATUS) & 2), (0, 2));
    assert_ne!(
        guest.get(reg::CONFIG_GENERATION),
        before,
        "a new generation"
    );
    host.give(PLAIN, &frame(1, 60));
    guest.work();
    assert_eq!(guest.queues[RX].take_used(), []);
    assert!(host.state().incoming.is_empty());
    guest.send(packet(PLAIN, &frame(2, 60)));
    assert_eq!(host.take(), [[0; 0]; 0]);
    guest.handle.set_cable(true);
    assert_eq!(guest.link(), 1);
    host.give(PLAIN, &frame(3, 60));
    assert_eq!(guest.used(RX, 1)[0].1, 72);
    guest.send(packet(PLAIN, &frame(4, 60)));
    assert_eq!(host.take(), [packet(PLAIN, &frame(4, 60))]);
}

#[test]
fn a_packet_that_comes_while_the_cable_is_pulled_out_is_lost() {
    let (mut guest, host) = guest(STATUS | MRG_RXBUF);
    let offered = guest.offer(RX, 4, 1526);
    let handle = guest.handle.clone();
    host.state().meanwhile = Some(Box::new(move || handle.set_cable(false)));
    host.give(PLAIN, &frame(1, 60));
    guest.notify(RX);
    guest.work();
    assert_eq!((guest.link(), guest.queues[RX].take_used()), (0, vec![]));
    guest.handle.set_cable(true);
    host.give(PLAIN, &frame(2, 60));
    let used = guest.used(RX, 1);
    let bytes = received(&guest, &offered, &used);
    assert_eq!(bytes, packet(merged(PLAIN, 1), &frame(2, 60)));
}

#[test]
fn a_packet_that_waits_for_buffers_is_lost_with_the_cable() {
    let (mut guest, host) = guest(STATUS | MRG_RXBUF);
    let mut offered = guest.offer(RX, 1, 1000);
    host.give(PLAIN, &frame(1, 3000));
    guest.notify(RX);
    // A single step: a wait is over at the next.
    guest.workers.as_mut().unwrap().step();
    guest.handle.set_cable(false);
    guest.workers.as_mut().unwrap().step();
    assert!(host.state().incoming.is_empty());
    guest.handle.set_cable(true);
    host.give(PLAIN, &frame(2, 60));
    offered.extend(guest.offer(RX, 4, 1000));
    let used = guest.used(RX, 1);
    let bytes = received(&guest, &offered, &used);
    assert_eq!(bytes, packet(merged(PLAIN, 1), &frame(2, 60)));
    assert_eq!(guest.drops(), (0, 0));
}

#[test]
fn a_host_that_fails_takes_the_link_down_and_comes_back() {
    for errno in [5, 9, 14, 19, 32, 77, 104] {
        let (mut guest, host) = guest(STATUS | MRG_RXBUF);
        guest.offer(RX, 4, 1526);
        host.state().error = Some(errno);
        guest.notify(RX);
        guest.work();
        assert_eq!((guest.link(), guest.handle.is_up()), (0, false));
        assert_eq!(guest.status(), 15, "the device goes on");
        // The driver gets its buffers back, sent or not.
        guest.send(packet(PLAIN, &frame(1, 60)));
        assert_eq!(guest.drops(), (0, 1));
        host.state().error = None;
        support::wait("the link", || {
            guest.work();
            guest.link() == 1
        });
        assert!(host.state().reopened > 0);
        host.give(PLAIN, &frame(2, 60));
        assert_eq!(guest.used(RX, 1)[0].1, 72);
        guest.send(packet(PLAIN, &frame(3, 60)));
        assert_eq!(host.take(), [packet(PLAIN, &frame(3, 60))]);
    }
}

#[test]
fn a_host_that_lies_about_a_length_costs_a_packet() {
    for features in [0, MRG_RXBUF] {
        let (mut guest, host) = guest(features);
        for lie in [usize::MAX, usize::MAX - 72, 65_566, 1 << 32] {
            (1..3).for_each(|seed| host.give(PLAIN, &frame(seed, 60)));
            host.state().lies = Some(lie);
            let before = guest.drops();
            // Both packets come in one turn.
            guest.offer(RX, 2, 1526);
            assert_eq!(guest.used(RX, 1)[0].1, 72);
            assert_eq!(guest.drops(), (before.0 + 1, 0));
            assert_eq!(guest.queues[RX].take_used(), []);
            host.give(PLAIN, &frame(3, 60));
            guest.notify(RX);
            assert_eq!(guest.used(RX, 1)[0].1, 72);
        }
    }
}

#[test]
fn a_host_that_fails_while_sending_is_the_same() {
    let (mut guest, host) = guest(STATUS);
    host.state().error = Some(77);
    guest.send(packet(PLAIN, &frame(1, 60)));
    assert_eq!((guest.link(), guest.drops()), (0, (0, 1)));
    host.state().error = None;
    support::wait("the link", || {
        guest.work();
        guest.link() == 1
    });
}

#[test]
fn limits_hold_packets_back_in_each_direction_by_itself() {
    let host = Host::new();
    let workers = WorkerThread::named("net").unwrap();
    let device = Net::new(vec![host.clone()], MAC, workers).unwrap();
    let (receive, send) = (device.receive_limits(), device.send_limits());
    // One packet now, and the next one in a month.
    let slow = RateLimit::new(1, 3_000_000);
    let mut guest = Guest::in_memory(support::memory(), device);
    send.set(slow, None);
    send.charge(6_000_000);
    guest.start(MRG_RXBUF);
    guest.put(TX, &[Buf::R(packet(PLAIN, &frame(1, 60)))]);
    guest.notify(TX);
    host.give(PLAIN, &frame(2, 60));
    guest.offer(RX, 1, 1526);
    guest.used(RX, 1);
    assert_eq!(guest.queues[TX].take_used(), []);
    send.set(None, None);
    guest.used(TX, 1);
    receive.set(None, RateLimit::new(1, 1));
    // The next one in a quarter of an hour.
    (0..1000).for_each(|_| receive.charge(0));
    host.give(PLAIN, &frame(3, 60));
    guest.offer(RX, 1, 1526);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(guest.queues[RX].take_used(), []);
    receive.set(None, None);
    guest.used(RX, 1);
}

#[test]
fn a_packet_in_pieces_is_the_same_packet() {
    let (mut guest, host) = guest(MRG_RXBUF);
    let whole = packet(PLAIN, &frame(7, 300));
    for cuts in [[1, 2], [11, 12], [12, 13], [5, 26], [100, 250], [12, 26]] {
        let pieces = [
            &whole[..cuts[0]],
            &whole[cuts[0]..cuts[1]],
            &whole[cuts[1]..],
        ];
        let buffers = pieces.map(|piece| Buf::R(piece.to_vec()));
        assert_eq!(guest.ask(TX, &buffers).len, 0);
        assert_eq!(host.take(), [&whole[..]]);
        let room = [cuts[0], cuts[1] - cuts[0], 400].map(|len| Buf::W(u32::try_from(len).unwrap()));
        host.give(PLAIN, &frame(7, 300));
        let answer = guest.ask(RX, &room);
        assert_eq!(answer.len, 312);
        assert_eq!(
            answer.bytes[..312],
            packet(merged(PLAIN, 1), &frame(7, 300))
        );
    }
}

#[test]
fn no_packet_allocates() {
    let (mut guest, host) = guest(!feature::MQ);
    let mut go = |measure: bool| {
        for n in 0..64 {
            guest.put(TX, &[Buf::R(packet(PLAIN, &pattern(n, 500)))]);
            guest.put(RX, &[Buf::W(1526)]);
            host.give(PLAIN, &frame(n, 100 + 20 * usize::from(n)));
        }
        host.state().sent.reserve(64);
        guest.notify(TX);
        guest.notify(RX);
        let workers = guest.workers.as_mut().unwrap();
        let measured = allocation_counter::measure(|| {
            workers.step();
        });
        // The host of this test keeps a copy of each packet that is sent.
        assert!(!measure || measured.count_total == 64, "{measured:?}");
        guest.used(TX, 64);
        guest.used(RX, 64);
    };
    go(false);
    go(true);
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Packets that mean harm, and what becomes of each: a line of a table is one of them.
//!
//! Whatever it is, it comes back once, nothing of it reaches the host, all of guest memory but the used
//! ring and an answer is as it was, the device goes on, and a good packet is served afterwards.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test stops at the unexpected"
)]

mod support;

use support::{
    Buf, CONTROL, Guest, Host, MEMORY, PLAIN, RX, TX, feature, frame, header, packet, pattern,
};
use vm_memory::{Bytes, GuestAddress};

/// All features but several pairs.
const ALL: u64 = !feature::MQ;
const CSUM: u8 = 1;

fn guest(features: u64) -> (Guest, Host) {
    let host = Host::new();
    (Guest::new(host.clone(), features), host)
}

/// All of memory behind the rings.
fn image(guest: &Guest) -> Vec<u8> {
    let start = support::BUFFERS;
    let mut image = vec![0; (MEMORY - start) as usize];
    guest
        .memory
        .read_slice(&mut image, GuestAddress(start))
        .unwrap();
    image
}

/// A good packet each way.
fn goes_on(guest: &mut Guest, host: &Host, name: &str) {
    assert_eq!(guest.status(), 15, "{name}");
    let good = packet(PLAIN, &frame(3, 100));
    assert_eq!(guest.send(good.clone()), 0, "{name}");
    assert_eq!(host.take(), [good], "{name}");
    host.give(PLAIN, &frame(4, 100));
    let answer = guest.ask(RX, &[Buf::W(1526)]);
    assert_eq!(
        (answer.len, &answer.bytes[12..112]),
        (112, &frame(4, 100)[..]),
        "{name}"
    );
}

/// Headers of a frame of 100 bytes that must not reach the host, with the features agreed on.
fn headers() -> Vec<(String, [u8; 12], u64)> {
    let mut all = Vec::new();
    let mut case = |name: &str, header, features| all.push((name.to_owned(), header, features));
    // Checksums that lead out of the frame.
    for (start, offset) in [
        (99, 0),
        (98, 1),
        (0, 99),
        (100, 0),
        (97, 2),
        (50, 49),
        (0, 0xffff),
        (0xffff, 0),
        (0xffff, 0xffff),
        (0xfffe, 1),
        (0x8000, 0x8000),
        (101, 16),
        (14, 0xfff2),
        (0xfff0, 0x10),
    ] {
        case(
            &format!("sum at {start} + {offset}"),
            header(CSUM, 0, [0, 0, start, offset]),
            ALL,
        );
    }
    // Segments of no size, or with headers beyond the frame.
    for kind in [1, 3, 4, 5] {
        case(
            &format!("no size, type {kind}"),
            header(CSUM, kind, [54, 0, 34, 16]),
            ALL,
        );
        case(
            &format!("no sum, type {kind}"),
            header(0, kind, [54, 10, 34, 16]),
            ALL,
        );
        for len in [101, 200, 0x7fff, 0x8000, 0xffff] {
            let name = format!("header of {len}, type {kind}");
            case(&name, header(CSUM, kind, [len, 10, 34, 16]), ALL);
        }
        let name = format!("sum beyond, type {kind}");
        case(&name, header(CSUM, kind, [54, 10, 99, 16]), ALL);
    }
    // Types that do not exist.
    for kind in [
        2, 6, 7, 8, 16, 32, 64, 0x7f, 0x80, 0x82, 0x83, 0x85, 0x86, 0xff,
    ] {
        case(
            &format!("type {kind:#x}"),
            header(CSUM, kind, [54, 10, 34, 16]),
            ALL,
        );
    }
    // What was not agreed on.
    let csum = feature::CSUM;
    let without = [
        ("sum", 0, 0),
        (
            "TCP over IPv4",
            1,
            csum | feature::HOST_TSO6 | feature::HOST_UFO | feature::HOST_USO,
        ),
        (
            "TCP over IPv6",
            4,
            csum | feature::HOST_TSO4 | feature::HOST_UFO | feature::HOST_USO,
        ),
        (
            "fragments",
            3,
            csum | feature::HOST_TSO4 | feature::HOST_TSO6 | feature::HOST_USO,
        ),
        (
            "datagrams",
            5,
            csum | feature::HOST_TSO4 | feature::HOST_TSO6 | feature::HOST_UFO,
        ),
        (
            "ECN over IPv4",
            0x81,
            csum | feature::HOST_TSO4 | feature::HOST_TSO6,
        ),
        (
            "ECN over IPv6",
            0x84,
            csum | feature::HOST_TSO4 | feature::HOST_TSO6,
        ),
    ];
    for (what, kind, features) in without {
        let name = format!("{what} without the feature");
        case(&name, header(CSUM, kind, [54, 10, 34, 16]), features);
    }
    all
}

#[test]
fn headers_that_ask_for_too_much_do_not_reach_the_host() {
    let cases = headers();
    assert!(cases.len() > 60, "{}", cases.len());
    for (name, header, features) in cases {
        let (mut guest, host) = guest(features);
        let bytes = packet(header, &frame(1, 100));
        let offered = guest.put(TX, &[Buf::R(bytes)]);
        let before = image(&guest);
        guest.notify(TX);
        assert_eq!(guest.used(TX, 1), [(u32::from(offered.head), 0)], "{name}");
        assert_eq!(host.take(), [[0; 0]; 0], "{name}");
        assert_eq!(guest.drops(), (0, 1), "{name}");
        assert_eq!(guest.events.snapshot().bad_request, 1, "{name}");
        assert!(image(&guest) == before, "{name}");
        goes_on(&mut guest, &host, &name);
    }
}

#[test]
fn what_has_no_meaning_does_not_reach_the_host() {
    // Flags that a driver must not set, fields that mean nothing without a flag, numbers of buffers.
    for (dirty, clean) in [
        (header(2, 0, [0; 4]), PLAIN),
        (header(4, 0, [0; 4]), PLAIN),
        (header(0xfe, 0, [0xffff; 4]), PLAIN),
        (header(0, 0, [0xffff, 0xffff, 0xffff, 0xffff]), PLAIN),
        (
            header(0xff, 0, [7, 8, 34, 16]),
            header(1, 0, [0, 0, 34, 16]),
        ),
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff], PLAIN),
    ] {
        let (mut guest, host) = guest(ALL);
        guest.send(packet(dirty, &frame(1, 100)));
        assert_eq!(host.take(), [packet(clean, &frame(1, 100))]);
    }
}

/// Chains in the transmit queue that are no packets.
fn chains() -> Vec<(String, Vec<Buf>)> {
    let mut all = Vec::new();
    for len in [0, 1, 2, 9, 10, 11, 12, 13, 25, 65_566, 65_567, 100_000] {
        all.push((format!("{len} bytes"), vec![Buf::R(vec![0; len])]));
    }
    let good = packet(PLAIN, &frame(1, 100));
    let read = |bytes: &[u8]| Buf::R(bytes.to_vec());
    let mut case = |name: &str, buffers| all.push((name.to_owned(), buffers));
    case("only writable", vec![Buf::W(200)]);
    case("writable at the end", vec![read(&good), Buf::W(1)]);
    case("writable at the start", vec![Buf::W(12), read(&good)]);
    case(
        "writable between",
        vec![read(&good[..12]), Buf::W(4), read(&good[12..])],
    );
    case("empty and writable", vec![read(&good), Buf::At(0, 0, true)]);
    for (addr, len) in [
        (MEMORY, 100),
        (MEMORY - 50, 100),
        (u64::MAX - 50, 100),
        (u64::MAX, 1),
        (1 << 63, 60),
        (MEMORY - 1, u32::MAX),
        (0, u32::MAX),
        (u64::MAX - 20, u32::MAX),
        (1 << 40, 64),
    ] {
        let outside = Buf::At(addr, len, false);
        let name = format!("{len} bytes at {addr:#x}");
        case(
            &format!("{name} behind a header"),
            vec![read(&PLAIN), outside.clone()],
        );
        case(&name, vec![outside.clone()]);
        case(&format!("{name} after a frame"), vec![read(&good), outside]);
    }
    let huge = Buf::At(support::BUFFERS, 0x40_0000, false);
    case(
        "gigabytes of frame",
        [vec![read(&PLAIN)], vec![huge; 250]].concat(),
    );
    case("nothing at all", vec![Buf::At(0, 0, false); 5]);
    all
}

#[test]
fn chains_that_are_no_packets_do_not_reach_the_host() {
    let cases = chains();
    assert!(cases.len() > 40, "{}", cases.len());
    for (name, buffers) in cases {
        let (mut guest, host) = guest(ALL);
        let offered = guest.put(TX, &buffers);
        let before = image(&guest);
        guest.notify(TX);
        assert_eq!(guest.used(TX, 1), [(u32::from(offered.head), 0)], "{name}");
        assert_eq!(host.take(), [[0; 0]; 0], "{name}");
        assert!(image(&guest) == before, "{name}");
        goes_on(&mut guest, &host, &name);
    }
}

/// Chains in the receive queue that no packet can be put into.
fn rooms() -> Vec<(String, Vec<Buf>)> {
    let mut all = Vec::new();
    for len in [0, 1, 11] {
        all.push((format!("{len} bytes"), vec![Buf::W(len)]));
    }
    let mut case = |name: &str, buffers| all.push((name.to_owned(), buffers));
    case("only readable", vec![Buf::R(vec![0; 1526])]);
    case("readable first", vec![Buf::R(vec![0; 12]), Buf::W(1526)]);
    case("readable last", vec![Buf::W(1526), Buf::R(vec![0; 1])]);
    case("six and five", vec![Buf::W(6), Buf::W(5)]);
    for (addr, len) in [
        (MEMORY, 2000),
        (MEMORY - 1000, 2000),
        (u64::MAX - 50, 2000),
        (u64::MAX, 1),
        (1 << 63, 60),
        (MEMORY - 1, u32::MAX),
        (0, u32::MAX),
    ] {
        let outside = Buf::At(addr, len, true);
        case(&format!("{len} bytes at {addr:#x}"), vec![outside.clone()]);
        case(
            &format!("{len} bytes at {addr:#x}, after some"),
            vec![Buf::W(64), outside],
        );
    }
    all
}

#[test]
fn buffers_that_no_packet_fits_into_come_back_empty_and_the_packet_goes_into_the_next() {
    for features in [0, feature::MRG_RXBUF] {
        for (name, buffers) in rooms() {
            let (mut guest, host) = guest(features);
            host.give(PLAIN, &frame(1, 60));
            let bad = guest.put(RX, &buffers);
            let good = guest.put(RX, &[Buf::W(1526)]);
            guest.notify(RX);
            let used = guest.used(RX, 2);
            let heads = [(bad.head, 0), (good.head, 72)].map(|(head, len)| (u32::from(head), len));
            assert_eq!(used, heads, "{name}");
            assert_eq!(
                guest.answer(&good, 72).bytes[12..72],
                frame(1, 60),
                "{name}"
            );
            let untouched = guest.answer(&bad, 0).bytes;
            assert!(
                untouched.iter().all(|byte| *byte == support::CANARY),
                "{name}"
            );
            assert_eq!(guest.drops(), (0, 0), "{name}");
            goes_on(&mut guest, &host, &name);
        }
    }
}

#[test]
fn headers_of_the_hosts_that_were_not_agreed_on_do_not_reach_the_driver() {
    let agreed = feature::MRG_RXBUF | feature::GUEST_CSUM | feature::GUEST_TSO4;
    for (name, header, features) in [
        ("sum", header(1, 0, [0, 0, 34, 16]), feature::MRG_RXBUF),
        ("sum beyond", header(1, 0, [0, 0, 99, 16]), agreed),
        ("IPv6", header(1, 4, [54, 10, 34, 16]), agreed),
        ("fragments", header(1, 3, [54, 10, 34, 16]), agreed),
        ("datagrams", header(1, 5, [54, 10, 34, 16]), agreed),
        ("ECN", header(1, 0x81, [54, 10, 34, 16]), agreed),
        ("no size", header(1, 1, [54, 0, 34, 16]), agreed),
        ("unknown", header(1, 9, [54, 10, 34, 16]), agreed),
    ] {
        let (mut guest, host) = guest(features);
        host.give(header, &frame(1, 100));
        guest.offer(RX, 1, 1526);
        guest.work();
        assert_eq!(guest.queues[RX].take_used(), [], "{name}");
        assert_eq!(guest.drops(), (1, 0), "{name}");
        host.give(PLAIN, &frame(2, 60));
        assert_eq!(guest.used(RX, 1)[0].1, 72, "{name}");
    }
    // "The sum is right" is said only to those who asked.
    for (features, flags) in [(feature::MRG_RXBUF, 0), (agreed, 2)] {
        let (mut guest, host) = guest(features);
        host.give(header(2, 0, [0; 4]), &frame(1, 100));
        assert_eq!(guest.ask(RX, &[Buf::W(1526)]).bytes[0], flags);
    }
}

#[test]
fn a_header_that_changes_after_it_was_read_is_the_one_that_was_checked() {
    let (mut guest, host) = guest(feature::CSUM);
    host.state().room = 0;
    let bytes = packet(header(1, 0, [0, 0, 34, 16]), &pattern(1, 100));
    guest.put(TX, &[Buf::R(bytes)]);
    guest.notify(TX);
    guest.work();
    // The host had no room; the header leads out of the frame by the time that it has.
    let bad = header(1, 0, [0, 0, 0xffff, 16]);
    guest
        .memory
        .write_slice(&bad, GuestAddress(support::BUFFERS))
        .unwrap();
    host.state().room = 5;
    guest.used(TX, 1);
    assert_eq!(host.take(), [[0; 0]; 0]);
    assert_eq!(guest.drops(), (0, 1));
}

#[test]
fn a_broken_ring_ends_the_device_until_it_is_reset() {
    for queue in [RX, TX, CONTROL] {
        let (mut guest, host) = guest(ALL);
        host.give(PLAIN, &frame(1, 60));
        guest.queues[queue].offer(0xffff);
        guest.notify(queue);
        guest.work();
        assert_eq!(guest.status(), 15 | 64);
        assert_eq!(guest.events.snapshot().ring_fault, 1);
        guest.start(ALL);
        host.state().incoming.clear();
        goes_on(&mut guest, &host, "after a reset");
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Control commands that mean harm, and what becomes of each: a line of a table is one of them.
#![expect(clippy::indexing_slicing, reason = "a test stops at the unexpected")]

mod support;

use support::{
    Buf, CONTROL, ERR, Guest, Host, MEMORY, OK, OTHER, PLAIN, RX, feature, frame, packet,
};

/// All features but several pairs.
const ALL: u64 = !feature::MQ;

fn guest(features: u64) -> (Guest, Host) {
    let host = Host::new();
    (Guest::new(host.clone(), features), host)
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

fn macs(count: u32, present: usize) -> Vec<u8> {
    [&count.to_le_bytes()[..], &[2; 6].repeat(present)].concat()
}

/// Commands that make no sense: class, command, data.
fn commands() -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    let mut case = |class: u8, command: u8, data: &[u8]| {
        let name = format!("class {class}, command {command}, {} bytes", data.len());
        all.push((name, [&[class, command], data].concat()));
    };
    for mode in 0..6 {
        [&[][..], &[2], &[0xff], &[1, 0], &[0; 100]]
            .into_iter()
            .for_each(|data| case(0, mode, data));
    }
    [6, 7, 0x80, 0xff]
        .into_iter()
        .for_each(|command| case(0, command, &[1]));
    for data in [
        vec![],
        vec![0],
        vec![0; 4],
        vec![0; 7],
        vec![0; 9],
        macs(1, 0),
        macs(1, 1),
        macs(2, 1),
        [macs(1, 1), macs(1, 0)].concat(),
        [macs(0, 0), macs(2, 1)].concat(),
        [macs(1, 1), macs(0, 0), vec![0]].concat(),
        [macs(u32::MAX, 9), macs(0, 0)].concat(),
        macs(u32::MAX, 0),
        macs(0x2aaa_aaab, 3),
        [macs(65, 64), macs(0, 0)].concat(),
    ] {
        case(1, 0, &data);
    }
    for data in [
        &[][..],
        &[2, 0, 0, 0, 0],
        &[2, 0, 0, 0, 0, 0, 0],
        &[1, 0, 0, 0, 0, 0],
        &[0xff; 6],
    ] {
        case(1, 1, data);
    }
    for command in [0, 1] {
        for data in [
            &[][..],
            &[1],
            &[0, 0x10],
            &[0xff, 0xff],
            &[1, 0, 0],
            &[1, 0, 0, 0],
        ] {
            case(2, command, data);
        }
    }
    [
        (1, 2),
        (2, 2),
        (3, 1),
        (4, 1),
        (4, 2),
        (5, 1),
        (6, 0),
        (8, 0),
        (255, 0),
        (255, 255),
    ]
    .into_iter()
    .for_each(|(class, command)| case(class, command, &[0; 8]));
    [&[0][..], &[0; 8]]
        .into_iter()
        .for_each(|data| case(3, 0, data));
    // There is one pair.
    [
        &[][..],
        &[1],
        &[0, 0],
        &[2, 0],
        &[0, 0x80],
        &[0xff, 0xff],
        &[1, 0, 0],
    ]
    .into_iter()
    .for_each(|data| case(4, 0, data));
    let offloads = |bits: u64| bits.to_le_bytes();
    [
        &[][..],
        &[0; 7],
        &[0; 9],
        &offloads(1),
        &offloads(1 << 63),
        &offloads(u64::MAX),
    ]
    .into_iter()
    .for_each(|data| case(5, 0, data));
    // Segments without sums, and ECN without segments.
    [1 << 7, 1 << 8, 1 << 10, 1 << 54, 0b10 | 1 << 9]
        .into_iter()
        .for_each(|bits| case(5, 0, &offloads(bits)));
    all.push(("nothing".to_owned(), vec![]));
    all.push(("half a command".to_owned(), vec![0]));
    all
}

#[test]
fn commands_that_make_no_sense_fail_and_change_nothing() {
    let cases = commands();
    assert!(cases.len() > 90, "{}", cases.len());
    let (mut guest, host) = guest(ALL);
    let state = guest.saved();
    for (name, bytes) in cases {
        let queue = [Buf::R(bytes), Buf::W(1)];
        let answer = guest.ask(CONTROL, &queue);
        assert_eq!((answer.len, answer.bytes), (1, vec![ERR]), "{name}");
        assert_eq!(guest.saved(), state, "{name}");
    }
    assert_eq!(host.state().offloads.len(), 1, "set at the start alone");
    goes_on(&mut guest, &host, "after all");
}

#[test]
fn commands_without_a_place_for_the_answer_do_nothing() {
    let promiscuous_off = Buf::R(vec![0, 0, 0]);
    for (name, buffers) in [
        ("no place", vec![promiscuous_off.clone()]),
        ("an empty place", vec![promiscuous_off.clone(), Buf::W(0)]),
        (
            "a place outside",
            vec![promiscuous_off.clone(), Buf::At(MEMORY, 1, true)],
        ),
        (
            "a command outside",
            vec![Buf::At(MEMORY - 1, 3, false), Buf::W(1)],
        ),
        (
            "a command at the end",
            vec![Buf::At(u64::MAX - 1, 3, false), Buf::W(1)],
        ),
    ] {
        let (mut guest, host) = guest(ALL);
        let state = guest.saved();
        assert_eq!(guest.ask(CONTROL, &buffers).len, 0, "{name}");
        assert_eq!(guest.saved(), state, "{name}");
        goes_on(&mut guest, &host, name);
    }
    // More room than an answer needs is no error.
    let (mut guest, _) = guest(ALL);
    let answer = guest.ask(CONTROL, &[promiscuous_off, Buf::W(8)]);
    assert_eq!((answer.len, answer.bytes[0]), (1, OK));
}

#[test]
fn commands_that_were_not_agreed_on_fail() {
    let vq = feature::CTRL_VQ;
    for (bytes, feature) in [
        (vec![0, 0, 1], feature::CTRL_RX),
        (vec![0, 2, 1], feature::CTRL_RX | feature::CTRL_RX_EXTRA),
        (
            [vec![1, 0], macs(0, 0), macs(0, 0)].concat(),
            feature::CTRL_RX,
        ),
        ([&[1, 1][..], &OTHER].concat(), feature::CTRL_MAC),
        (vec![2, 0, 5, 0], feature::CTRL_VLAN),
        (vec![3, 0], feature::ANNOUNCE),
        ([&[5, 0][..], &[0; 8]].concat(), feature::GUEST_OFFLOADS),
    ] {
        let (mut without, _) = guest(vq);
        assert_eq!(without.command_on(CONTROL, bytes.clone()), ERR, "{bytes:?}");
        let (mut with, _) = guest(vq | feature);
        assert_eq!(with.command_on(CONTROL, bytes.clone()), OK, "{bytes:?}");
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A console that is saved, and goes on in another machine.
#![cfg(not(miri))] // Miri has no level-triggered epoll.

mod support;

use support::{Guest, Memory, TX, available, pattern, socket};
use virtio_device_core::{DeviceState, Features, VirtioDevice};

#[test]
fn half_a_chain_is_sent_before_and_the_other_half_after_a_move() {
    let (port, mut host, device) = socket();
    let mut guest = Guest::new(vec![port], Features::NONE).start();
    let offered = guest.fill(TX);
    let mut got = available(&mut host, 10_000);
    guest.settle();
    guest.pause();
    let saved = guest.save();
    let mut guest = guest.move_to(vec![support::port(&device)], &saved);
    guest.settle();
    guest.resume();
    guest.until("output", |guest| {
        got.extend(available(&mut host, 3000));
        guest.queues[TX].take();
        got.len() == offered
    });
    assert_eq!(got, pattern(0, offered));
}

#[test]
fn a_saved_state_that_makes_no_sense_is_refused() {
    let (port, ..) = socket();
    let mut guest = Guest::new(vec![port], Features::NONE);
    let console: &mut dyn VirtioDevice<Memory> = &mut guest.device;
    let good = console.save();
    let bytes = good.data(1).unwrap().to_vec();
    let refused = |console: &mut dyn VirtioDevice<Memory>, version, bytes: &[u8]| {
        let state = DeviceState::new(version, bytes.to_vec()).unwrap();
        assert!(console.restore(&state).is_err(), "{bytes:?}");
        assert_eq!(console.save(), good);
    };
    refused(console, 2, &bytes);
    refused(console, 1, &[]);
    refused(console, 1, &bytes[1..]);
    refused(console, 1, &bytes.repeat(2));
    for (place, value) in [(4, 128), (4, 8 | 2), (4, 0xff), (5, 64), (5, 0xff)] {
        let mut wrong = bytes.clone();
        wrong[place] = value;
        refused(console, 1, &wrong);
    }
    // Bytes that are nearly right, or not at all, are refused or taken as a whole.
    let mut random = 1_u64;
    for _ in 0..if cfg!(miri) { 50 } else { 5_000 } {
        let mut next = || {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (random >> 33) as usize
        };
        let mut wrong = bytes.clone();
        wrong.resize(next() % (2 * bytes.len()), 0xa5);
        for _ in 0..next() % 4 {
            let (place, value) = (next(), next().to_le_bytes()[0]);
            let len = wrong.len().max(1);
            wrong
                .get_mut(place % len)
                .into_iter()
                .for_each(|byte| *byte = value);
        }
        let before = console.save();
        match console.restore(&DeviceState::new(1, wrong.clone()).unwrap()) {
            Ok(()) => {
                // The host's side is another one now, and a driver that is ready hears of that.
                if wrong[4] & 4 == 0 {
                    wrong[5] |= 32 * (wrong[4] & 1);
                    wrong[4] |= 4;
                }
                assert_eq!(console.save().data(1).unwrap(), wrong);
            }
            Err(_) => assert_eq!(console.save(), before, "{wrong:?}"),
        }
    }
    console.restore(&good).unwrap();
}

#[test]
fn saved_messages_that_no_driver_is_owed_are_refused() {
    let (port, ..) = socket();
    let mut guest = Guest::new(vec![port], Features::NONE);
    let console: &mut dyn VirtioDevice<Memory> = &mut guest.device;
    let good = console.save();
    // A port that is not there is announced; one that is not set up is a console, named, sized, open.
    for (flags, news) in [(8 | 16, 2), (16 | 32, 4), (16 | 32, 8), (32, 16), (0, 32)] {
        let mut wrong = good.data(1).unwrap().to_vec();
        wrong[4] = flags | 4;
        wrong[5] = news;
        let state = DeviceState::new(1, wrong).unwrap();
        console.restore(&state).unwrap_err();
        assert_eq!(console.save(), good);
    }
}

#[test]
fn a_restored_count_beyond_the_chain_ends_the_chain_and_no_other() {
    let (port, mut host, device) = socket();
    let mut guest = Guest::new(vec![port], Features::NONE).start();
    guest.pause();
    guest.say(TX, b"a chain");
    let mut saved = guest.save();
    let mut bytes = saved.state.data(1).unwrap().to_vec();
    bytes[6..].fill(0xff);
    saved.state = DeviceState::new(1, bytes).unwrap();
    let mut guest = guest.move_to(vec![support::port(&device)], &saved);
    guest.resume();
    guest.until("output", |guest| guest.queues[TX].ring.used_index() == 1);
    guest.say(TX, b"the next");
    guest.until("output", |guest| guest.queues[TX].ring.used_index() == 2);
    assert_eq!(available(&mut host, 100), b"the next");
}

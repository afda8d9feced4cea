// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Both byte streams are kept exactly, in whatever order guest, host and VMM do what they do.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at the unexpected"
)]
#![cfg(not(miri))] // Miri has no level-triggered epoll.

mod support;

use std::io::Write;
use std::os::unix::net::UnixStream;

use proptest::collection::vec;
use proptest::prelude::*;
use support::{Guest, RX, TX, available, pattern, port, socket};
use virtio_device_core::Features;

#[derive(Clone, Debug)]
enum Step {
    HostWrites(usize),
    HostReads(usize),
    GuestOffersRoom(Vec<usize>),
    GuestWrites(Vec<usize>),
    GuestTakes,
    DeviceWorks(usize),
    Pause,
    Resume,
    Move,
    ResetReceiveQueue,
    ResetTransmitQueue,
    ResetDevice,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lens = || vec(1..4096_usize, 1..4);
    let step = prop_oneof![
        3 => (1..6000_usize).prop_map(Step::HostWrites),
        3 => (1..9000_usize).prop_map(Step::HostReads),
        4 => lens().prop_map(Step::GuestOffersRoom),
        4 => lens().prop_map(Step::GuestWrites),
        3 => Just(Step::GuestTakes),
        6 => (1..4_usize).prop_map(Step::DeviceWorks),
        1 => Just(Step::Pause),
        2 => Just(Step::Resume),
        1 => Just(Step::Move),
        1 => Just(Step::ResetReceiveQueue),
        1 => Just(Step::ResetTransmitQueue),
        1 => Just(Step::ResetDevice),
    ];
    vec(step, 1..120)
}

struct Machine {
    guest: Guest,
    host: UnixStream,
    device: UnixStream,
    /// Bytes that the host has written, and that the guest has read.
    written: usize,
    read: Vec<u8>,
    /// Bytes that the guest has written, and that the host has read.
    said: Vec<u8>,
    heard: Vec<u8>,
    /// How many of `said` the device has given back.
    completed: usize,
    paused: bool,
}

impl Machine {
    fn new() -> Self {
        let (port, host, device) = socket();
        Self {
            guest: Guest::new(vec![port], Features::QUEUE).start(),
            host,
            device,
            written: 0,
            read: Vec::new(),
            said: Vec::new(),
            heard: Vec::new(),
            completed: 0,
            paused: false,
        }
    }

    fn take(&mut self) {
        self.read.extend(self.guest.read(RX));
        let back = self.guest.queues[TX].take();
        self.completed += back.iter().map(|chain| chain.1).sum::<usize>();
    }

    /// What was offered and not completed when the queue was taken back is lost, but for what the
    /// host has of the first chain of it.
    fn lose_output(&mut self) {
        self.take();
        let first = self.guest.queues[TX].offered.front();
        let first = first.map_or(0, |chain| chain.iter().map(|part| part.1).sum());
        self.heard.extend(available(&mut self.host, usize::MAX));
        let part = self.heard.len() - self.completed;
        assert!(part <= first, "{part} bytes of a chain of {first}");
        self.said.truncate(self.heard.len());
        self.completed = self.heard.len();
    }

    fn step(mut self, step: &Step) -> Self {
        match step {
            &Step::HostWrites(len) => {
                let written = self.host.write(&pattern(self.written, len));
                self.written += written.unwrap_or(0);
            }
            &Step::HostReads(len) => self.heard.extend(available(&mut self.host, len)),
            Step::GuestOffersRoom(lens) => {
                self.guest.queues[RX].offer_room(lens);
                self.guest.kick(RX);
            }
            Step::GuestWrites(lens) => {
                let bytes = pattern(self.said.len(), lens.iter().sum());
                let mut rest = &bytes[..];
                let mut pieces = Vec::new();
                for &len in lens {
                    let (piece, later) = rest.split_at(len);
                    pieces.push(piece);
                    rest = later;
                }
                if self.guest.queues[TX].offer_bytes(&pieces) {
                    self.said.extend(&bytes);
                }
                self.guest.kick(TX);
            }
            Step::GuestTakes => self.take(),
            &Step::DeviceWorks(rounds) => {
                (0..rounds).for_each(|_| self.guest.workers.dispatch().unwrap());
            }
            Step::Pause => {
                self.guest.pause();
                self.paused = true;
            }
            Step::Resume => {
                self.guest.resume();
                self.paused = false;
            }
            Step::Move => {
                self.guest.pause();
                let saved = self.guest.save();
                self.guest = self.guest.move_to(vec![port(&self.device)], &saved);
                self.paused = true;
            }
            Step::ResetReceiveQueue => {
                self.guest.stop_queue(RX);
                self.take();
                self.guest.restart_queue(RX);
            }
            Step::ResetTransmitQueue => {
                self.guest.stop_queue(TX);
                self.lose_output();
                self.guest.restart_queue(TX);
            }
            Step::ResetDevice => {
                self.guest.session().revoke();
                self.lose_output();
                self.guest.restart();
            }
        }
        assert_eq!(self.read, pattern(0, self.read.len()));
        assert!(self.read.len() <= self.written);
        assert!(self.said.starts_with(&self.heard));
        self
    }

    /// Lets all come to its end.
    fn finish(mut self) {
        if self.paused {
            self.guest.resume();
        }
        let Self {
            guest,
            host,
            written,
            read,
            said,
            heard,
            ..
        } = &mut self;
        guest.until("the rest", |guest| {
            guest.queues[RX].offer_room(&[4000]);
            guest.kick(RX);
            read.extend(guest.read(RX));
            guest.queues[TX].take();
            heard.extend(available(host, usize::MAX));
            read.len() == *written && heard.len() == said.len()
        });
        assert_eq!(*read, pattern(0, *written));
        assert_eq!(heard, said);
        guest.settle();
        guest.queues[TX].take();
        assert!(guest.queues[TX].offered.is_empty());
        assert!(available(host, 1).is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_byte_is_lost_or_doubled(steps in steps()) {
        let machine = steps.iter().fold(Machine::new(), Machine::step);
        machine.finish();
    }
}

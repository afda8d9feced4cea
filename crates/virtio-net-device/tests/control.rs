// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The control queue: who gets which packet, offloads, pairs, announcements; and what is saved.
#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test stops at the unexpected"
)]

mod support;

use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use support::{Buf, ERR, Guest, Host, MAC, OK, OTHER, PLAIN, RX, TX, feature, frame, packet};
use virtio_conformance::reg;
use virtio_device_core::{DeviceState, StepLoop, VirtioDevice, WorkerThread, edge_line};
use virtio_net_device::Net;

const ALL: u64 = !feature::MQ;
/// What packets to the driver may need.
const OFFLOADS: u64 = feature::GUEST_CSUM
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::GUEST_ECN
    | feature::GUEST_UFO
    | feature::GUEST_USO4
    | feature::GUEST_USO6;

fn guest(features: u64) -> (Guest, Host) {
    let host = Host::new();
    (Guest::new(host.clone(), features), host)
}

/// Whether a frame to this address, in this VLAN if any, reaches the driver.
fn passes(guest: &mut Guest, host: &Host, to: [u8; 6], vlan: Option<u16>) -> bool {
    let mut bytes = frame(1, 64);
    bytes[..6].copy_from_slice(&to);
    if let Some(id) = vlan {
        bytes[12..14].copy_from_slice(&[0x81, 0]);
        // A priority is no part of the number.
        bytes[14..16].copy_from_slice(&(id | 0xe000).to_be_bytes());
    }
    host.give(PLAIN, &bytes);
    guest.put(RX, &[Buf::W(1526)]);
    guest.notify(RX);
    guest.work();
    let passed = !guest.queues[RX].take_used().is_empty();
    host.state().incoming.clear();
    passed
}

fn table(unicast: &[[u8; 6]], multicast: &[[u8; 6]]) -> Vec<u8> {
    let list = |macs: &[[u8; 6]]| {
        let count = u32::try_from(macs.len()).unwrap().to_le_bytes();
        [&count[..], macs.as_flattened()].concat()
    };
    [list(unicast), list(multicast)].concat()
}

const GROUP: [u8; 6] = [1, 0, 0x5e, 1, 2, 3];
const ALL_STATIONS: [u8; 6] = [0xff; 6];

#[test]
fn everything_passes_until_the_driver_says_otherwise() {
    for features in [0, ALL] {
        let (mut guest, host) = guest(features);
        for to in [MAC, OTHER, GROUP, ALL_STATIONS] {
            assert!(passes(&mut guest, &host, to, None));
            assert!(passes(&mut guest, &host, to, Some(7)));
        }
    }
}

#[test]
fn a_driver_that_is_not_promiscuous_gets_what_it_has_asked_for() {
    let (mut guest, host) = guest(ALL);
    assert_eq!(guest.command(0, 0, &[0]), OK);
    let check = |guest: &mut Guest, expected: [bool; 5]| {
        let listed = [0x52, 0x54, 0, 9, 9, 9];
        let got =
            [MAC, OTHER, GROUP, ALL_STATIONS, listed].map(|to| passes(guest, &host, to, None));
        assert_eq!(got, expected);
    };
    check(&mut guest, [true, false, false, true, false]);
    assert_eq!(guest.command(0, 1, &[1]), OK); // all groups
    check(&mut guest, [true, false, true, true, false]);
    assert_eq!(guest.command(0, 3, &[1]), OK); // no groups
    check(&mut guest, [true, false, false, true, false]);
    assert_eq!(guest.command(0, 1, &[0]), OK);
    assert_eq!(guest.command(0, 3, &[0]), OK);
    assert_eq!(guest.command(0, 2, &[1]), OK); // all stations
    check(&mut guest, [true, true, false, true, true]);
    assert_eq!(guest.command(0, 4, &[1]), OK); // no stations
    check(&mut guest, [false, false, false, true, false]);
    assert_eq!(guest.command(0, 4, &[0]), OK);
    assert_eq!(guest.command(0, 2, &[0]), OK);
    assert_eq!(guest.command(0, 5, &[1]), OK); // no broadcasts
    check(&mut guest, [true, false, false, false, false]);
    assert_eq!(guest.command(0, 5, &[0]), OK);
    let listed = table(&[[0x52, 0x54, 0, 9, 9, 9]], &[GROUP]);
    assert_eq!(guest.command(1, 0, &listed), OK);
    check(&mut guest, [true, false, true, true, true]);
    // As many as are kept, and more.
    let many = |count: u8| (0..count).map(|n| [2, n, 0, 0, 0, 0]).collect::<Vec<_>>();
    assert_eq!(guest.command(1, 0, &table(&many(64), &[])), OK);
    check(&mut guest, [true, false, false, true, false]);
    assert_eq!(guest.command(1, 0, &table(&many(65), &many(200))), OK);
    check(&mut guest, [true, true, true, true, true]);
    assert_eq!(guest.command(1, 0, &table(&[], &[])), OK);
    check(&mut guest, [true, false, false, true, false]);
    assert_eq!(guest.command(0, 0, &[1]), OK);
    check(&mut guest, [true; 5]);
}

#[test]
fn only_vlans_that_were_added_pass() {
    let (mut guest, host) = guest(ALL);
    guest.command(0, 0, &[0]);
    let check = |guest: &mut Guest, id| passes(guest, &host, MAC, Some(id));
    assert!(!check(&mut guest, 0) && passes(&mut guest, &host, MAC, None));
    for id in [0_u16, 1, 63, 64, 4095] {
        assert!(!check(&mut guest, id));
        assert_eq!(guest.command(2, 0, &id.to_le_bytes()), OK);
        assert!(check(&mut guest, id) && !check(&mut guest, id ^ 0x100));
        assert_eq!(guest.command(2, 1, &id.to_le_bytes()), OK);
        assert!(!check(&mut guest, id));
    }
}

#[test]
fn a_driver_may_have_another_address_until_it_is_reset() {
    let (mut guest, host) = guest(ALL);
    assert_eq!(guest.command(1, 1, &OTHER), OK);
    assert_eq!(guest.config(0), OTHER);
    guest.command(0, 0, &[0]);
    assert!(passes(&mut guest, &host, OTHER, None) && !passes(&mut guest, &host, MAC, None));
    guest.start(ALL);
    assert_eq!(guest.config(0), MAC);
    assert!(passes(&mut guest, &host, OTHER, None) && passes(&mut guest, &host, MAC, None));
}

#[test]
fn offloads_change_at_run_time_and_not_beyond_what_was_agreed_on() {
    let features = feature::CTRL_VQ | feature::GUEST_OFFLOADS | feature::GUEST_CSUM | 1 << 7;
    let (mut guest, host) = guest(features);
    let set = |guest: &mut Guest, bits: u64| guest.command(5, 0, &bits.to_le_bytes());
    assert_eq!(set(&mut guest, 0), OK);
    assert_eq!(set(&mut guest, 0b10), OK);
    assert_eq!(set(&mut guest, 0b1_0000_0010), ERR);
    assert_eq!(set(&mut guest, 0b1000_0010), OK);
    assert_eq!(host.state().offloads, [0x82, 0, 0b10, 0x82]);
    assert_eq!(set(&mut guest, 0), OK);
    // A packet that was under way already is dropped.
    host.give(support::header(1, 0, [0, 0, 34, 16]), &frame(1, 100));
    guest.offer(RX, 1, 1526);
    assert_eq!(guest.drops(), (1, 0));
    // A host that cannot is an error, and the driver keeps what it had.
    host.state().stubborn = true;
    assert_eq!(set(&mut guest, 0b10), ERR);
}

#[test]
fn a_packet_that_waits_for_room_needs_no_more_than_the_driver_wants_by_then() {
    let host = Host::new();
    let mut guest = Guest::new(host.clone(), ALL);
    host.give(support::header(1, 1, [54, 1000, 34, 16]), &frame(1, 3000));
    guest.offer(RX, 1, 1526);
    assert_eq!(guest.queues[RX].take_used(), []);
    assert_eq!(guest.command(5, 0, &[0; 8]), OK);
    guest.offer(RX, 2, 1526);
    assert_eq!(
        (guest.queues[RX].take_used(), guest.drops()),
        (vec![], (1, 0))
    );
    host.give(PLAIN, &frame(2, 60));
    guest.notify(RX);
    assert_eq!(guest.used(RX, 1)[0].1, 72);
}

fn pairs(count: usize) -> (Guest, Vec<Host>) {
    let hosts: Vec<_> = (0..count).map(|_| Host::new()).collect();
    let mut guest = Guest::idle(hosts.clone());
    guest.start(u64::MAX);
    guest.work();
    (guest, hosts)
}

#[test]
fn pairs_of_queues_are_used_as_far_as_the_driver_says() {
    let (mut guest, hosts) = pairs(3);
    let active = || {
        hosts
            .iter()
            .map(|host| host.state().active)
            .collect::<Vec<_>>()
    };
    assert_eq!(active(), [true, false, false]);
    for (pair, host) in hosts.iter().enumerate() {
        host.give(PLAIN, &frame(1, 60));
        guest.offer(2 * pair, 1, 1526);
        guest.ask(2 * pair + 1, &[Buf::R(packet(PLAIN, &frame(2, 60)))]);
        assert_eq!(host.take().len(), 1);
        assert_eq!(
            guest.queues[2 * pair].take_used().len(),
            usize::from(pair == 0)
        );
    }
    assert_eq!(guest.command(4, 0, &[2, 0]), OK);
    assert_eq!(active(), [true, true, false]);
    assert_eq!(guest.used(2, 1)[0].1, 72);
    assert_eq!(guest.command(4, 0, &[4, 0]), ERR);
    assert_eq!(guest.command(4, 0, &[3, 0]), OK);
    assert_eq!(guest.used(4, 1)[0].1, 72);
    assert_eq!(guest.command(4, 0, &[1, 0]), OK);
    assert_eq!(active(), [true, false, false]);
}

#[test]
fn pairs_that_a_host_refuses_leave_all_as_they_were() {
    let (mut guest, hosts) = pairs(3);
    let active = |pair: usize| hosts[pair].state().active;
    hosts[2].state().idle = true;
    assert_eq!(guest.command(4, 0, &[3, 0]), ERR);
    assert_eq!([active(0), active(1), active(2)], [true, false, false]);
    hosts[1].give(PLAIN, &frame(1, 60));
    guest.offer(2, 1, 1526);
    assert_eq!(guest.queues[2].take_used(), []);
    hosts[2].state().idle = false;
    assert_eq!(guest.command(4, 0, &[3, 0]), OK);
    assert_eq!(guest.used(2, 1)[0].1, 72);
    hosts[1].state().idle = true;
    assert_eq!(guest.command(4, 0, &[1, 0]), ERR);
    assert!(active(0) && active(1) && active(2));
}

#[test]
fn a_pair_that_stays_in_use_because_a_host_refuses_goes_on() {
    let hosts = [Host::new(), Host::new()];
    let threads = ["first", "second"].map(|name| WorkerThread::named(name).unwrap());
    let device = Net::new(hosts.to_vec(), MAC, Vec::from(threads)).unwrap();
    let mut guest = Guest::in_memory(support::memory(), device);
    guest.start(u64::MAX);
    assert_eq!(guest.command(4, 0, &[2, 0]), OK);
    guest.offer(2, 1, 1526);
    support::wait("a look", || hosts[1].state().asked != 0);
    // The second worker looks before its host has refused, and once more when that is over.
    let second = hosts[1].clone();
    hosts[1].state().idle = true;
    hosts[0].state().joins = Some(Box::new(move || {
        thread::sleep(Duration::from_millis(50));
        second.give(PLAIN, &frame(1, 60));
    }));
    assert_eq!(guest.command(4, 0, &[1, 0]), ERR);
    assert_eq!(guest.used(2, 1)[0].1, 72);
}

#[test]
fn a_packet_that_waits_for_room_is_not_kept_for_the_next_use_of_its_pair() {
    let (mut guest, hosts) = pairs(2);
    assert_eq!(guest.command(4, 0, &[2, 0]), OK);
    hosts[1].give(PLAIN, &frame(1, 3000));
    guest.offer(2, 1, 1526);
    assert_eq!(guest.queues[2].take_used(), []);
    assert_eq!(guest.command(4, 0, &[1, 0]), OK);
    assert_eq!(guest.command(4, 0, &[2, 0]), OK);
    guest.offer(2, 1, 1526);
    assert_eq!(guest.queues[2].take_used(), []);
    hosts[1].give(PLAIN, &frame(2, 60));
    guest.notify(2);
    assert_eq!(guest.used(2, 1)[0].1, 72);
}

#[test]
fn a_host_that_is_not_used_takes_no_link_down() {
    for features in [ALL, u64::MAX] {
        let hosts = [Host::new(), Host::new()];
        hosts[1].state().idle = true;
        let mut guest = Guest::idle(hosts.to_vec());
        guest.start(features);
        hosts[0].give(PLAIN, &frame(1, 60));
        guest.offer(RX, 1, 1526);
        assert_eq!(guest.queues[RX].take_used(), [(0, 72)]);
        assert_eq!((guest.link() & 1, hosts[0].state().reopened), (1, 0));
    }
}

#[test]
fn a_command_that_takes_the_link_up_or_down_says_so() {
    let (mut guest, hosts) = pairs(2);
    assert_eq!(guest.command(4, 0, &[2, 0]), OK);
    hosts[1].state().error = Some(77);
    guest.offer(2, 1, 1526);
    let mut news = |pairs: u8| {
        let before = guest.get(reg::CONFIG_GENERATION);
        guest.set(reg::INTERRUPT_ACK, 3);
        assert_eq!(guest.command(4, 0, &[pairs, 0]), OK);
        let is_new = guest.get(reg::CONFIG_GENERATION) != before;
        assert_eq!(guest.get(reg::INTERRUPT_STATUS) & 2 != 0, is_new);
        (guest.link() & 1, is_new)
    };
    assert_eq!(news(1), (1, true));
    assert_eq!(news(1), (1, false));
    assert_eq!(news(2), (0, true));
}

#[test]
fn a_pair_that_comes_back_during_a_command_does_as_it_says() {
    let hosts = [Host::new(), Host::new()];
    let threads = ["first", "second"].map(|name| WorkerThread::named(name).unwrap());
    let device = Net::new(hosts.to_vec(), MAC, Vec::from(threads)).unwrap();
    // The second worker finds its host again, and stops on its way while it tells the driver so.
    let (stops, stopped) = mpsc::channel::<()>();
    let (goes_on, going_on) = mpsc::channel::<()>();
    let returns = Mutex::new(Some((stops, going_on)));
    let second = hosts[1].clone();
    let line = edge_line(move || {
        if second.state().reopened > 1 && thread::current().name() == Some("second") {
            if let Some((stops, going_on)) = returns.lock().unwrap().take() {
                stops.send(()).unwrap();
                going_on.recv().unwrap();
            }
        }
        Ok(())
    });
    let mut guest = Guest::with_line(support::memory(), device, line);
    hosts[1].state().error = Some(77);
    guest.start(u64::MAX);
    assert_eq!(guest.command(4, 0, &[2, 0]), OK);
    guest.offer(2, 1, 1526);
    support::wait("a failure", || hosts[1].state().reopened == 1);
    assert_eq!(guest.command(4, 0, &[1, 0]), OK);
    hosts[1].state().error = None;
    stopped.recv().unwrap();
    // It goes on when the command has got to its host, and has time to be too early.
    hosts[1].state().joins = Some(Box::new(move || {
        goes_on.send(()).unwrap();
        thread::sleep(Duration::from_millis(50));
    }));
    assert_eq!(guest.command(4, 0, &[2, 0]), OK);
    hosts[1].give(PLAIN, &frame(1, 60));
    guest.notify(2);
    assert_eq!(guest.used(2, 1)[0].1, 72);
    assert!(hosts[1].state().active);
}

#[test]
fn without_several_pairs_the_control_queue_is_the_third() {
    let mut guest = Guest::idle(vec![Host::new(), Host::new()]);
    guest.start(ALL);
    assert_eq!(guest.queues.len(), 5);
    assert_eq!(guest.command_on(2, vec![0, 0, 0]), OK);
}

#[test]
fn the_driver_is_asked_to_announce_itself_until_it_has_done_so() {
    let (mut guest, _) = guest(ALL);
    guest.handle.announce();
    assert_eq!((guest.link(), guest.get(reg::INTERRUPT_STATUS) & 2), (3, 2));
    assert_eq!(guest.command(3, 0, &[]), OK);
    assert_eq!(guest.link(), 1);
}

#[test]
fn a_driver_that_has_not_agreed_to_announce_itself_is_not_asked() {
    let (mut guest, _) = guest(ALL & !feature::ANNOUNCE);
    guest.handle.announce();
    assert_eq!((guest.link(), guest.get(reg::INTERRUPT_STATUS) & 2), (1, 0));
}

#[test]
fn what_the_driver_has_set_goes_with_it() {
    let (mut here, mut hosts) = pairs(2);
    here.command(0, 0, &[0]);
    here.command(0, 1, &[1]);
    here.command(1, 1, &OTHER);
    here.command(1, 0, &table(&[[2; 6]], &[GROUP, [3; 6]]));
    here.command(2, 0, &[7, 0]);
    here.command(4, 0, &[2, 0]);
    here.command(5, 0, &2_u64.to_le_bytes());
    hosts[0].give(PLAIN, &[&OTHER[..], &[0; 60]].concat());
    here.put(TX, &[Buf::R(packet(PLAIN, &frame(2, 60)))]);
    here.put(RX, &[Buf::W(1526)]);
    here.put(2, &[Buf::W(1526)]);
    here.transport().pause().unwrap();
    here.notify(TX);
    here.notify(RX);
    let state = here.transport().save().unwrap();
    let there = (0..2).map(|_| Host::new()).collect::<Vec<_>>();
    let mut guest = Guest::idle(there.clone());
    let workers = guest.workers.take();
    let device = Net::new(there.clone(), MAC, workers.as_ref().unwrap().handle()).unwrap();
    let mut guest = Guest::in_memory(here.memory.clone(), device);
    guest.workers = workers;
    guest.restore(&mut here, &state);
    guest.used(TX, 1);
    assert_eq!(
        there[0].take().len() + hosts[0].take().len(),
        1,
        "sent once"
    );
    hosts.clear();
    assert_eq!((guest.config(0), guest.link()), (OTHER, 3));
    assert_eq!(there[0].state().offloads, [2]);
    assert!(there.iter().all(|host| host.state().active));
    there[0].give(PLAIN, &[&MAC[..], &[0; 60]].concat());
    there[1].give(PLAIN, &[&OTHER[..], &[0; 60]].concat());
    guest.notify(RX);
    guest.notify(2);
    assert_eq!(guest.used(2, 1)[0].1, 78);
    assert_eq!(guest.queues[RX].take_used(), []);
    assert_eq!(guest.saved(), state.device);
}

#[test]
fn a_state_that_no_device_saves_is_refused() {
    type M = support::Memory;
    let workers = StepLoop::new().unwrap();
    let mut device = Net::new(vec![Host::new(), Host::new()], MAC, workers.handle()).unwrap();
    let save = |device: &Net<_>| VirtioDevice::<M>::save(device);
    let good = save(&device);
    let data = good.data(1).unwrap().to_vec();
    assert_eq!(data.len(), 17 + 512 + 2);
    let with = |at: usize, byte: u8| {
        let mut data = data.clone();
        data[at] = byte;
        (1, data)
    };
    let mut wrong = vec![(0, data.clone()), (2, data.clone()), (1, vec![])];
    wrong.extend((0..data.len()).map(|len| (1, data[..len].to_vec())));
    wrong.push((1, [&data[..], &[0]].concat()));
    wrong.extend([with(0, 1), with(7, 0), with(7, 3), with(8, 1)]);
    wrong.extend([
        with(6, 0x41),
        with(6, 0x81),
        with(529, 1),
        with(530, 1),
        with(529, 65),
        with(530, 254),
    ]);
    for (version, data) in wrong {
        let state = DeviceState::new(version, data).unwrap();
        VirtioDevice::<M>::restore(&mut device, &state).unwrap_err();
        assert_eq!(save(&device), good, "nothing has changed");
    }
}

#[test]
fn a_state_asks_for_no_more_than_was_agreed_on() {
    let (mut here, _hosts) = pairs(2);
    assert_eq!(here.command(4, 0, &[2, 0]), OK);
    let greedy = here.saved();
    let hosts = vec![Host::new(), Host::new()];
    for agreed in [
        0,
        feature::GUEST_CSUM,
        feature::GUEST_CSUM | feature::GUEST_TSO6,
    ] {
        let mut plain = Guest::idle(hosts.clone());
        plain.start(ALL & !OFFLOADS | agreed);
        plain.transport().pause().unwrap();
        let mut state = plain.transport().save().unwrap();
        state.device = greedy.clone();
        let mut guest = Guest::idle(hosts.clone());
        guest.restore(&mut plain, &state);
        guest.work();
        let active = hosts.iter().map(|host| host.state().active);
        assert_eq!(active.collect::<Vec<_>>(), [true, false]);
        assert_eq!(hosts[0].state().offloads.last(), Some(&agreed));
    }
    // Nor for an offload without what it needs.
    let mut data = greedy.data(1).unwrap().to_vec();
    data[9..17].copy_from_slice(&feature::GUEST_TSO4.to_le_bytes());
    here.transport().pause().unwrap();
    let mut state = here.transport().save().unwrap();
    state.device = DeviceState::new(1, data).unwrap();
    let mut guest = Guest::idle(hosts.clone());
    guest.restore(&mut here, &state);
    guest.work();
    assert_eq!(hosts[0].state().offloads.last(), Some(&0));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200, failure_persistence: None, ..ProptestConfig::default()
    })]

    /// Any bytes as commands: an answer each, and whatever they have set is saved and restored as it is.
    #[test]
    fn any_command_is_answered(
        commands in prop::collection::vec(
            (0..7u8, 0..7u8, prop::collection::vec(any::<u8>(), 0..20), 0..4usize), 1..30,
        ),
    ) {
        let (mut guest, _) = guest(ALL);
        for (class, command, data, small) in commands {
            let mut data = data;
            // Small numbers mean something more often.
            data.iter_mut().skip(1).take(small * 3).for_each(|byte| *byte &= 1);
            let answer = guest.command(class, command, &data);
            prop_assert!(answer == OK || answer == ERR);
        }
        let state = guest.saved();
        let workers = StepLoop::new().unwrap();
        let mut device = Net::new(vec![Host::new()], OTHER, workers.handle()).unwrap();
        VirtioDevice::<support::Memory>::restore(&mut device, &state).unwrap();
        prop_assert_eq!(VirtioDevice::<support::Memory>::save(&device), state);
        prop_assert_eq!(guest.status(), 15);
    }

    /// Headers and splits, against what the specification says of them.
    #[test]
    fn a_packet_reaches_the_host_as_the_model_says(
        flags in any::<u8>(), kind in prop_oneof![0..6u8, any::<u8>()],
        words in prop::array::uniform4(prop_oneof![0..200u16, any::<u16>()]),
        len in 0..300usize, cuts in prop::array::uniform3(0..320usize),
        offered in any::<u64>(),
    ) {
        let features = some_features(offered | u64::from(len % 4 != 0));
        let (mut guest, host) = guest(features);
        let bytes = packet(support::header(flags, kind, words), &frame(1, len));
        let mut cuts = cuts.map(|cut| cut.min(bytes.len()));
        cuts.sort_unstable();
        let [a, b, c] = cuts;
        let pieces = [&bytes[..a], &bytes[a..b], &bytes[b..c], &bytes[c..]];
        guest.ask(TX, &pieces.map(|piece| Buf::R(piece.to_vec())));
        let expected = model(flags, kind, words, len, features)
            .map(|header| packet(header, &frame(1, len)));
        prop_assert_eq!(host.take(), expected.into_iter().collect::<Vec<_>>());
    }
}

/// Some features for packets to the host, as the rules of section 5.1.3.1 allow them together.
fn some_features(mut bits: u64) -> u64 {
    use feature::{CSUM, HOST_ECN, HOST_TSO4, HOST_TSO6, HOST_UFO, HOST_USO};
    bits &= CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_UFO | HOST_USO;
    if bits & CSUM == 0 {
        bits = 0;
    }
    if bits & (HOST_TSO4 | HOST_TSO6) == 0 {
        bits &= !HOST_ECN;
    }
    bits
}

/// The header as the host sees it, if it sees one.
fn model(flags: u8, kind: u8, words: [u16; 4], len: usize, agreed: u64) -> Option<[u8; 12]> {
    let has = |bit: u64| agreed & bit != 0;
    let [hdr_len, size, start, offset] = words;
    if len < 14 {
        return None;
    }
    let sum = flags & 1 != 0;
    if sum && (!has(feature::CSUM) || usize::from(start) + usize::from(offset) + 2 > len) {
        return None;
    }
    let [start, offset] = if sum { [start, offset] } else { [0, 0] };
    if kind == 0 {
        return Some(support::header(flags & 1, 0, [0, 0, start, offset]));
    }
    let known = match kind & 0x7f {
        1 => has(feature::HOST_TSO4),
        4 => has(feature::HOST_TSO6),
        3 => kind == 3 && has(feature::HOST_UFO),
        5 => kind == 5 && has(feature::HOST_USO),
        _ => false,
    };
    let ecn = kind & 0x80 == 0 || has(feature::HOST_ECN);
    let fits = size != 0 && usize::from(hdr_len) <= len;
    (sum && known && ecn && fits).then(|| support::header(1, kind, [hdr_len, size, start, offset]))
}

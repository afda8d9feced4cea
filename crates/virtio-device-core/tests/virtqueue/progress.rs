// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A queue that goes on where it was, here or elsewhere.

use super::*;

#[test]
fn a_queue_goes_on_where_it_was_and_serves_each_chain_once() {
    let memory = memory();
    let mut pair = Pair::new(&memory, Features::NONE);
    for index in [7, 2, 9, 4] {
        pair.driver.offer_writable(index, BUFFER, 4);
    }
    let mut heads: Vec<_> = (0..3).map(|_| pair.take().unwrap().unwrap()).collect();
    pair.device.complete(&memory, heads.remove(1), 4).unwrap();
    let progress = pair.device.progress();
    assert_eq!((progress.next_avail, progress.next_used), (3, 1));
    assert_eq!(progress.taken, [7, 9]);

    pair.device = Virtqueue::resume(pair.driver.layout(), Features::NONE, &progress).unwrap();
    assert_eq!(pair.device.progress(), progress);
    let mut served = Vec::new();
    while let Some(head) = pair.take().unwrap() {
        served.push(head.index());
        assert_eq!(pair.chain.writable_len(), 4);
        pair.device.complete(&memory, head, 4).unwrap();
    }
    assert_eq!(served, [7, 9, 4]);
    assert_eq!(pair.driver.take_used(), [(2, 4), (7, 4), (9, 4), (4, 4)]);
}

#[test]
fn progress_that_contradicts_itself_is_refused() {
    let memory = memory();
    let layout = Pair::new(&memory, Features::NONE).driver.layout();
    let resume = |next_avail: u16, next_used, taken: &[u16]| {
        let taken = taken.to_vec();
        let progress = QueueProgress::new(next_avail, next_used, taken);
        Virtqueue::resume(layout, Features::NONE, &progress)
            .map(|queue| queue.progress() == progress)
    };
    let all: Vec<u16> = (0..SIZE).collect();
    assert_eq!(resume(8, 0xfff8, &all), Ok(true));
    let mut too_many = all.clone();
    too_many.push(0);
    let count = |expected, taken| Err(SetupError::InFlightCount { expected, taken });
    assert_eq!(resume(9, 0xfff8, &too_many), count(17, 17));
    assert_eq!(resume(2, 1, &[]), count(1, 0));
    assert_eq!(resume(1, 1, &[0]), count(0, 1));
    assert_eq!(resume(0, 1, &[0]), count(0xffff, 1));
    assert_eq!(resume(2, 0, &[5, 5]), Err(SetupError::InFlightHead(5)));
    assert_eq!(resume(1, 0, &[SIZE]), Err(SetupError::InFlightHead(SIZE)));
}

/// Serves as a vhost back end does: `taken` chains taken, the first `given_back` of them completed.
fn serve_elsewhere(pair: &mut Pair<'_>, taken: usize, given_back: usize) -> u16 {
    let mut server = Virtqueue::new(pair.driver.layout(), Features::NONE);
    let mut chain = Chain::with_capacity(SIZE);
    let heads: Vec<Head> = (0..taken)
        .map(|_| server.take(pair.memory, &mut chain).unwrap().unwrap())
        .collect();
    for head in heads.into_iter().take(given_back) {
        server.complete(pair.memory, head, 1).unwrap();
    }
    server.progress().next_avail
}

#[test]
fn a_queue_goes_on_where_a_foreign_server_has_stopped() {
    let memory = memory();
    for (taken, given_back) in [(0, 0), (5, 5), (5, 2), (5, 0)] {
        let mut pair = Pair::new(&memory, Features::NONE);
        (0..7).for_each(|index| pair.driver.offer_writable(index, BUFFER, 4));
        let next_avail = serve_elsewhere(&mut pair, taken, given_back);
        pair.device.handed_back(&memory, next_avail).unwrap();
        let progress = pair.device.progress();
        assert_eq!(usize::from(progress.next_avail), taken);
        assert_eq!(usize::from(progress.next_used), given_back);
        let in_flight: Vec<u16> = (0..7).take(taken).skip(given_back).collect();
        assert_eq!(progress.taken, in_flight);
        // It can be saved and restored, too.
        let layout = pair.driver.layout();
        pair.device = Virtqueue::resume(layout, Features::NONE, &progress).unwrap();
        while let Some(head) = pair.take().unwrap() {
            pair.device.complete(&memory, head, 1).unwrap();
        }
        let used: Vec<(u32, u32)> = (0..7).map(|index| (index, 1)).collect();
        assert_eq!(pair.driver.take_used(), used, "each is served once");
    }
}

#[test]
fn progress_that_the_rings_contradict_is_a_fault() {
    let memory = memory();
    let used_index = |pair: &Pair<'_>, index: u16| {
        let addr = GuestAddress(pair.driver.setup().used_ring + 2);
        memory.write_obj(index.to_le(), addr).unwrap();
    };
    // The driver has moved the used index.
    for (next, index) in [(0, 1), (3, 4), (SIZE + 1, 0), (2, 0x8000)] {
        let mut pair = Pair::new(&memory, Features::NONE);
        used_index(&pair, index);
        let fault = RingFault::UsedIndex { next, index };
        assert_eq!(pair.device.handed_back(&memory, next), Err(fault));
        assert_eq!(pair.take(), Err(fault), "it is latched");
    }
    // A chain in flight twice, and one that does not exist.
    for (heads, fault) in [
        ([2, 2], RingFault::HeadInUse(2)),
        (
            [2, SIZE],
            RingFault::DescriptorIndex {
                index: SIZE,
                size: SIZE,
            },
        ),
    ] {
        let mut pair = Pair::new(&memory, Features::NONE);
        (heads.iter()).for_each(|&head| pair.driver.offer(head));
        assert_eq!(pair.device.handed_back(&memory, 2), Err(fault));
    }
}

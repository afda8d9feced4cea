// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a transport lends, pauses and takes back.

mod support;

use std::time::{Duration, Instant};

use support::SOON;
use virtio_device_core::Unavailable;

const NOW: Option<Duration> = Some(Duration::ZERO);

#[test]
fn a_reset_waits_for_requests_in_flight_and_gives_nothing_to_them() {
    let support::Activated {
        session, queues, ..
    } = support::activated(2);
    let requests: Vec<_> = (0..3).map(|_| queues[1].lease.hold().unwrap()).collect();
    session.revoke();
    assert!(!session.wait_idle(NOW));
    for request in requests {
        assert!(request.is_revoked());
        assert_eq!(request.with(|_| ()), Err(Unavailable::Revoked));
        assert!(!session.is_idle());
    }
    assert!(session.wait_idle(NOW) && session.is_idle());
}

#[test]
fn a_queue_alone_waits_for_its_own_requests_only() {
    let support::Activated {
        session, queues, ..
    } = support::activated(2);
    let other = queues[0].lease.hold().unwrap();
    let own = queues[1].lease.hold().unwrap();
    session.revoke_queue(1);
    assert!(!session.wait_queue_idle(1, NOW));
    drop(own);
    assert!(session.wait_queue_idle(1, NOW) && !session.is_idle());
    assert_eq!(other.with(|queue| queue.size()), Ok(4));
}

#[test]
fn two_queues_looked_at_together_do_not_meet_a_pause_half_way() {
    let activated = support::activated(2);
    let [a, b] = [0, 1].map(|index: usize| activated.queues[index].lease.clone());
    let session = &activated.session;
    std::thread::scope(|scope| {
        let looks = scope.spawn(move || {
            let deadline = Instant::now() + Duration::from_millis(200);
            let mut both = 0;
            while Instant::now() < deadline {
                let looked = a.with(|a| b.with(|b| a.size() + b.size()));
                both += u32::from(looked == Ok(Ok(8)));
            }
            both
        });
        while !looks.is_finished() {
            session.pause();
            assert!(session.wait_idle(Some(SOON)));
            session.resume();
        }
        looks.join().unwrap();
    });
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a transport lends, pauses and takes back.

mod support;

use std::time::{Duration, Instant};

use support::{SOON, virtqueue};
use virtio_device_core::{Lent, Unavailable};

const NOW: Option<Duration> = Some(Duration::ZERO);

#[test]
fn what_was_revoked_is_neither_paused_nor_resumed() {
    let (lent, lease) = Lent::new(Some(virtqueue()));
    assert_eq!(lease.with(|queue| queue.size()), Ok(4));
    assert_eq!(lent.revoke().unwrap().size(), 4);
    assert!(lent.revoke().is_none());
    lent.pause();
    assert!(lease.is_revoked() && !lease.is_paused());
    lent.resume();
    assert_eq!(lease.with(|_| ()), Err(Unavailable::Revoked));
    assert_eq!(lease.hold().err(), Some(Unavailable::Revoked));
    assert_eq!(lent.inspect(|_| ()), None);
}

#[test]
fn a_paused_lease_refuses_and_does_not_wait() {
    let (lent, lease) = Lent::new(Some(virtqueue()));
    lent.pause();
    assert!(lease.is_paused());
    assert_eq!(lease.with(|_| ()), Err(Unavailable::Paused));
    assert_eq!(lease.hold().err(), Some(Unavailable::Paused));
    assert_eq!(lent.inspect(|queue| queue.size()), Some(4));
    lent.resume();
    assert_eq!(lease.with(|queue| queue.size()), Ok(4));
}

#[test]
fn a_request_in_flight_completes_before_the_pause_does() {
    let (lent, lease) = Lent::new(Some(virtqueue()));
    let request = lease.hold().unwrap();
    lent.pause();
    assert!(!lent.is_idle() && !lent.wait_idle(Some(Instant::now())));
    // No new one, but this one may still be given back.
    assert_eq!(lease.hold().err(), Some(Unavailable::Paused));
    assert_eq!(request.with(|queue| queue.size()), Ok(4));
    let waiter = std::thread::spawn(move || {
        let idle = lent.wait_idle(Instant::now().checked_add(SOON));
        (lent, idle)
    });
    drop(request);
    let (lent, idle) = waiter.join().unwrap();
    assert!(idle && lent.is_idle());
}

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
fn a_guard_may_be_dropped_under_the_lock() {
    let (lent, lease) = Lent::new(Some(virtqueue()));
    let request = lease.hold().unwrap();
    lease.with(|_| drop(request)).unwrap();
    assert!(lent.is_idle());
}

#[test]
fn a_panic_during_a_look_leaves_the_queue_to_the_others() {
    let (lent, lease) = Lent::new(Some(virtqueue()));
    let look = || lease.with(|_| panic!("a bug in the device"));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(look)).unwrap_err();
    assert_eq!(lease.with(|queue| queue.size()), Ok(4));
    lent.pause();
    assert!(lent.revoke().is_some());
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

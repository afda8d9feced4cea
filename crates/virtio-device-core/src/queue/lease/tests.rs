// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a transport lends, pauses and takes back.

use std::time::{Duration, Instant};

use super::{Lent, Unavailable};

/// Far beyond what a healthy worker takes on a busy machine.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn what_was_revoked_is_neither_paused_nor_resumed() {
    let (lent, lease) = Lent::new(Some(vec![0_u8; 4]));
    assert_eq!(lease.with(|lent| lent.len()), Ok(4));
    assert_eq!(lent.revoke().unwrap().len(), 4);
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
    let (lent, lease) = Lent::new(Some(vec![0_u8; 4]));
    lent.pause();
    assert!(lease.is_paused());
    assert_eq!(lease.with(|_| ()), Err(Unavailable::Paused));
    assert_eq!(lease.hold().err(), Some(Unavailable::Paused));
    assert_eq!(lent.inspect(|lent| lent.len()), Some(4));
    lent.resume();
    assert_eq!(lease.with(|lent| lent.len()), Ok(4));
}

#[test]
fn a_request_in_flight_completes_before_the_pause_does() {
    let (lent, lease) = Lent::new(Some(vec![0_u8; 4]));
    let request = lease.hold().unwrap();
    lent.pause();
    assert!(!lent.is_idle() && !lent.wait_idle(Some(Instant::now())));
    // No new one, but this one may still be given back.
    assert_eq!(lease.hold().err(), Some(Unavailable::Paused));
    assert_eq!(request.with(|lent| lent.len()), Ok(4));
    let waiter = std::thread::spawn(move || {
        let idle = lent.wait_idle(Instant::now().checked_add(SOON));
        (lent, idle)
    });
    drop(request);
    let (lent, idle) = waiter.join().unwrap();
    assert!(idle && lent.is_idle());
}

#[test]
fn a_guard_may_be_dropped_under_the_lock() {
    let (lent, lease) = Lent::new(Some(vec![0_u8; 4]));
    let request = lease.hold().unwrap();
    lease.with(|_| drop(request)).unwrap();
    assert!(lent.is_idle());
}

#[test]
fn a_panic_during_a_look_leaves_the_queue_to_the_others() {
    let (lent, lease) = Lent::new(Some(vec![0_u8; 4]));
    let look = || lease.with(|_| panic!("a bug in the device"));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(look)).unwrap_err();
    assert_eq!(lease.with(|lent| lent.len()), Ok(4));
    lent.pause();
    assert!(lent.revoke().is_some());
}

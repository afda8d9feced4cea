// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a transport lends to a device, and takes back, in every order that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --manifest-path loom/Cargo.toml`

#![cfg(loom)]

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::thread;
use virtio_device_core::{
    ConfigNotifier, DeviceFault, Event, Features, InterruptHandle, Lease, Lent, Unavailable,
    transport::{Interrupt, Session},
};

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(f);
}

/// Guest memory as a worker writes it. All accesses are relaxed: only the lease makes them
/// visible, or keeps them from happening.
#[derive(Default)]
struct Guest {
    at_rest: AtomicBool,
    writes: AtomicU32,
}

impl Guest {
    /// Called while the device may touch guest memory.
    fn write(&self) {
        assert!(!self.at_rest.load(Ordering::Relaxed), "too late");
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    fn writes(&self) -> u32 {
        self.writes.load(Ordering::Relaxed)
    }

    /// To be called when no write may come any more. Returns how many there were.
    fn rest(&self) -> u32 {
        self.at_rest.store(true, Ordering::Relaxed);
        self.writes()
    }
}

/// What is lent counts the looks at it.
fn lend() -> (Lent<u32>, Lease<u32>, Arc<Guest>) {
    let (lent, lease) = Lent::new(Some(0));
    (lent, lease, Arc::default())
}

/// Looks twice; returns how often it could.
fn worker(lease: &Lease<u32>, guest: &Arc<Guest>) -> thread::JoinHandle<u32> {
    let (lease, guest) = (lease.clone(), guest.clone());
    let look = move || {
        let looked = lease.with(|looks| {
            guest.write();
            *looks += 1;
        });
        u32::from(looked.is_ok())
    };
    thread::spawn(move || look() + look())
}

/// Serves a request with I/O in flight; returns whether it was completed.
fn request(lease: &Lease<u32>, guest: &Arc<Guest>) -> thread::JoinHandle<bool> {
    let (lease, guest) = (lease.clone(), guest.clone());
    thread::spawn(move || {
        let Ok(in_flight) = lease.hold() else {
            return false;
        };
        guest.write();
        in_flight.with(|looks| *looks += 1).is_ok()
    })
}

#[test]
fn nothing_is_written_after_a_loan_was_revoked() {
    model(|| {
        let (lent, lease, guest) = lend();
        let worker = worker(&lease, &guest);
        let looks = lent.revoke();
        let writes = guest.rest();
        assert_eq!(looks, Some(writes));
        assert_eq!(worker.join().unwrap(), writes);
        assert_eq!(lent.revoke(), None);
    });
}

#[test]
fn nothing_is_written_during_a_pause() {
    model(|| {
        let (lent, lease, guest) = lend();
        let worker = worker(&lease, &guest);
        lent.pause();
        let writes = guest.rest();
        assert_eq!(lent.inspect(|looks| *looks), Some(writes));
        guest.at_rest.store(false, Ordering::Relaxed);
        lent.resume();
        let looks = worker.join().unwrap();
        assert_eq!(guest.writes(), looks);
        assert_eq!(lease.with(|looks| *looks), Ok(looks));
    });
}

#[test]
fn a_revoked_loan_stays_revoked_whoever_pauses_and_resumes() {
    model(|| {
        let (lent, lease, guest) = lend();
        let lent = Arc::new(lent);
        let vmm = {
            let lent = lent.clone();
            thread::spawn(move || {
                lent.pause();
                lent.resume();
            })
        };
        assert!(lent.revoke().is_some());
        guest.rest();
        vmm.join().unwrap();
        assert!(lease.is_revoked() && !lease.is_paused());
        assert_eq!(lease.with(|_| guest.write()), Err(Unavailable::Revoked));
        assert_eq!(lease.hold().err(), Some(Unavailable::Revoked));
    });
}

#[test]
fn a_pause_waits_until_the_request_in_flight_is_complete() {
    model(|| {
        let (lent, lease, guest) = lend();
        let request = request(&lease, &guest);
        lent.pause();
        assert!(lent.wait_idle(None));
        let writes = guest.rest();
        // Memory and what was lent agree on it: all of the request has happened, or nothing.
        assert_eq!(lent.inspect(|looks| *looks), Some(writes));
        assert_eq!(u32::from(request.join().unwrap()), writes);
    });
}

#[test]
fn a_request_after_a_pause_sees_what_the_owner_did_in_it() {
    model(|| {
        let (lent, lease, guest) = lend();
        let request = request(&lease, &guest);
        lent.pause();
        assert!(lent.wait_idle(None));
        guest.rest();
        guest.at_rest.store(false, Ordering::Relaxed);
        lent.resume();
        assert_eq!(u32::from(request.join().unwrap()), guest.writes());
    });
}

#[test]
fn a_reset_waits_until_the_io_in_flight_has_landed() {
    model(|| {
        let (lent, lease, guest) = lend();
        let request = request(&lease, &guest);
        let looks = lent.revoke().unwrap();
        assert!(lent.wait_idle(None));
        let writes = guest.rest();
        // A request that is in flight may be too late to be completed.
        assert_eq!(u32::from(request.join().unwrap()), looks);
        assert!(looks <= writes && guest.writes() == writes);
    });
}

#[test]
fn the_last_of_several_requests_in_flight_wakes_the_owner() {
    model(|| {
        let (lent, lease, guest) = lend();
        let requests = [0, 1].map(|_| {
            let (in_flight, guest) = (lease.hold().unwrap(), guest.clone());
            thread::spawn(move || {
                guest.write();
                drop(in_flight);
            })
        });
        let _ = lent.revoke();
        // A lost wake-up is a deadlock.
        assert!(lent.wait_idle(None));
        assert_eq!(guest.rest(), 2);
        for request in requests {
            request.join().unwrap();
        }
    });
}

#[test]
fn an_owner_that_asks_without_waiting_sees_all_or_is_told_to_wait() {
    model(|| {
        let (lent, lease, guest) = lend();
        let in_flight = lease.hold().unwrap();
        let request = {
            let guest = guest.clone();
            thread::spawn(move || {
                guest.write();
                drop(in_flight);
            })
        };
        let _ = lent.revoke();
        if lent.is_idle() {
            assert_eq!(guest.rest(), 1);
        }
        request.join().unwrap();
        assert!(lent.is_idle());
    });
}

/// Counts what reaches the driver and the VMM, and finds what comes after the transport was told
/// that nothing will.
#[derive(Default)]
struct Target {
    at_rest: AtomicBool,
    interrupts: AtomicU32,
    failures: AtomicU32,
}

impl Target {
    fn count(&self, counter: &AtomicU32) {
        assert!(!self.at_rest.load(Ordering::Relaxed), "too late");
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Interrupt for Target {
    fn used_buffers(&self, _queue: u16) {
        self.count(&self.interrupts);
    }

    fn config_interrupt(&self) {
        self.count(&self.interrupts);
    }

    fn observe(&self, event: &Event<'_>) {
        if let Event::DeviceFailed(_) = event {
            self.count(&self.failures);
        }
    }
}

fn session() -> (Arc<Target>, Session, InterruptHandle) {
    let target = Arc::new(Target::default());
    let config = ConfigNotifier::new(target.clone());
    let (session, activation) = Session::new(&config, (), Features::NONE, [], false);
    (target, session, activation.interrupt)
}

#[test]
fn nobody_is_told_anything_after_the_interrupt_was_revoked() {
    model(|| {
        let (target, session, handle) = session();
        let worker = thread::spawn(move || handle.device_failed(&DeviceFault::Panicked));
        session.revoke();
        target.at_rest.store(true, Ordering::Relaxed);
        let told = target.interrupts.load(Ordering::Relaxed);
        // Who is told of a failure sees it in the status.
        assert_eq!(session.is_broken(), told != 0);
        worker.join().unwrap();
        assert_eq!(target.interrupts.load(Ordering::Relaxed), told);
        assert_eq!(target.failures.load(Ordering::Relaxed), told);
    });
}

#[test]
fn a_failure_is_told_once_whoever_meets_it() {
    model(|| {
        let (target, session, handle) = session();
        let worker = thread::spawn(move || handle.device_failed(&DeviceFault::Panicked));
        session.device_failed(&DeviceFault::Panicked);
        assert!(session.is_broken());
        worker.join().unwrap();
        assert_eq!(target.interrupts.load(Ordering::Relaxed), 1);
        assert_eq!(target.failures.load(Ordering::Relaxed), 1);
    });
}

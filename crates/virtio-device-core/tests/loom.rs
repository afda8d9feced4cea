// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a transport lends to a device, and takes back, in every order that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --manifest-path loom/Cargo.toml`

#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::thread;
use virtio_device_core::test_utils::DriverQueue;
use virtio_device_core::{DeviceFault, Interrupt, InterruptHandle, QueueLease, Virtqueue};
use vm_memory::{GuestAddress, GuestMemoryMmap};

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(f);
}

fn lease() -> QueueLease {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    QueueLease::new(Virtqueue::new(DriverQueue::new(&memory, 0, 4).layout(), 0))
}

/// Guest memory as a worker writes it. All accesses are relaxed: only the lease makes them
/// visible, or keeps them from happening.
#[derive(Default)]
struct Guest {
    at_rest: AtomicBool,
    writes: AtomicU32,
}

impl Guest {
    /// Called under the lease.
    fn write(&self) {
        assert!(!self.at_rest.load(Ordering::Relaxed), "too late");
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    /// To be called when no write may come any more. Returns how many there were.
    fn rest(&self) -> u32 {
        self.at_rest.store(true, Ordering::Relaxed);
        self.writes.load(Ordering::Relaxed)
    }
}

fn worker(lease: &QueueLease, guest: &Arc<Guest>, looks: u32) -> thread::JoinHandle<u32> {
    let (lease, guest) = (lease.clone(), guest.clone());
    thread::spawn(move || {
        (0..looks)
            .filter_map(|_| lease.with(|_| guest.write()))
            .count() as u32
    })
}

#[test]
fn nothing_is_written_after_a_queue_was_taken_back() {
    model(|| {
        let (lease, guest) = (lease(), Arc::new(Guest::default()));
        let worker = worker(&lease, &guest, 2);
        assert!(lease.revoke().is_some());
        let writes = guest.rest();
        assert_eq!(worker.join().unwrap(), writes);
        assert_eq!(guest.writes.load(Ordering::Relaxed), writes);
        assert!(lease.revoke().is_none());
    });
}

#[test]
fn only_one_takes_a_queue_back() {
    model(|| {
        let lease = lease();
        let other = lease.clone();
        let vcpu = thread::spawn(move || other.revoke().is_some());
        let mine = lease.revoke().is_some();
        assert!(mine ^ vcpu.join().unwrap());
    });
}

#[test]
fn nothing_is_written_during_a_pause_and_no_look_is_lost() {
    model(|| {
        let (lease, guest) = (lease(), Arc::new(Guest::default()));
        let worker = worker(&lease, &guest, 2);
        lease.pause();
        let writes = guest.rest();
        assert_eq!(guest.writes.load(Ordering::Relaxed), writes);
        guest.at_rest.store(false, Ordering::Relaxed);
        lease.resume();
        assert_eq!(worker.join().unwrap(), 2);
    });
}

#[test]
fn a_worker_that_waits_ends_when_the_queue_is_taken_back() {
    model(|| {
        let (lease, guest) = (lease(), Arc::new(Guest::default()));
        lease.pause();
        guest.rest();
        let worker = worker(&lease, &guest, 1);
        assert!(lease.revoke().is_some());
        assert_eq!(worker.join().unwrap(), 0);
    });
}

#[test]
fn a_queue_that_is_taken_back_while_it_is_paused_stays_so() {
    model(|| {
        let (lease, guest) = (lease(), Arc::new(Guest::default()));
        let vmm = {
            let lease = lease.clone();
            thread::spawn(move || {
                lease.pause();
                lease.resume();
            })
        };
        let worker = worker(&lease, &guest, 1);
        assert!(lease.revoke().is_some());
        let writes = guest.rest();
        vmm.join().unwrap();
        assert_eq!(worker.join().unwrap(), writes);
        assert!(lease.is_revoked(), "{lease:?}");
        assert!(!lease.is_paused());
    });
}

/// Counts notifications, and finds those that come after the transport was told that none will.
#[derive(Default)]
struct Target {
    at_rest: AtomicBool,
    used: AtomicU32,
    failed: AtomicU32,
}

impl Target {
    fn count(&self, counter: &AtomicU32) {
        assert!(!self.at_rest.load(Ordering::Relaxed), "too late");
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Interrupt for Target {
    fn used_buffers(&self, _queue: u16) {
        self.count(&self.used);
    }

    fn config_changed(&self) {
        self.count(&self.used);
    }

    fn status_changed(&self) {
        self.count(&self.failed);
    }
}

#[test]
fn nobody_is_notified_after_the_interrupt_was_cut_off() {
    model(|| {
        let target = Arc::new(Target::default());
        let handle = InterruptHandle::new(target.clone());
        let late = handle.clone();
        let worker = thread::spawn(move || {
            late.used_buffers(0);
            late.update_config(|| ());
            late.device_failed(&DeviceFault::Panicked);
        });
        handle.revoke();
        target.at_rest.store(true, Ordering::Relaxed);
        let used = target.used.load(Ordering::Relaxed);
        let failed = target.failed.load(Ordering::Relaxed);
        // Who is told of a failure sees it.
        assert_eq!(handle.is_broken(), failed != 0);
        worker.join().unwrap();
        assert_eq!(target.used.load(Ordering::Relaxed), used);
        assert_eq!(target.failed.load(Ordering::Relaxed), failed);
    });
}

#[test]
fn a_failure_is_told_once_whoever_meets_it() {
    model(|| {
        let target = Arc::new(Target::default());
        let handle = InterruptHandle::new(target.clone());
        let other = handle.clone();
        let worker = thread::spawn(move || other.device_failed(&DeviceFault::Panicked));
        handle.device_failed(&DeviceFault::Panicked);
        assert!(handle.is_broken());
        worker.join().unwrap();
        assert_eq!(target.failed.load(Ordering::Relaxed), 1);
    });
}

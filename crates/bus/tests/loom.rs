// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What happens between threads, in every order that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --manifest-path loom/Cargo.toml`

#![cfg(loom)]

use std::sync::Arc;

use bus::{AccessError, BusDeviceSync, MmioBus};
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

/// A device that tells whether it was called after its removal.
struct Mortal {
    tag: u8,
    removed: AtomicBool,
    calls: AtomicUsize,
}

impl Mortal {
    fn new(tag: u8) -> Arc<Self> {
        Arc::new(Self {
            tag,
            removed: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
        })
    }

    /// To be called after the removal. Returns how often the device was called.
    fn bury(&self) -> usize {
        // Relaxed: only the bus keeps a handler from seeing this, and only the bus makes all that
        // handlers did visible here.
        self.removed.store(true, Ordering::Relaxed);
        self.calls.load(Ordering::Relaxed)
    }
}

impl BusDeviceSync for Mortal {
    fn read(&self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        if self.removed.load(Ordering::Relaxed) {
            return Err(AccessError::Failed);
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        data.fill(self.tag);
        Ok(())
    }
}

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(f);
}

/// A read that finds the device with this tag, or nothing.
fn assert_one_of(tags: &[u8], outcome: Result<(), AccessError>, data: [u8; 1]) {
    match outcome {
        Ok(()) => assert!(tags.contains(&data[0])),
        Err(error) => assert_eq!((error, data), (AccessError::Unclaimed, [0xff])),
    }
}

/// Removes the device at 0 while a view reads from addresses, after it has read from others: after
/// no read of an address, the next has to fetch the map; after one, it takes the slow path; after two
/// in a row, the fast one.
fn remove_while_a_view_reads(new: fn() -> MmioBus, before: &'static [u64], reads: &'static [u64]) {
    model(move || {
        let bus = new();
        let mut view = bus.view();
        let device = Mortal::new(1);
        let id = bus.insert(device.clone(), 0, 4).unwrap();
        bus.insert(Mortal::new(2), 4, 4).unwrap();
        for addr in before {
            view.read(*addr, &mut [0]).unwrap();
        }
        let vcpu = thread::spawn(move || {
            for addr in reads {
                let mut data = [0];
                let outcome = view.read(*addr, &mut data);
                assert_one_of(&[if *addr == 0 { 1 } else { 2 }], outcome, data);
                assert!(*addr == 0 || outcome.is_ok());
            }
        });
        bus.remove(id).unwrap();
        let calls = device.bury();
        vcpu.join().unwrap();
        assert_eq!(device.bury(), calls);
    });
}

#[test]
fn remove_waits_for_a_view_that_fetches_the_map() {
    remove_while_a_view_reads(MmioBus::new, &[], &[0]);
}

#[test]
fn remove_waits_for_a_view_on_the_slow_path() {
    remove_while_a_view_reads(MmioBus::new, &[0], &[0]);
    remove_while_a_view_reads(|| MmioBus::builder().fenced().build(), &[0], &[0]);
}

#[test]
fn remove_waits_for_a_view_on_the_fast_path() {
    remove_while_a_view_reads(MmioBus::new, &[0, 0], &[0]);
}

#[test]
fn remove_waits_for_the_fast_path_after_another_device() {
    remove_while_a_view_reads(MmioBus::new, &[0, 0, 4], &[0]);
}

#[test]
fn remove_waits_for_the_first_of_several_accesses() {
    remove_while_a_view_reads(MmioBus::new, &[], &[0, 4, 0]);
}

#[test]
fn remove_waits_for_a_view_made_for_one_access() {
    model(|| {
        let bus = MmioBus::new();
        let device = Mortal::new(1);
        let id = bus.insert(device.clone(), 0, 4).unwrap();
        let vcpu = bus.clone();
        let vcpu = thread::spawn(move || {
            let mut data = [0];
            let outcome = vcpu.view().read(0, &mut data);
            assert_one_of(&[1], outcome, data);
        });
        bus.remove(id).unwrap();
        let calls = device.bury();
        vcpu.join().unwrap();
        assert_eq!(device.bury(), calls);
    });
}

#[test]
fn device_in_the_place_of_a_removed_one_is_never_mistaken_for_it() {
    model(|| {
        let bus = MmioBus::new();
        let old = Mortal::new(1);
        let id = bus.insert(old.clone(), 0, 4).unwrap();
        let mut view = bus.view();
        for _ in 0..2 {
            view.read(0, &mut [0]).unwrap();
        }
        let vcpu = thread::spawn(move || {
            let mut last = 0;
            for _ in 0..2 {
                let mut data = [0];
                let outcome = view.read(0, &mut data);
                assert_one_of(&[1, 2], outcome, data);
                // Never back to the old one.
                assert!(last == 0 || last == 1 || data[0] == last || data[0] == 2);
                last = data[0];
            }
        });
        bus.remove(id).unwrap();
        old.bury();
        bus.insert(Mortal::new(2), 0, 4).unwrap();
        vcpu.join().unwrap();
    });
}

#[test]
fn of_overlapping_inserts_exactly_one_wins() {
    model(|| {
        let bus = MmioBus::new();
        let other = bus.clone();
        let thread = thread::spawn(move || other.insert(Mortal::new(1), 0, 4).is_ok());
        let here = bus.insert(Mortal::new(2), 2, 4).is_ok();
        assert!(here != thread.join().unwrap());
        assert_eq!(bus.regions().len(), 1);
    });
}

#[test]
fn insert_is_seen_by_who_looks_after_it() {
    model(|| {
        let bus = MmioBus::new();
        let mut view = bus.view();
        assert!(view.read(0, &mut [0]).is_err());
        let ready = Arc::new(AtomicBool::new(false));
        let seen = ready.clone();
        let vcpu = thread::spawn(move || {
            let is_ready = seen.load(Ordering::Acquire);
            let mut data = [0];
            let outcome = view.read(0, &mut data);
            assert_one_of(&[1], outcome, data);
            assert!(!is_ready || outcome.is_ok());
        });
        bus.insert(Mortal::new(1), 0, 4).unwrap();
        ready.store(true, Ordering::Release);
        vcpu.join().unwrap();
    });
}

#[test]
fn move_is_seen_as_a_whole() {
    model(|| {
        let bus = MmioBus::new();
        let id = bus.insert(Mortal::new(1), 0, 4).unwrap();
        bus.insert(Mortal::new(2), 8, 4).unwrap();
        let mut view = bus.view();
        let vcpu = thread::spawn(move || {
            let mut moved = false;
            for addr in [4, 0, 8] {
                let mut data = [0];
                let outcome = view.read(addr, &mut data);
                assert_one_of(&[1, 2], outcome, data);
                match addr {
                    4 => moved = outcome.is_ok(),
                    0 => assert!(!moved || outcome.is_err()),
                    _ => assert_eq!((outcome, data), (Ok(()), [2])),
                }
            }
        });
        bus.relocate(id, 4).unwrap();
        vcpu.join().unwrap();
    });
}

/// A device whose handler calls the bus, and one that it takes off the bus.
#[test]
fn handler_removes_another_device_while_it_is_read() {
    struct Remover {
        bus: MmioBus,
        id: bus::RegionId,
        device: Arc<Mortal>,
    }
    impl BusDeviceSync for Remover {
        fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), AccessError> {
            self.bus.remove(self.id).map_err(|_| AccessError::Failed)?;
            self.device.bury();
            Ok(())
        }
    }

    model(|| {
        let bus = MmioBus::new();
        let device = Mortal::new(1);
        let id = bus.insert(device.clone(), 0, 4).unwrap();
        let remover = Remover {
            bus: bus.clone(),
            id,
            device,
        };
        bus.insert(Arc::new(remover), 4, 4).unwrap();
        let (mut view, mut other) = (bus.view(), bus.view());
        let vcpu = thread::spawn(move || {
            let mut data = [0];
            let outcome = other.read(0, &mut data);
            assert_one_of(&[1], outcome, data);
        });
        assert_eq!(view.write(4, &[0]), Ok(()));
        vcpu.join().unwrap();
    });
}

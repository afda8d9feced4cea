// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who waits for whom, and that nobody waits for himself.

#![cfg(not(loom))]
#![expect(
    clippy::unwrap_used,
    reason = "a test that meets the unexpected should stop there"
)]

mod support;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::thread::sleep;
use std::time::Duration;

use bus::{AccessError, BusDevice, BusError, MmioBus, RegionId};
use support::{Tag, empty, finishes, handler};

/// What a device of these tests does in a write.
type Work = Box<dyn FnMut(u64) -> Result<(), AccessError> + Send>;

/// A device with a lock that does what it is told to.
struct Locked(Work);

impl BusDevice for Locked {
    fn write(&mut self, offset: u64, _data: &[u8]) -> Result<(), AccessError> {
        (self.0)(offset)
    }
}

fn locked(work: impl FnMut(u64) -> Result<(), AccessError> + Send + 'static) -> Arc<Mutex<Locked>> {
    Arc::new(Mutex::new(Locked(Box::new(work))))
}

/// Says that a handler has begun, and waits until it may end.
fn gate() -> (impl Fn() + Send + Sync, Receiver<()>, Sender<()>) {
    let (entered, wait_entered) = channel();
    let (release, wait_release) = channel();
    let wait_release = Mutex::new(wait_release);
    let pass = move || {
        entered.send(()).unwrap();
        wait_release.lock().unwrap().recv().unwrap();
    };
    (pass, wait_entered, release)
}

#[test]
fn removal_of_an_idle_region_does_not_wait_for_the_device_elsewhere() {
    finishes(|| {
        let (bus, other) = (MmioBus::new(), MmioBus::new());
        let (pass, entered, release) = gate();
        let device = handler(move |_, _| {
            pass();
            Ok(())
        });
        let busy = bus.insert(device.clone(), 0x1000, 4).unwrap();
        let idle = bus.insert(device.clone(), 0x2000, 4).unwrap();
        let elsewhere = other.insert(device, 0x1000, 4).unwrap();
        let mut view = bus.view();
        let vcpu = std::thread::spawn(move || view.write(0x1000, &[0]));
        entered.recv().unwrap();
        // The device is not left before both have returned.
        bus.remove(idle).unwrap();
        other.remove(elsewhere).unwrap();
        release.send(()).unwrap();
        vcpu.join().unwrap().unwrap();
        bus.remove(busy).unwrap();
    });
}

#[test]
fn handler_cannot_remove_its_own_device_from_another_bus() {
    finishes(|| {
        let (bus, other) = (MmioBus::new(), MmioBus::new());
        let id: Arc<OnceLock<RegionId>> = Arc::default();
        let (own, inner) = (id.clone(), other.clone());
        let device = locked(move |_| match inner.remove(*own.get().unwrap()) {
            Err(BusError::InsideDevice(_)) => Ok(()),
            _ => Err(AccessError::Failed),
        });
        bus.insert(device.clone(), 0x1000, 4).unwrap();
        id.set(other.insert(device, 0x2000, 4).unwrap()).unwrap();
        let mut view = bus.view();
        // Also while another vCPU waits for the device's lock in the region that is to go.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut view = other.view();
                for _ in 0..100 {
                    assert_eq!(view.write(0x2000, &[0]), Ok(()));
                }
            });
            for _ in 0..100 {
                assert_eq!(view.write(0x1000, &[0]), Ok(()));
            }
        });
        other.remove(*id.get().unwrap()).unwrap();
    });
}

#[test]
fn handlers_that_remove_each_other_from_two_buses_do_not_wait_for_each_other() {
    finishes(|| {
        let buses = [MmioBus::new(), MmioBus::new()];
        let ids: Arc<OnceLock<[RegionId; 2]>> = Arc::default();
        let (both_inside, outcomes) = (Arc::new(Barrier::new(2)), Arc::new(Mutex::new(vec![])));
        let device = |other: usize| {
            let (bus, ids) = (buses[other].clone(), ids.clone());
            let (both_inside, outcomes) = (both_inside.clone(), outcomes.clone());
            handler(move |_, _| {
                both_inside.wait();
                let removed = bus.remove(ids.get().unwrap()[other]);
                if let Err(error) = &removed {
                    assert!(matches!(error, BusError::InsideDevice(_)));
                }
                outcomes.lock().unwrap().push(removed.is_ok());
                Ok(())
            })
        };
        let first = buses[0].insert(device(1), 0x1000, 4).unwrap();
        let second = buses[1].insert(device(0), 0x1000, 4).unwrap();
        ids.set([first, second]).unwrap();
        std::thread::scope(|scope| {
            for bus in &buses {
                let mut view = bus.view();
                scope.spawn(move || view.write(0x1000, &[0]));
            }
        });
        let mut outcomes = outcomes.lock().unwrap().clone();
        outcomes.sort_unstable();
        assert_eq!(outcomes, [false, true]);
    });
}

/// One vCPU is in `remover`, whose handler removes `bridge`; another is in `bridge`, whose handler
/// accesses `remover` and so waits for its lock.
fn removal_against_nested_access(before_removal: fn()) -> (bool, Result<(), AccessError>) {
    finishes(move || {
        let bus = MmioBus::new();
        let id: Arc<OnceLock<RegionId>> = Arc::default();
        let both_inside = Arc::new(Barrier::new(2));
        let removed: Arc<OnceLock<bool>> = Arc::default();

        let (inner, bridge_id) = (bus.clone(), id.clone());
        let (both, outcome) = (both_inside.clone(), removed.clone());
        let remover = locked(move |offset| {
            if offset != 0 {
                return Ok(());
            }
            both.wait();
            before_removal();
            let removed = inner.remove(*bridge_id.get().unwrap());
            if let Err(error) = &removed {
                assert!(matches!(error, BusError::InsideDevice(_)));
            }
            outcome.set(removed.is_ok()).unwrap();
            Ok(())
        });
        bus.insert(remover, 0x1000, 4).unwrap();
        let (inner, both) = (bus.clone(), both_inside);
        let bridge = handler(move |_, _| {
            both.wait();
            inner.view().write(0x1001, &[0])
        });
        id.set(bus.insert(bridge, 0x2000, 4).unwrap()).unwrap();

        let nested = std::thread::scope(|scope| {
            scope.spawn(|| assert_eq!(bus.view().write(0x1000, &[0]), Ok(())));
            scope
                .spawn(|| bus.view().write(0x2000, &[0]))
                .join()
                .unwrap()
        });
        empty(&bus);
        (*removed.get().unwrap(), nested)
    })
}

#[test]
fn removal_that_would_wait_for_an_access_nested_in_its_own_fails() {
    // The nested access waits already, and the removal is refused; or it is the other way round.
    let late_removal = removal_against_nested_access(|| sleep(Duration::from_millis(50)));
    assert!(matches!(
        late_removal,
        (false, Ok(())) | (true, Err(AccessError::Deadlock))
    ));
    let rounds = if cfg!(miri) { 2 } else { 50 };
    for _ in 0..rounds {
        let race = removal_against_nested_access(|| {});
        assert!(matches!(
            race,
            (false, Ok(())) | (true, Err(AccessError::Deadlock))
        ));
    }
}

#[test]
fn locked_devices_that_access_each_other_do_not_wait_for_each_other() {
    finishes(|| {
        let bus = MmioBus::new();
        let both_inside = Arc::new(Barrier::new(2));
        let nested: Arc<Mutex<Vec<Result<(), AccessError>>>> = Arc::default();
        for (base, other) in [(0x1000, 0x2000), (0x2000, 0x1000)] {
            let (inner, both, nested) = (bus.clone(), both_inside.clone(), nested.clone());
            let device = locked(move |offset| {
                if offset == 0 {
                    both.wait();
                    let outcome = inner.view().write(other + 1, &[0]);
                    nested.lock().unwrap().push(outcome);
                }
                Ok(())
            });
            bus.insert(device, base, 4).unwrap();
        }
        std::thread::scope(|scope| {
            for base in [0x1000, 0x2000] {
                let mut view = bus.view();
                scope.spawn(move || assert_eq!(view.write(base, &[0]), Ok(())));
            }
        });
        // One is refused; it ends, and the other gets the lock.
        let mut nested = nested.lock().unwrap().clone();
        nested.sort_by_key(Result::is_err);
        assert_eq!(nested, [Ok(()), Err(AccessError::Deadlock)]);
        assert_eq!(bus.view().write(0x1001, &[0]), Ok(()));
        empty(&bus);
    });
}

#[test]
fn handler_may_remove_others_while_its_own_device_is_removed() {
    finishes(|| {
        let bus = MmioBus::new();
        let (pass, entered, release) = gate();
        let other = bus.insert(Tag::new(1), 0x2000, 4).unwrap();
        let inner = bus.clone();
        let device = handler(move |_, _| {
            pass();
            inner
                .remove(other)
                .map(drop)
                .map_err(|_| AccessError::Failed)
        });
        let id = bus.insert(device, 0x1000, 4).unwrap();
        std::thread::scope(|scope| {
            let vcpu = scope.spawn(|| bus.view().write(0x1000, &[0]));
            entered.recv().unwrap();
            let remover = scope.spawn(|| bus.remove(id).map(drop));
            while bus.find(0x1000).is_some() {
                std::thread::yield_now();
            }
            release.send(()).unwrap();
            assert_eq!(vcpu.join().unwrap(), Ok(()));
            remover.join().unwrap().unwrap();
        });
        assert!(bus.regions().is_empty());
    });
}

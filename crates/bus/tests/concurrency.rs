// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The bus changes while it is used, with real threads.

#![cfg(not(loom))]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should stop there"
)]

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use bus::{AccessError, Bus, BusDeviceSync, MmioBus};
use support::{Limit, Tag, handler};

/// Both ways in which a remover can find out where views are.
fn buses() -> [MmioBus; 2] {
    [Bus::new(), Bus::builder().fenced().build()]
}

const ROUNDS: usize = if cfg!(miri) { 10 } else { 1000 };

#[test]
fn of_overlapping_inserts_exactly_one_wins() {
    let _limit = Limit::new("both inserts");
    for _ in 0..ROUNDS {
        let bus = MmioBus::new();
        let start = Barrier::new(2);
        let won: usize = std::thread::scope(|scope| {
            let threads = [0x1000, 0x1008].map(|base| {
                let (bus, start) = (&bus, &start);
                scope.spawn(move || {
                    start.wait();
                    usize::from(bus.insert(Tag::new(1), base, 0x10).is_ok())
                })
            });
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert_eq!((won, bus.regions().len()), (1, 1));
    }
}

#[test]
fn remove_waits_for_a_handler_that_is_running() {
    let _limit = Limit::new("access and removal");
    for bus in buses() {
        let (entered, wait_entered) = channel();
        let (release, wait_release) = channel();
        let wait_release = std::sync::Mutex::new(wait_release);
        let left = Arc::new(AtomicBool::new(false));
        let leaving = left.clone();
        let device = handler(move |_, _| {
            entered.send(()).unwrap();
            wait_release.lock().unwrap().recv().unwrap();
            leaving.store(true, Ordering::SeqCst);
            Ok(())
        });
        let id = bus.insert(device, 0x1000, 4).unwrap();
        let mut view = bus.view();
        let vcpu = std::thread::spawn(move || view.write(0x1000, &[0]));
        wait_entered.recv().unwrap();

        let remover = bus.clone();
        let remover = std::thread::spawn(move || remover.remove(id).map(|_| ()));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!remover.is_finished());
        // Meanwhile the device is off the map, and the bus is usable.
        assert_eq!(bus.view().write(0x1000, &[0]), Err(AccessError::Unclaimed));
        let other = bus.insert(Tag::new(1), 0x2000, 4).unwrap();
        assert_eq!(bus.view().write(0x2000, &[0]), Ok(()));
        bus.remove(other).unwrap();
        assert!(!left.load(Ordering::SeqCst));

        release.send(()).unwrap();
        remover.join().unwrap().unwrap();
        assert!(left.load(Ordering::SeqCst));
        assert_eq!(vcpu.join().unwrap(), Ok(()));
    }
}

#[test]
fn removed_device_is_dropped_once_views_have_moved_on() {
    let bus = MmioBus::new();
    let device = Tag::new(1);
    let id = bus.insert(device.clone(), 0x1000, 4).unwrap();
    let (mut used, mut idle) = (bus.view(), bus.view());
    for view in [&mut used, &mut idle] {
        for _ in 0..3 {
            view.read(0x1000, &mut [0]).unwrap();
        }
    }
    bus.view().read(0x1000, &mut [0]).unwrap();
    drop(bus.remove(id).unwrap());
    assert!(used.read(0x9000, &mut [0]).is_err());
    idle.refresh();
    assert_eq!(Arc::strong_count(&device), 1);
}

/// A device that must not be called any more once `removed` is set.
struct Mortal {
    removed: AtomicBool,
    calls: AtomicUsize,
    too_late: AtomicUsize,
}

impl BusDeviceSync for Mortal {
    fn read(&self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        // Now and then long enough for a remover that has missed this call to set the flag.
        let rounds = [1, 10, 100, if cfg!(miri) { 100 } else { 1000 }];
        for _ in 0..rounds[calls % rounds.len()] {
            std::hint::spin_loop();
            if self.removed.load(Ordering::Relaxed) {
                self.too_late.fetch_add(1, Ordering::Relaxed);
            }
        }
        data.fill(1);
        Ok(())
    }
}

/// Ends the threads of a test, also when it fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Inserts and removes a device again and again while threads read from it.
fn remove_under_load(bus: &MmioBus, until: impl Fn(usize) -> bool) {
    bus.insert(Tag::new(2), 0x1_0000, 4).unwrap();
    let stop = AtomicBool::new(false);
    let failures = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        // A processor for each thread, or changes and accesses hardly ever meet.
        let processors = std::thread::available_parallelism().map_or(2, |n| n.get());
        for _ in 1..processors.clamp(2, 4) {
            let (stop, failures) = (&stop, &failures);
            let mut view = bus.view();
            scope.spawn(move || {
                let mut n = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    // Mostly one region through the view, so that the short way is taken.
                    let steady = n % 64 == 0;
                    let addr = if steady { 0x1_0000 } else { 0x1000 };
                    let mut data = [0xaa];
                    let outcome = match n % 32 {
                        1 => bus.view().read(addr, &mut data),
                        _ => view.read(addr, &mut data),
                    };
                    let expected = match outcome {
                        Ok(()) if steady => [2],
                        Ok(()) => [1],
                        Err(AccessError::Unclaimed) if !steady => [0xff],
                        Err(_) => [0],
                    };
                    if data != expected {
                        failures.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let _stop = Stop(&stop);
        let mut round = 0;
        while !until(round) {
            round += 1;
            let device = Arc::new(Mortal {
                removed: AtomicBool::new(false),
                calls: AtomicUsize::new(0),
                too_late: AtomicUsize::new(0),
            });
            let id = bus.insert(device.clone(), 0x1000, 4).unwrap();
            while device.calls.load(Ordering::Relaxed) < round % 50 {
                std::thread::yield_now();
            }
            bus.remove(id).unwrap();
            device.removed.store(true, Ordering::Relaxed);
            let calls = device.calls.load(Ordering::Relaxed);
            for _ in 0..16 {
                std::hint::spin_loop();
            }
            assert_eq!(device.calls.load(Ordering::Relaxed), calls);
            assert_eq!(device.too_late.load(Ordering::Relaxed), 0);
        }
    });
    assert_eq!(failures.into_inner(), 0);
    assert_eq!(bus.regions().len(), 1);
}

#[test]
fn no_access_reaches_a_device_after_remove_has_returned() {
    let _limit = Limit::new("every removal");
    for bus in buses() {
        remove_under_load(&bus, |round| round == ROUNDS);
    }
}

#[test]
#[ignore = "soak: takes a minute"]
fn soak_no_access_reaches_a_device_after_remove_has_returned() {
    let _limit = Limit::new("every removal");
    for bus in buses() {
        let start = Instant::now();
        remove_under_load(&bus, |_| start.elapsed() > Duration::from_secs(30));
    }
}

/// Binds this thread to the `nth` of the processors that it may run on, if there are so many.
#[cfg(target_os = "linux")]
fn pin(nth: usize) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let allowed = sched_getaffinity(None).unwrap();
    if let Some(cpu) = (0..CpuSet::MAX_CPU)
        .filter(|cpu| allowed.is_set(*cpu))
        .nth(nth)
    {
        let mut only = CpuSet::new();
        only.set(cpu);
        sched_setaffinity(None, &only).unwrap();
    }
}

/// A processor makes its stores visible late, and loads early. Here a view says that it enters the
/// device right after many stores that miss the cache, so that it is called long before anybody can
/// see that; unless `remove` makes the processor of the vCPU wait for its stores.
#[test]
#[cfg(all(target_os = "linux", not(miri)))]
fn remove_sees_a_view_whose_stores_are_late() {
    let _limit = Limit::new("every removal");
    #[derive(Default)]
    struct Late {
        calls: AtomicUsize,
        removed: AtomicBool,
    }
    impl BusDeviceSync for Late {
        // No instruction that waits for stores, such as an atomic addition.
        fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), AccessError> {
            let calls = self.calls.load(Ordering::Relaxed);
            self.calls.store(calls + 1, Ordering::Relaxed);
            let mut was_removed = false;
            // Long enough for `remove` to return meanwhile.
            for _ in 0..5000 {
                was_removed |= self.removed.load(Ordering::Relaxed);
            }
            match was_removed {
                true => Err(AccessError::Failed),
                false => Ok(()),
            }
        }
    }

    for bus in buses() {
        let (stop, too_late) = (AtomicBool::new(false), AtomicUsize::new(0));
        let scratch: Vec<AtomicUsize> = (0..8 << 20).map(AtomicUsize::new).collect();
        std::thread::scope(|scope| {
            let (stop, too_late, mut view) = (&stop, &too_late, bus.view());
            scope.spawn(move || {
                pin(1);
                let mut place = 0;
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..60 {
                        // Over pages and cache lines, in an order that no processor foresees.
                        place = (place * 5 + 12_345) % scratch.len();
                        scratch[place].store(place, Ordering::Relaxed);
                    }
                    if view.write(0x1000, &[0]) == Err(AccessError::Failed) {
                        too_late.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            let _stop = Stop(stop);
            pin(0);
            let start = Instant::now();
            let mut round = 0;
            while start.elapsed() < Duration::from_secs(1) {
                round += 1;
                let device = Arc::new(Late::default());
                let id = bus.insert(device.clone(), 0x1000, 4).unwrap();
                let calls = || device.calls.load(Ordering::Relaxed);
                while calls() < 3 && start.elapsed() < Duration::from_secs(1) {
                    std::hint::spin_loop();
                }
                for _ in 0..round % 97 * 8 {
                    std::hint::spin_loop();
                }
                bus.remove(id).unwrap();
                device.removed.store(true, Ordering::Relaxed);
            }
        });
        assert_eq!(too_late.into_inner(), 0);
    }
}

#[test]
fn look_ups_during_a_move_see_the_old_or_the_new_place() {
    let _limit = Limit::new("every move");
    for bus in buses() {
        let id = bus.insert(Tag::new(1), 0x1000, 0x100).unwrap();
        bus.insert(Tag::new(2), 0x3000, 0x100).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let (stop, mut view) = (&stop, bus.view());
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        for addr in [0x1000, 0x2000, 0x10ff, 0x20ff] {
                            let mut data = [0];
                            match view.read(addr, &mut data) {
                                Ok(()) => assert_eq!(data, [1]),
                                Err(error) => {
                                    assert_eq!((error, data), (AccessError::Unclaimed, [0xff]));
                                }
                            }
                        }
                        let mut data = [0];
                        assert_eq!((view.read(0x3000, &mut data), data), (Ok(()), [2]));
                    }
                });
            }
            let _stop = Stop(&stop);
            let mut view = bus.view();
            for round in 0..ROUNDS {
                // Every place in turn, with and without an overlap with the one before.
                let [to, from] = [[0x2000, 0x1000], [0x1000, 0x2000]][round % 2];
                bus.relocate(id, to).unwrap();
                // Who looks after the move has returned sees only the new place.
                assert_eq!(view.read(to, &mut [0]), Ok(()));
                assert_eq!(view.read(from, &mut [0]), Err(AccessError::Unclaimed));
                assert!(bus.relocate(id, 0x30ff).is_err());
            }
        });
    }
}

#[test]
fn views_come_and_go_while_devices_do() {
    let _limit = Limit::new("every removal");
    for bus in buses() {
        std::thread::scope(|scope| {
            for thread in 0..3_u64 {
                let bus = bus.clone();
                scope.spawn(move || {
                    for _ in 0..ROUNDS {
                        let base = 0x1000 * (thread + 1);
                        let id = bus.insert(Tag::new(1), base, 4).unwrap();
                        let mut view = bus.view();
                        assert_eq!(view.read(base, &mut [0]), Ok(()));
                        bus.remove(id).unwrap();
                        assert_eq!(view.read(base, &mut [0]), Err(AccessError::Unclaimed));
                    }
                });
            }
        });
        assert!(bus.regions().is_empty());
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that panic, and devices whose handlers call the bus.

#![cfg(not(loom))]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::assertions_on_result_states,
    reason = "a test that meets the unexpected should stop there"
)]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, OnceLock, Weak};

use bus::{
    AccessError, Bus, BusDevice, BusDeviceSync, BusError, MmioBus, MmioView, OnRemoval, RegionId,
};
use support::{Limit, Tag, finishes, handler};

/// A device that counts its calls and panics in all of them.
#[derive(Debug)]
struct Panicking(AtomicUsize);

impl BusDeviceSync for Panicking {
    fn read(&self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        data.fill(0x5e);
        self.write(0, &[])
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), AccessError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("on purpose");
    }
}

impl BusDevice for Panicking {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        BusDeviceSync::read(self, offset, data)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        BusDeviceSync::write(self, offset, data)
    }
}

#[test]
fn device_that_panicked_is_never_called_again_and_others_go_on() {
    let calls = |bus: &MmioBus, device: &Arc<Panicking>, ids: [RegionId; 2]| {
        let mut views = [bus.view(), bus.view()];
        for round in 0..3 {
            for (view, base) in views.iter_mut().zip([0x1000, 0x2000]) {
                let mut data = [0xaa; 4];
                // The second region has the same device, so it is gone as well.
                assert_eq!(view.read(base, &mut data), Err(AccessError::Panicked));
                assert_eq!(data, [0xff; 4], "round {round}");
                assert_eq!(bus.view().write(base, &data), Err(AccessError::Panicked));
                assert_eq!((view.read(0x3000, &mut data), data), (Ok(()), [3; 4]));
            }
        }
        assert_eq!(device.0.load(Ordering::SeqCst), 1);
        assert_eq!(bus.regions().len(), 3);
        // The region can still be moved and removed, and gives the real device back.
        bus.relocate(ids[0], 0x8000).unwrap();
        assert_eq!(bus.view().write(0x8000, &[0]), Err(AccessError::Panicked));
        for id in ids {
            assert!(Arc::ptr_eq(
                &bus.remove(id).unwrap(),
                &(Arc::clone(device) as _)
            ));
        }
    };

    let bus = MmioBus::new();
    bus.insert(Tag::new(3), 0x3000, 4).unwrap();
    let device = Arc::new(Panicking(AtomicUsize::new(0)));
    let ids = [0x1000, 0x2000].map(|base| bus.insert(device.clone(), base, 4).unwrap());
    calls(&bus, &device, ids);
}

#[test]
fn locked_device_that_panicked_is_never_called_again() {
    let (bus, other_bus) = (MmioBus::new(), MmioBus::new());
    let device = Arc::new(Mutex::new(Panicking(AtomicUsize::new(0))));
    let id = bus.insert(device.clone(), 0, 4).unwrap();
    // Its lock tells even those who do not share the bus.
    other_bus.insert(device.clone(), 0, 4).unwrap();
    let mut view = bus.view();
    for _ in 0..3 {
        assert_eq!(view.write(0, &[1]), Err(AccessError::Panicked));
        assert_eq!(other_bus.view().write(0, &[1]), Err(AccessError::Panicked));
    }
    bus.remove(id).unwrap();
    let poisoned = device.lock().unwrap_err().into_inner();
    assert_eq!(poisoned.0.load(Ordering::SeqCst), 1);
}

#[test]
#[cfg_attr(miri, ignore = "leaks what the payload panicked with")]
fn payload_that_panics_when_dropped_does_not_get_out() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let bus = MmioBus::new();
    bus.insert(handler(|_, _| std::panic::panic_any(Bomb)), 0, 1)
        .unwrap();
    let outcome = catch_unwind(AssertUnwindSafe(|| bus.view().read(0, &mut [0])));
    assert_eq!(outcome.unwrap(), Err(AccessError::Panicked));
}

#[test]
#[cfg_attr(miri, ignore = "leaks what the payload panicked with")]
fn device_that_panics_at_its_insertion_is_inserted_whatever_it_panics_with() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    struct Asked;
    impl BusDeviceSync for Asked {
        fn on_removal(&self) -> Result<Option<OnRemoval>, AccessError> {
            std::panic::panic_any(Bomb)
        }
    }
    let bus = MmioBus::new();
    let inserted = catch_unwind(AssertUnwindSafe(|| bus.insert(Arc::new(Asked), 0, 1)));
    bus.remove(inserted.unwrap().unwrap()).unwrap();
}

#[test]
fn observer_that_panics_leaves_the_bus_in_order() {
    let bus: MmioBus = Bus::builder().observer(|_| panic!("observer")).build();
    let id = bus.insert(Tag::new(1), 0, 1).unwrap();
    let mut view = bus.view();
    for _ in 0..2 {
        assert!(catch_unwind(AssertUnwindSafe(|| view.write(0, &[1]))).is_err());
        assert!(catch_unwind(AssertUnwindSafe(|| bus.view().write(0, &[1]))).is_err());
    }
    // Nobody is inside of the device, or this would wait for ever.
    finishes(move || bus.remove(id).unwrap());
}

/// A device that passes each access on to another address of its bus, or of another.
struct Bridge {
    bus: Weak<MmioBus>,
    target: u64,
}

impl BusDevice for Bridge {
    fn read(&mut self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        self.bus.upgrade().unwrap().view().read(self.target, data)
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Result<(), AccessError> {
        self.bus.upgrade().unwrap().view().write(self.target, data)
    }
}

#[test]
fn handler_reaches_another_device_and_not_itself() {
    finishes(|| {
        let (bus, other) = (Arc::new(MmioBus::new()), Arc::new(MmioBus::new()));
        let bridge = |bus: &Arc<MmioBus>, target| {
            let bus = Arc::downgrade(bus);
            Arc::new(Mutex::new(Bridge { bus, target }))
        };
        bus.insert(Tag::new(7), 0x7000, 4).unwrap();
        bus.insert(bridge(&bus, 0x7000), 0x1000, 4).unwrap();
        bus.insert(bridge(&bus, 0x1000), 0x2000, 4).unwrap();
        // To itself; in a circle of two; in a circle through another bus.
        bus.insert(bridge(&bus, 0x3000), 0x3000, 4).unwrap();
        bus.insert(bridge(&bus, 0x5000), 0x4000, 4).unwrap();
        bus.insert(bridge(&bus, 0x4000), 0x5000, 4).unwrap();
        bus.insert(bridge(&other, 0x6000), 0x6000, 4).unwrap();
        other.insert(bridge(&bus, 0x6000), 0x6000, 4).unwrap();

        let mut view = bus.view();
        for _ in 0..3 {
            for base in [0x1000, 0x2000] {
                let mut data = [0];
                assert_eq!((view.read(base, &mut data), data), (Ok(()), [7]));
            }
            for base in [0x3000, 0x4000, 0x5000, 0x6000] {
                let mut data = [0xaa];
                assert_eq!(view.read(base, &mut data), Err(AccessError::Reentrant));
                assert_eq!(data, [0xff]);
                assert_eq!(bus.view().write(base, &data), Err(AccessError::Reentrant));
            }
        }
    });
}

#[test]
fn reentrance_is_seen_through_wrappers_of_the_lock() {
    finishes(|| {
        let bus = Arc::new(MmioBus::new());
        let bridge = Bridge {
            bus: Arc::downgrade(&bus),
            target: 0,
        };
        let wrapped: Arc<Box<Arc<Mutex<Bridge>>>> =
            Arc::new(Box::new(Arc::new(Mutex::new(bridge))));
        bus.insert(wrapped, 0, 4).unwrap();
        assert_eq!(bus.view().read(0, &mut [0]), Err(AccessError::Reentrant));
    });
}

#[test]
fn nesting_without_end_is_refused_before_the_stack_overflows() {
    let bus = Arc::new(MmioBus::new());
    let inner = Arc::downgrade(&bus);
    let depth = Arc::new(AtomicUsize::new(0));
    let deepest = depth.clone();
    let device = handler(move |offset, data| {
        deepest.fetch_add(1, Ordering::SeqCst);
        match data {
            Some(data) => inner.upgrade().unwrap().view().read(offset, data),
            None => inner.upgrade().unwrap().view().write(offset, &[0]),
        }
    });
    bus.insert(device, 0, 4).unwrap();
    let mut data = [0xaa];
    assert_eq!(bus.view().read(0, &mut data), Err(AccessError::Reentrant));
    assert_eq!(data, [0xff]);
    let reached = depth.swap(0, Ordering::SeqCst);
    assert!((16..64).contains(&reached));
    // The depth is back where it was.
    assert_eq!(bus.view().write(0, &[0]), Err(AccessError::Reentrant));
    assert_eq!(depth.load(Ordering::SeqCst), reached);
}

#[test]
fn chain_of_locked_devices_longer_than_the_limit_is_refused() {
    let bus = Arc::new(MmioBus::new());
    for i in 0..40 {
        let target = (i + 1) * 0x10;
        let bus_of_device = Arc::downgrade(&bus);
        let bridge = Bridge {
            bus: bus_of_device,
            target,
        };
        bus.insert(Arc::new(Mutex::new(bridge)), i * 0x10, 0x10)
            .unwrap();
    }
    bus.insert(Tag::new(1), 400 * 0x10, 0x10).unwrap();
    assert_eq!(bus.view().read(0, &mut [0]), Err(AccessError::Reentrant));
    // Near enough to the end of the chain, which leads to nothing.
    assert_eq!(
        bus.view().read(30 * 0x10, &mut [0]),
        Err(AccessError::Unclaimed)
    );
}

#[test]
fn two_vcpus_at_one_locked_device_take_turns() {
    struct Slow {
        inside: Arc<AtomicBool>,
        calls: usize,
    }
    impl BusDevice for Slow {
        fn write(&mut self, _offset: u64, _data: &[u8]) -> Result<(), AccessError> {
            assert!(!self.inside.swap(true, Ordering::SeqCst));
            // Now and then: on a busy machine, each time takes milliseconds.
            self.calls += 1;
            if self.calls % 32 == 0 {
                std::thread::yield_now();
            }
            self.inside.store(false, Ordering::SeqCst);
            Ok(())
        }
    }

    let _limit = Limit::new("both vCPUs");
    let bus = MmioBus::new();
    let inside = Arc::new(AtomicBool::new(false));
    let device = Slow { inside, calls: 0 };
    bus.insert(Arc::new(Mutex::new(device)), 0, 4).unwrap();
    let rounds = if cfg!(miri) { 20 } else { 10_000 };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut view = bus.view();
                for _ in 0..rounds {
                    // Never mistaken for a device that calls itself.
                    assert_eq!(view.write(0, &[0]), Ok(()));
                }
            });
        }
    });
}

#[test]
fn handler_cannot_remove_its_own_device() {
    struct SelfRemoving {
        bus: Weak<MmioBus>,
        ids: Vec<RegionId>,
        error: Option<BusError<u64>>,
    }
    impl BusDevice for SelfRemoving {
        fn write(&mut self, offset: u64, _data: &[u8]) -> Result<(), AccessError> {
            let id = self.ids[usize::try_from(offset).unwrap()];
            self.error = self.bus.upgrade().unwrap().remove(id).err();
            Ok(())
        }
    }

    finishes(|| {
        let bus = Arc::new(MmioBus::new());
        let device = Arc::new(Mutex::new(SelfRemoving {
            bus: Arc::downgrade(&bus),
            ids: Vec::new(),
            error: None,
        }));
        // Two regions of one device: from inside of one, the other is its own as well.
        let ids = [0x1000, 0x2000].map(|base| bus.insert(device.clone(), base, 4).unwrap());
        let third = bus.insert(Tag::new(1), 0x3000, 4).unwrap();
        device.lock().unwrap().ids = vec![ids[0], ids[1], third];

        let mut view = bus.view();
        for (offset, base) in [(0, 0x1000), (1, 0x2000)] {
            assert_eq!(view.write(0x1000 + offset, &[0]), Ok(()));
            let error = device.lock().unwrap().error.take();
            let Some(BusError::InsideDevice(region)) = error else {
                panic!("{error:?}");
            };
            assert_eq!(region.range.first(), base);
            assert_eq!(bus.view().write(0x2000 + offset, &[0]), Ok(()));
            assert!(device.lock().unwrap().error.take().is_some());
        }
        assert_eq!(bus.regions().len(), 3);

        // Another device is no problem, from a view or without.
        assert_eq!(view.write(0x1002, &[0]), Ok(()));
        assert!(device.lock().unwrap().error.is_none());
        assert_eq!(view.read(0x3000, &mut [0]), Err(AccessError::Unclaimed));
        // From outside it goes; and once it is back, it can remove others again.
        for id in ids {
            bus.remove(id).unwrap();
        }
        bus.insert(device.clone(), 0x1000, 4).unwrap();
        let fourth = bus.insert(Tag::new(1), 0x3000, 4).unwrap();
        device.lock().unwrap().ids = vec![fourth];
        assert_eq!(view.write(0x1000, &[0]), Ok(()));
        assert!(device.lock().unwrap().error.is_none());
    });
}

#[test]
fn shared_device_cannot_remove_itself_either() {
    finishes(|| {
        let bus = Arc::new(MmioBus::new());
        let id = Arc::new(OnceLock::new());
        let (inner, own) = (Arc::downgrade(&bus), id.clone());
        let device =
            handler(
                move |_, _| match inner.upgrade().unwrap().remove(*own.get().unwrap()) {
                    Err(BusError::InsideDevice(_)) => Ok(()),
                    _ => Err(AccessError::Failed),
                },
            );
        id.set(bus.insert(device, 0, 4).unwrap()).unwrap();
        let mut view = bus.view();
        for _ in 0..3 {
            assert_eq!(view.write(0, &[0]), Ok(()));
            assert_eq!(bus.view().write(0, &[0]), Ok(()));
        }
        // After an access to another device, the view takes its fast path to this one again.
        bus.insert(Tag::new(1), 8, 4).unwrap();
        for addr in [0, 0, 0, 8, 0] {
            assert_eq!(view.write(addr, &[0]), Ok(()));
        }
        // The view may change threads; who is inside is decided by the thread that is.
        std::thread::spawn(move || assert_eq!(view.write(0, &[0]), Ok(())))
            .join()
            .unwrap();
        bus.remove(*id.get().unwrap()).unwrap();
    });
}

#[test]
fn handlers_that_remove_each_other_do_not_wait_for_each_other() {
    finishes(|| {
        let bus = Arc::new(MmioBus::new());
        let ids: Arc<OnceLock<[RegionId; 2]>> = Arc::default();
        let both_inside = Arc::new(Barrier::new(2));
        let outcomes: Arc<Mutex<Vec<bool>>> = Arc::default();
        let device = |other: usize| {
            let (bus, ids) = (Arc::downgrade(&bus), ids.clone());
            let (both_inside, outcomes) = (both_inside.clone(), outcomes.clone());
            handler(move |_, _| {
                both_inside.wait();
                let removed = bus.upgrade().unwrap().remove(ids.get().unwrap()[other]);
                if let Err(error) = &removed {
                    assert!(matches!(error, BusError::InsideDevice(_)));
                }
                outcomes.lock().unwrap().push(removed.is_ok());
                Ok(())
            })
        };
        let first = bus.insert(device(1), 0x1000, 4).unwrap();
        let second = bus.insert(device(0), 0x2000, 4).unwrap();
        ids.set([first, second]).unwrap();

        std::thread::scope(|scope| {
            for base in [0x1000, 0x2000] {
                let mut view: MmioView = bus.view();
                scope.spawn(move || view.write(base, &[0]));
            }
        });
        // One was refused; the other waited until the refused one had left.
        let mut outcomes = outcomes.lock().unwrap().clone();
        outcomes.sort_unstable();
        assert_eq!(outcomes, [false, true]);
        assert_eq!(bus.regions().len(), 1);
    });
}

#[test]
fn handler_may_change_the_rest_of_the_bus() {
    finishes(|| {
        let bus = Arc::new(MmioBus::new());
        let own = Arc::new(OnceLock::new());
        let (weak, id) = (Arc::downgrade(&bus), own.clone());
        let device = handler(move |offset, _| {
            let inner = weak.upgrade().unwrap();
            let added = inner.insert(Tag::new(1), 0x9000, 4).unwrap();
            inner.relocate(added, 0xa000).unwrap();
            assert_eq!(inner.view().read(0xa000, &mut [0]), Ok(()));
            inner.remove(added).unwrap();
            // Also where it is itself, as a PCI function that gets a new base address does.
            inner.relocate(*id.get().unwrap(), 0x1000 + offset).unwrap();
            Ok(())
        });
        own.set(bus.insert(device, 0x1000, 0x100).unwrap()).unwrap();
        let mut view = bus.view();
        assert_eq!(view.write(0x1010, &[0]), Ok(()));
        assert_eq!(view.write(0x1000, &[0]), Err(AccessError::Unclaimed));
        assert_eq!(bus.view().write(0x1020, &[0]), Ok(()));
        assert_eq!(view.write(0x110f, &[0]), Ok(()));
    });
}

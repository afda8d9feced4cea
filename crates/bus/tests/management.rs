// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a VMM finds, changes and removes what it put on a bus, and who accesses it.

#![cfg(not(loom))]
mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use bus::{AccessError, Bus, BusDevice, BusDeviceSync, BusError, MmioBus, Region, RegionInfo};
use support::Tag;

fn bases(regions: &[RegionInfo<u64>]) -> Vec<u64> {
    regions.iter().map(|region| region.range.first()).collect()
}

#[test]
fn device_is_found_and_removed_in_all_of_its_regions() {
    let bus = MmioBus::new();
    let (device, other) = (Tag::new(1), Tag::new(2));
    for base in [0x3000, 0x1000] {
        bus.insert(device.clone(), base, 4).unwrap();
    }
    bus.insert(other.clone(), 0x2000, 4).unwrap();
    assert_eq!(bases(&bus.find_device(&device)), [0x1000, 0x3000]);
    assert_eq!(bases(&bus.find_device(&other)), [0x2000]);
    // The same by what the bus calls it.
    let erased: Arc<dyn BusDeviceSync> = device.clone();
    assert_eq!(bases(&bus.find_device(&erased)), [0x1000, 0x3000]);
    assert!(bus.find_device(&Tag::new(1)).is_empty());

    let mut view = bus.view();
    assert_eq!(
        bases(&bus.remove_device(&device).unwrap()),
        [0x1000, 0x3000]
    );
    assert_eq!(view.read(0x1000, &mut [0]), Err(AccessError::Unclaimed));
    assert_eq!(view.read(0x3000, &mut [0]), Err(AccessError::Unclaimed));
    assert_eq!(view.read(0x2000, &mut [0]), Ok(()));
    assert!(bus.remove_device(&device).unwrap().is_empty());
}

#[test]
fn region_is_removed_by_any_of_its_addresses() {
    let bus = MmioBus::new();
    let device = Tag::new(1);
    bus.insert(device.clone(), 0x1000, 4).unwrap();
    let missing = bus.remove_at(0x1004).err().unwrap();
    assert!(matches!(missing, BusError::NoRegionAt(0x1004)));
    assert_eq!(missing.to_string(), "no region at 0x1004");
    let removed = bus.remove_at(0x1003).unwrap();
    assert!(Arc::ptr_eq(&removed, &(device as Arc<dyn BusDeviceSync>)));
    assert!(bus.regions().is_empty());
}

#[test]
fn what_describes_a_region_keeps_no_device_alive() {
    let bus = MmioBus::new();
    let device = Tag::new(1);
    let id = bus.insert(device.clone(), 0x1000, 4).unwrap();
    let info = bus.find(0x1000).unwrap();
    let overlap = bus.insert(Tag::new(2), 0x1000, 4).unwrap_err();
    drop(bus.remove(id).unwrap());
    assert_eq!(Arc::strong_count(&device), 1);
    let refused = Tag::new(3);
    bus.insert(Tag::new(4), 0x1000, 4).unwrap();
    let error = bus.insert(refused.clone(), 0x1000, 4).unwrap_err();
    assert_eq!(Arc::strong_count(&refused), 1);
    assert_eq!((info.name(), info.range.size()), ("device", 4));
    assert_eq!(overlap.to_string(), error.to_string());
}

#[test]
fn device_held_weakly_is_dropped_by_its_owner() {
    let bus = MmioBus::new();
    let device = Tag::new(7);
    let weak: Weak<dyn BusDeviceSync> = Arc::downgrade(&device) as _;
    let id = bus
        .insert_weak(weak.clone(), Region::new(0x1000, 4))
        .unwrap();
    assert_eq!(bases(&bus.find_device(&device)), [0x1000]);
    let mut view = bus.view();
    for _ in 0..4 {
        let mut data = [0; 2];
        assert_eq!((view.read(0x1000, &mut data), data), (Ok(()), [7; 2]));
        assert_eq!(view.write(0x1000, &data), Ok(()));
    }
    assert_eq!((device.calls(), Arc::strong_count(&device)), (8, 1));
    let removed = bus.remove(id).unwrap();
    assert!(Arc::ptr_eq(
        &removed,
        &(device.clone() as Arc<dyn BusDeviceSync>)
    ));
    drop(removed);

    let id = bus.insert_weak(weak, Region::new(0x1000, 4)).unwrap();
    for _ in 0..3 {
        assert_eq!(view.read(0x1000, &mut [0]), Ok(()));
    }
    drop(device);
    let mut data = [0; 2];
    assert_eq!(view.read(0x1000, &mut data), Err(AccessError::Unclaimed));
    assert_eq!(data, [0xff; 2]);
    assert_eq!(bus.regions().len(), 1);
    let removed = bus.remove(id).unwrap();
    assert_eq!(removed.read(0, &mut data), Err(AccessError::Unclaimed));
}

#[test]
fn device_that_asks_is_told_the_initiator() {
    /// Notes who accessed it.
    #[derive(Default)]
    struct Banked(Vec<Option<u32>>);
    impl BusDevice for Banked {
        fn read_by(
            &mut self,
            initiator: Option<u32>,
            _offset: u64,
            _data: &mut [u8],
        ) -> Result<(), AccessError> {
            self.0.push(initiator);
            Ok(())
        }

        fn write_by(
            &mut self,
            initiator: Option<u32>,
            _offset: u64,
            _data: &[u8],
        ) -> Result<(), AccessError> {
            self.0.push(initiator);
            Ok(())
        }
    }

    let bus = MmioBus::new();
    let fenced: MmioBus = Bus::builder().fenced().build();
    let device = Arc::new(Mutex::new(Banked::default()));
    let boxed: Arc<Mutex<Box<dyn BusDevice>>> = Arc::new(Mutex::new(Box::new(Banked::default())));
    for bus in [&bus, &fenced] {
        bus.insert(device.clone(), 0x1000, 8).unwrap();
        bus.insert(Arc::new(device.clone()), 0x2000, 8).unwrap();
        bus.insert(boxed.clone(), 0x3000, 8).unwrap();
        // Who does not ask is called as ever.
        bus.insert(Tag::new(1), 0x4000, 8).unwrap();
        let mut views = [
            bus.view(),
            bus.view().initiated_by(0),
            bus.view().initiated_by(7),
        ];
        for (view, initiator) in views.iter_mut().zip([None, Some(0), Some(7)]) {
            for addr in [0x1000, 0x1000, 0x1000, 0x2000] {
                assert_eq!(view.read(addr, &mut [0; 4]), Ok(()));
                assert_eq!(view.write(addr, &[0; 4]), Ok(()));
            }
            assert_eq!(view.write(0x1000, &[0; 3]), Ok(()));
            assert_eq!(view.read(0x3000, &mut [0]), Ok(()));
            assert_eq!(view.read(0x4000, &mut [0]), Ok(()));
            let seen = std::mem::take(&mut device.lock().unwrap().0);
            assert_eq!(seen, [initiator; 10]);
        }
    }
}

#[test]
fn transaction_that_fails_changes_nothing() {
    let bus = MmioBus::new();
    let first = bus.insert(Tag::new(1), 0x1000, 0x1000).unwrap();
    let second = bus.insert(Tag::new(2), 0x2000, 0x1000).unwrap();
    let before = bus.to_string();
    let mut changes = bus.transaction();
    changes.remove(first);
    changes.relocate(second, 0x1000);
    let new = Tag::new(3);
    changes.insert(new.clone(), Region::new(0x1800, 4)).unwrap();
    let error = changes.commit().err().unwrap();
    assert!(matches!(error, BusError::Overlap { .. }));
    assert_eq!(
        (bus.to_string(), Arc::strong_count(&new)),
        (before.clone(), 1)
    );
    let mut changes = bus.transaction();
    changes.remove(first);
    changes.remove(first);
    let error = changes.commit().err().unwrap();
    assert!(matches!(error, BusError::NoSuchRegion(id) if id == first));
    // One that is not committed changes nothing either.
    let mut changes = bus.transaction();
    changes.remove(first);
    drop(changes);
    assert_eq!(bus.to_string(), before);
    assert_eq!(bus.view().read(0x1000, &mut [0]), Ok(()));
}

#[test]
fn transaction_returns_the_removed_devices_in_order() {
    let bus = MmioBus::new();
    let devices = [Tag::new(1), Tag::new(2)];
    let ids = [0x1000, 0x2000].map(|base| {
        let device = devices[usize::from(base == 0x2000)].clone();
        bus.insert(device, base, 4).unwrap()
    });
    let mut changes = bus.transaction();
    changes.remove(ids[1]);
    let new = changes.insert(Tag::new(3), Region::new(0x2000, 4)).unwrap();
    changes.relocate(new, 0x1002);
    changes.remove(ids[0]);
    assert!(
        changes.commit().is_err(),
        "a step sees only those before it"
    );

    let mut changes = bus.transaction();
    changes.remove(ids[1]);
    changes.remove(ids[0]);
    let new = changes.insert(Tag::new(3), Region::new(0x2000, 4)).unwrap();
    changes.relocate(new, 0x1002);
    let removed = changes.commit().unwrap();
    for (removed, device) in removed.iter().zip(devices.into_iter().rev()) {
        assert!(Arc::ptr_eq(removed, &(device as Arc<dyn BusDeviceSync>)));
    }
    assert_eq!((removed.len(), bases(&bus.regions())), (2, vec![0x1002]));
    assert_eq!(bus.find(0x1002).unwrap().id, new);
}

#[test]
fn transaction_is_seen_as_a_whole() {
    let bus = MmioBus::new();
    let id = bus.insert(Tag::new(1), 0x1000, 4).unwrap();
    let (stop, misses) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let mut view = bus.view();
            let (stop, misses) = (&stop, &misses);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // Whoever is there, somebody is.
                    if view.read(0x1000, &mut [0]).is_err() {
                        misses.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let mut id = id;
        for round in 0..if cfg!(miri) { 5 } else { 250 } {
            let mut changes = bus.transaction();
            changes.remove(id);
            id = changes
                .insert(Tag::new(round), Region::new(0x1000, 4))
                .unwrap();
            if changes.commit().is_err() {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(misses.into_inner(), 0);
    assert_eq!(bus.regions().len(), 1);
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How the map changes, and when it must not.

#![cfg(not(loom))]

mod support;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bus::{AccessError, Bus, BusError, BusRange, MmioBus, PioBus, Region};
use support::Tag;

/// What is on a bus, for comparing before and after.
fn snapshot<K: bus::Address>(bus: &Bus<K>) -> Vec<(bus::RegionId, BusRange<K>, String)> {
    let regions = bus.regions();
    let lines = regions.iter();
    lines
        .map(|r| (r.id, r.range, r.name().to_owned()))
        .collect()
}

#[test]
fn empty_range_is_refused() {
    let bus = MmioBus::new();
    bus.insert(Tag::new(1), 0x1000, 0x1000).unwrap();
    let before = snapshot(&bus);
    for base in [0, 0x1000, 0x1800, u64::MAX] {
        let error = bus.insert(Tag::new(2), base, 0).unwrap_err();
        assert!(matches!(error, BusError::InvalidRange { base: b, len: 0 } if b == base));
    }
    assert_eq!(snapshot(&bus), before);
}

#[test]
fn range_beyond_the_address_space_is_refused_and_one_up_to_its_end_is_not() {
    for (base, len) in [(u64::MAX, 2), (2, u64::MAX), (1 << 63, (1 << 63) + 1)] {
        let bus = MmioBus::new();
        let error = bus.insert(Tag::new(1), base, len).unwrap_err();
        assert!(
            matches!(error, BusError::InvalidRange { base: b, len: l } if (b, l) == (base, len))
        );
        assert!(bus.regions().is_empty());
    }
    for (base, len) in [
        (1, u64::MAX),
        (u64::MAX, 1),
        (0, u64::MAX),
        (1 << 63, 1 << 63),
    ] {
        let bus = MmioBus::new();
        bus.insert(Tag::new(1), base, len).unwrap();
        let range = bus.regions()[0].range;
        assert_eq!((range.first(), range.last()), (base, base + (len - 1)));
        assert_eq!(range.size(), len);
        assert_eq!(bus.view().read(base, &mut [0]), Ok(()));
        assert_eq!(bus.view().read(range.last(), &mut [0]), Ok(()));
    }

    let ports = PioBus::new();
    for (base, len) in [(0xffff, 2), (0, 0x1_0001), (1, u64::MAX)] {
        let error = ports.insert(Tag::new(1), base, len).unwrap_err();
        assert!(
            matches!(error, BusError::InvalidRange { base: b, len: l } if (b, l) == (base, len))
        );
    }
    ports.insert(Tag::new(1), 0, 0x1_0000).unwrap();
    assert_eq!(ports.view().read(0xffff, &mut [0]), Ok(()));
}

#[test]
fn overlap_names_both_and_changes_nothing() {
    let bus = MmioBus::new();
    let uart = Region::new(0x1000, 0x100).named("uart");
    bus.insert_region(Tag::new(1), uart).unwrap();
    let before = snapshot(&bus);
    // Equal, inside, around, head, tail.
    let overlapping = [
        (0x1000, 0x100),
        (0x1010, 1),
        (0xf00, 0x400),
        (0xfff, 2),
        (0x10ff, 2),
    ];
    for (base, len) in overlapping {
        let region = Region::new(base, len).named("rtc");
        let error = bus.insert_region(Tag::new(2), region).unwrap_err();
        let text = error.to_string();
        assert!(text.ends_with(" : rtc) overlaps (00001000-000010ff : uart)"));
        let BusError::Overlap { new, existing } = error else {
            panic!("{error}");
        };
        assert_eq!((new.range.first(), new.range.size()), (base, len));
        assert_eq!((new.name(), existing.id), ("rtc", before[0].0));
        assert_eq!(snapshot(&bus), before);
    }
    bus.insert(Tag::new(3), 0xf00, 0x100).unwrap();
    bus.insert(Tag::new(4), 0x1100, 1).unwrap();
    assert_eq!(bus.regions().len(), 3);
}

#[test]
fn region_is_removed_once_and_only_by_its_own_identifier() {
    let (bus, other) = (MmioBus::new(), MmioBus::new());
    let device = Tag::new(1);
    let id = bus.insert(device.clone(), 0x1000, 0x100).unwrap();
    let foreign = other.insert(Tag::new(2), 0x1000, 0x100).unwrap();
    let before = snapshot(&bus);
    let is_missing = |error, id| matches!(error, Some(BusError::NoSuchRegion(of)) if of == id);
    assert!(is_missing(bus.remove(foreign).err(), foreign));
    assert_eq!(snapshot(&bus), before);

    let removed = bus.remove(id).unwrap();
    assert_eq!(removed.read(0, &mut [0]), Ok(()));
    assert_eq!(device.calls(), 1);
    assert!(is_missing(bus.remove(id).err(), id));
    assert!(is_missing(bus.relocate(id, 0).err(), id));
    assert!(bus.regions().is_empty());
    assert_eq!(other.regions().len(), 1);
}

#[test]
fn stale_identifier_never_means_the_next_device() {
    let bus = MmioBus::new();
    let mut view = bus.view();
    let old = bus.insert(Tag::new(1), 0x1000, 0x100).unwrap();
    let mut data = [0];
    assert_eq!((view.read(0x1000, &mut data), data), (Ok(()), [1]));
    bus.remove(old).unwrap();
    assert_eq!(view.read(0x1000, &mut data), Err(AccessError::Unclaimed));

    let new = bus.insert(Tag::new(2), 0x1000, 0x100).unwrap();
    assert_ne!(old, new);
    let error = bus.remove(old).err().unwrap();
    assert!(matches!(error, BusError::NoSuchRegion(id) if id == old));
    assert!(bus.relocate(old, 0x8000).is_err());
    assert_eq!((view.read(0x1000, &mut data), data), (Ok(()), [2]));
    assert_eq!(bus.find(0x1000).unwrap().id, new);
}

#[test]
fn region_moves_as_a_whole_or_not_at_all() {
    let bus = MmioBus::new();
    let mut view = bus.view();
    let id = bus
        .insert_region(Tag::new(1), Region::new(0x2000, 0x100).named("a"))
        .unwrap();
    bus.insert_region(Tag::new(2), Region::new(0x3000, 0x100).named("b"))
        .unwrap();
    let mut data = [0];
    assert_eq!((view.read(0x2000, &mut data), data), (Ok(()), [1]));

    let before = snapshot(&bus);
    let onto_b = bus.relocate(id, 0x3080).unwrap_err();
    assert!(matches!(onto_b, BusError::Overlap { existing, .. } if existing.name() == "b"));
    let beyond = bus.relocate(id, u64::MAX).unwrap_err();
    assert!(matches!(
        beyond,
        BusError::InvalidRange {
            base: u64::MAX,
            len: 0x100
        }
    ));
    assert_eq!(snapshot(&bus), before);
    assert_eq!((view.read(0x20ff, &mut data), data), (Ok(()), [1]));

    // To a free place, over its own old range, to where it is, to both ends, past the other.
    for base in [0x2100, 0x2080, 0x2080, 0, u64::MAX - 0xff, 0x2f00, 0x3100] {
        let old = bus.regions().iter().find(|r| r.id == id).unwrap().range;
        bus.relocate(id, base).unwrap();
        let new = BusRange::new(base, 0x100).unwrap();
        assert_eq!(bus.find(base).unwrap().range, new);
        assert_eq!(bus.find(base).unwrap().name(), "a");
        for addr in [old.first(), old.last(), new.first(), new.last()] {
            let expected = if new.contains(addr) {
                Ok(())
            } else {
                Err(AccessError::Unclaimed)
            };
            assert_eq!(
                view.read(addr, &mut data),
                expected,
                "{addr:#x} after a move to {new}"
            );
        }
        assert_eq!((view.read(0x3000, &mut data), data), (Ok(()), [2]));
        assert_eq!(bus.regions().len(), 2);
    }
    bus.remove(id).unwrap();
    assert_eq!(bus.regions().len(), 1);
}

#[test]
fn map_prints_like_proc_iomem_and_proc_ioports() {
    let bus = MmioBus::new();
    let high = Region::new(0x1_0000_0000, 0x1000).named(String::from("high"));
    bus.insert_region(Tag::new(1), high).unwrap();
    bus.insert_region(Tag::new(2), Region::new(0x1000, 1).named("low"))
        .unwrap();
    assert_eq!(
        bus.to_string(),
        "00001000-00001000 : low\n100000000-100000fff : high\n"
    );
    let ports = PioBus::new();
    ports.insert(Tag::new(1), 0x60, 1).unwrap();
    assert_eq!(ports.to_string(), "0060-0060 : device\n");
    assert_eq!(MmioBus::new().to_string(), "");
    for debug in [format!("{bus:?}"), format!("{:?}", bus.view())] {
        assert!(debug.contains("\"low\""));
    }
}

#[test]
fn clones_are_the_same_bus() {
    let bus = MmioBus::new();
    let clone = bus.clone();
    bus.insert(Tag::new(1), 0, 1).unwrap();
    assert_eq!(clone.view().read(0, &mut [0]), Ok(()));
    let mut view = clone.view();
    drop((bus, clone));
    assert_eq!(view.read(0, &mut [0]), Ok(()));
}

#[test]
fn ten_thousand_devices() {
    let bus = MmioBus::new();
    let count = if cfg!(miri) { 100 } else { 10_000 };
    // From both ends, so that insertion at the front, in the middle and at the end all happen.
    for i in (0..count)
        .step_by(2)
        .chain((0..count / 2).map(|i| count - 1 - 2 * i))
    {
        bus.insert(Tag::new((i % 251) as u8), i * 0x1000, 0x1000)
            .unwrap();
    }
    let mut view = bus.view();
    let mut data = [0];
    for i in 0..count {
        assert_eq!(view.read(i * 0x1000 + 0xfff, &mut data), Ok(()));
        assert_eq!(u64::from(data[0]), i % 251);
    }
    assert!(
        bus.regions()
            .windows(2)
            .all(|pair| pair[0].range.last() < pair[1].range.first())
    );
}

#[test]
fn a_device_hears_that_its_region_was_removed_and_one_that_panicked_then_harms_nobody() {
    let bus = MmioBus::new();
    let (device, count) = Hears::new();
    for expected in 1..=2 {
        let id = bus.insert(device.clone(), 0, 1).unwrap();
        bus.relocate(id, 0x1000).unwrap();
        assert_eq!(count(), expected - 1, "relocating is not removing");
        bus.remove(id).unwrap();
        assert_eq!(count(), expected);
    }
    // An insertion that fails is over at once, and a bus that goes away is, too.
    bus.insert(Tag::new(1), 0, 1).unwrap();
    bus.insert(device.clone(), 0, 1).unwrap_err();
    assert_eq!(count(), 3);
    bus.insert(device, 8, 1).unwrap();
    drop(bus);
    assert_eq!(count(), 4);
}

#[test]
fn a_removal_does_not_wait_for_the_lock_of_its_device() {
    let bus = MmioBus::new();
    let (device, count) = Hears::new();
    let ids = [0, 8].map(|base| bus.insert(device.clone(), base, 1).unwrap());
    // Somebody is inside, by whatever way; and one that has panicked is not asked.
    let inside = device.lock().unwrap();
    bus.remove(ids[0]).unwrap();
    assert_eq!(count(), 1);
    let poisoned = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _inside = inside;
        panic!("a bug in the device");
    }));
    assert!(poisoned.is_err());
    bus.remove(ids[1]).unwrap();
    assert_eq!(count(), 2);
    let id = bus.insert(device, 0, 1).unwrap();
    bus.remove(id).unwrap();
    assert_eq!(count(), 2);
}

#[test]
fn a_device_cannot_be_inserted_from_inside_of_its_own_access() {
    struct Moves(Arc<MmioBus>, Option<Arc<Mutex<Self>>>);
    impl bus::BusDevice for Moves {
        fn write(&mut self, _: u64, _: &[u8]) -> Result<(), AccessError> {
            let this = self.1.take().unwrap();
            let inserted = self.0.insert(this, 0x1000, 1);
            assert!(
                matches!(inserted, Err(BusError::InsideDevice(_))),
                "{inserted:?}"
            );
            Ok(())
        }
    }
    let bus = Arc::new(MmioBus::new());
    let device = Arc::new(Mutex::new(Moves(bus.clone(), None)));
    device.lock().unwrap().1 = Some(device.clone());
    let id = bus.insert(device, 0, 1).unwrap();
    assert_eq!(bus.view().write(0, &[0]), Ok(()));
    // The device holds its bus: without this both would stay for ever.
    drop(bus.remove(id).unwrap());
}

/// A device that counts how often it has left a bus.
struct Hears(Arc<AtomicU32>);

impl Hears {
    fn new() -> (Arc<Mutex<Self>>, impl Fn() -> u32) {
        let count = Arc::new(AtomicU32::new(0));
        let device = Arc::new(Mutex::new(Self(count.clone())));
        (device, move || count.load(Ordering::SeqCst))
    }
}

impl bus::BusDevice for Hears {
    fn on_removal(&mut self) -> Result<Option<bus::OnRemoval>, AccessError> {
        let count = self.0.clone();
        Ok(Some(Box::new(move || {
            let before = count.fetch_add(1, Ordering::SeqCst);
            assert!(before == 0, "a bug in the device");
        })))
    }
}

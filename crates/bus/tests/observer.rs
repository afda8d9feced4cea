// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The observer and the counters of regions.

#![cfg(not(loom))]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bus::{AccessError, Bus, MmioBus, PioBus, Region, Width};
use support::{Tag, handler};

type Seen = (u64, usize, bool, Option<String>, Result<(), AccessError>);

#[test]
fn observer_sees_every_access_once() {
    let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let sink = seen.clone();
    let bus: MmioBus = Bus::builder()
        .observer(move |a| {
            let name = a.region.map(|region| region.name().to_owned());
            sink.lock()
                .unwrap()
                .push((a.addr, a.width, a.is_write, name, a.outcome));
        })
        .build();
    bus.insert_region(Tag::new(1), Region::new(0x1000, 8).named("tag"))
        .unwrap();
    let only_4 = Region::new(0x2000, 8).named("only 4").widths(&[Width::U32]);
    bus.insert_region(Tag::new(2), only_4).unwrap();
    let failing = handler(|_, _| Err(AccessError::Failed));
    bus.insert_region(failing, Region::new(0x3000, 8).named("failing"))
        .unwrap();

    let mut view = bus.view();
    for _ in 0..3 {
        let accesses = [
            (0x1000, 4, Some("tag"), Ok(())),
            (0x1000, 4, Some("tag"), Ok(())),
            (0x1000, 3, Some("tag"), Ok(())),
            (0x1000, 0, Some("tag"), Err(AccessError::Width)),
            (0x1006, 4, Some("tag"), Err(AccessError::CrossesEnd)),
            (0x2000, 2, Some("only 4"), Err(AccessError::Width)),
            (0x3000, 1, Some("failing"), Err(AccessError::Failed)),
            (0x4000, 8, None, Err(AccessError::Unclaimed)),
        ];
        for (addr, width, name, outcome) in accesses {
            let mut data = [0; 8];
            assert_eq!(view.read(addr, &mut data[..width]), outcome);
            assert_eq!(bus.view().write(addr, &data[..width]), outcome);
            let name = name.map(str::to_owned);
            let expected = vec![
                (addr, width, false, name.clone(), outcome),
                (addr, width, true, name, outcome),
            ];
            assert_eq!(std::mem::take(&mut *seen.lock().unwrap()), expected);
        }
    }
}

#[test]
fn observer_may_use_the_bus() {
    let slot: Arc<Mutex<Option<PioBus>>> = Arc::default();
    let inner = slot.clone();
    let bus: PioBus = Bus::builder()
        .observer(move |access| {
            let bus = inner.lock().unwrap().take();
            if let Some(bus) = bus {
                let id = access.region.unwrap().id;
                // The access has ended, so the device can even be removed.
                bus.remove(id).unwrap();
            }
        })
        .build();
    bus.insert(Tag::new(1), 0x60, 1).unwrap();
    *slot.lock().unwrap() = Some(bus.clone());
    let mut view = bus.view();
    assert_eq!(view.read(0x60, &mut [0]), Ok(()));
    assert_eq!(view.read(0x60, &mut [0]), Err(AccessError::Unclaimed));
}

#[test]
fn observer_that_comes_back_to_itself_finds_an_end() {
    let slot: Arc<Mutex<Option<MmioBus>>> = Arc::default();
    let calls = Arc::new(AtomicUsize::new(0));
    let (inner, count) = (slot.clone(), calls.clone());
    let bus: MmioBus = Bus::builder()
        .observer(move |access| {
            count.fetch_add(1, Ordering::Relaxed);
            let bus = inner.lock().unwrap().clone();
            // What it looks at when something is wrong is wrong as well.
            if let (Err(_), Some(bus)) = (access.outcome, bus) {
                let read = bus.view().read(0x2000, &mut [0]);
                assert_eq!(read, Err(AccessError::Unclaimed));
            }
        })
        .build();
    *slot.lock().unwrap() = Some(bus.clone());
    bus.insert(Tag::new(1), 0x1000, 8).unwrap();
    let mut view = bus.view();
    for _ in 0..3 {
        assert_eq!(view.read(0x3000, &mut [0]), Err(AccessError::Unclaimed));
        assert!((2..100).contains(&calls.swap(0, Ordering::Relaxed)));
        // Nothing of that is left.
        assert_eq!(view.read(0x1000, &mut [0]), Ok(()));
        assert_eq!(calls.swap(0, Ordering::Relaxed), 1);
    }
    // The bus owns its observer, which owns the bus.
    drop(slot.lock().unwrap().take());
}

#[test]
fn observer_hears_of_the_access_that_was_nested_too_deep() {
    let (slot, heard) = (Arc::new(Mutex::new(None::<MmioBus>)), Arc::default());
    let (inner, hears) = (slot.clone(), Arc::<Mutex<Vec<_>>>::clone(&heard));
    let bus: MmioBus = Bus::builder()
        .observer(move |access| hears.lock().unwrap().push(access.outcome))
        .build();
    let device = handler(move |_, _| {
        let bus = inner.lock().unwrap().clone();
        bus.unwrap().view().write(0, &[0])
    });
    bus.insert(device, 0, 1).unwrap();
    *slot.lock().unwrap() = Some(bus.clone());
    let too_deep = Err(AccessError::Reentrant);
    assert_eq!(bus.view().write(0, &[0]), too_deep);
    // The one that was refused, and as many as a thread nests.
    assert_eq!(*heard.lock().unwrap(), [too_deep; 33]);
    drop(slot.lock().unwrap().take());
}

#[test]
fn counted_region_counts_what_starts_in_it() {
    let bus = MmioBus::new();
    let region = Region::new(0x1000, 8).counted();
    let id = bus.insert_region(Tag::new(1), region).unwrap();
    bus.insert(Tag::new(2), 0x2000, 8).unwrap();
    let mut view = bus.view();
    for _ in 0..5 {
        assert_eq!(view.read(0x1000, &mut [0; 4]), Ok(()));
    }
    assert_eq!(view.read(0x1006, &mut [0; 4]), Err(AccessError::CrossesEnd));
    assert_eq!(bus.view().write(0x1000, &[0; 2]), Ok(()));
    assert_eq!(view.write(0x1000, &[0; 9]), Err(AccessError::Width));
    assert_eq!(view.write(0x2000, &[0; 4]), Ok(()));

    // The counters move with the region.
    bus.relocate(id, 0x5000).unwrap();
    assert_eq!(view.read(0x5000, &mut [0]), Ok(()));
    let counts = |addr| {
        let counts = bus.find(addr).unwrap().counts();
        [counts.reads, counts.writes, counts.refused]
    };
    assert_eq!(counts(0x5000), [7, 2, 2]);
    assert_eq!(counts(0x2000), [0, 0, 0]);
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that panicked, for every bus, and devices that panic when they are dropped.

#![cfg(not(loom))]
#![expect(clippy::panic, reason = "what is tested is what follows from a panic")]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use bus::{AccessError, Bus, BusDevice, BusDeviceSync, MmioBus, MmioView, PioBus, Region};
use support::Tag;

/// Panics when it is written to, and answers reads otherwise.
#[derive(Default)]
struct Fragile {
    calls: AtomicUsize,
}

impl BusDeviceSync for Fragile {
    fn read(&self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        data.fill(1);
        Ok(())
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), AccessError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        panic!("on purpose");
    }
}

impl BusDevice for Fragile {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        BusDeviceSync::read(self, offset, data)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        BusDeviceSync::write(self, offset, data)
    }
}

/// Has a view take its fast path for reads of one byte at an address.
fn warm(view: &mut MmioView, addr: u64) {
    for _ in 0..4 {
        assert_eq!(view.read(addr, &mut [0]), Ok(()));
    }
}

fn fenced() -> MmioBus {
    Bus::builder().fenced().build()
}

#[test]
fn device_that_panicked_is_called_by_no_bus_on_no_path() {
    for (first, second) in [(MmioBus::new(), MmioBus::new()), (fenced(), fenced())] {
        let (device, ports) = (Arc::new(Fragile::default()), PioBus::new());
        first.insert(device.clone(), 0x1000, 4).unwrap();
        second.insert(device.clone(), 0x2000, 4).unwrap();
        ports.insert(device.clone(), 0x10, 4).unwrap();
        second.insert(Tag::new(9), 0x3000, 4).unwrap();
        let (mut here, mut there, mut port) = (first.view(), second.view(), ports.view());
        warm(&mut here, 0x1000);
        warm(&mut there, 0x2000);
        for _ in 0..4 {
            assert_eq!(port.read(0x10, &mut [0]), Ok(()));
        }
        let calls = device.calls.load(Ordering::SeqCst);
        assert_eq!(here.write(0x1000, &[0]), Err(AccessError::Panicked));
        for _ in 0..3 {
            let mut data = [0; 1];
            assert_eq!(there.read(0x2000, &mut data), Err(AccessError::Panicked));
            assert_eq!(here.read(0x1000, &mut data), Err(AccessError::Panicked));
            assert_eq!(port.read(0x10, &mut data), Err(AccessError::Panicked));
            assert_eq!(data, [0xff]);
            assert_eq!((there.read(0x3000, &mut data), data), (Ok(()), [9]));
        }
        assert_eq!(device.calls.load(Ordering::SeqCst), calls + 1);
    }
}

#[test]
fn device_that_panics_on_the_fast_path_is_not_called_again() {
    let bus = MmioBus::new();
    /// Panics in its tenth read.
    #[derive(Default)]
    struct Tenth(AtomicUsize);
    impl BusDeviceSync for Tenth {
        fn read(&self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
            data.fill(0x5e);
            assert!(self.0.fetch_add(1, Ordering::SeqCst) < 9, "on purpose");
            Ok(())
        }
    }
    let device = Arc::new(Tenth::default());
    bus.insert(device.clone(), 0x1000, 4).unwrap();
    let (mut view, mut other) = (bus.view(), bus.view());
    warm(&mut other, 0x1000);
    for _ in 4..9 {
        assert_eq!(view.read(0x1000, &mut [0]), Ok(()));
    }
    for view in [&mut view, &mut other, &mut bus.view()] {
        let mut data = [0; 1];
        assert_eq!(view.read(0x1000, &mut data), Err(AccessError::Panicked));
        assert_eq!(data, [0xff]);
    }
    assert_eq!(device.0.load(Ordering::SeqCst), 10);
}

#[test]
fn device_that_panicked_stays_given_up_when_it_is_inserted_again() {
    let bus = MmioBus::new();
    let device = Arc::new(Fragile::default());
    let erased: Arc<dyn BusDeviceSync> = device.clone();
    let id = bus.insert(device.clone(), 0x1000, 4).unwrap();
    let mut view = bus.view();
    assert_eq!(view.write(0x1000, &[0]), Err(AccessError::Panicked));
    bus.remove(id).unwrap();
    // On the same bus and on a new one, held strongly and weakly.
    let other = MmioBus::new();
    for bus in [&bus, &other] {
        let weak: Weak<dyn BusDeviceSync> = Arc::downgrade(&erased);
        bus.insert(device.clone(), 0x1000, 4).unwrap();
        bus.insert_weak(weak, Region::new(0x2000, 4)).unwrap();
        for addr in [0x1000, 0x1000, 0x2000] {
            assert_eq!(bus.view().read(addr, &mut [0]), Err(AccessError::Panicked));
        }
    }
    assert_eq!(view.read(0x1000, &mut [0]), Err(AccessError::Panicked));
    assert_eq!(device.calls.load(Ordering::SeqCst), 1);
}

#[test]
fn weakly_held_device_that_panicked_is_given_up_where_it_is_held_strongly() {
    let bus = MmioBus::new();
    let device: Arc<dyn BusDeviceSync> = Arc::new(Fragile::default());
    bus.insert_weak(Arc::downgrade(&device), Region::new(0x1000, 4))
        .unwrap();
    bus.insert(device, 0x2000, 4).unwrap();
    let mut view = bus.view();
    warm(&mut view, 0x2000);
    assert_eq!(bus.view().write(0x1000, &[0]), Err(AccessError::Panicked));
    assert_eq!(view.read(0x2000, &mut [0]), Err(AccessError::Panicked));
}

#[test]
fn new_device_is_never_taken_for_one_that_panicked() {
    // Memory is used again, and with it addresses.
    for _ in 0..if cfg!(miri) { 5 } else { 200 } {
        let bus = MmioBus::new();
        let id = bus.insert(Arc::new(Fragile::default()), 0, 4).unwrap();
        let mut view = bus.view();
        assert_eq!(view.read(0, &mut [0]), Ok(()));
        assert_eq!(view.write(0, &[0]), Err(AccessError::Panicked));
        drop(bus.remove(id).unwrap());
    }
}

/// Panics when it is dropped.
struct Bomb(Arc<AtomicUsize>);

impl BusDeviceSync for Bomb {
    fn read(&self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        data.fill(2);
        Ok(())
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("dropped");
    }
}

/// Removes two devices that panic when dropped, and has the view of a vCPU drop them.
#[test]
#[cfg_attr(miri, ignore = "leaks what the drops panicked with")]
fn removed_device_that_panics_when_dropped_harms_no_access() {
    type Use = fn(MmioView);
    let uses: [Use; 3] = [
        // The next access, whose device is another; a refresh; the end of the view.
        |mut view| assert_eq!(view.read(0x3000, &mut [0]), Ok(())),
        |mut view| view.refresh(),
        |view| drop(view),
    ];
    for (bus, drops) in [MmioBus::new(), fenced()].into_iter().zip([0, 3]) {
        for (round, last_use) in uses.into_iter().enumerate() {
            let (bus, dropped) = (bus.clone(), Arc::new(AtomicUsize::new(0)));
            let base = 0x4000 + (drops + round as u64) * 0x2000;
            let bomb = |base| {
                bus.insert(Arc::new(Bomb(dropped.clone())), base, 4)
                    .unwrap()
            };
            let ids = [bomb(base), bomb(base + 0x1000)];
            let kept = bus.find(0x3000).is_none();
            if kept {
                bus.insert(Tag::new(3), 0x3000, 4).unwrap();
            }
            let mut view = bus.view();
            warm(&mut view, 0x3000);
            // The fast path has one of them.
            warm(&mut view, base);
            let mut changes = bus.transaction();
            ids.into_iter().for_each(|id| changes.remove(id));
            let removed = changes.commit().unwrap();
            drop(removed);
            assert_eq!(
                dropped.load(Ordering::SeqCst),
                0,
                "the view holds the last references"
            );
            let used = catch_unwind(AssertUnwindSafe(|| last_use(view)));
            used.unwrap();
            assert_eq!(dropped.load(Ordering::SeqCst), 2);
            // The bus is in order.
            assert_eq!(bus.view().read(0x3000, &mut [0]), Ok(()));
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "leaks what the drops panicked with")]
fn bus_with_devices_that_panic_when_dropped_can_be_dropped() {
    let (bus, dropped) = (MmioBus::new(), Arc::new(AtomicUsize::new(0)));
    for base in [0x1000, 0x2000, 0x3000] {
        bus.insert(Arc::new(Bomb(dropped.clone())), base, 4)
            .unwrap();
    }
    drop(bus);
    assert_eq!(dropped.load(Ordering::SeqCst), 3);
}

#[test]
fn locked_device_that_panics_on_the_fast_path_is_given_up_by_every_bus() {
    let (bus, other) = (MmioBus::new(), MmioBus::new());
    let device = Arc::new(Mutex::new(Fragile::default()));
    bus.insert(device.clone(), 0x1000, 4).unwrap();
    other.insert(device, 0x1000, 4).unwrap();
    let (mut view, mut there) = (bus.view(), other.view());
    warm(&mut there, 0x1000);
    for _ in 0..3 {
        assert_eq!(view.write(0x1000, &[0]), Err(AccessError::Panicked));
        assert_eq!(there.read(0x1000, &mut [0]), Err(AccessError::Panicked));
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which device an access reaches, and what a reader sees when it reaches none.

#![cfg(not(loom))]

mod support;

use std::sync::{Arc, Mutex};

use bus::{AccessError, Bus, BusDevice, MmioBus, PioBus, Region, Width};
use support::{Tag, handler};

/// The widths that a bus carries.
const WIDTHS: [usize; 4] = [1, 2, 4, 8];

/// What the guest had read before, which it must not see again.
const SECRET: u8 = 0x5e;

#[test]
fn mutable_device_gets_offset_and_data() {
    struct Memory([u8; 16]);
    impl BusDevice for Memory {
        fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
            let offset = usize::try_from(offset).unwrap();
            data.copy_from_slice(&self.0[offset..offset + data.len()]);
            Ok(())
        }

        fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
            let offset = usize::try_from(offset).unwrap();
            self.0[offset..offset + data.len()].copy_from_slice(data);
            Ok(())
        }
    }

    let bus = MmioBus::new();
    let memory = Arc::new(Mutex::new(Memory([0; 16])));
    bus.insert(memory.clone(), 0xd000_0000, 16).unwrap();
    let mut view = bus.view();
    for _ in 0..3 {
        assert_eq!(view.write(0xd000_0008, &[1, 2, 3, 4]), Ok(()));
        assert_eq!(bus.view().write(0xd000_000c, &[5, 6]), Ok(()));
        let mut data = [0; 8];
        assert_eq!(view.read(0xd000_0008, &mut data), Ok(()));
        assert_eq!(data, [1, 2, 3, 4, 5, 6, 0, 0]);
        assert_eq!(bus.view().read(0xd000_0008, &mut data), Ok(()));
        assert_eq!(data, [1, 2, 3, 4, 5, 6, 0, 0]);
        memory.lock().unwrap().0.fill(0);
    }
}

#[test]
fn look_up_is_exact_at_the_edges() {
    let bus = MmioBus::new();
    let mut view = bus.view();
    let mut data = [0];
    for addr in [0, 1, u64::MAX] {
        assert_eq!(
            view.read(addr, &mut data),
            Err(AccessError::Unclaimed),
            "empty bus"
        );
        assert!(bus.find(addr).is_none());
    }

    for (tag, base, len) in [
        (1, 0, 4),
        (2, 0x1000, 0x10),
        (3, 0x1010, 1),
        (4, u64::MAX, 1),
    ] {
        bus.insert(Tag::new(tag), base, len).unwrap();
    }
    let reached = [
        (0, Some(1)),
        (3, Some(1)),
        (4, None),
        (0xfff, None),
        (0x1000, Some(2)),
        (0x100f, Some(2)),
        (0x1010, Some(3)),
        (0x1011, None),
        (u64::MAX - 1, None),
        (u64::MAX, Some(4)),
    ];
    // In all orders of two, so that whatever the view remembers is tried against all addresses.
    for (first, _) in reached {
        for (addr, tag) in reached {
            let _ = view.read(first, &mut data);
            let mut direct = [0];
            match tag {
                Some(tag) => {
                    assert_eq!(view.read(addr, &mut data), Ok(()));
                    assert_eq!(bus.view().read(addr, &mut direct), Ok(()));
                    assert_eq!((data, direct), ([tag], [tag]), "{addr:#x} after {first:#x}");
                    assert!(bus.find(addr).unwrap().range.contains(addr));
                }
                None => {
                    assert_eq!(view.read(addr, &mut data), Err(AccessError::Unclaimed));
                    assert_eq!(bus.view().write(addr, &direct), Err(AccessError::Unclaimed));
                    assert_eq!(data, [0xff]);
                    assert!(bus.find(addr).is_none());
                }
            }
        }
    }
}

#[test]
fn ports_and_memory_are_different_spaces() {
    let ports = PioBus::new();
    ports.insert(Tag::new(1), 0xfff0, 16).unwrap();
    let mut view = ports.view();
    let mut data = [SECRET; 4];
    assert_eq!(view.read(0xfffc, &mut data), Ok(()));
    assert_eq!(view.read(0xffff, &mut data), Err(AccessError::CrossesEnd));
    assert_eq!(data, [0xff; 4]);
    assert_eq!(view.read(0xffff, &mut data[..1]), Ok(()));
}

#[test]
fn access_across_the_end_of_a_range_never_reaches_a_device() {
    for size in 1..=16_u64 {
        let (device, next) = (Tag::new(1), Tag::new(2));
        let bus = MmioBus::new();
        bus.insert(device.clone(), 0x1000, size).unwrap();
        bus.insert(next.clone(), 0x1000 + size, 16).unwrap();
        let mut view = bus.view();
        let mut expected = 0;
        for offset in size.saturating_sub(8)..size {
            for width in WIDTHS {
                let fits = offset + width as u64 <= size;
                let mut data = [SECRET; 8];
                let outcome = view.read(0x1000 + offset, &mut data[..width]);
                if fits {
                    expected += 1;
                    assert_eq!(outcome, Ok(()));
                } else {
                    assert_eq!(outcome, Err(AccessError::CrossesEnd));
                    assert_eq!(view.write(0x1000 + offset, &data[..width]), outcome);
                    assert_eq!(&data[..width], &[0xff; 8][..width]);
                }
                assert_eq!(device.calls(), expected);
            }
        }
        assert_eq!(next.calls(), 0);
    }
}

#[test]
fn access_across_the_end_of_the_address_space_does_not_wrap() {
    let bus = MmioBus::new();
    let low = Tag::new(1);
    bus.insert(low.clone(), 0, 0x1000).unwrap();
    let mut view = bus.view();
    for claimed in [false, true] {
        if claimed {
            bus.insert(Tag::new(2), u64::MAX - 7, 8).unwrap();
        }
        for width in [2, 4, 8] {
            let mut data = [SECRET; 8];
            let outcome = view.read(u64::MAX, &mut data[..width]);
            let error = [AccessError::Unclaimed, AccessError::CrossesEnd][usize::from(claimed)];
            assert_eq!(outcome, Err(error));
            assert_eq!(&data[..width], &[0xff; 8][..width]);
            assert_eq!(view.write(u64::MAX, &data[..width]), outcome);
        }
    }
    assert_eq!(view.read(u64::MAX, &mut [0]), Ok(()));
    assert_eq!(view.read(u64::MAX - 7, &mut [0; 8]), Ok(()));
    assert_eq!(low.calls(), 0);
}

#[test]
fn unclaimed_read_is_filled() {
    let bus = MmioBus::new();
    let zeros: MmioBus = Bus::builder().fill(0).build();
    for width in WIDTHS {
        let mut data = [SECRET; 8];
        assert_eq!(
            bus.view().read(0x10, &mut data[..width]),
            Err(AccessError::Unclaimed)
        );
        assert_eq!(&data[..width], &[0xff; 8][..width]);
        assert_eq!(
            zeros.view().read(0x10, &mut data[..width]),
            Err(AccessError::Unclaimed)
        );
        assert_eq!(&data[..width], &[0; 8][..width]);
    }
}

#[test]
fn device_that_sets_a_part_of_the_buffer_leaves_the_fill_in_the_rest() {
    let bus = MmioBus::new();
    let device = handler(|_, data| {
        if let Some(data) = data {
            data[0] = 0x12;
        }
        Ok(())
    });
    bus.insert(device, 0, 8).unwrap();
    let mut view = bus.view();
    for width in WIDTHS {
        // Often enough for the view to take its fast path.
        for _ in 0..4 {
            let mut data = [SECRET; 8];
            assert_eq!(view.read(0, &mut data[..width]), Ok(()));
            assert_eq!(data[0], 0x12);
            assert_eq!(&data[1..width], &[0xff; 8][1..width]);
        }
    }
}

#[test]
fn device_that_refuses_after_writing_into_the_buffer_gives_the_fill() {
    let bus = MmioBus::new();
    let device = handler(|_, data| {
        if let Some(data) = data {
            data.fill(SECRET);
        }
        Err(AccessError::Offset)
    });
    bus.insert(device, 0, 8).unwrap();
    let mut view = bus.view();
    for _ in 0..4 {
        let mut data = [SECRET; 4];
        assert_eq!(view.read(0, &mut data), Err(AccessError::Offset));
        assert_eq!(data, [0xff; 4]);
        assert_eq!(view.write(0, &data), Err(AccessError::Offset));
    }
}

#[test]
fn rules_of_a_region_refuse_before_the_device_sees_the_access() {
    let device = Tag::new(9);
    let bus = MmioBus::new();
    let region = Region::new(0x1001, 16)
        .named("strict")
        .widths(&[Width::U16, Width::U32])
        .aligned();
    bus.insert_region(device.clone(), region).unwrap();
    let mut view = bus.view();
    for round in 0..2 {
        let mut data = [SECRET; 8];
        // Alignment counts from the base of the region, as the device sees it.
        assert_eq!(view.read(0x1001, &mut data[..2]), Ok(()));
        assert_eq!(view.write(0x1005, &data[..4]), Ok(()));
        assert_eq!(view.read(0x1001, &mut data[..1]), Err(AccessError::Width));
        assert_eq!(view.read(0x1001, &mut data[..3]), Err(AccessError::Width));
        assert_eq!(view.read(0x1001, &mut data), Err(AccessError::Width));
        assert_eq!(data, [0xff; 8]);
        assert_eq!(view.write(0x1002, &data[..2]), Err(AccessError::Misaligned));
        assert_eq!(
            view.read(0x1003, &mut data[..4]),
            Err(AccessError::Misaligned)
        );
        assert_eq!(
            view.read(0x100f, &mut data[..4]),
            Err(AccessError::CrossesEnd)
        );
        assert_eq!(device.calls(), 2 * (round + 1));
    }
}

#[test]
fn devices_refuse_what_they_do_not_implement() {
    struct Nothing;
    impl BusDevice for Nothing {}
    impl bus::BusDeviceSync for Nothing {}

    let bus = PioBus::new();
    bus.insert(Arc::new(Nothing), 0, 1).unwrap();
    bus.insert(Arc::new(Mutex::new(Box::new(Nothing))), 1, 1)
        .unwrap();
    for port in [0, 1] {
        assert_eq!(bus.view().read(port, &mut [0]), Err(AccessError::Refused));
        assert_eq!(bus.view().write(port, &[0]), Err(AccessError::Refused));
    }
}

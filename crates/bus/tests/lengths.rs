// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Accesses of every length that KVM delivers.

#![cfg(not(loom))]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected should stop there"
)]

mod support;

use std::sync::{Arc, Mutex};

use bus::{AccessError, Bus, BusDevice, MmioBus, PioBus, Region, Width};
use support::{Tag, handler};

/// A page and a half of memory that notes each access: offset, length, and whether it was a write.
struct Memory {
    bytes: Vec<u8>,
    seen: Vec<(u64, usize, bool)>,
}

const LEN: u64 = 0x1800;

impl Memory {
    fn new() -> Arc<Mutex<Self>> {
        let bytes = (0..LEN).map(|at| at.to_le_bytes()[0]).collect();
        let seen = Vec::new();
        Arc::new(Mutex::new(Self { bytes, seen }))
    }
}

impl BusDevice for Memory {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        self.seen.push((offset, data.len(), false));
        let at = usize::try_from(offset).unwrap();
        data.copy_from_slice(&self.bytes[at..at + data.len()]);
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        self.seen.push((offset, data.len(), true));
        let at = usize::try_from(offset).unwrap();
        self.bytes[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
}

/// Offsets and lengths.
type Pieces = &'static [(u64, usize)];

/// Accesses as KVM delivers them, and what a device gets of each.
const SPLIT: &[(u64, usize, Pieces)] = &[
    // The first parts of accesses of 4 and 8 bytes that cross a page, and the second parts.
    (0xffd, 3, &[(0xffd, 1), (0xffe, 2)]),
    (0xffb, 5, &[(0xffb, 1), (0xffc, 4)]),
    (0xffa, 6, &[(0xffa, 2), (0xffc, 4)]),
    (0xff9, 7, &[(0xff9, 1), (0xffa, 2), (0xffc, 4)]),
    (0x1000, 3, &[(0x1000, 2), (0x1002, 1)]),
    (0x1000, 5, &[(0x1000, 4), (0x1004, 1)]),
    (0x1000, 6, &[(0x1000, 4), (0x1004, 2)]),
    (0x1000, 7, &[(0x1000, 4), (0x1004, 2), (0x1006, 1)]),
    // Anywhere else.
    (0x11, 5, &[(0x11, 1), (0x12, 2), (0x14, 2)]),
    (0x17f9, 7, &[(0x17f9, 1), (0x17fa, 2), (0x17fc, 4)]),
    // Widths of their own, aligned or not.
    (0xfff, 1, &[(0xfff, 1)]),
    (0x1001, 2, &[(0x1001, 2)]),
    (0x1003, 4, &[(0x1003, 4)]),
    (0x1005, 8, &[(0x1005, 8)]),
];

#[test]
fn every_length_reaches_the_device_as_naturally_aligned_pieces_in_order() {
    let (bus, ports) = (MmioBus::new(), PioBus::new());
    let observed: MmioBus = Bus::builder().observer(|_| {}).build();
    let (memory, base) = (Memory::new(), 0x8000);
    bus.insert(memory.clone(), base, LEN).unwrap();
    observed.insert(memory.clone(), base, LEN).unwrap();
    ports.insert(memory.clone(), 0x8000, LEN).unwrap();
    let (mut view, mut observed, mut ports) = (bus.view(), observed.view(), ports.view());
    for (offset, width, pieces) in SPLIT {
        // More than once, so that what the view remembers changes nothing.
        for round in 0..4 {
            let mut data = [0xaa; 8];
            let data = &mut data[..*width];
            let port = u16::try_from(base + offset).unwrap();
            match round {
                0 => observed.read(base + offset, data).unwrap(),
                1 => ports.read(port, data).unwrap(),
                _ => view.read(base + offset, data).unwrap(),
            }
            let expected: Vec<u8> = (*offset..)
                .map(|at| at.to_le_bytes()[0])
                .take(*width)
                .collect();
            assert_eq!(data, expected);
            match round {
                0 => observed.write(base + offset, data).unwrap(),
                1 => ports.write(port, data).unwrap(),
                _ => view.write(base + offset, data).unwrap(),
            }
            let seen = std::mem::take(&mut memory.lock().unwrap().seen);
            let pieces = |write| pieces.iter().map(move |(at, len)| (*at, *len, write));
            assert!(
                seen.into_iter().eq(pieces(false).chain(pieces(true))),
                "{width} at {offset:#x}"
            );
        }
    }
    // Nothing but what was there has been written.
    let bytes = &memory.lock().unwrap().bytes;
    assert!(
        (0..LEN)
            .zip(bytes)
            .all(|(at, byte)| at.to_le_bytes()[0] == *byte)
    );
}

#[test]
fn no_bytes_and_more_than_eight_are_refused() {
    let bus = MmioBus::new();
    let device = Tag::new(1);
    bus.insert(device.clone(), 0, 0x1000).unwrap();
    let mut view = bus.view();
    for width in [0, 9, 10, 11, 12, 16, 63, 64] {
        let mut data = [0x5e; 64];
        let refused = Err(AccessError::Width);
        assert_eq!(view.read(0x100, &mut data[..width]), refused);
        assert_eq!(view.write(0x100, &data[..width]), refused);
        assert_eq!(bus.view().read(0x100, &mut data[..width]), refused);
        assert_eq!(
            view.read(0x9999, &mut data[..width]),
            Err(AccessError::Unclaimed)
        );
        assert_eq!(&data[..width], &[0xff; 64][..width]);
        assert!(data[width..].iter().all(|byte| *byte == 0x5e));
    }
    assert_eq!(device.calls(), 0);
}

#[test]
fn no_piece_of_an_access_that_leaves_the_region_reaches_a_device() {
    let bus = MmioBus::new();
    let (device, next) = (Tag::new(1), Tag::new(2));
    bus.insert(device.clone(), 0x1000, 0x10).unwrap();
    bus.insert(next.clone(), 0x1010, 0x10).unwrap();
    let mut view = bus.view();
    for width in [3, 5, 6, 7] {
        for outside in 1..width {
            let mut data = [0x5e; 8];
            let addr = 0x1010 + outside as u64 - width as u64;
            let crosses = Err(AccessError::CrossesEnd);
            assert_eq!(view.read(addr, &mut data[..width]), crosses);
            assert_eq!(data[..width], [0xff; 8][..width]);
            assert_eq!(view.write(addr, &data[..width]), crosses);
        }
        let mut data = [0; 8];
        assert_eq!(view.read(0x1010 - width as u64, &mut data[..width]), Ok(()));
        assert_eq!(data[..width], [1; 8][..width]);
    }
    assert_eq!(next.calls(), 0);
    // At the end of the address space nothing wraps.
    bus.insert(Tag::new(3), u64::MAX - 4, 5).unwrap();
    assert_eq!(view.read(u64::MAX - 4, &mut [0; 5]), Ok(()));
    assert_eq!(
        view.read(u64::MAX - 4, &mut [0; 7]),
        Err(AccessError::CrossesEnd)
    );
    assert_eq!(
        view.read(u64::MAX, &mut [0; 3]),
        Err(AccessError::CrossesEnd)
    );
}

#[test]
fn region_takes_a_split_access_if_it_takes_all_of_its_pieces() {
    let bus = MmioBus::new();
    let device = Tag::new(1);
    let small = Region::new(0x1000, 8).widths(&[Width::U8, Width::U16]);
    bus.insert_region(device.clone(), small.aligned()).unwrap();
    for (base, width) in [
        (0x2000, Width::U8),
        (0x3000, Width::U16),
        (0x4000, Width::U32),
    ] {
        let region = Region::new(base, 8).widths(&[width]);
        bus.insert_region(device.clone(), region).unwrap();
    }
    let mut view = bus.view();
    // 1 + 2 bytes, aligned by being split.
    assert_eq!(view.write(0x1001, &[0; 3]), Ok(()));
    assert_eq!(device.calls(), 2);
    // 4 + 1 bytes, and 1 + 2 + 2.
    assert_eq!(view.write(0x1000, &[0; 5]), Err(AccessError::Width));
    assert_eq!(view.write(0x1001, &[0; 5]), Ok(()));
    assert_eq!(device.calls(), 5);
    for base in [0x2000, 0x3000, 0x4000] {
        for offset in 0..8 {
            for width in [3, 5, 6, 7] {
                let refused = view.write(base + offset, &[0; 8][..width]);
                assert_eq!(refused, Err(AccessError::Width));
            }
        }
    }
    assert_eq!(device.calls(), 5);
}

#[test]
fn first_piece_that_fails_ends_the_access() {
    let bus = MmioBus::new();
    let seen: Arc<Mutex<Vec<u64>>> = Arc::default();
    let sink = seen.clone();
    let device = handler(move |offset, data| {
        sink.lock().unwrap().push(offset);
        data.into_iter().for_each(|data| data.fill(0x5e));
        match offset {
            2 => Err(AccessError::ReadOnly),
            _ => Ok(()),
        }
    });
    bus.insert(device, 0, 8).unwrap();
    let mut view = bus.view();
    for _ in 0..3 {
        let mut data = [0; 7];
        assert_eq!(view.read(1, &mut data), Err(AccessError::ReadOnly));
        assert_eq!(data, [0xff; 7]);
        assert_eq!(view.write(1, &data), Err(AccessError::ReadOnly));
        assert_eq!(std::mem::take(&mut *seen.lock().unwrap()), [1, 2, 1, 2]);
    }
}

#[test]
fn last_piece_gives_the_answer() {
    struct Offset;
    impl BusDevice<u64> for Offset {
        fn write(&mut self, offset: u64, _data: &[u8]) -> Result<u64, AccessError> {
            Ok(offset)
        }
    }

    let bus = MmioBus::<u64>::default();
    bus.insert(Arc::new(Mutex::new(Offset)), 0, 16).unwrap();
    assert_eq!(bus.view().write(0, &[0; 7]), Ok(6));
    assert_eq!(bus.view().write(1, &[0; 3]), Ok(2));
    assert_eq!(bus.view().write(5, &[0; 8]), Ok(5));
}

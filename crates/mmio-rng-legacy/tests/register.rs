// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The register, from every side.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test stops at the unexpected"
)]

use std::collections::{HashSet, VecDeque};
use std::io::{self, ErrorKind, Read};
use std::sync::{Arc, Mutex};

use bus::{AccessError, BusDevice, MmioBus};
use mmio_rng_legacy::{AccessCounters, REGION_SIZE, RNG0, Rngboi1337};

const BASE: u64 = 0x8000_1000;

/// Answers each read with the next step of a script.
struct Script(VecDeque<io::Result<usize>>);

impl Read for Script {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let count = self
            .0
            .pop_front()
            .expect("the source was asked too often")?;
        let len = count.min(data.len());
        data[..len].fill(0x77);
        Ok(count)
    }
}

fn device(steps: impl IntoIterator<Item = io::Result<usize>>) -> Rngboi1337<Script> {
    Rngboi1337::new(Script(steps.into_iter().collect()))
}

fn interrupted() -> io::Result<usize> {
    Err(ErrorKind::Interrupted.into())
}

#[test]
fn bytes_come_in_the_order_of_the_source() {
    let mut device = Rngboi1337::new(&b"0123456789"[..]);
    let mut data = [0; 4];
    device.read(0, &mut data).unwrap();
    assert_eq!(&data, b"0123");
    device.read(0, &mut data[..2]).unwrap();
    assert_eq!(&data, b"4523");
    device.read(0, &mut data[..1]).unwrap();
    assert_eq!(&data, b"6523");
    // Three bytes are left: not a register's worth.
    assert_eq!(device.read(0, &mut data), Err(AccessError::Failed));
    assert_eq!(data, [0; 4]);
}

#[test]
fn other_widths_and_offsets_draw_nothing() {
    let mut device = device([]);
    for width in (0..=64).filter(|width| ![1, 2, 4].contains(width)) {
        let mut data = vec![0; width];
        assert_eq!(device.read(0, &mut data), Err(AccessError::Width));
    }
    for offset in [1, 2, 3, 4, 5, 0x1000, u64::MAX] {
        for width in 0..=8 {
            let mut data = vec![0; width];
            assert_eq!(device.read(offset, &mut data), Err(AccessError::Offset));
        }
    }
}

#[test]
fn writes_are_refused_and_draw_nothing() {
    let mut device = device([]);
    for width in 0..=8 {
        assert_eq!(device.write(0, &vec![1; width]), Err(AccessError::ReadOnly));
        assert_eq!(device.write(4, &vec![1; width]), Err(AccessError::Offset));
    }
}

#[test]
fn short_and_interrupted_reads_are_completed() {
    let mut device = device([Ok(1), interrupted(), Ok(2), interrupted(), Ok(1)]);
    let mut data = [0; 4];
    device.read(0, &mut data).unwrap();
    assert_eq!(data, [0x77; 4]);
}

#[test]
fn a_failing_source_leaves_no_bytes_behind() {
    for steps in [
        vec![Ok(0)],
        vec![Err(ErrorKind::WouldBlock.into())],
        vec![Ok(1), Err(ErrorKind::WouldBlock.into())],
        vec![Ok(3), Err(ErrorKind::Other.into())],
        vec![Ok(5)],
    ] {
        let mut device = device(steps);
        let mut data = [0xa5; 4];
        assert_eq!(device.read(0, &mut data), Err(AccessError::Failed));
        assert_eq!(data, [0; 4]);
    }
}

#[test]
fn a_source_that_is_interrupted_for_ever_is_given_up() {
    let mut device = device((0..16).map(|_| interrupted()));
    assert_eq!(device.read(0, &mut [0; 4]), Err(AccessError::Failed));
}

#[test]
fn debug_output_says_nothing_of_the_source() {
    assert_eq!(
        format!("{:?}", Rngboi1337::new(&b"secret"[..])),
        "Rngboi1337 { .. }"
    );
}

#[test]
fn a_source_that_panics_is_contained_and_never_asked_again() {
    struct Panics(u32);
    impl Read for Panics {
        fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
            data.fill(0x77);
            self.0 += 1;
            assert_ne!(self.0, 1, "the source panics, as the test wants it");
            Ok(data.len())
        }
    }
    let mut device = Rngboi1337::new(Panics(0));
    for _ in 0..3 {
        let mut data = [0xa5; 4];
        assert_eq!(device.read(0, &mut data), Err(AccessError::Failed));
        assert_eq!(data, [0; 4]);
    }
}

#[test]
#[cfg_attr(miri, ignore = "leaks what the payload panicked with")]
fn a_source_is_contained_whatever_it_panics_with() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    struct Panics;
    impl Read for Panics {
        fn read(&mut self, _data: &mut [u8]) -> io::Result<usize> {
            std::panic::panic_any(Bomb)
        }
    }
    let mut data = [0xa5; 4];
    let read = Rngboi1337::new(Panics).read(0, &mut data);
    assert_eq!((read, data), (Err(AccessError::Failed), [0; 4]));
}

#[test]
fn every_access_is_counted_as_what_it_was() {
    let counters = Arc::new(AccessCounters::default());
    let mut device = Rngboi1337::with_observer(&[1; 7][..], counters.clone());
    device.read(RNG0, &mut [0; 4]).unwrap();
    device.read(RNG0, &mut [0; 2]).unwrap();
    device.read(RNG0, &mut [0; 2]).unwrap_err();
    device.read(RNG0, &mut [0; 8]).unwrap_err();
    device.read(2, &mut [0; 2]).unwrap_err();
    device.write(RNG0, &[0; 4]).unwrap_err();
    let counts = [
        counters.reads(),
        counters.bytes(),
        counters.failures(),
        counters.refusals(),
    ];
    assert_eq!(counts, [2, 6, 1, 3]);
}

/// Gives the numbers from 0 on, four bytes each, and so tells when one is given twice.
struct Numbers(u32);

impl Read for Numbers {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        data.copy_from_slice(&self.0.to_le_bytes());
        self.0 += 1;
        Ok(4)
    }
}

#[test]
fn two_vcpus_at_once_never_get_the_same_bytes() {
    let reads = if cfg!(miri) { 50 } else { 100_000 };
    let bus = MmioBus::new();
    let device = Arc::new(Mutex::new(Rngboi1337::new(Numbers(0))));
    bus.insert(device, BASE, REGION_SIZE).unwrap();
    let vcpu = || {
        let mut view = bus.view();
        let number = |_| {
            let mut data = [0; 4];
            view.read(BASE, &mut data).unwrap();
            u32::from_le_bytes(data)
        };
        (0..reads).map(number).collect::<Vec<_>>()
    };
    let [first, second] = std::thread::scope(|scope| {
        [scope.spawn(vcpu), scope.spawn(vcpu)].map(|vcpu| vcpu.join().unwrap())
    });
    // Each sees the source go forward, and together they miss nothing.
    assert!(first.is_sorted() && second.is_sorted());
    let all: HashSet<_> = first.into_iter().chain(second).collect();
    assert_eq!(all.len(), 2 * reads);
    assert_eq!(all.into_iter().max(), u32::try_from(2 * reads - 1).ok());
}

#[test]
fn on_a_bus_the_guest_never_reads_old_bytes() {
    let bus = MmioBus::new();
    let device = Arc::new(Mutex::new(Rngboi1337::new(&[7; 4][..])));
    bus.insert(device, BASE, REGION_SIZE).unwrap();
    let mut data = [0; 4];
    bus.view().read(BASE, &mut data).unwrap();
    assert_eq!(data, [7; 4]);
    // The source is at its end; then across the end of the region, and beside the register.
    for (addr, len) in [
        (BASE, 4),
        (BASE + 2, 4),
        (BASE + 1, 1),
        (BASE, 3),
        (BASE, 8),
    ] {
        let mut data = [0xa5; 8];
        bus.view().read(addr, &mut data[..len]).unwrap_err();
        assert!(data[..len].iter().all(|&byte| byte != 7 && byte != 0xa5));
    }
}

#[cfg(not(miri))]
#[test]
fn a_storm_of_accesses_allocates_nothing() {
    let mut device = Rngboi1337::with_observer(Numbers(0), AccessCounters::default());
    let allocated = allocation_counter::measure(|| {
        let mut data = [0; 8];
        for _ in 0..250_000 {
            device.read(RNG0, &mut data[..4]).unwrap();
            device.read(RNG0, &mut data).unwrap_err();
            device.read(3, &mut data[..4]).unwrap_err();
            device.write(RNG0, &data).unwrap_err();
        }
    });
    assert_eq!(allocated.count_total, 0);
}

#[test]
fn nothing_is_kept_between_two_reads() {
    // The source, the observer, and whether the source has panicked.
    assert_eq!(size_of::<Rngboi1337<u64, u64>>(), 24);
}

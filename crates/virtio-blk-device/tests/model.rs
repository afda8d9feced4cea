// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Any sequence of requests, on a disk whose host fails now and then, against a model of the disk.
#![expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test stops at the unexpected"
)]

mod support;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use support::{
    Buf, CANARY, DISCARD, FLUSH, GET_ID, Guest, IN, IOERR, MemoryDisk, OK, OUT, UNSUPP,
    WRITE_ZEROES, header, segment,
};
use virtio_blk_device::{Backend, Buffers};

const SECTORS: u64 = 16;

/// A disk whose next operation may fail, before anything has happened.
struct Moody {
    disk: MemoryDisk,
    fails: AtomicBool,
}

impl Moody {
    fn mood(&self) -> io::Result<()> {
        match self.fails.load(Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(5)),
            false => Ok(()),
        }
    }
}

impl Backend for Moody {
    fn capacity(&self) -> io::Result<u64> {
        self.disk.capacity()
    }
    fn read(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        self.mood()?;
        self.disk.read(offset, buffers)
    }
    fn write(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        self.mood()?;
        self.disk.write(offset, buffers)
    }
    fn flush(&self) -> io::Result<()> {
        self.mood()
    }
    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.mood()?;
        self.disk.discard(range)
    }
    fn write_zeroes(&self, range: Range<u64>, unmap: bool) -> io::Result<()> {
        self.mood()?;
        self.disk.write_zeroes(range, unmap)
    }
}

#[derive(Clone, Debug)]
struct Step {
    kind: u32,
    sector: u64,
    /// Of the data, or of the range.
    sectors: u32,
    odd: u32,
    flags: u32,
    seed: u8,
    /// Where the data is cut in two.
    cut: u32,
    fails: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        4 => Just(IN), 4 => Just(OUT), 1 => Just(FLUSH), 1 => Just(GET_ID), 2 => Just(DISCARD),
        2 => Just(WRITE_ZEROES), 1 => any::<u32>(),
    ];
    let sector = prop_oneof![8 => 0..SECTORS + 2, 1 => any::<u64>()];
    let sectors = prop_oneof![8 => 0..6u32, 1 => 0..20u32];
    let odd = prop_oneof![8 => Just(0), 1 => 1..512u32];
    let flags = prop_oneof![6 => Just(0), 2 => Just(1), 1 => any::<u32>()];
    let fails = prop::bool::weighted(0.15);
    (
        kind,
        sector,
        sectors,
        odd,
        flags,
        any::<u8>(),
        0..4096u32,
        fails,
    )
        .prop_map(
            |(kind, sector, sectors, odd, flags, seed, cut, fails)| Step {
                kind,
                sector,
                sectors,
                odd,
                flags,
                seed,
                cut,
                fails,
            },
        )
}

/// What the specification makes of a step: the status, and what is read.
fn model(disk: &mut [u8], step: &Step) -> (u8, Vec<u8>) {
    let len = u64::from(step.sectors * 512 + step.odd);
    let inside = |len: u64| {
        let start = step.sector.checked_mul(512)?;
        let end = start.checked_add(len)?;
        let whole = len % 512 == 0 && end <= SECTORS * 512;
        whole.then_some(start as usize..end as usize)
    };
    let range = || inside(u64::from(step.sectors) * 512);
    let bad = |room: u64| vec![CANARY; room as usize];
    match step.kind {
        IN => match inside(len).filter(|_| !step.fails) {
            Some(range) => (OK, disk[range].to_vec()),
            None => (IOERR, bad(len)),
        },
        OUT => match inside(len).filter(|_| !step.fails) {
            Some(range) => {
                disk[range].copy_from_slice(&support::pattern(step.seed, len as usize));
                (OK, vec![])
            }
            None => (IOERR, vec![]),
        },
        FLUSH => (if step.fails { IOERR } else { OK }, vec![]),
        GET_ID => (OK, [&b"model"[..], &[0; 15]].concat()),
        DISCARD if step.flags != 0 => (UNSUPP, vec![]),
        WRITE_ZEROES if step.flags > 1 => (UNSUPP, vec![]),
        DISCARD | WRITE_ZEROES => match range().filter(|it| it.is_empty() || !step.fails) {
            Some(range) => {
                disk[range].fill(0);
                (OK, vec![])
            }
            None => (IOERR, vec![]),
        },
        _ => (UNSUPP, vec![]),
    }
}

fn buffers(step: &Step) -> Vec<Buf> {
    let len = step.sectors * 512 + step.odd;
    let cut = step.cut.min(len);
    let head = header(step.kind, step.sector);
    match step.kind {
        IN => vec![head, Buf::W(cut), Buf::W(len - cut), Buf::W(1)],
        OUT => {
            let data = support::pattern(step.seed, len as usize);
            let (a, b) = data.split_at(cut as usize);
            vec![head, Buf::R(a.to_vec()), Buf::R(b.to_vec()), Buf::W(1)]
        }
        GET_ID => vec![head, Buf::W(20), Buf::W(1)],
        DISCARD | WRITE_ZEROES => {
            let range = segment(step.sector, step.sectors, step.flags);
            vec![head, range, Buf::W(1)]
        }
        _ => vec![head, Buf::W(1)],
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn a_disk_is_what_its_model_is(steps in prop::collection::vec(step(), 1..40)) {
        let mut model_disk = support::pattern(0, (SECTORS * 512) as usize);
        let disk = Arc::new(Moody {
            disk: MemoryDisk::new(model_disk.clone()),
            fails: AtomicBool::new(false),
        });
        let mut guest = Guest::of(disk.clone(), |device| device.with_id("model").unwrap());
        for step in &steps {
            disk.fails.store(step.fails, Ordering::SeqCst);
            let answer = guest.ask(&buffers(step));
            let (status, data) = model(&mut model_disk, step);
            prop_assert_eq!(answer.status(), status, "{:?}", step);
            prop_assert!(answer.data() == data, "{step:?}");
            let whole = status == OK || data.is_empty();
            let len = if whole { data.len() + 1 } else { 0 };
            prop_assert_eq!(answer.len as usize, len, "{:?}", step);
            prop_assert!(*disk.disk.bytes() == model_disk, "{step:?}");
        }
        let events = guest.events.snapshot();
        prop_assert_eq!((events.ring_fault, events.device_failed, events.bad_request), (0, 0, 0));
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests that mean harm, and what becomes of each: a line of the table is a request.
//!
//! Whatever the answer, the disk and all of guest memory but the answer and the used ring are as they
//! were, the request comes back once, and a good one is served afterwards.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at the unexpected"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{io, ops::Range};

use support::{
    Buf, CANARY, DISCARD, FLUSH, GET_ID, Guest, IN, IOERR, MEMORY, MemoryDisk, OK, OUT, Offered,
    UNSUPP, WRITE_ZEROES, header, pattern, segment,
};
use virtio_blk_device::{Backend, Buffers};
use vm_memory::{Bytes, GuestAddress};

const SECTORS: u64 = 64;

/// A memory disk that may be read-only.
struct Disk(Arc<MemoryDisk>, bool, Arc<AtomicBool>);

impl Disk {
    fn changes(&self) {
        self.2.store(true, Ordering::SeqCst);
    }
}

impl Backend for Disk {
    fn capacity(&self) -> io::Result<u64> {
        self.0.capacity()
    }
    fn is_read_only(&self) -> bool {
        self.1
    }
    fn read(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        self.0.read(offset, buffers)
    }
    fn write(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        self.changes();
        self.0.write(offset, buffers)
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.changes();
        self.0.discard(range)
    }
    fn write_zeroes(&self, range: Range<u64>, unmap: bool) -> io::Result<()> {
        self.changes();
        self.0.write_zeroes(range, unmap)
    }
}

/// What comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    /// This status, in the last device-writable byte.
    Status(u8),
    /// Nothing is written at all.
    Nothing,
}

const FAILS: Is = Is::Status(IOERR);
const UNKNOWN: Is = Is::Status(UNSUPP);

struct Case {
    name: String,
    buffers: Vec<Buf>,
    is: Is,
    read_only: bool,
}

fn case(name: impl Into<String>, buffers: Vec<Buf>, is: Is) -> Case {
    Case {
        name: name.into(),
        buffers,
        is,
        read_only: false,
    }
}

/// Requests with data in one buffer, of any length, that start anywhere.
fn places() -> Vec<Case> {
    let mut cases = Vec::new();
    // Sectors that are not there, or overflow when they become bytes.
    let beyond = [
        SECTORS,
        SECTORS + 1,
        1 << 31,
        (1 << 32) - 1,
        1 << 32,
        u64::MAX / 512 - 1,
        u64::MAX / 512,
        u64::MAX / 512 + 1,
        1 << 55,
        1 << 63,
        u64::MAX - 1,
        u64::MAX,
    ];
    for sector in beyond {
        let name = |what| format!("{what} at sector {sector:#x}");
        cases.push(case(
            name("read"),
            vec![header(IN, sector), Buf::W(512), Buf::W(1)],
            FAILS,
        ));
        let data = Buf::R(pattern(1, 512));
        cases.push(case(
            name("write"),
            vec![header(OUT, sector), data, Buf::W(1)],
            FAILS,
        ));
        for (kind, what) in [(DISCARD, "discard"), (WRITE_ZEROES, "zero")] {
            let range = segment(sector, 1, 0);
            cases.push(case(
                name(what),
                vec![header(kind, 0), range, Buf::W(1)],
                FAILS,
            ));
        }
    }
    // The last sectors are there, and what follows is not.
    for (sector, count) in [
        (SECTORS - 1, 2),
        (SECTORS - 8, 9),
        (0, SECTORS + 1),
        (1, SECTORS),
    ] {
        let len = u32::try_from(count * 512).unwrap();
        let name = |what| format!("{what} of {count} sectors at {sector}");
        cases.push(case(
            name("read"),
            vec![header(IN, sector), Buf::W(len), Buf::W(1)],
            FAILS,
        ));
        let data = Buf::R(pattern(1, len as usize));
        cases.push(case(
            name("write"),
            vec![header(OUT, sector), data, Buf::W(1)],
            FAILS,
        ));
        for (kind, what) in [(DISCARD, "discard"), (WRITE_ZEROES, "zero")] {
            let range = segment(sector, u32::try_from(count).unwrap(), 0);
            cases.push(case(
                name(what),
                vec![header(kind, 0), range, Buf::W(1)],
                FAILS,
            ));
        }
    }
    // No whole sectors.
    for len in [1, 2, 16, 511, 513, 1023, 1025, 4095, 4097] {
        let name = |what| format!("{what} of {len} bytes");
        cases.push(case(
            name("read"),
            vec![header(IN, 0), Buf::W(len), Buf::W(1)],
            FAILS,
        ));
        let data = Buf::R(pattern(1, len as usize));
        cases.push(case(
            name("write"),
            vec![header(OUT, 0), data, Buf::W(1)],
            FAILS,
        ));
        // The status byte is the last one, wherever the buffers end.
        cases.push(case(
            name("read in one"),
            vec![header(IN, 0), Buf::W(len + 1)],
            FAILS,
        ));
    }
    cases
}

/// Types, flags, and lengths of ranges.
fn kinds() -> Vec<Case> {
    let mut cases = Vec::new();
    let unknown = [
        2,
        3,
        5,
        6,
        7,
        9,
        10,
        12,
        14,
        15,
        16,
        17,
        18,
        20,
        22,
        24,
        26,
        28,
        255,
        256,
        0xffff,
        0x1_0000,
        0x1_0001,
        0x8000_0000,
        0x8000_0001,
        u32::MAX,
    ];
    for kind in unknown {
        let name = |what| format!("type {kind:#x} {what}");
        cases.push(case(
            name("alone"),
            vec![header(kind, 0), Buf::W(1)],
            UNKNOWN,
        ));
        let data = vec![header(kind, 0), Buf::R(pattern(3, 512)), Buf::W(1)];
        cases.push(case(name("with data"), data, UNKNOWN));
        let data = vec![header(kind, 0), Buf::W(512), Buf::W(1)];
        cases.push(case(name("with room"), data, UNKNOWN));
    }
    for flags in [1, 2, 3, 4, 0x100, 0x8000_0000, u32::MAX] {
        let name = |what| format!("{what} with flags {flags:#x}");
        let ask = |kind| vec![header(kind, 0), segment(0, 1, flags), Buf::W(1)];
        cases.push(case(name("discard"), ask(DISCARD), UNKNOWN));
        if flags != 1 {
            cases.push(case(name("zero"), ask(WRITE_ZEROES), UNKNOWN));
        }
    }
    for (kind, what, most) in [
        (DISCARD, "discard", 2 << 20),
        (WRITE_ZEROES, "zero", 64 << 10),
    ] {
        for count in [most + 1, 1 << 31, u32::MAX] {
            let ask = vec![header(kind, 0), segment(0, count, 0), Buf::W(1)];
            cases.push(case(format!("{what} {count:#x} sectors"), ask, FAILS));
        }
        let Buf::R(one) = segment(0, 1, 0) else {
            continue;
        };
        for len in [0, 1, 8, 15, 17, 31, 32, 33, 48, 512] {
            let data = Buf::R(one.iter().copied().cycle().take(len).collect());
            let ask = vec![header(kind, 0), data, Buf::W(1)];
            cases.push(case(format!("{what} told in {len} bytes"), ask, FAILS));
        }
    }
    for room in [0, 1, 8, 19] {
        let ask = vec![header(GET_ID, 0), Buf::W(room), Buf::W(1)];
        cases.push(case(format!("the id in {room} bytes"), ask, FAILS));
    }
    cases
}

/// Chains that are not those of requests.
fn layouts() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in [IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, 99] {
        let mut add = |what: &str, buffers, is| {
            cases.push(case(format!("type {kind} {what}"), buffers, is));
        };
        add("without a status", vec![header(kind, 0)], Is::Nothing);
        let data = Buf::R(pattern(5, 512));
        add(
            "without a status, with data",
            vec![header(kind, 0), data],
            Is::Nothing,
        );
        add(
            "with an empty status",
            vec![header(kind, 0), Buf::W(0)],
            Is::Nothing,
        );
        let status = Buf::R(vec![9]);
        add(
            "with a status to read",
            vec![header(kind, 0), status],
            Is::Nothing,
        );
        add(
            "with its header behind",
            vec![Buf::W(1), header(kind, 0)],
            FAILS,
        );
        let between = vec![header(kind, 0), Buf::W(1), Buf::R(pattern(5, 512))];
        add("with its status before its data", between, FAILS);
        let writable = vec![Buf::W(16), Buf::W(512), Buf::W(1)];
        add("with a header to write", writable, FAILS);
    }
    for len in 0..16 {
        let Buf::R(bytes) = header(IN, 0) else {
            continue;
        };
        let short = Buf::R(bytes[..len].to_vec());
        let ask = vec![short, Buf::W(512), Buf::W(1)];
        cases.push(case(format!("a header of {len} bytes"), ask, FAILS));
    }
    cases.push(case("a status alone", vec![Buf::W(1)], FAILS));
    cases.push(case("nothing", vec![Buf::R(vec![])], Is::Nothing));
    // Memory that is not there, in each place.
    for (addr, len) in [
        (MEMORY, 512),
        (MEMORY - 256, 512),
        (u64::MAX - 511, 512),
        (u64::MAX - 7, 512),
        (1 << 63, 512),
        (MEMORY - 512, u32::MAX),
        (0x20_0000, u32::MAX),
    ] {
        let name = |what| format!("{what} of {len:#x} bytes at {addr:#x}");
        let header_there = vec![Buf::At(addr, len, false), Buf::W(512), Buf::W(1)];
        cases.push(case(name("a header"), header_there, FAILS));
        let data = vec![header(IN, 0), Buf::At(addr, len, true), Buf::W(1)];
        cases.push(case(name("room"), data, FAILS));
        let data = vec![header(OUT, 0), Buf::At(addr, len, false), Buf::W(1)];
        cases.push(case(name("data"), data, FAILS));
        let status = vec![header(IN, 0), Buf::W(512), Buf::At(addr, len, true)];
        cases.push(case(name("a status"), status, Is::Nothing));
    }
    cases
}

/// A disk that cannot be written.
fn read_only() -> Vec<Case> {
    let mut cases = Vec::new();
    for sectors in [0, 1, 8, SECTORS] {
        let data = Buf::R(pattern(7, usize::try_from(sectors * 512).unwrap()));
        let ask = vec![header(OUT, 0), data, Buf::W(1)];
        cases.push(case(format!("write {sectors} sectors"), ask, FAILS));
        for (kind, what) in [(DISCARD, "discard"), (WRITE_ZEROES, "zero")] {
            for flags in [0, 1, 2] {
                let range = segment(0, u32::try_from(sectors).unwrap(), flags);
                let ask = vec![header(kind, 0), range, Buf::W(1)];
                cases.push(case(
                    format!("{what} {sectors} sectors, flags {flags}"),
                    ask,
                    FAILS,
                ));
            }
        }
    }
    cases.iter_mut().for_each(|case| case.read_only = true);
    cases
}

/// All memory but the used ring of the queue and the device-writable bytes of a request.
fn rest(guest: &Guest, but: &[Range<u64>]) -> Vec<u8> {
    let mut image = vec![0; usize::try_from(MEMORY).unwrap()];
    guest
        .memory
        .read_slice(&mut image, GuestAddress(0))
        .unwrap();
    let ring = guest.queues[0].used_ring();
    for range in but.iter().chain([&ring]) {
        let [from, to] = [range.start, range.end].map(|at| usize::try_from(at).unwrap());
        image[from..to].fill(0);
    }
    image
}

fn check(guest: &mut Guest, disk: &MemoryDisk, written: &AtomicBool, case: &Case) {
    let before = disk.bytes().clone();
    let Offered { head, .. } = guest.put(0, &case.buffers);
    // The status byte is the one that may be written.
    let status = (case.is != Is::Nothing).then(|| status(guest, head));
    let but: Vec<_> = status.iter().map(|at| *at..at + 1).collect();
    let image = rest(guest, &but);
    guest.notify(0);
    let event = guest.queues[0].setup().avail_ring + 4 + 512;
    let mut but = but;
    but.push(event..event + 2);
    let used = guest.used(0, 1);
    assert_eq!(used[0].0, u32::from(head), "{}", case.name);
    let room: u64 = writable(guest, head)
        .iter()
        .map(|(_, len)| u64::from(*len))
        .sum();
    // Not a byte from the first one on has been written, unless that is the status.
    let expected = u32::from(status.is_some() && room == 1);
    assert_eq!(used[0].1, expected, "{}: the used length", case.name);
    let mut wanted = image;
    wanted[usize::try_from(event).unwrap()..][..2].fill(0);
    assert!(
        rest(guest, &but) == wanted,
        "{}: memory has changed",
        case.name
    );
    if let (Some(at), Is::Status(expected)) = (status, case.is) {
        let status: u8 = guest.memory.read_obj(GuestAddress(at)).unwrap();
        assert_eq!(status, expected, "{}: the status", case.name);
    }
    assert!(!written.load(Ordering::SeqCst), "{}: written", case.name);
    assert!(
        *disk.bytes() == before,
        "{}: the disk has changed",
        case.name
    );
    // And the queue goes on.
    let answer = guest.read(1, 1);
    assert_eq!((answer.status(), answer.len), (OK, 513), "{}", case.name);
    assert_eq!(answer.data(), &before[512..1024], "{}", case.name);
    assert_eq!(guest.status(), 15, "{}", case.name);
}

/// The device-writable buffers of a chain.
fn writable(guest: &Guest, head: u16) -> Vec<(u64, u32)> {
    let mut buffers = Vec::new();
    let mut index = head;
    loop {
        let at = guest.queues[0].setup().desc_table + 16 * u64::from(index);
        let bytes: [u8; 16] = guest.memory.read_obj(GuestAddress(at)).unwrap();
        let flags = bytes[12];
        if flags & 2 != 0 {
            let addr = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            buffers.push((addr, u32::from_le_bytes(bytes[8..12].try_into().unwrap())));
        }
        if flags & 1 == 0 {
            return buffers;
        }
        index = u16::from_le_bytes(bytes[14..].try_into().unwrap());
    }
}

fn status(guest: &Guest, head: u16) -> u64 {
    let buffers = writable(guest, head);
    let last = buffers.iter().rfind(|(_, len)| *len != 0).unwrap();
    let at = last.0 + u64::from(last.1) - 1;
    guest.memory.write_obj(CANARY, GuestAddress(at)).unwrap();
    at
}

fn all(cases: &[Case]) {
    for read_only in [false, true] {
        let disk = Arc::new(MemoryDisk::new(pattern(
            0,
            512 * usize::try_from(SECTORS).unwrap(),
        )));
        let written = Arc::new(AtomicBool::new(false));
        let mut guest = Guest::new(Arc::new(Disk(disk.clone(), read_only, written.clone())));
        for case in cases.iter().filter(|case| case.read_only == read_only) {
            check(&mut guest, &disk, &written, case);
        }
        let events = guest.events.snapshot();
        assert_eq!((events.ring_fault, events.device_failed), (0, 0));
    }
}

#[test]
fn sectors_that_are_not_there_are_errors() {
    all(&places());
}

#[test]
fn unknown_types_and_flags_and_too_much_at_once_are_refused() {
    all(&kinds());
}

#[test]
fn chains_that_are_no_requests_are_errors_and_told() {
    all(&layouts());
    let mut guest = Guest::new(Arc::new(MemoryDisk::new(vec![0; 512])));
    guest.ask(&[header(IN, 0), Buf::W(3), Buf::R(vec![1])]);
    assert_eq!(guest.events.snapshot().bad_request, 1);
}

#[test]
fn nothing_is_written_to_a_read_only_disk() {
    all(&read_only());
}

#[test]
fn there_are_more_than_two_hundred_of_them() {
    let count: usize = [places(), kinds(), layouts(), read_only()]
        .iter()
        .map(Vec::len)
        .sum();
    assert!(count > 200, "{count}");
}

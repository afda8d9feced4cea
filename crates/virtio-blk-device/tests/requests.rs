// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a disk does for a driver that asks for what there is.

mod support;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use support::{
    Buf, CANARY, DISCARD, FLUSH, GET_ID, Guest, IN, IOERR, MemoryDisk, OK, OUT, RO, WCE,
    WRITE_ZEROES, header, pattern, segment,
};
use virtio_blk_device::{Backend, Block, Buffers, Geometry};
use virtio_conformance::reg;
use virtio_device_core::{LoopHandle, RateLimit, StepLoop};

fn disk(sectors: usize) -> Arc<MemoryDisk> {
    Arc::new(MemoryDisk::new(pattern(0, 512 * sectors)))
}

#[test]
fn sectors_come_back_as_they_were_written() {
    let disk = disk(64);
    let mut guest = Guest::new(disk.clone());
    for (sector, count) in [(0, 1), (7, 3), (63, 1), (0, 64), (5, 0), (64, 0)] {
        let data = pattern(9, 512 * count);
        assert_eq!(guest.write(sector, &data), OK);
        let from = 512 * usize::try_from(sector).unwrap();
        assert!(disk.bytes()[from..from + data.len()] == data);
        let answer = guest.read(sector, u32::try_from(count).unwrap());
        assert_eq!((answer.status(), answer.data()), (OK, &data[..]));
        assert_eq!(answer.len as usize, data.len() + 1);
    }
    assert_eq!(guest.flush(), OK);
}

/// The framing is the driver's own affair (section 2.7.4).
#[test]
fn a_request_may_be_cut_into_any_pieces() {
    let mut guest = Guest::new(disk(64));
    let data = pattern(3, 2048);
    let Buf::R(head) = header(OUT, 10) else {
        unreachable!()
    };
    let all = [&head[..], &data].concat();
    for cut in [1, 15, 16, 17, 100, 528, 2063] {
        let (a, b) = all.split_at(cut);
        let zero = vec![0; 2048];
        assert_eq!(guest.write(10, &zero), OK);
        let parts = [a, &[], b].map(|part| Buf::R(part.to_vec()));
        let answer = guest.ask(&[&parts[..], &[Buf::W(0), Buf::W(1)]].concat());
        assert_eq!((answer.status(), answer.len), (OK, 1));
        assert_eq!(guest.read(10, 4).data(), data);
    }
    let Buf::R(head) = header(IN, 10) else {
        unreachable!()
    };
    let (a, b) = head.split_at(4);
    let [a, b] = [a, b].map(|part| Buf::R(part.to_vec()));
    for cut in [
        vec![2049],
        vec![1, 2048],
        vec![2048, 1],
        vec![100, 0, 1900, 49],
        vec![1; 200],
    ] {
        let sum: u32 = cut.iter().sum();
        let mut buffers = vec![a.clone(), b.clone()];
        buffers.extend(cut.iter().map(|len| Buf::W(*len)));
        buffers.push(Buf::W(2049 - sum.min(2049)));
        let answer = guest.ask(&buffers);
        assert_eq!((answer.status(), answer.len), (OK, 2049), "{cut:?}");
        assert_eq!(answer.data(), data);
    }
}

#[test]
fn the_id_is_padded_with_zeroes() {
    for id in ["", "root", "exactly 20 character"] {
        let mut guest = Guest::of(disk(1), |device| device.with_id(id).unwrap());
        let answer = guest.ask(&[header(GET_ID, 0), Buf::W(20), Buf::W(1)]);
        let mut expected = id.as_bytes().to_vec();
        expected.resize(20, 0);
        assert_eq!(
            (answer.len, answer.status(), answer.data()),
            (21, OK, &expected[..])
        );
        // Room for more stays as it was, and the used length ends before it.
        let answer = guest.ask(&[header(GET_ID, 0), Buf::W(32), Buf::W(1)]);
        assert_eq!((answer.len, answer.status()), (20, OK));
        assert_eq!(answer.data()[20..], [CANARY; 12]);
    }
    for id in ["21 characters are more", "häßlich", "line\n"] {
        let workers = StepLoop::new().unwrap();
        let device = Block::new(disk(1), workers.handle()).unwrap();
        assert_eq!(
            device.with_id(id).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }
}

#[test]
fn an_id_that_comes_too_late_is_not_said_to_be_wrong() {
    let workers = StepLoop::new().unwrap();
    let device = Block::new(disk(1), workers.handle()).unwrap();
    let _handle = device.handle();
    let error = device.with_id("root").unwrap_err().to_string();
    assert!(error.contains("handle"), "{error}");
}

#[test]
fn zeroes_are_written_and_ranges_discarded() {
    let disk = disk(64);
    let mut guest = Guest::new(disk.clone());
    let before = disk.bytes().clone();
    for (kind, flags) in [(DISCARD, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, 1)] {
        *disk.bytes_mut() = before.clone();
        let answer = guest.ask(&[header(kind, 0), segment(3, 5, flags), Buf::W(1)]);
        assert_eq!((answer.status(), answer.len), (OK, 1));
        let bytes = disk.bytes();
        assert!(bytes[..3 * 512] == before[..3 * 512] && bytes[8 * 512..] == before[8 * 512..]);
        assert!(bytes[3 * 512..8 * 512].iter().all(|byte| *byte == 0));
        drop(bytes);
        // An empty range is one.
        let answer = guest.ask(&[header(kind, 0), segment(64, 0, flags), Buf::W(1)]);
        assert_eq!(answer.status(), OK);
    }
}

#[test]
fn the_configuration_space_says_what_there_is() {
    let mut guest = Guest::of(disk(64), |device| device.with_queues(3));
    let config = guest.config::<60>(0);
    let word = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!(guest.capacity(), 64);
    assert_eq!((word(8), word(12)), (4 << 20, 254), "size_max, seg_max");
    assert_eq!(config[16..20], [0; 4], "geometry");
    assert_eq!(word(20), 512, "blk_size");
    assert_eq!(config[24..32], [0, 0, 1, 0, 0, 0, 0, 0], "topology");
    assert_eq!(
        (config[32], config[33], config[34], config[35]),
        (1, 0, 3, 0)
    );
    // Limits that are 0 make some drivers fail.
    let limits: Vec<u32> = (36..56).step_by(4).map(word).collect();
    assert_eq!(limits, [2 << 20, 1, 1, 64 << 10, 1]);
    assert_eq!(config[56..60], [1, 0, 0, 0], "may_unmap");
    assert_eq!(guest.config::<8>(60), [0; 8]);
}

struct Other(MemoryDisk, bool, Geometry);

impl Backend for Other {
    fn capacity(&self) -> io::Result<u64> {
        self.0.capacity()
    }
    fn is_read_only(&self) -> bool {
        self.1
    }
    fn geometry(&self) -> Geometry {
        self.2
    }
    fn read(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        self.0.read(offset, buffers)
    }
    fn write(&self, _: u64, _: &Buffers<'_>) -> io::Result<()> {
        Err(io::Error::other("it is never called"))
    }
    fn flush(&self) -> io::Result<()> {
        Err(io::Error::other("it is never called"))
    }
    fn write_zeroes(&self, _: std::ops::Range<u64>, _: bool) -> io::Result<()> {
        Err(io::Error::other("it is never called"))
    }
}

#[test]
fn a_read_only_disk_says_so_and_flushes() {
    let disk = MemoryDisk::new(pattern(0, 1024));
    let mut guest = Guest::new(Arc::new(Other(disk, true, Geometry::Native4096)));
    let offered = guest.offered();
    for (bit, there) in [
        (1, true),
        (2, true),
        (RO, true),
        (6, true),
        (9, true),
        (10, true),
    ] {
        assert_eq!(offered >> bit & 1 == 1, there, "{bit}");
    }
    for bit in [0, 4, 7, 12, 13, 14, 15, 16, 17] {
        assert_eq!(offered >> bit & 1, 0, "{bit}");
    }
    assert_eq!(
        guest.config::<12>(20),
        [0, 16, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    );
    assert_eq!(guest.flush(), OK);
    assert_eq!(guest.read(0, 2).data(), pattern(0, 1024));
}

#[test]
fn block_sizes_are_told() {
    for (geometry, blk_size, exponent, alignment) in [
        (Geometry::Native512, 512, 0, 1),
        (Geometry::Emulated512, 512, 3, 8),
        (Geometry::Native4096, 4096, 0, 8),
    ] {
        let disk = MemoryDisk::new(pattern(0, 4096));
        let mut guest = Guest::new(Arc::new(Other(disk, false, geometry)));
        assert_eq!(u32::from_le_bytes(guest.config(20)), blk_size);
        assert_eq!(guest.config(24), [exponent, 0, 1 << exponent, 0]);
        assert_eq!(u32::from_le_bytes(guest.config(44)), alignment);
    }
}

/// Larger than any memory, and full of zeroes.
struct Huge;

impl Backend for Huge {
    fn capacity(&self) -> io::Result<u64> {
        Ok(1 << 50)
    }
    fn read(&self, _: u64, _: &Buffers<'_>) -> io::Result<()> {
        Ok(())
    }
    fn write(&self, _: u64, _: &Buffers<'_>) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, _: std::ops::Range<u64>, _: bool) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn as_much_as_the_limits_say_is_done_at_once_and_no_more() {
    let mut guest = Guest::new(Arc::new(Huge));
    for (kind, limit) in [(DISCARD, 36), (WRITE_ZEROES, 48)] {
        let most = u32::from_le_bytes(guest.config(limit));
        for (count, status) in [(most, OK), (most + 1, IOERR)] {
            let answer = guest.ask(&[header(kind, 0), segment(0, count, 0), Buf::W(1)]);
            assert_eq!(answer.status(), status, "{kind}: {count}");
        }
    }
}

/// Counts flushes.
struct Flushed(MemoryDisk, AtomicU32);

impl Backend for Flushed {
    fn capacity(&self) -> io::Result<u64> {
        self.0.capacity()
    }
    fn read(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        self.0.read(offset, buffers)
    }
    fn write(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        self.0.write(offset, buffers)
    }
    fn write_zeroes(&self, range: std::ops::Range<u64>, unmap: bool) -> io::Result<()> {
        self.0.write_zeroes(range, unmap)
    }
    fn flush(&self) -> io::Result<()> {
        self.1.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn zeroing_nothing_without_a_cache_flushes_nothing() {
    let disk = Arc::new(Flushed(MemoryDisk::new(vec![0; 4096]), AtomicU32::new(0)));
    let mut guest = Guest::new(disk.clone());
    guest.start(0);
    for (count, flushes) in [(0, 0), (1, 1)] {
        let zero = [header(WRITE_ZEROES, 0), segment(0, count, 0), Buf::W(1)];
        assert_eq!(guest.ask(&zero).status(), OK);
        assert_eq!(disk.1.load(Ordering::SeqCst), flushes);
    }
}

#[test]
fn the_cache_reads_as_it_is_from_the_agreement_on_features_on() {
    let mut guest = Guest::new(disk(8));
    let (flush, wce) = (1 << 9, 1 << WCE);
    for (features, expected) in [(0, 0), (wce, 0), (flush, 1), (flush | wce, 1)] {
        guest.negotiate(features);
        assert_eq!(guest.config(32), [expected], "{features:#x}");
        // What a driver that can switch it has said before it starts holds afterwards.
        guest.set_config(0x20, &[0]);
        let now = if features == flush { 1 } else { 0 };
        assert_eq!(guest.config(32), [now], "{features:#x}");
        guest.drive();
        assert_eq!(guest.config(32), [now], "{features:#x}");
    }
}

#[test]
fn a_write_is_stable_when_the_driver_may_think_so() {
    let disk = Arc::new(Flushed(MemoryDisk::new(vec![0; 4096]), AtomicU32::new(0)));
    let mut guest = Guest::new(disk.clone());
    let flushes = move |guest: &mut Guest| {
        let before = disk.1.load(Ordering::SeqCst);
        guest.write(0, &[1; 512]);
        let zero = [header(WRITE_ZEROES, 0), segment(0, 1, 0), Buf::W(1)];
        assert_eq!(guest.ask(&zero).status(), OK);
        guest.read(0, 1);
        disk.1.load(Ordering::SeqCst) - before
    };
    let (flush, wce) = (1 << 9, 1 << WCE);
    // With a cache, until the driver switches it off, and on again.
    guest.start(flush | wce);
    assert_eq!((guest.config(32), flushes(&mut guest)), ([1], 0));
    for (value, now, expected) in [(0, 0, 2), (1, 1, 0), (0, 0, 2), (2, 0, 2), (255, 0, 2)] {
        guest.set_config(0x20, &[value]);
        assert_eq!(
            (guest.config(32), flushes(&mut guest)),
            ([now], expected),
            "{value}"
        );
    }
    // A reset switches it on; a driver that can flush has it, one that cannot has not.
    guest.start(flush);
    assert_eq!((guest.config(32), flushes(&mut guest)), ([1], 0));
    guest.start(0);
    assert_eq!(flushes(&mut guest), 2);
    guest.start(wce);
    assert_eq!((guest.config(32), flushes(&mut guest)), ([0], 2));
    // Also a reset on the way up.
    guest.negotiate(wce);
    assert_eq!(guest.config(32), [0]);
    guest.set(reg::STATUS, 0);
    assert_eq!(guest.config(32), [1]);
}

#[test]
fn the_driver_is_told_of_another_capacity() {
    let disk = disk(8);
    let mut handle = None;
    let mut guest = Guest::of(disk.clone(), |device| {
        handle = Some(device.handle());
        device
    });
    let handle = handle.unwrap();
    let (generation, raised) = (guest.get(reg::CONFIG_GENERATION), guest.line.raised());
    assert_eq!(handle.refresh().unwrap(), 8 * 512);
    assert_eq!(
        (
            guest.get(reg::CONFIG_GENERATION),
            guest.get(reg::INTERRUPT_STATUS)
        ),
        (generation, 0),
        "there is no news"
    );
    // What is no whole sector is not there.
    disk.bytes_mut().resize(16 * 512 + 100, 0);
    assert_eq!(guest.read(8, 1).status(), 1, "not before it was told");
    assert_eq!(handle.refresh().unwrap(), 16 * 512);
    assert_eq!(guest.capacity(), 16);
    assert_ne!(guest.get(reg::CONFIG_GENERATION), generation);
    assert_eq!(
        (guest.get(reg::INTERRUPT_STATUS) & 2, guest.line.raised()),
        (2, raised + 2)
    );
    assert_eq!(guest.read(15, 1).status(), OK);
    // A disk that shrinks without a word fails at what is gone.
    disk.bytes_mut().truncate(4 * 512);
    assert_eq!(
        (guest.read(4, 1).status(), guest.read(3, 1).status()),
        (1, OK)
    );
    handle.refresh().unwrap();
    assert_eq!((guest.capacity(), guest.read(4, 1).status()), (4, 1));
}

#[test]
fn requests_wait_for_the_rate_limits_and_are_charged() {
    let mut limits = None;
    let mut guest = Guest::of(disk(64), |device: Block<LoopHandle>| {
        limits = Some(device.limits());
        device
    });
    let limits = limits.unwrap();
    limits.set(RateLimit::new(100, 4096), None);
    assert_eq!(guest.read(0, 8).status(), OK);
    assert_eq!(
        guest.read(0, 1).status(),
        OK,
        "the last that there is credit for"
    );
    let offered = guest.put(0, &[header(IN, 0), Buf::W(512), Buf::W(1)]);
    guest.notify(0);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(5) {
        guest.work();
    }
    assert!(
        guest.queues[0].take_used().is_empty(),
        "it was served without credit"
    );
    limits.set(None, None);
    let used = guest.used(0, 1);
    assert_eq!(guest.answer(&offered, used[0].1).status(), OK);
    // Bad requests count as well.
    limits.set(None, RateLimit::new(1, 2));
    guest.ask(&[header(99, 0), Buf::W(1)]);
    guest.ask(&[header(FLUSH, 0), Buf::W(1)]);
    assert_eq!(limits.save().1.unwrap().left(), 0);
}

#[test]
fn every_queue_has_the_same_disk() {
    let mut guest = Guest::of(disk(64), |device| device.with_queues(4));
    assert_eq!(guest.queues.len(), 4);
    for (queue, sector) in (0..4).zip(0..) {
        let data = pattern(40 + u8::try_from(queue).unwrap(), 512);
        let ask = [header(OUT, sector), Buf::R(data.clone()), Buf::W(1)];
        assert_eq!(guest.ask_on(queue, &ask).status(), OK);
        let ask = [header(IN, sector), Buf::W(512), Buf::W(1)];
        assert_eq!(guest.ask_on(3 - queue, &ask).data(), data);
    }
}

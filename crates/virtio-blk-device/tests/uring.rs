// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Many requests in flight by `io_uring`: where the kernel refuses, these tests have nothing to look at.
#![cfg(feature = "io-uring")]
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

mod support;

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use bus::BusDevice;
use support::{
    Buf, DISCARD, FLUSH, GET_ID, Guest, IN, IOERR, MemoryDisk, OK, OUT, Offered, UNSUPP,
    WRITE_ZEROES, header, memory, pattern, segment, wait,
};
use virtio_blk_device::{Block, FileBackend, FileOptions};
use virtio_conformance::{MmioPort, Request, Suite, reg};
use virtio_device_core::WorkerThread;
use virtio_mmio_transport::MmioTransport;

const SECTORS: usize = 4096;

fn file() -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&pattern(0, 512 * SECTORS), 0).unwrap();
    file
}

fn pool(threads: u16) -> Vec<WorkerThread> {
    let threads = (0..threads).map(|n| WorkerThread::named(format!("ring{n}")).unwrap());
    threads.collect()
}

fn device(file: &File, queues: u16, options: FileOptions) -> Option<Block<Vec<WorkerThread>>> {
    // Another description, with a lock of its own.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
    let disk = FileBackend::open(path, options).unwrap();
    let device = Block::new(Arc::new(disk), pool(queues)).unwrap();
    match device.with_queues(queues).with_io_uring() {
        Ok(device) => Some(device),
        Err(error) => {
            assert!(error.to_string().contains("refuses io_uring"), "{error}");
            assert!(std::env::var_os("REQUIRE_IO_URING").is_none(), "{error}");
            None
        }
    }
}

fn guest(file: &File, queues: u16) -> Option<Guest<Vec<WorkerThread>>> {
    let device = device(file, queues, FileOptions::default())?;
    let mut guest = Guest::in_memory(memory(), device);
    guest.start(u64::MAX);
    Some(guest)
}

fn read(sector: u64) -> [Buf; 3] {
    [header(IN, sector), Buf::W(512), Buf::W(1)]
}

/// What a sector of the file holds at first.
fn sector(sector: u64) -> Vec<u8> {
    pattern(u8::try_from(512 * sector % 251).unwrap(), 512)
}

#[test]
fn it_conforms() {
    let probe = file();
    if device(&probe, 1, FileOptions::default()).is_none() {
        return;
    }
    drop(probe);
    let request = Request::new(|bytes| bytes.len() == 513).readable(&[0; 16]);
    Suite::new(request.writable(513).at_most(512 * 4096 + 1)).check(|parts| {
        let device = device(&file(), 2, FileOptions::default()).unwrap();
        let transport = MmioTransport::new(device, parts.memory, parts.line).unwrap();
        MmioPort::new(
            transport.with_observer(parts.events),
            |it, offset, data| it.read(offset, data).unwrap(),
            |it, offset, data| it.write(offset, data).unwrap(),
        )
    });
}

#[test]
fn only_files_have_rings() {
    let disk = Arc::new(MemoryDisk::new(vec![0; 512]));
    let device = Block::new(disk, pool(1)).unwrap();
    let error = device.with_io_uring().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn every_kind_of_request_is_served() {
    let file = file();
    let Some(mut guest) = guest(&file, 1) else {
        return;
    };
    let data = pattern(99, 2048);
    for off in [false, true] {
        // Without a cache every write is stable at once.
        guest.set_config(0x20, &[u8::from(!off)]);
        assert_eq!(guest.write(7, &data), OK);
        assert_eq!(guest.read(7, 4).data(), data);
        assert_eq!(guest.flush(), OK);
        assert_eq!(
            guest.ask(&[header(GET_ID, 0), Buf::W(20), Buf::W(1)]).len,
            21
        );
        for (kind, flags) in [(DISCARD, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, 1)] {
            let ask = [header(kind, 0), segment(16, 8, flags), Buf::W(1)];
            let status = guest.ask(&ask).status();
            assert!(matches!(status, OK | UNSUPP), "{status}");
            if status == OK {
                assert_eq!(guest.read(16, 8).data(), [0; 4096]);
            }
            let empty = [header(kind, 0), segment(16, 0, flags), Buf::W(1)];
            assert_eq!(guest.ask(&empty).status(), OK);
            assert_eq!(guest.write(16, &data), OK);
        }
    }
    // Refused ones among others.
    assert_eq!(guest.ask(&[header(77, 0), Buf::W(1)]).status(), UNSUPP);
    assert_eq!(guest.ask(&[header(FLUSH, 0)]).len, 0);
    assert_eq!(guest.read(u64::MAX, 1).status(), IOERR);
    assert_eq!(guest.read(0, 0).status(), OK);
    assert_eq!(guest.events.snapshot().bad_request, 1);
}

/// Makes as many requests available as fit, and notifies once.
fn flood(guest: &mut Guest<Vec<WorkerThread>>, queue: usize, count: u64) -> Vec<Offered> {
    let offered = (0..count).map(|n| guest.put(queue, &read(13 * n)));
    let offered = offered.collect();
    guest.notify(queue);
    offered
}

fn check(guest: &Guest<Vec<WorkerThread>>, offered: &[Offered], used: &[(u32, u32)]) {
    let mut heads: Vec<_> = used.iter().map(|(head, _)| *head).collect();
    heads.sort_unstable();
    heads.dedup();
    assert_eq!(heads.len(), used.len(), "one came back twice");
    for (n, offered) in (0..).zip(offered) {
        let answer = guest.answer(offered, 513);
        assert_eq!(
            (answer.status(), answer.data()),
            (OK, &sector(13 * n)[..]),
            "{n}"
        );
    }
}

#[test]
fn requests_are_in_flight_together_and_come_back_once() {
    let file = file();
    let Some(mut guest) = guest(&file, 2) else {
        return;
    };
    for round in 0..50 {
        let queue = round % 2;
        let offered = flood(&mut guest, queue, 80);
        let used = guest.used(queue, 80);
        assert!(used.iter().all(|(_, len)| *len == 513));
        check(&guest, &offered, &used);
    }
    assert_eq!(guest.status(), 15);
}

#[test]
fn a_pause_completes_what_is_in_flight() {
    let file = file();
    let Some(mut guest) = guest(&file, 1) else {
        return;
    };
    for _ in 0..30 {
        let offered = flood(&mut guest, 0, 80);
        wait("the pause", || guest.transport().pause().is_ok());
        let mut used = guest.queues[0].take_used();
        let state = guest.transport().save().unwrap();
        let progress = state.queues[0].progress.as_ref().unwrap();
        // One that was taken and met the pause before it was on its way is put back, for later.
        assert!(progress.taken.len() <= 1, "nothing is on its way");
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(guest.queues[0].take_used(), []);
        guest.transport().resume();
        used.extend(guest.used(0, 80 - used.len()));
        check(&guest, &offered, &used);
    }
}

#[test]
fn after_a_reset_not_a_byte_lands_and_the_next_driver_is_served() {
    let file = file();
    let Some(mut guest) = guest(&file, 1) else {
        return;
    };
    for round in 0..30 {
        let offered = flood(&mut guest, 0, 80);
        if round % 2 == 0 {
            assert!(
                guest.reset_queue(0) || {
                    wait("the reset", || guest.get(reg::QUEUE_RESET) == 0);
                    true
                }
            );
        } else {
            guest.set(reg::STATUS, 0);
            wait("the reset", || guest.status() == 0);
        }
        let look = |guest: &Guest<Vec<WorkerThread>>| -> Vec<_> {
            offered.iter().map(|it| guest.answer(it, 0)).collect()
        };
        let before = look(&guest);
        std::thread::sleep(Duration::from_millis(1));
        assert!(look(&guest) == before, "somebody is still at work");
        match round % 2 {
            0 => guest.restart_queue(0),
            _ => guest.start(u64::MAX),
        }
        let used = flood(&mut guest, 0, 20);
        let came = guest.used(0, 20);
        check(&guest, &used, &came);
    }
}

#[test]
fn a_saved_disk_goes_on_elsewhere() {
    let file = file();
    let Some(mut here) = guest(&file, 1) else {
        return;
    };
    let writes: Vec<_> = (0..60u8)
        .map(|n| {
            let data = Buf::R(pattern(n, 512));
            here.put(0, &[header(OUT, n.into()), data, Buf::W(1)])
        })
        .collect();
    here.notify(0);
    wait("the pause", || here.transport().pause().is_ok());
    let done = here.queues[0].take_used().len();
    let state = here.transport().save().unwrap();
    let queues = std::mem::take(&mut here.queues);
    let memory = here.memory.clone();
    drop(here);
    // The worker lets go of the file on its own thread.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    wait("the lock", || {
        FileBackend::open(&path, FileOptions::default()).is_ok()
    });
    let mut there = Guest::in_memory(memory, device(&file, 1, FileOptions::default()).unwrap());
    there.queues = queues;
    there.transport().restore(&state).unwrap();
    there.used(0, 60 - done);
    for (n, write) in (0..).zip(&writes) {
        assert_eq!(there.answer(write, 1).status(), OK);
        let mut data = [0; 512];
        file.read_exact_at(&mut data, 512 * u64::from(n)).unwrap();
        assert!(data[..] == pattern(n, 512), "{n}");
    }
}

#[test]
fn a_file_that_shrinks_fails_at_what_is_gone() {
    let file = file();
    let Some(mut guest) = guest(&file, 1) else {
        return;
    };
    file.set_len(512 * 10 + 100).unwrap();
    for (sector, count, status) in [(0, 10, OK), (9, 2, IOERR), (10, 1, IOERR), (4000, 1, IOERR)] {
        assert_eq!(guest.read(sector, count).status(), status, "{sector}");
    }
    assert_eq!((guest.read(3, 1).status(), guest.status()), (OK, 15));
}

#[test]
fn a_file_that_shrank_unannounced_is_not_made_longer_again() {
    let file = file();
    let Some(mut guest) = guest(&file, 1) else {
        return;
    };
    let len = 512 * 10 + 100;
    file.set_len(len).unwrap();
    for (kind, sector) in [(DISCARD, 9), (WRITE_ZEROES, 10), (WRITE_ZEROES, 4000)] {
        assert_eq!(guest.write(sector, &pattern(1, 1024)), IOERR);
        let ask = [header(kind, 0), segment(sector, 2, 0), Buf::W(1)];
        assert_eq!(guest.ask(&ask).status(), IOERR);
        assert_eq!(file.metadata().unwrap().len(), len);
    }
    assert_eq!(
        (guest.write(8, &pattern(1, 1024)), guest.status()),
        (OK, 15)
    );
}

#[test]
fn without_a_cache_writes_in_flight_together_come_back_once() {
    let file = file();
    let Some(mut guest) = guest(&file, 1) else {
        return;
    };
    guest.set_config(0x20, &[0]);
    for round in 0..10u8 {
        let writes: Vec<_> = (0..60u8)
            .map(|n| {
                let data = Buf::R(pattern(n ^ round, 512));
                guest.put(0, &[header(OUT, n.into()), data, Buf::W(1)])
            })
            .collect();
        guest.notify(0);
        if round % 2 == 1 {
            wait("the pause", || guest.transport().pause().is_ok());
            guest.transport().resume();
        }
        guest.used(0, 60);
        for (n, write) in (0..).zip(&writes) {
            assert_eq!(guest.answer(write, 1).status(), OK);
            assert_eq!(guest.read(n.into(), 1).data(), pattern(n ^ round, 512));
        }
    }
}

#[test]
fn a_ring_that_breaks_while_syncs_are_waited_for_can_be_reset() {
    let file = file();
    let Some(mut guest) = guest(&file, 1) else {
        return;
    };
    for _ in 0..10 {
        guest.set_config(0x20, &[0]);
        for n in 0..60u8 {
            let data = Buf::R(pattern(n, 512));
            guest.put(0, &[header(OUT, n.into()), data, Buf::W(1)]);
        }
        guest.notify(0);
        guest.queues[0].set_avail_index(0x8000);
        guest.notify(0);
        wait("the fault", || guest.status() & 64 != 0);
        guest.set(reg::STATUS, 0);
        wait("the reset", || guest.status() == 0);
        guest.start(u64::MAX);
        assert_eq!(guest.read(0, 1).status(), OK);
    }
}

#[test]
fn past_the_page_cache_as_well() -> io::Result<()> {
    let image = tempfile::NamedTempFile::new()?;
    image
        .as_file()
        .write_all_at(&pattern(0, 512 * SECTORS), 0)?;
    let options = FileOptions {
        read_only: false,
        direct: true,
    };
    let Ok(disk) = FileBackend::open(image.path(), options) else {
        return Ok(());
    };
    let device = Block::new(Arc::new(disk), pool(1))?.with_io_uring();
    let Ok(device) = device else { return Ok(()) };
    let mut guest = Guest::in_memory(memory(), device);
    guest.start(u64::MAX);
    for addr in [0x30_0000, 0x30_0001] {
        let ask = [header(IN, 8), Buf::At(addr, 8192, true), Buf::W(1)];
        assert_eq!(guest.ask(&ask).status(), OK);
        let mut data = vec![0; 8192];
        vm_memory::Bytes::read_slice(&*guest.memory, &mut data, vm_memory::GuestAddress(addr))
            .unwrap();
        assert!(data == pattern(0, 512 * SECTORS)[4096..][..8192]);
    }
    assert_eq!((guest.write(3, &pattern(8, 512)), guest.flush()), (OK, OK));
    assert_eq!(guest.read(3, 1).data(), pattern(8, 512));
    Ok(())
}

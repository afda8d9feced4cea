// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pause, save, restore and reset, with requests on their way.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at the unexpected"
)]

mod support;

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::time::{Duration, Instant};

use support::{Answer, Buf, Guest, IN, MemoryDisk, OK, OUT, header, memory, pattern, wait};
use virtio_blk_device::{Backend, Block, Buffers};
use virtio_conformance::reg;
use virtio_device_core::{DeviceState, VirtioDevice, WorkerThread};

const PENDING: u32 = 64;

/// A disk that takes as long as the test likes.
struct Slow {
    disk: MemoryDisk,
    /// How many operations may go on, and how many wait or have waited.
    gate: Mutex<(u32, u32)>,
    opened: Condvar,
}

impl Slow {
    fn new(sectors: usize) -> Arc<Self> {
        Arc::new(Self {
            disk: MemoryDisk::new(pattern(0, 512 * sectors)),
            gate: Mutex::new((0, 0)),
            opened: Condvar::new(),
        })
    }

    fn open(&self, operations: u32) {
        self.gate.lock().unwrap().0 += operations;
        self.opened.notify_all();
    }

    fn begun(&self) -> u32 {
        self.gate.lock().unwrap().1
    }

    fn wait(&self) {
        let mut gate = self.gate.lock().unwrap();
        gate.1 += 1;
        while gate.0 == 0 {
            gate = self.opened.wait(gate).unwrap();
        }
        gate.0 -= 1;
    }
}

impl Backend for Slow {
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, range: std::ops::Range<u64>, unmap: bool) -> io::Result<()> {
        self.disk.write_zeroes(range, unmap)
    }
    fn capacity(&self) -> io::Result<u64> {
        self.disk.capacity()
    }
    fn read(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        self.wait();
        self.disk.read(offset, buffers)
    }
    fn write(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        self.wait();
        self.disk.write(offset, buffers)
    }
}

type Device = Guest<Vec<WorkerThread>>;

fn pool(threads: u16) -> Vec<WorkerThread> {
    let threads = (0..threads).map(|n| WorkerThread::named(format!("disk{n}")).unwrap());
    threads.collect()
}

fn device(disk: &Arc<Slow>, queues: u16) -> Block<Vec<WorkerThread>> {
    Block::new(disk.clone(), pool(queues))
        .unwrap()
        .with_queues(queues)
}

/// A started driver whose transport waits for next to nothing.
fn guest(disk: &Arc<Slow>, queues: u16) -> Device {
    let mut guest = Guest::behind(memory(), device(disk, queues), |transport| {
        transport.with_reset_bound(Duration::from_millis(1))
    });
    guest.start(u64::MAX);
    guest
}

fn read(sector: u64) -> [Buf; 3] {
    [header(IN, sector), Buf::W(512), Buf::W(1)]
}

fn is_sector(answer: &Answer, sector: usize) {
    assert_eq!((answer.status(), answer.len), (OK, 513));
    assert_eq!(
        answer.data(),
        &pattern(0, 512 * 64)[512 * sector..512 * (sector + 1)]
    );
}

#[test]
fn a_reset_waits_for_the_request_in_flight_and_drops_the_others() {
    let disk = Slow::new(64);
    let mut guest = guest(&disk, 1);
    let offered: Vec<_> = (0..5).map(|sector| guest.put(0, &read(sector))).collect();
    guest.notify(0);
    wait("the first request", || disk.begun() == 1);
    guest.set(reg::STATUS, 0);
    assert_eq!(guest.status(), PENDING);
    guest.transport().save().unwrap_err();
    for status in [1, 3, 15, 128, 0] {
        guest.set(reg::STATUS, status);
        assert_eq!(guest.status(), PENDING);
    }
    disk.open(1);
    wait("the reset", || guest.status() == 0);
    // Nothing is used, and nothing more begins.
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(guest.queues[0].take_used(), []);
    assert_eq!(disk.begun(), 1);
    assert!(
        guest
            .answer(&offered[1], 0)
            .bytes
            .iter()
            .all(|byte| *byte == support::CANARY)
    );
    // And the next life is like the first.
    guest.start(u64::MAX);
    disk.open(1);
    is_sector(&guest.ask(&read(7)), 7);
}

#[test]
fn the_reset_of_one_queue_leaves_the_others_alone() {
    let disk = Slow::new(64);
    let mut guest = guest(&disk, 2);
    guest.put(0, &read(0));
    guest.notify(0);
    wait("the first request", || disk.begun() == 1);
    let other = guest.put(1, &read(9));
    guest.notify(1);
    wait("the other request", || disk.begun() == 2);
    assert!(!guest.reset_queue(0));
    disk.open(2);
    let used = guest.used(1, 1);
    is_sector(&guest.answer(&other, used[0].1), 9);
    wait("the reset", || guest.get(reg::QUEUE_RESET) == 0);
    assert_eq!(guest.queues[0].take_used(), []);
    guest.restart_queue(0);
    disk.open(2);
    is_sector(&guest.ask_on(0, &read(3)), 3);
    is_sector(&guest.ask_on(1, &read(4)), 4);
}

#[test]
fn a_pause_completes_the_request_in_flight_and_keeps_the_others() {
    let disk = Slow::new(64);
    let mut guest = guest(&disk, 1);
    let offered: Vec<_> = (0..5).map(|sector| guest.put(0, &read(sector))).collect();
    guest.notify(0);
    wait("the first request", || disk.begun() == 1);
    assert!(guest.transport().pause().is_err());
    disk.open(100);
    wait("the pause", || guest.transport().pause().is_ok());
    let used = guest.queues[0].take_used();
    assert_eq!(used.len(), 1);
    is_sector(&guest.answer(&offered[0], used[0].1), 0);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!((disk.begun(), guest.queues[0].take_used().len()), (1, 0));
    guest.transport().resume();
    let used = guest.used(0, 4);
    for (sector, (offered, used)) in (1..).zip(offered[1..].iter().zip(&used)) {
        assert_eq!(used.0, u32::from(offered.head));
        is_sector(&guest.answer(offered, used.1), sector);
    }
    assert_eq!(disk.begun(), 5, "each once");
}

#[test]
fn a_saved_disk_goes_on_where_it_was_and_does_nothing_twice() {
    let disk = Slow::new(64);
    let mut here = guest(&disk, 2);
    here.set_config(0x20, &[0]);
    let writes: Vec<_> = (0..6u8)
        .map(|n| {
            let data = Buf::R(pattern(100 + n, 512));
            here.put(
                usize::from(n % 2),
                &[header(OUT, n.into()), data, Buf::W(1)],
            )
        })
        .collect();
    (0..2).for_each(|queue| here.notify(queue));
    wait("both queues", || disk.begun() == 2);
    assert!(here.transport().pause().is_err());
    disk.open(2);
    wait("the pause", || here.transport().pause().is_ok());
    let state = here.transport().save().unwrap();
    let mut there = Guest::in_memory(here.memory.clone(), device(&disk, 2));
    there.restore(&mut here, &state);
    drop(here);
    assert_eq!(there.config(32), [0], "the cache is off still");
    disk.open(4);
    for queue in 0..2 {
        assert_eq!(there.used(queue, 3).len(), 3);
    }
    assert_eq!(disk.begun(), 6, "each once");
    for (n, write) in (0..).zip(&writes) {
        assert_eq!(there.answer(write, 0).status(), OK);
        let at = 512 * usize::from(n);
        assert_eq!(disk.disk.bytes()[at..at + 512], pattern(100 + n, 512));
    }
    disk.open(1);
    is_sector(&there.ask(&read(40)), 40);
}

#[test]
fn a_restored_disk_has_the_capacity_its_driver_knows_until_it_is_told() {
    let disk = Slow::new(64);
    let mut here = guest(&disk, 1);
    here.transport().pause().unwrap();
    let state = here.transport().save().unwrap();
    disk.disk.bytes_mut().resize(512 * 80, 0);
    let device = device(&disk, 1);
    let handle = device.handle();
    let mut there = Guest::in_memory(here.memory.clone(), device);
    there.restore(&mut here, &state);
    assert_eq!(
        (there.capacity(), there.get(reg::INTERRUPT_STATUS) & 2),
        (64, 0)
    );
    handle.refresh().unwrap();
    assert_eq!(
        (there.capacity(), there.get(reg::INTERRUPT_STATUS) & 2),
        (80, 2)
    );
}

/// A disk whose first look at its own length is told late.
struct Growing {
    disk: MemoryDisk,
    looks: AtomicU32,
    late: Barrier,
}

impl Backend for Growing {
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, range: std::ops::Range<u64>, unmap: bool) -> io::Result<()> {
        self.disk.write_zeroes(range, unmap)
    }
    fn capacity(&self) -> io::Result<u64> {
        let capacity = self.disk.capacity();
        // The first look is that of the device's maker.
        if self.looks.fetch_add(1, Ordering::SeqCst) == 1 {
            self.late.wait();
            self.late.wait();
        }
        capacity
    }
    fn read(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        self.disk.read(offset, buffers)
    }
    fn write(&self, offset: u64, buffers: &Buffers<'_>) -> io::Result<()> {
        self.disk.write(offset, buffers)
    }
}

#[test]
fn of_two_refreshes_at_the_same_time_the_one_that_knows_more_counts() {
    let disk = Arc::new(Growing {
        disk: MemoryDisk::new(vec![0; 512 * 64]),
        looks: AtomicU32::new(0),
        late: Barrier::new(2),
    });
    let device = Block::new(disk.clone(), pool(1)).unwrap();
    let handle = device.handle();
    let mut guest = Guest::in_memory(memory(), device);
    guest.start(u64::MAX);
    std::thread::scope(|scope| {
        scope.spawn(|| handle.refresh().unwrap());
        disk.late.wait();
        disk.disk.bytes_mut().resize(512 * 80, 0);
        let second = scope.spawn(|| handle.refresh().unwrap());
        let deadline = Instant::now() + Duration::from_millis(100);
        while !second.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        disk.late.wait();
        assert_eq!(second.join().unwrap(), 512 * 80);
    });
    assert_eq!(guest.capacity(), 80);
    assert_eq!(guest.read(79, 1).status(), OK);
}

#[test]
fn no_state_switches_a_cache_on_that_the_driver_cannot_flush() {
    let disk = Slow::new(64);
    let mut here = Guest::in_memory(memory(), device(&disk, 1));
    // Neither VIRTIO_BLK_F_FLUSH nor VIRTIO_BLK_F_CONFIG_WCE.
    here.start(!(1 << 9 | 1 << 11));
    assert_eq!(here.config(32), [0]);
    here.transport().pause().unwrap();
    let mut state = here.transport().save().unwrap();
    let mut data = state.device.data(1).unwrap().to_vec();
    data[8] = 1;
    state.device = DeviceState::new(1, data).unwrap();
    let mut there = Guest::in_memory(here.memory.clone(), device(&disk, 1));
    there.restore(&mut here, &state);
    assert_eq!(there.config(32), [0], "writes are not stable");
}

#[test]
fn a_state_that_no_disk_saves_is_refused() {
    type M = support::Memory;
    let disk = Slow::new(64);
    let mut device = device(&disk, 1);
    let save = |device: &Block<Vec<WorkerThread>>| VirtioDevice::<M>::save(device);
    let good = save(&device);
    let data = good.data(1).unwrap().to_vec();
    assert_eq!(data, [0, 128, 0, 0, 0, 0, 0, 0, 1]);
    let mut wrong = vec![
        (0, data.clone()),
        (2, data.clone()),
        (1, vec![]),
        (1, vec![0; 8]),
    ];
    wrong.push((1, [&data[..], &[0]].concat()));
    wrong.push((1, [&data[..8], &[2]].concat()));
    wrong.push((1, [&[1], &data[1..]].concat()));
    for (version, data) in wrong {
        let state = DeviceState::new(version, data).unwrap();
        VirtioDevice::<M>::restore(&mut device, &state).unwrap_err();
        assert_eq!(save(&device), good, "nothing has changed");
    }
}

#[test]
fn a_device_that_is_gone_leaves_memory_alone() {
    let disk = Slow::new(64);
    let mut guest = guest(&disk, 1);
    let offered = guest.put(0, &read(3));
    guest.notify(0);
    wait("the request", || disk.begun() == 1);
    let memory = guest.memory.clone();
    let opener = disk.clone();
    let later = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        opener.open(1);
    });
    // Waits for the request, which is not completed any more.
    let mut queues = std::mem::take(&mut guest.queues);
    drop(guest);
    let rest = Guest::in_memory(memory, device(&disk, 1));
    let before = rest.answer(&offered, 0);
    std::thread::sleep(Duration::from_millis(40));
    assert_eq!(rest.answer(&offered, 0), before);
    assert_eq!(queues[0].take_used(), []);
    later.join().unwrap();
}

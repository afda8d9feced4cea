// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An independent driver reads and writes a disk of virtio-blk-device, through the registers on the bus.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

mod driver;
#[path = "../crates/vcpu-runner/tests/common/limit.rs"]
mod limit;
#[path = "../crates/virtio-blk-device/tests/support/memory_disk.rs"]
mod memory_disk;

use std::sync::{Arc, Mutex};

use bus::MmioBus;
use driver::BusTransport;
use memory_disk::MemoryDisk;
use virtio_blk_device::Block;
use virtio_conformance::EventCounters;
use virtio_conformance::virtio_drivers::GuestHal;
use virtio_device_core::{WorkerThread, edge_line};
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use virtio_mmio_transport::{MmioTransport, REGION_SIZE};

const BASE: u64 = 0x8000_2000;
const SECTORS: usize = 64;

struct Machine {
    bus: MmioBus,
    disk: Arc<MemoryDisk>,
    events: Arc<EventCounters>,
}

fn machine() -> Machine {
    let disk = Arc::new(MemoryDisk::new(vec![0; SECTORS * SECTOR_SIZE]));
    let device = Block::new(disk.clone(), WorkerThread::named("disk").unwrap()).unwrap();
    let device = device.with_id("a disk in memory").unwrap();
    let events = Arc::new(EventCounters::default());
    let transport = MmioTransport::new(device, GuestHal::memory(), edge_line(|| Ok(())))
        .unwrap()
        .with_observer(events.clone());
    let bus = MmioBus::new();
    bus.insert(Arc::new(Mutex::new(transport)), BASE, REGION_SIZE)
        .unwrap();
    Machine { bus, disk, events }
}

fn driver(machine: &Machine) -> VirtIOBlk<GuestHal, BusTransport> {
    VirtIOBlk::new(driver::at(&machine.bus, BASE)).unwrap()
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..=250u8).cycle().skip(seed).take(len).collect()
}

#[test]
fn sectors_come_back_as_they_were_written() {
    let _limit = limit::Limit::new("the driver, which polls");
    let machine = machine();
    let mut driver = driver(&machine);
    assert_eq!(driver.capacity(), SECTORS as u64);
    assert!(!driver.readonly());
    for (sector, count) in [(0, 1), (7, 3), (63, 1), (0, 64)] {
        let data = pattern(sector + count, count * SECTOR_SIZE);
        driver.write_blocks(sector, &data).unwrap();
        let from = sector * SECTOR_SIZE;
        assert_eq!(machine.disk.bytes()[from..from + data.len()], data);
        let mut back = vec![0; data.len()];
        driver.read_blocks(sector, &mut back).unwrap();
        assert_eq!(back, data);
    }
    driver.flush().unwrap();
    let mut id = [0; 20];
    assert_eq!(driver.device_id(&mut id).unwrap(), 16);
    assert_eq!(&id[..16], b"a disk in memory");
    let counts = machine.events.snapshot();
    assert_eq!(
        (counts.bad_request, counts.ring_fault, counts.device_failed),
        (0, 0, 0)
    );
}

#[test]
fn sectors_that_the_disk_does_not_have_are_errors() {
    let _limit = limit::Limit::new("the driver, which polls");
    let machine = machine();
    let mut driver = driver(&machine);
    let mut two = vec![0; 2 * SECTOR_SIZE];
    driver.read_blocks(63, &mut two).unwrap_err();
    driver.write_blocks(63, &two).unwrap_err();
    driver.read_blocks(usize::MAX >> 12, &mut two).unwrap_err();
    driver.read_blocks(62, &mut two).unwrap();
}

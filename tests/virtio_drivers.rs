// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An independent driver fetches random bytes from virtio-rng, through the registers on the bus.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

mod driver;
#[path = "../crates/vcpu-runner/tests/common/limit.rs"]
mod limit;

use std::io::Read;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bus::MmioBus;
use driver::BusTransport;
use limit::{Limit, receive, wait_until};
use virtio_conformance::virtio_drivers::GuestHal;
use virtio_conformance::{DriverQueue, reg};
use virtio_device_core::{WorkerThread, edge_line};
use virtio_drivers::PAGE_SIZE;
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::InterruptStatus;
use virtio_mmio_transport::{MmioTransport, REGION_SIZE};
use virtio_rng_device::{EntropyDevice, KernelEntropy};

const BASE: u64 = 0x8000_2000;
const PROMPTLY: Duration = Duration::from_millis(20);

/// virtio-rng on a bus of its own; the receiver hears each interrupt.
fn machine(source: impl Read + Send + 'static) -> (MmioBus, Receiver<()>) {
    let (sender, interrupts) = channel();
    let line = move || sender.send(()).map_err(std::io::Error::other);
    let rng = EntropyDevice::new(source, WorkerThread::named("virtio-rng").unwrap());
    let transport = MmioTransport::new(rng, GuestHal::memory(), edge_line(line)).unwrap();
    let bus = MmioBus::new();
    bus.insert(Arc::new(Mutex::new(transport)), BASE, REGION_SIZE)
        .unwrap();
    (bus, interrupts)
}

fn driver(bus: &MmioBus) -> VirtIORng<GuestHal, BusTransport> {
    VirtIORng::new(driver::at(bus, BASE)).unwrap()
}

/// Every byte tells its place.
fn pattern(len: usize) -> Vec<u8> {
    (0..=250u8).cycle().take(len).collect()
}

#[test]
fn the_driver_gets_the_bytes_of_the_source_in_order() {
    let _limit = Limit::new("the driver, which polls");
    let bytes = pattern(3 * 4096);
    let (bus, _interrupts) = machine(std::io::Cursor::new(bytes.clone()));
    let mut driver = driver(&bus);
    let mut got = Vec::new();
    for len in [1, 64, 4096, 8127] {
        let mut buffer = vec![0; len];
        assert_eq!(driver.request_entropy(&mut buffer).unwrap(), len);
        got.extend(buffer);
    }
    assert_eq!(got, bytes);
}

#[test]
fn the_driver_is_interrupted() {
    let _limit = Limit::new("the driver, which polls");
    let (bus, interrupts) = machine(std::io::repeat(0x5a));
    let mut driver = driver(&bus);
    driver.enable_interrupts();
    // This driver polls. When it sees the answer before the device asks whether to interrupt, it
    // has moved its `used_event` past it, and rightly gets no interrupt: so not every request.
    for _ in 0..1000 {
        assert_eq!(driver.request_entropy(&mut [0; 16]).unwrap(), 16);
        if interrupts.recv_timeout(PROMPTLY).is_ok() {
            assert_eq!(
                driver.ack_interrupt().bits(),
                InterruptStatus::QUEUE_INTERRUPT.bits()
            );
            assert!(driver.ack_interrupt().is_empty());
            return;
        }
    }
    panic!("1000 requests and no interrupt");
}

#[test]
fn a_request_for_more_than_the_most_gets_the_most() {
    let _limit = Limit::new("the driver, which polls");
    let (bus, _interrupts) = machine(std::io::repeat(0x5a));
    let mut driver = driver(&bus);
    let mut buffer = vec![0; 100_000];
    let got = driver.request_entropy(&mut buffer).unwrap();
    assert_eq!(got, 65_536);
    assert!(buffer.iter().take(got).all(|&byte| byte == 0x5a));
    assert!(buffer.iter().skip(got).all(|&byte| byte == 0));
}

#[test]
fn the_kernel_gives_different_bytes_each_time() {
    let _limit = Limit::new("the driver, which polls");
    let (bus, _interrupts) = machine(KernelEntropy);
    let mut driver = driver(&bus);
    let [mut first, mut second] = [[0; 32]; 2];
    assert_eq!(driver.request_entropy(&mut first).unwrap(), 32);
    assert_eq!(driver.request_entropy(&mut second).unwrap(), 32);
    assert_ne!(first, second);
    assert_ne!(first, [0; 32]);
}

#[test]
fn drivers_come_and_go() {
    let _limit = Limit::new("the driver, which polls");
    let (bus, _interrupts) = machine(KernelEntropy);
    for _ in 0..20 {
        let mut driver = driver(&bus);
        assert_eq!(driver.request_entropy(&mut [0; 64]).unwrap(), 64);
    }
}

#[test]
fn a_source_that_ends_makes_the_device_ask_for_a_reset() {
    let _limit = Limit::new("the driver, which polls");
    let (bus, interrupts) = machine(&b""[..]);
    let registers = driver::at(&bus, BASE);
    let memory = GuestHal::memory();
    // The driver's own request would wait for ever, so this one is made by hand.
    let mut ring = DriverQueue::new(&*memory, GuestHal::allocate(PAGE_SIZE).0, 8);
    let setup = *ring.setup();
    for status in [0, 1, 3] {
        registers.write(reg::STATUS, status);
    }
    registers.write(reg::DRIVER_FEATURES_SEL, 1);
    registers.write(reg::DRIVER_FEATURES, 1);
    registers.write(reg::STATUS, 11);
    registers.write(reg::QUEUE_SEL, 0);
    registers.write(reg::QUEUE_SIZE, setup.size);
    for (offset, address) in [
        (reg::QUEUE_DESC_LOW, setup.desc_table),
        (reg::QUEUE_DRIVER_LOW, setup.avail_ring),
        (reg::QUEUE_DEVICE_LOW, setup.used_ring),
    ] {
        registers.write(offset, u32::try_from(address).unwrap());
        registers.write(offset + 4, 0);
    }
    registers.write(reg::QUEUE_READY, 1);
    registers.write(reg::STATUS, 15);
    ring.offer_writable(0, GuestHal::allocate(PAGE_SIZE).0, 64);
    registers.write(reg::QUEUE_NOTIFY, 0);

    receive("the device asks for a reset", &interrupts);
    wait_until("the status says so", || {
        registers.read(reg::STATUS) == 15 | 64
    });
    assert_eq!(registers.read(reg::INTERRUPT_STATUS), 2);
    assert_eq!(ring.take_used(), []);
    registers.write(reg::STATUS, 0);
    assert_eq!(registers.read(reg::STATUS), 0);
}

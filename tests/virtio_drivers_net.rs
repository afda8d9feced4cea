// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An independent driver sends and receives packets by virtio-net, through the registers on the bus.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

mod driver;
#[path = "../crates/vcpu-runner/tests/common/limit.rs"]
mod limit;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use bus::MmioBus;
use driver::BusTransport;
use virtio_conformance::EventCounters;
use virtio_conformance::virtio_drivers::GuestHal;
use virtio_device_core::{WorkerThread, edge_line};
use virtio_drivers::device::net::VirtIONet;
use virtio_mmio_transport::{MmioTransport, REGION_SIZE};
use virtio_net_device::{Net, Stream};

const BASE: u64 = 0x8000_2000;
const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

type Driver = VirtIONet<GuestHal, BusTransport, 16>;

/// A driver, its host, and what has become of the device.
fn machine() -> (Driver, UnixStream, Arc<EventCounters>) {
    let (host, socket) = UnixStream::pair().unwrap();
    let threads = WorkerThread::named("net").unwrap();
    let device = Net::new(vec![Stream::new(socket)], MAC, threads).unwrap();
    let events = Arc::new(EventCounters::default());
    let transport = MmioTransport::new(device, GuestHal::memory(), edge_line(|| Ok(())))
        .unwrap()
        .with_observer(events.clone());
    let bus = MmioBus::new();
    bus.insert(Arc::new(Mutex::new(transport)), BASE, REGION_SIZE)
        .unwrap();
    let driver = VirtIONet::new(driver::at(&bus, BASE), 2048).unwrap();
    (driver, host, events)
}

fn frame(seed: usize) -> Vec<u8> {
    (0..=250u8)
        .cycle()
        .skip(seed)
        .take(60 + 29 * seed)
        .collect()
}

fn prefixed(frame: &[u8]) -> Vec<u8> {
    let len = u32::try_from(frame.len()).unwrap();
    [&len.to_be_bytes()[..], frame].concat()
}

#[test]
fn packets_go_both_ways_as_they_are() {
    let _limit = limit::Limit::new("the driver, which polls");
    let (mut driver, mut host, events) = machine();
    assert_eq!(driver.mac_address(), MAC);
    for round in 0..50 {
        let mut packet = driver.new_tx_buffer(frame(round).len());
        packet.packet_mut().copy_from_slice(&frame(round));
        driver.send(packet).unwrap();
        let mut got = vec![0; prefixed(&frame(round)).len()];
        host.read_exact(&mut got).unwrap();
        assert_eq!(got, prefixed(&frame(round)));
        host.write_all(&prefixed(&frame(round))).unwrap();
        let received = loop {
            if let Ok(received) = driver.receive() {
                break received;
            }
            std::thread::yield_now();
        };
        assert_eq!(received.packet(), frame(round));
        driver.recycle_rx_buffer(received).unwrap();
    }
    let counts = events.snapshot();
    assert_eq!(
        (counts.bad_request, counts.ring_fault, counts.device_failed),
        (0, 0, 0)
    );
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device of `docs/a-device-in-an-hour.md` under the suite, and with a published driver.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::os::unix::net::UnixDatagram;

use bus::BusDevice;
use virtio_conformance::virtio_drivers::{GuestHal, RegisterTransport};
use virtio_conformance::{Memory, MmioPort, Parts, Request, Suite};
use virtio_device_core::{WorkerThread, edge_line};
use virtio_drivers::device::console::VirtIOConsole;
use virtio_mmio_transport::MmioTransport;
use vmm_devices_guides::pipe::Pipe;

fn pipe() -> (Pipe<WorkerThread>, UnixDatagram) {
    let (near, far) = UnixDatagram::pair().unwrap();
    let worker = WorkerThread::named("pipe").unwrap();
    (Pipe::new(near, worker).unwrap(), far)
}

fn port(parts: Parts) -> MmioPort<MmioTransport<Memory, Pipe<WorkerThread>>> {
    let (device, host) = pipe();
    host.set_nonblocking(true).unwrap();
    parts.host.deliver_by(move || {
        // What the guest writes is nobody's, and must not fill the socket.
        while host.recv(&mut [0; 16]).is_ok() {}
        drop(host.send(b"key"));
    });
    let transport = MmioTransport::new(device, parts.memory, parts.line).unwrap();
    MmioPort::new(
        transport.with_observer(parts.events),
        |it, offset, data| it.read(offset, data).unwrap(),
        |it, offset, data| it.write(offset, data).unwrap(),
    )
}

#[test]
fn its_receive_queue_conforms() {
    let request = Request::new(|bytes| bytes == b"key").queue(0).writable(64);
    Suite::new(request.at_most(4096)).check(port);
}

#[test]
fn its_transmit_queue_conforms() {
    let request = Request::new(|bytes| bytes.is_empty()).queue(1);
    Suite::new(request.readable(b"output")).check(port);
}

#[test]
fn a_published_driver_talks_through_it() {
    let (device, host) = pipe();
    let transport = MmioTransport::new(device, GuestHal::memory(), edge_line(|| Ok(()))).unwrap();
    let port = MmioPort::new(
        transport,
        |it, offset, data| it.read(offset, data).unwrap(),
        |it, offset, data| it.write(offset, data).unwrap(),
    );
    let transport = RegisterTransport::new(port);
    let mut driver = VirtIOConsole::<GuestHal, _>::new(transport).unwrap();

    driver.send_bytes(b"hello").unwrap();
    let mut message = [0; 16];
    assert_eq!(host.recv(&mut message).unwrap(), 5);

    host.send(b"!").unwrap();
    // The worker has its own time.
    let answer = loop {
        if let Some(byte) = driver.recv(true).unwrap() {
            break byte;
        }
        std::thread::yield_now();
    };
    assert_eq!(answer, b'!');
}

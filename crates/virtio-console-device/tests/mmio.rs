// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The console behind the registers of virtio-mmio.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]
#![cfg(not(miri))] // Miri has no level-triggered epoll.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bus::BusDevice;
use virtio_conformance::{Buf, Guest, Memory, MmioPort, Parts, Request, Suite, WatchedMemory, reg};
use virtio_console_device::{Console, ConsoleHandle, Port};
use virtio_device_core::{Event, Observer, WorkerThread, edge_line};
use virtio_mmio_transport::MmioTransport;
use vm_memory::{GuestAddress, GuestMemoryMmap};

type Transport = MmioTransport<Memory, Console<WorkerThread>>;

fn console() -> (Console<WorkerThread>, UnixStream) {
    let (host, device) = UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    let port = Port::new(device.try_clone().unwrap(), device).unwrap();
    let thread = WorkerThread::named("console").unwrap();
    (Console::new(port, thread).unwrap(), host)
}

fn port(parts: Parts) -> MmioPort<Transport> {
    let (console, mut host) = console();
    parts.host.deliver_by(move || {
        // What the guest writes is nobody's, and must not fill the socket.
        while host.read(&mut [0; 4096]).is_ok_and(|count| count != 0) {}
        drop(host.write(b"key"));
    });
    let transport = MmioTransport::new(console, parts.memory, parts.line).unwrap();
    MmioPort::new(
        transport.with_observer(parts.events),
        |it, offset, data| it.read(offset, data).unwrap(),
        |it, offset, data| it.write(offset, data).unwrap(),
    )
    .showing(|transport| format!("{transport:?} {:?}", transport.save()))
}

#[test]
fn a_console_conforms() {
    let keys = |bytes: &[u8]| !bytes.is_empty() && bytes.iter().all(|byte| b"key".contains(byte));
    let request = Request::new(keys).writable(64).at_most(4096);
    Suite::new(request).check(port);
}

#[test]
fn a_driver_that_has_agreed_on_nothing_can_write_its_last_words() {
    let (console, mut host) = console();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let memory = Arc::new(WatchedMemory::new(memory));
    let mut transport = MmioTransport::new(console, memory, edge_line(|| Ok(()))).unwrap();
    for (status, word) in [(0, b"p\0\0\0"), (1, b"a\0\0\0"), (0x81, b"n\0\0\0")] {
        transport
            .write(reg::STATUS, &u32::to_le_bytes(status))
            .unwrap();
        transport.write(0x108, word).unwrap();
    }
    let mut words = [0; 3];
    host.read_exact(&mut words).unwrap();
    assert_eq!(&words, b"pan");
}

/// Takes the port away as soon as a request is refused.
struct Unplugs(ConsoleHandle);

impl Observer for Unplugs {
    fn event(&self, event: &Event<'_>) {
        if let Event::BadRequest { .. } = event {
            self.0.unplug(0);
        }
    }
}

#[test]
fn a_port_that_is_taken_away_during_a_turn_reads_nothing_more() {
    const MEMORY: u64 = Guest::<()>::MEMORY;
    let (mut host, mut device) = UnixStream::pair().unwrap();
    let port = Port::new(device.try_clone().unwrap(), device.try_clone().unwrap()).unwrap();
    let thread = WorkerThread::named("console").unwrap();
    let console = Console::with_ports(vec![port], thread).unwrap();
    let observer = Unplugs(console.handle());
    let memory = Guest::<()>::memory();
    let transport = MmioTransport::new(console, memory.clone(), edge_line(|| Ok(()))).unwrap();
    let port = MmioPort::new(
        transport.with_observer(observer),
        |it, offset, data| it.read(offset, data).unwrap(),
        |it, offset, data| it.write(offset, data).unwrap(),
    );
    let mut guest = Guest::new(memory, port);
    guest.start(u64::MAX);
    for _ in 0..8 {
        guest.put(2, &[Buf::W(64)]);
    }
    // DEVICE_READY, and the port is announced; PORT_READY, and it is a console and open.
    for (event, news) in [(0, 1), (3, 2)] {
        guest.ask(3, &[Buf::R(vec![0, 0, 0, 0, event, 0, 1, 0])]);
        guest.used(2, news);
    }
    host.write_all(b"later").unwrap();
    guest.put(0, &[Buf::At(MEMORY, 64, true)]);
    guest.put(0, &[Buf::W(64)]);
    guest.notify(0);
    guest.used(0, 1);
    // PORT_REMOVE: that turn is over.
    guest.used(2, 1);
    assert_eq!(guest.queues[0].take_used(), []);
    device.set_nonblocking(true).unwrap();
    let mut input = [0; 8];
    assert_eq!(device.read(&mut input).unwrap(), 5, "input that is lost");
}

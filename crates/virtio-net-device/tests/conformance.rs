// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The conformance suite, behind the registers of virtio-mmio: on a thread, and step by step. It agrees
//! on no control queue, which has a table of its own.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]
#![cfg(not(miri))] // Miri has no level-triggered epoll.

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use bus::BusDevice;
use support::{Host, MAC, PLAIN};
use virtio_conformance::{Memory, MmioPort, Parts, Request, Suite};
use virtio_device_core::{Executor, WorkerThread};
use virtio_mmio_transport::MmioTransport;
use virtio_net_device::{Backend, Net, Stream};

type Port<E> = MmioPort<MmioTransport<Memory, Net<E>>>;

fn port<B: Backend, E: Executor + 'static>(backend: B, executor: E, parts: Parts) -> Port<E> {
    let device = Net::new(vec![backend], MAC, executor).unwrap();
    let transport = MmioTransport::new(device, parts.memory, parts.line).unwrap();
    MmioPort::new(
        transport.with_observer(parts.events),
        |it, offset, data| it.read(offset, data).unwrap(),
        |it, offset, data| it.write(offset, data).unwrap(),
    )
    .showing(|transport| format!("{transport:?} {transport:#?} {:?}", transport.save()))
}

static FRAME: [u8; 60] = [0x5a; 60];

/// A device whose socket has a frame for each request.
fn on_a_thread(parts: Parts) -> Port<WorkerThread> {
    let (mut host, device) = UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    parts.host.deliver_by(move || {
        // What the guest sends is nobody's, and must not fill the socket.
        while host.read(&mut [0; 4096]).is_ok_and(|count| count != 0) {}
        let prefixed = [&60_u32.to_be_bytes()[..], &FRAME].concat();
        drop(host.write(&prefixed));
    });
    port(
        Stream::new(device),
        WorkerThread::named("net").unwrap(),
        parts,
    )
}

fn step_by_step(parts: Parts) -> Port<virtio_device_core::LoopHandle> {
    let host = Host::new();
    let other = host.clone();
    parts.host.deliver_by(move || {
        other.take().clear();
        if other.state().incoming.len() < 4 {
            other.give(PLAIN, &FRAME);
        }
    });
    port(host, parts.executor.clone(), parts)
}

fn receiving() -> Suite {
    let is_packet = |bytes: &[u8]| bytes.get(12..) == Some(&FRAME[..]);
    Suite::new(Request::new(is_packet).writable(1526).at_most(72))
}

fn sending() -> Suite {
    static PACKET: [u8; 72] = [0; 72];
    Suite::new(Request::new(<[u8]>::is_empty).queue(1).readable(&PACKET))
}

#[test]
fn sending_conforms() {
    sending().check(step_by_step);
}

#[test]
fn sending_conforms_on_a_thread() {
    sending().check(on_a_thread);
}

#[test]
fn receiving_conforms() {
    receiving().check(on_a_thread);
}

#[test]
fn receiving_conforms_step_by_step() {
    receiving().check(step_by_step);
}

#[test]
fn debug_output_of_a_device_shows_queues_and_limits() {
    let threads = WorkerThread::named("net").unwrap();
    let device = Net::new(vec![Host::new()], MAC, threads).unwrap();
    let text = format!("{device:?}");
    for part in ["Net { queues: ", "receive_limits: ", "send_limits: "] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

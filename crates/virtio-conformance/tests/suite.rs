// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the suite finds.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

use std::sync::{Arc, Mutex};

use bus::BusDevice;
use virtio_conformance::ramdisk::RamDisk;
use virtio_conformance::{Memory, MmioPort, Parts, Port, Request, Suite};
use virtio_device_core::{InterruptLine, LoopHandle, VirtioDevice, edge_line};
use virtio_mmio_transport::MmioTransport;

const REQUEST: Request = Request::new(|bytes| bytes.len() == 513)
    .readable(&[0; 16])
    .writable(513)
    .at_most(4096 + 1);

fn disk(parts: &Parts) -> RamDisk<LoopHandle> {
    RamDisk::new(Arc::new(Mutex::new(vec![0; 4096])), parts.executor.clone())
}

/// A device behind the registers of virtio-mmio, which interrupts by `line`.
fn port<D>(device: D, parts: Parts, line: impl InterruptLine + 'static) -> impl Port
where
    D: VirtioDevice<Memory> + 'static,
{
    let transport = MmioTransport::new(device, parts.memory, line).unwrap();
    MmioPort::new(
        transport.with_observer(parts.events),
        |it, offset, data| it.read(offset, data).unwrap(),
        |it, offset, data| it.write(offset, data).unwrap(),
    )
}

#[test]
fn each_request_has_an_interrupt_of_its_own() {
    let once = |parts: Parts| {
        let line = parts.line.clone();
        let line = edge_line(move || match line.raised() {
            0 => line.trigger(),
            _ => Ok(()),
        });
        port(disk(&parts), parts, line)
    };
    let failed = std::panic::catch_unwind(|| Suite::new(REQUEST).check(once)).unwrap_err();
    let message = failed.downcast::<String>().unwrap();
    assert_eq!(*message, "scenario failed: valid requests");
}

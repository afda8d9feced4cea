// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The conformance suite, with two devices behind the registers.
// Miri has no level-triggered epoll, which the worker threads wait with.
#![cfg(not(miri))]
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

#[path = "../../virtio-device-core/src/guide/ramdisk.rs"]
#[expect(unreachable_pub, reason = "it is an example of a device crate")]
mod ramdisk;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use virtio_device_core::test_utils::conformance::{Memory, Request, check};
use virtio_device_core::{EventCounters, VirtioDevice, WorkerThread};
use virtio_mmio_transport::MmioTransport;
use virtio_mmio_transport::test_utils::RegisterPort;

fn port<D: VirtioDevice<Memory>>(
    device: D,
    memory: Memory,
    raised: Arc<AtomicU32>,
    events: Arc<EventCounters>,
) -> RegisterPort<MmioTransport<Memory, D>> {
    let line = move || {
        raised.fetch_add(1, Ordering::SeqCst);
        Ok(())
    };
    let transport = MmioTransport::new(device, memory, line).unwrap();
    RegisterPort::new(transport.with_observer(events))
}

#[test]
fn virtio_rng_conforms() {
    let request = Request {
        readable: b"",
        writable: 64,
        is_answer: |bytes| bytes.len() == 64 && bytes.iter().all(|&byte| byte == 0x5a),
    };
    check(request, |memory, raised, events| {
        let thread = WorkerThread::named("rng");
        let rng = virtio_rng_device::Rng::new(std::io::repeat(0x5a), thread);
        port(rng, memory, raised, events)
    });
}

#[test]
fn the_example_block_device_conforms() {
    let request = Request {
        // Read sector 1.
        readable: &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        writable: 513,
        is_answer: |bytes| {
            let (answer, data) = bytes.split_last().unwrap();
            *answer == 0 && data.len() == 512 && data.iter().all(|&byte| byte == 7)
        },
    };
    check(request, |memory, raised, events| {
        let disk = Arc::new(Mutex::new(vec![7; 4096]));
        let device = ramdisk::RamDisk::new(disk, WorkerThread::named("disk"));
        port(device, memory, raised, events)
    });
}

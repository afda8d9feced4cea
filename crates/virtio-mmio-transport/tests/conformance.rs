// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The conformance suite, with the example's block device behind the registers: on a thread of its own,
//! and step by step on the test's.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

use std::fmt;
use std::sync::{Arc, Mutex};

use bus::BusDevice;
use virtio_conformance::ramdisk::RamDisk;
use virtio_conformance::{HeapGrowth, Memory, MmioPort, Parts, Request, Suite};
use virtio_device_core::{Executor, VirtioDevice, WorkerThread};
use virtio_mmio_transport::MmioTransport;

const SECRET: &[u8] = b"what only the host may know";

type Port<D> = MmioPort<MmioTransport<Memory, D>>;

fn port<D: VirtioDevice<Memory> + fmt::Debug>(device: D, parts: Parts) -> Port<D> {
    let transport = MmioTransport::new(device, parts.memory, parts.line).unwrap();
    MmioPort::new(
        transport.with_observer(parts.events),
        |it, offset, data| it.read(offset, data).unwrap(),
        |it, offset, data| it.write(offset, data).unwrap(),
    )
    .showing(|transport| {
        let state = transport.save();
        format!("{transport:?} {transport:#?} {state:?}")
    })
}

/// Sees the thread that it is called on.
fn heap(work: &mut dyn FnMut()) -> HeapGrowth {
    let measured = allocation_counter::measure(work);
    HeapGrowth {
        peak: measured.bytes_max,
        left: measured.bytes_current,
    }
}

fn disk_suite() -> Suite {
    let request = Request {
        // Read sector 1.
        readable: &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        writable: 513,
        most: 4096 + 1,
        is_answer: |bytes| {
            let (answer, data) = bytes.split_last().unwrap();
            *answer == 0 && data == [7; 512]
        },
    };
    Suite::new(request).with_secret(SECRET)
}

fn disk<E: Executor>(executor: E) -> RamDisk<E> {
    let mut disk: Vec<u8> = SECRET.iter().copied().cycle().take(4096).collect();
    disk.get_mut(512..1024).unwrap().fill(7);
    RamDisk::new(Arc::new(Mutex::new(disk)), executor)
}

#[test]
#[cfg_attr(miri, ignore = "it takes too long")]
fn the_example_block_device_conforms() {
    let suite = disk_suite().with_heap(heap);
    suite.check(|parts| port(disk(parts.executor.clone()), parts));
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no level-triggered epoll")]
fn the_example_block_device_conforms_on_a_thread_of_its_own() {
    disk_suite().check(|parts| port(disk(WorkerThread::named("disk").unwrap()), parts));
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The conformance suite, with two devices behind the registers: on threads of their own, and step
//! by step on the test's.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

use std::fmt;
use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use virtio_conformance::MmioPort;
use virtio_conformance::ramdisk::RamDisk;
use virtio_conformance::{HeapGrowth, Memory, Parts, Request, Suite};
use virtio_device_core::{Executor, VirtioDevice, WorkerThread};
use virtio_mmio_transport::MmioTransport;
use virtio_rng_device::EntropyDevice;

const SECRET: &[u8] = b"what only the host may know";

type Port<D> = RegisterPort<MmioTransport<Memory, D>>;

fn port<D: VirtioDevice<Memory> + fmt::Debug>(device: D, parts: Parts) -> Port<D> {
    let transport = MmioTransport::new(device, parts.memory, parts.line).unwrap();
    RegisterPort::new(transport.with_observer(parts.events)).showing(|transport| {
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

/// Gives 48 bytes at most, and spoils the rest of the buffer.
struct Source;

impl Read for Source {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let secret = SECRET.iter().cycle();
        data.iter_mut()
            .zip(secret)
            .for_each(|(to, from)| *to = *from);
        let count = data.len().min(48);
        data.iter_mut().take(count).for_each(|byte| *byte = 0x5a);
        Ok(count)
    }
}

fn rng_suite() -> Suite {
    let request = Request {
        readable: b"",
        writable: 64,
        most: 64 << 10,
        is_answer: |bytes| bytes == [0x5a; 48],
    };
    Suite::new(request).with_secret(SECRET)
}

fn rng<E: Executor>(executor: E) -> EntropyDevice<Source, E> {
    EntropyDevice::new(Source, executor)
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

fn disk<E: Executor>(executor: E) -> RamDisk<Memory, E> {
    let mut disk: Vec<u8> = SECRET.iter().copied().cycle().take(4096).collect();
    disk.get_mut(512..1024).unwrap().fill(7);
    RamDisk::new(Arc::new(Mutex::new(disk)), executor)
}

#[test]
#[cfg_attr(miri, ignore = "it takes too long")]
fn virtio_rng_conforms() {
    let suite = rng_suite().with_heap(heap);
    suite.check(|parts| port(rng(parts.executor.clone()), parts));
}

#[test]
#[cfg_attr(miri, ignore = "it takes too long")]
fn the_example_block_device_conforms() {
    let suite = disk_suite().with_heap(heap);
    suite.check(|parts| port(disk(parts.executor.clone()), parts));
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no level-triggered epoll")]
fn virtio_rng_conforms_on_a_thread_of_its_own() {
    rng_suite().check(|parts| port(rng(WorkerThread::named("rng")), parts));
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no level-triggered epoll")]
fn the_example_block_device_conforms_on_a_thread_of_its_own() {
    disk_suite().check(|parts| port(disk(WorkerThread::named("disk")), parts));
}

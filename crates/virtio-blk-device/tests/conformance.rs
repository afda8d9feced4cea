// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The conformance suite, behind the registers of virtio-mmio: on threads, and step by step on the
//! test's.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

#[path = "support/memory_disk.rs"]
mod memory_disk;

use std::fs::File;
use std::sync::Arc;

use bus::BusDevice;
use memory_disk::MemoryDisk;
use virtio_blk_device::{Backend, Block, FileBackend, FileOptions};
use virtio_conformance::{HeapGrowth, Memory, MmioPort, Parts, Request, Suite};
use virtio_device_core::{Executor, WorkerThread};
use virtio_mmio_transport::MmioTransport;

const SECRET: &[u8] = b"what only the host may know";

type Port<E> = MmioPort<MmioTransport<Memory, Block<E>>>;

/// Sector 0 is the guest's, and what is beyond the last whole sector nobody's.
fn sectors() -> Vec<u8> {
    [&[0; 4096], SECRET].concat()
}

fn port<E: Executor + 'static>(backend: impl Backend, executor: E, parts: Parts) -> Port<E> {
    let device = Block::new(Arc::new(backend), executor)
        .unwrap()
        .with_queues(2);
    let transport = MmioTransport::new(device, parts.memory, parts.line).unwrap();
    MmioPort::new(
        transport.with_observer(parts.events),
        |it, offset, data| it.read(offset, data).unwrap(),
        |it, offset, data| it.write(offset, data).unwrap(),
    )
    .showing(|transport| format!("{transport:?} {transport:#?} {:?}", transport.save()))
}

/// Reading a sector, writing one, or flushing, on either queue.
fn suites() -> [Suite; 4] {
    let reading = Request::new(|bytes| bytes == [0; 513]).readable(&[0; 16]);
    let reading = reading.writable(513).at_most(4096 + 1);
    static WRITE: [u8; 528] = {
        let mut bytes = [0; 528];
        bytes[0] = 1;
        bytes
    };
    let writing = Request::new(|bytes| bytes == [0])
        .readable(&WRITE)
        .writable(1);
    static FLUSH: [u8; 16] = [4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let flushing = Request::new(|bytes| bytes == [0])
        .readable(&FLUSH)
        .writable(1);
    [reading, writing, flushing.queue(1), reading.queue(1)]
        .map(|request| Suite::new(request).with_secret(SECRET))
}

/// Sees the thread that it is called on.
fn heap(work: &mut dyn FnMut()) -> HeapGrowth {
    let measured = allocation_counter::measure(work);
    HeapGrowth {
        peak: measured.bytes_max,
        left: measured.bytes_current,
    }
}

#[test]
fn a_disk_in_memory_conforms() {
    for suite in suites() {
        suite.with_heap(heap).check(|parts| {
            let disk = MemoryDisk::new(sectors());
            port(disk, parts.executor.clone(), parts)
        });
    }
}

fn file() -> File {
    let file = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &sectors(), 0).unwrap();
    file
}

#[test]
fn a_disk_in_a_file_conforms() {
    for suite in suites() {
        suite.with_heap(heap).check(|parts| {
            let disk = FileBackend::new(file(), FileOptions::default()).unwrap();
            port(disk, parts.executor.clone(), parts)
        });
    }
}

#[test]
fn a_disk_in_a_file_conforms_on_a_thread_of_its_own() {
    for suite in suites().into_iter().take(2) {
        suite.check(|parts| {
            let disk = FileBackend::new(file(), FileOptions::default()).unwrap();
            port(disk, WorkerThread::named("disk").unwrap(), parts)
        });
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A host that has run out of file descriptors: a process of its own, for the limit is everybody's.
#![cfg(not(miri))]
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

use std::fs::File;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use virtio_conformance::DriverQueue;
use virtio_conformance::MmioPort;
use virtio_conformance::Port;
use virtio_conformance::ramdisk::RamDisk;
use virtio_device_core::{EventCounters, WorkerThread};
use virtio_mmio_transport::MmioTransport;
use vm_memory::{GuestAddress, GuestMemoryMmap};

fn open() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_device_that_finds_no_file_descriptor_says_so_and_leaves_none_open() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
    let memory = Arc::new(memory);
    let events = Arc::new(EventCounters::default());
    let disk = Arc::new(Mutex::new(vec![0; 512]));
    let device = RamDisk::new(disk, WorkerThread::named("disk"));
    let transport = MmioTransport::new(device, memory.clone(), || Ok(())).unwrap();
    let mut port = RegisterPort::new(transport.with_observer(events.clone()));
    let setup = *DriverQueue::new(&*memory, 0x1000, 8).setup();
    let start = |port: &mut RegisterPort<_>| {
        for (offset, value) in [(0x70, 0), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)] {
            port.set(offset, value);
        }
        assert!(port.enable(0, &setup));
        port.set(0x70, 15);
        port.get(0x70)
    };
    let limit = getrlimit(Resource::Nofile);
    let at_rest = open();
    // A thread that was told to stop has not ended yet.
    let rest = |port: &mut RegisterPort<_>| {
        port.set(0x70, 0);
        let deadline = Instant::now() + Duration::from_secs(5);
        while open() > at_rest {
            assert!(Instant::now() < deadline, "something is left open");
        }
    };
    let mut failures = 0;
    // One more descriptor at each turn, so that each of those that it takes is the one that is
    // missing.
    for spare in 0.. {
        let few = Rlimit {
            current: Some(256),
            ..limit
        };
        setrlimit(Resource::Nofile, few).unwrap();
        let mut files = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            files.push(file);
        }
        files.truncate(files.len() - spare);
        let status = start(&mut port);
        drop(files);
        setrlimit(Resource::Nofile, limit).unwrap();
        if status == 15 {
            break;
        }
        assert_eq!(status, 15 | 64);
        failures += 1;
        assert_eq!(events.snapshot().activation_failed, failures);
        rest(&mut port);
        assert_eq!(start(&mut port), 15, "there are enough again");
        rest(&mut port);
    }
    assert_eq!(failures, 2, "a loop takes an event fd and one for epoll");
    rest(&mut port);
    assert_eq!(start(&mut port), 15);
    rest(&mut port);
}

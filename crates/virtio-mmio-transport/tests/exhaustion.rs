// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A host that has run out of file descriptors: a process of its own, for the limit is everybody's.
#![cfg(not(miri))]
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

use std::sync::{Arc, Mutex};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use virtio_device_core::test_utils::DriverQueue;
use virtio_device_core::test_utils::conformance::Port;
use virtio_device_core::test_utils::ramdisk::RamDisk;
use virtio_device_core::{EventCounters, WorkerThread};
use virtio_mmio_transport::MmioTransport;
use virtio_mmio_transport::test_utils::RegisterPort;
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
    let mut start = || {
        for (offset, value) in [(0x70, 0), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)] {
            port.set(offset, value);
        }
        assert!(port.enable(0, &setup));
        port.set(0x70, 15);
        port.get(0x70)
    };
    assert_eq!(start(), 15);
    let (before, limit) = (open(), getrlimit(Resource::Nofile));
    // One more descriptor at each turn, so that each of those that it takes is the one that is
    // missing. The directory that `open` reads is one as well.
    let mut failures = 0;
    for spare in 0.. {
        let few = Rlimit {
            current: Some(u64::try_from(before + spare).unwrap() - 4),
            ..limit
        };
        setrlimit(Resource::Nofile, few).unwrap();
        let status = start();
        setrlimit(Resource::Nofile, limit).unwrap();
        if status == 15 {
            break;
        }
        assert_eq!(status, 15 | 64);
        failures += 1;
        assert_eq!(events.snapshot().activation_failed, failures);
        assert!(open() <= before, "something is left open");
        assert_eq!(start(), 15, "there are enough again");
    }
    assert!(failures > 0);
    assert_eq!(start(), 15);
    // The thread that was stopped last may not have ended yet.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while open() > before {
        assert!(
            std::time::Instant::now() < deadline,
            "something is left open"
        );
    }
}

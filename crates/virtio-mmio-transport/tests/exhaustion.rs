// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A host on which every call of a worker's start fails in turn: a process of its own, for the limits
//! are everybody's.
#![cfg(not(miri))]
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

mod support;

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{Memory, port};
use virtio_conformance::ramdisk::RamDisk;
use virtio_conformance::{DriverQueue, EventLog, MmioPort, Port, reg};
use virtio_device_core::{
    Activation, Context, DeviceFault, Features, Progress, QueueHandler, VirtioDevice, WorkerThread,
    edge_line, vmm_sys_util::epoll::EventSet,
};
use virtio_mmio_transport::MmioTransport;
use vm_memory::{GuestAddress, GuestMemoryMmap};

const SOON: Duration = Duration::from_secs(60);

fn open() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn memory() -> Memory {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap())
}

/// Makes `work` with room for `spare` more file descriptors.
fn with_spare_descriptors<R>(spare: usize, work: impl FnOnce() -> R) -> R {
    let limit = getrlimit(Resource::Nofile);
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
    let result = work();
    drop(files);
    setrlimit(Resource::Nofile, limit).unwrap();
    result
}

/// Watches a descriptor of the host.
struct Watching(WorkerThread, Arc<UnixStream>);

impl VirtioDevice<Memory> for Watching {
    fn device_type(&self) -> u32 {
        42
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[16]
    }

    fn activate(&mut self, activation: Activation<Memory>) -> Result<(), DeviceFault> {
        activation.serve(&mut self.0, |_| Handler(self.1.clone()))
    }
}

struct Handler(Arc<UnixStream>);

impl QueueHandler for Handler {
    fn start(&mut self, cx: &mut Context<'_>) -> Result<(), DeviceFault> {
        // The caller's reason: it says of what kind this failure is.
        let watched = cx.watch(0, &*self.0, EventSet::IN);
        watched.map_err(DeviceFault::Worker)
    }

    fn process(&mut self, _queue: u16, _cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        Ok(Progress::Idle)
    }
}

fn start<T>(port: &mut MmioPort<T>, memory: &Memory) -> u32 {
    assert!(port.negotiate(Features::NONE));
    let setup = *DriverQueue::new(&**memory, 0x1000, 8).setup();
    assert!(port.enable(0, &setup));
    port.set_driver_ok()
}

/// Waits until the device has started, or has failed.
fn outcome<T>(port: &mut MmioPort<T>, events: &EventLog, activated: u64) -> u32 {
    let deadline = Instant::now() + SOON;
    while port.get(reg::STATUS) == 15 && events.counts().activated == activated {
        assert!(Instant::now() < deadline, "neither started nor failed");
    }
    port.get(reg::STATUS)
}

/// Waits until no more than so many descriptors are open.
fn await_open(count: usize) {
    let deadline = Instant::now() + SOON;
    while open() > count {
        assert!(Instant::now() < deadline, "something is left open");
    }
}

#[test]
fn a_device_that_finds_no_file_descriptor_says_so_and_leaves_none_open() {
    let at_rest = open();
    // All descriptors of a worker exist before the guest runs: nothing can be missing.
    let (memory_, events) = (memory(), Arc::new(EventLog::default()));
    let disk = Arc::new(Mutex::new(vec![0; 512]));
    let device = RamDisk::new(disk, WorkerThread::named("disk").unwrap());
    let transport = MmioTransport::new(device, memory_.clone(), edge_line(|| Ok(()))).unwrap();
    let mut disk = port(transport.with_observer(events.clone()));
    with_spare_descriptors(0, || {
        start(&mut disk, &memory_);
        assert_eq!(outcome(&mut disk, &events, 0), 15);
    });
    drop(disk);
    // What its thread closes later would be spare.
    await_open(at_rest);

    // A descriptor of the host is duplicated when it is watched.
    let (_host, watched) = UnixStream::pair().unwrap();
    let (memory, events) = (memory(), Arc::new(EventLog::default()));
    let device = Watching(WorkerThread::named("watching").unwrap(), Arc::new(watched));
    let transport = MmioTransport::new(device, memory.clone(), edge_line(|| Ok(()))).unwrap();
    let mut port = port(transport.with_observer(events.clone()));
    let at_rest = open();
    for round in 0..3 {
        let activated = events.counts().activated;
        let status = with_spare_descriptors(0, || {
            start(&mut port, &memory);
            outcome(&mut port, &events, activated)
        });
        assert_eq!(status, 15 | 64);
        // The observer is told after the driver.
        let deadline = Instant::now() + SOON;
        while events.counts().device_failed == round {
            assert!(Instant::now() < deadline, "the observer is not told");
        }
        let counts = events.counts();
        assert_eq!(
            (counts.device_failed, counts.activated),
            (round + 1, activated)
        );
        let reason = events.last_failure().unwrap();
        assert!(reason.contains("worker could not be started"), "{reason}");
        port.set(reg::STATUS, 0);
        start(&mut port, &memory);
        assert_eq!(
            outcome(&mut port, &events, activated),
            15,
            "there are enough again"
        );
        port.set(reg::STATUS, 0);
        await_open(at_rest);
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A request is served, whenever its driver has notified the device, and however busy the host is.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::{Memory, port};
use virtio_conformance::ramdisk::RamDisk;
use virtio_conformance::{
    DriverQueue, EventCounters, MmioPort, Port, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, reg,
};
use virtio_device_core::{
    Executor, Features, LoopHandle, StepLoop, VIRTIO_F_RING_RESET, VirtioDevice, WorkerThread,
    edge_line,
};
use virtio_mmio_transport::{MmioTransport, TransportState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const SOON: Duration = Duration::from_secs(60);
const QUEUE: u64 = 0x1000;

type Disk<E> = MmioPort<MmioTransport<Memory, RamDisk<E>>>;
type Queue<'m> = DriverQueue<'m, GuestMemoryMmap<()>>;

fn memory() -> Memory {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap())
}

fn disk<E: Executor>(memory: &Memory, executor: E) -> (Disk<E>, Arc<EventCounters>)
where
    RamDisk<E>: VirtioDevice<Memory>,
{
    let device = RamDisk::new(Arc::new(Mutex::new(vec![0; 512])), executor);
    let events = Arc::new(EventCounters::default());
    let transport = MmioTransport::new(device, memory.clone(), edge_line(|| Ok(()))).unwrap();
    (port(transport.with_observer(events.clone())), events)
}

/// Resets the device, and goes up to `FEATURES_OK` with `VIRTIO_F_RING_RESET`.
fn negotiate<E>(port: &mut Disk<E>)
where
    E: Executor,
{
    assert!(port.negotiate(Features::of(&[VIRTIO_F_RING_RESET])));
}

/// Makes a request available: read sector 0.
fn offer(memory: &Memory, queue: &mut Queue<'_>) {
    memory.write_slice(&[0; 16], GuestAddress(0x4000)).unwrap();
    queue.descriptor(0, 0x4000, 16, VIRTQ_DESC_F_NEXT, 1);
    queue.descriptor(1, 0x5000, 513, VIRTQ_DESC_F_WRITE, 0);
    queue.offer(0);
}

/// Notifies the device, as a driver whose write comes over the bus, or by an ioeventfd.
fn notify(port: &mut Disk<LoopHandle>, by_event_fd: bool) {
    if by_event_fd {
        let (_, kick) = port.device_mut().kicks().next().unwrap();
        kick.write(1).unwrap();
    } else {
        port.set(reg::QUEUE_NOTIFY, 0);
    }
}

fn move_on(from: &mut Disk<LoopHandle>) -> TransportState {
    from.device_mut().pause().unwrap();
    from.device_mut().save().unwrap()
}

/// Both ways to notify, each with a device that is made step by step.
fn both_ways(
    scenario: impl Fn(bool, &mut StepLoop, &Memory, &mut Disk<LoopHandle>, &mut Queue<'_>),
) {
    for by_event_fd in [false, true] {
        let memory = memory();
        let mut workers = StepLoop::new().unwrap();
        let (mut port, _) = disk(&memory, workers.handle());
        let mut queue = Queue::new(&*memory, QUEUE, 8);
        negotiate(&mut port);
        scenario(by_event_fd, &mut workers, &memory, &mut port, &mut queue);
        let _ = (0..10).all(|_| workers.step());
        assert_eq!(queue.used_index(), 1, "by event fd: {by_event_fd}");
    }
}

#[test]
fn a_notification_before_driver_ok_is_served_after_it() {
    both_ways(|by_event_fd, workers, memory, port, queue| {
        assert!(port.enable(0, queue.setup()));
        offer(memory, queue);
        notify(port, by_event_fd);
        workers.step();
        assert_eq!(queue.used_index(), 0, "not before DRIVER_OK");
        port.set(reg::STATUS, 15);
    });
}

#[test]
fn a_notification_before_the_queue_is_enabled_is_served_after_driver_ok() {
    both_ways(|by_event_fd, _, memory, port, queue| {
        offer(memory, queue);
        notify(port, by_event_fd);
        assert!(port.enable(0, queue.setup()));
        port.set(reg::STATUS, 15);
    });
}

#[test]
fn a_notification_before_driver_ok_outlives_a_move() {
    both_ways(|by_event_fd, workers, memory, port, queue| {
        assert!(port.enable(0, queue.setup()));
        offer(memory, queue);
        notify(port, by_event_fd);
        let state = move_on(port);
        (*port, _) = disk(memory, workers.handle());
        port.device_mut().restore(&state).unwrap();
        port.set(reg::STATUS, 15);
    });
}

#[test]
fn a_notification_before_a_move_is_served_after_it() {
    both_ways(|by_event_fd, workers, memory, port, queue| {
        assert!(port.enable(0, queue.setup()));
        port.set(reg::STATUS, 15);
        workers.step();
        offer(memory, queue);
        notify(port, by_event_fd);
        let state = move_on(port);
        (*port, _) = disk(memory, workers.handle());
        port.device_mut().restore(&state).unwrap();
    });
}

#[test]
fn a_notification_during_a_pause_is_served_after_it() {
    both_ways(|by_event_fd, workers, memory, port, queue| {
        assert!(port.enable(0, queue.setup()));
        port.set(reg::STATUS, 15);
        workers.step();
        port.device_mut().pause().unwrap();
        offer(memory, queue);
        notify(port, by_event_fd);
        let _ = (0..10).all(|_| workers.step());
        assert_eq!(queue.used_index(), 0, "paused");
        port.device_mut().resume();
    });
}

#[test]
fn a_notification_before_a_queue_comes_back_is_served_then() {
    for stepped in [false, true] {
        both_ways(|by_event_fd, workers, memory, port, queue| {
            assert!(port.enable(0, queue.setup()));
            port.set(reg::STATUS, 15);
            workers.step();
            port.reset_queue(0);
            offer(memory, queue);
            notify(port, by_event_fd);
            if stepped {
                workers.step();
            }
            assert!(port.enable(0, queue.setup()));
        });
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no level-triggered epoll")]
fn a_driver_that_reloads_is_served_beside_busy_neighbours() {
    /// Ends the neighbours, also when the test fails.
    struct Done<'a>(&'a AtomicBool);

    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _done = Done(&done);
        for _ in 0..6 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let memory = memory();
        let (mut port, events) = disk(&memory, WorkerThread::named("disk").unwrap());
        for reload in 0..200 {
            negotiate(&mut port);
            let mut queue = Queue::new(&*memory, QUEUE, 8);
            assert!(port.enable(0, queue.setup()));
            port.set(reg::STATUS, 15);
            offer(&memory, &mut queue);
            port.set(reg::QUEUE_NOTIFY, 0);
            let deadline = Instant::now() + SOON;
            while queue.used_index() == 0 {
                assert!(Instant::now() < deadline, "reload {reload} is not served");
                std::thread::yield_now();
            }
            assert_eq!(queue.take_used(), [(0, 513)]);
            assert_eq!(port.get(reg::STATUS), 15);
        }
        let counts = events.snapshot();
        assert_eq!(counts.device_failed, 0);
    });
}

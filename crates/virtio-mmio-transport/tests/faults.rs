// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What goes wrong on the host's side, and what several threads do at once.
#![cfg(not(miri))]
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bus::BusDevice;
use support::{Bomb, Fixture, Memory, Probe, port};
use virtio_conformance::{DriverQueue, EventCounters, MmioPort, Port as _, VIRTQ_DESC_F_NEXT, reg};
use virtio_device_core::{
    Activation, Chain, Context, DeviceFault, Features, Lease, Progress, QueueHandler, VirtioDevice,
    WorkerThread, edge_line,
};
use virtio_mmio_transport::{INT_CONFIG, INT_VRING, MmioTransport};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Far beyond what a healthy worker takes on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// A device whose worker does what the test says, for each look at its queue.
struct Scripted<F> {
    script: F,
    thread: WorkerThread,
}

type Look = Result<Progress, DeviceFault>;

struct Handler<F>(F);

impl<F: FnMut(&Lease) -> Look + Send> QueueHandler for Handler<F> {
    fn process(&mut self, index: u16, cx: &mut Context<'_>) -> Look {
        (self.0)(&cx.queue(index).unwrap().lease)
    }
}

impl<F> VirtioDevice<Memory> for Scripted<F>
where
    F: FnMut(&Lease) -> Look + Clone + Send + 'static,
{
    fn device_type(&self) -> u32 {
        42
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[16]
    }

    fn activate(&mut self, activation: Activation<Memory>) -> Result<(), DeviceFault> {
        activation.serve(&mut self.thread, |_| Handler(self.script.clone()))
    }
}

type Port<F> = MmioPort<MmioTransport<Memory, Scripted<F>>>;

struct Scene<F: FnMut(&Lease) -> Look + Clone + Send + 'static> {
    port: Port<F>,
    memory: Memory,
    events: Arc<EventCounters>,
}

impl<F: FnMut(&Lease) -> Look + Clone + Send + 'static> Scene<F> {
    fn new(script: F) -> Self {
        let memory: Memory =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap());
        let events = Arc::new(EventCounters::default());
        let device = Scripted {
            script,
            thread: WorkerThread::named("scripted").unwrap(),
        };
        let transport = MmioTransport::new(device, memory.clone(), edge_line(|| Ok(()))).unwrap();
        let port = port(transport.with_observer(events.clone()));
        Self {
            port,
            memory,
            events,
        }
    }

    fn start(&mut self) {
        let setup = *DriverQueue::new(&*self.memory, 0x1000, 16).setup();
        assert!(self.port.negotiate(Features::NONE));
        assert!(self.port.enable(0, &setup));
        self.port.set_driver_ok();
    }

    fn wait_for_status(&mut self, status: u32) {
        self.wait_for(reg::STATUS, status);
    }

    fn wait_for(&mut self, offset: u64, value: u32) {
        let deadline = Instant::now() + SOON;
        while self.port.get(offset) != value {
            let late = Instant::now() > deadline;
            assert!(!late, "register {offset:#x} never is {value:#x}");
        }
    }
}

#[test]
fn a_worker_that_panics_is_replaced_after_a_reset() {
    let panics = Arc::new(AtomicBool::new(true));
    let script = {
        let panics = panics.clone();
        move |_: &Lease| {
            assert!(!panics.load(Ordering::SeqCst), "a bug in the device");
            Ok(Progress::Idle)
        }
    };
    let mut scene = Scene::new(script);
    for round in 1..=3 {
        scene.start();
        scene.port.set(reg::QUEUE_NOTIFY, 0);
        scene.wait_for_status(15 | 64);
        // The interrupt follows.
        scene.wait_for(reg::INTERRUPT_STATUS, INT_CONFIG);
        assert_eq!(scene.events.snapshot().device_failed, round);
    }
    panics.store(false, Ordering::SeqCst);
    scene.start();
    scene.port.set(reg::QUEUE_NOTIFY, 0);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(scene.port.get(reg::STATUS), 15);
}

#[test]
fn a_hanging_backend_holds_up_no_register_and_no_reset() {
    let (release, hang) = channel::<()>();
    let (entered, inside) = channel();
    let hang = Arc::new(Mutex::new(hang));
    let script = move |_: &Lease| {
        let _ = entered.send(());
        let _ = hang.lock().unwrap().recv();
        Ok(Progress::Idle)
    };
    let mut scene = Scene::new(script);
    scene.start();
    scene.port.set(reg::QUEUE_NOTIFY, 0);
    inside.recv_timeout(SOON).unwrap();
    let begun = Instant::now();
    assert_eq!(scene.port.get(reg::STATUS), 15);
    scene.port.device_mut().pause().unwrap();
    scene.port.device_mut().save().unwrap();
    scene.port.device_mut().resume();
    scene.port.set(reg::STATUS, 0);
    assert_eq!(scene.port.get(reg::STATUS), 0);
    // Starts in any number wait behind the stuck thread, and nobody waits for it.
    for _ in 0..100 {
        scene.start();
        assert_eq!(scene.port.get(reg::STATUS), 15);
    }
    assert!(begun.elapsed() < SOON);
    assert_eq!(scene.events.snapshot().activated, 1);
    drop(release);
    inside.recv_timeout(SOON).unwrap();
    assert_eq!(scene.port.get(reg::STATUS), 15);
    let counts = scene.events.snapshot();
    assert_eq!((counts.activated, counts.device_failed), (2, 0));
}

#[test]
fn nothing_is_written_after_a_reset_has_returned() {
    // A worker that never stops writing, kicked by another thread: as far as its lease lets it.
    let memory_of = Arc::new(Mutex::new(None::<Memory>));
    let script = {
        let memory_of = memory_of.clone();
        move |lease: &Lease| {
            let memory = memory_of.lock().unwrap().clone().unwrap();
            let _ = lease.with(|_| {
                let byte: u8 = memory.read_obj(GuestAddress(0x8000)).unwrap();
                memory
                    .write_obj(byte.wrapping_add(1), GuestAddress(0x8000))
                    .unwrap();
            });
            Ok(Progress::More)
        }
    };
    let mut scene = Scene::new(script);
    *memory_of.lock().unwrap() = Some(scene.memory.clone());
    let value = |memory: &Memory| memory.read_obj::<u8>(GuestAddress(0x8000)).unwrap();
    for _ in 0..50 {
        scene.start();
        scene.port.set(reg::QUEUE_NOTIFY, 0);
        let before = value(&scene.memory);
        let deadline = Instant::now() + SOON;
        while value(&scene.memory) == before {
            assert!(Instant::now() < deadline, "the worker does not write");
        }
        scene.port.set(reg::STATUS, 0);
        let at_rest = value(&scene.memory);
        std::thread::sleep(Duration::from_micros(200));
        assert_eq!(value(&scene.memory), at_rest);
    }
}

#[test]
fn kicks_resets_and_pauses_from_several_threads_end_well() {
    let script = |lease: &Lease| {
        let progress = lease.with(|queue| queue.fault().is_none());
        Ok(if progress == Ok(true) {
            Progress::More
        } else {
            Progress::Idle
        })
    };
    let mut scene = Scene::new(script);
    scene.start();
    let shared = Mutex::new(scene);
    let rounds = 300;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (0..rounds).for_each(|_| shared.lock().unwrap().port.set(reg::QUEUE_NOTIFY, 0))
        });
        scope.spawn(|| {
            for _ in 0..rounds {
                shared.lock().unwrap().port.device_mut().pause().unwrap();
                shared.lock().unwrap().port.device_mut().resume();
            }
        });
        (0..rounds).for_each(|_| shared.lock().unwrap().start());
    });
    let mut scene = shared.into_inner().unwrap();
    scene.start();
    assert_eq!(scene.port.get(reg::STATUS), 15);
}

#[test]
fn starts_pile_up_no_threads() {
    let count = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let mut scene = Scene::new(|_: &Lease| Ok(Progress::Idle));
    scene.start();
    let before = count();
    for _ in 0..500 {
        scene.start();
        assert_eq!(scene.port.get(reg::STATUS), 15);
    }
    // Other tests of this process start and end theirs meanwhile.
    assert!(count() < before + 50);
}

#[test]
fn ten_thousand_starts_leave_nothing_behind() {
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut fixture = Fixture::new();
    let before = open();
    for _ in 0..10_000 {
        fixture.negotiate();
        fixture.enable_queue(0, 0x1000, 16);
        fixture.set(reg::STATUS, 15);
        assert_eq!(fixture.status(), 15);
        fixture.set(reg::STATUS, 0);
    }
    // Other tests of this process open and close theirs meanwhile.
    assert!(open() < before + 100);
}

#[test]
fn a_full_kick_counter_is_as_good_as_one_more() {
    let mut fixture = Fixture::live();
    {
        let (_, kick) = fixture.transport.kicks().next().unwrap();
        let _ = kick.read();
        kick.write(u64::MAX - 1).unwrap();
    }
    for _ in 0..1000 {
        fixture.set(reg::QUEUE_NOTIFY, 0);
    }
    assert_eq!(fixture.kicks(0), u64::MAX - 1);
}

#[test]
fn a_new_cause_survives_the_acknowledgement_of_an_old_one() {
    let mut fixture = Fixture::live();
    let (queue, notifier) = (fixture.queue(0), fixture.notifier());
    let rounds = 20_000;
    let mut seen = 0;
    std::thread::scope(|scope| {
        // The other cause comes once, at some moment, and is never acknowledged.
        scope.spawn(|| {
            for round in 0..rounds {
                if round == rounds / 2 {
                    notifier.update(|| ());
                }
                queue.signal_used();
            }
        });
        for _ in 0..rounds {
            seen |= fixture.get(reg::INTERRUPT_STATUS);
            fixture.set(reg::INTERRUPT_ACK, INT_VRING);
        }
    });
    assert_eq!(fixture.get(reg::INTERRUPT_STATUS) & INT_CONFIG, INT_CONFIG);
    fixture.set(reg::INTERRUPT_ACK, INT_VRING);
    assert_eq!(fixture.get(reg::INTERRUPT_STATUS), INT_CONFIG);
    assert_eq!(seen & !(INT_VRING | INT_CONFIG), 0);
}

#[test]
fn register_programs_allocate_nothing_that_stays() {
    let mut fixture = Fixture::with(Probe::default());
    let mut program = |rounds: u32| {
        for round in 0..rounds {
            for offset in (0..0x110).step_by(4) {
                // Not the status, whose 0 is a reset: that makes a new set of registers.
                if offset != reg::STATUS {
                    fixture.set(offset, round);
                }
                fixture.get(offset);
            }
            let mut wide = [0; 8];
            fixture.transport.read(u64::from(round), &mut wide).unwrap();
        }
    };
    program(1);
    let allocated = allocation_counter::measure(|| program(2_000));
    assert_eq!(allocated.count_total, 0);
    let resets = allocation_counter::measure(|| {
        for _ in 0..1_000 {
            fixture.set(reg::STATUS, 0);
        }
    });
    assert_eq!(resets.bytes_current, 0);
    assert!(resets.bytes_max <= 8 << 10, "{resets:?}");
}

#[test]
fn a_chain_never_grows_its_memory() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
    let mut driver = DriverQueue::new(&memory, 0x1000, 16);
    let mut queue = virtio_device_core::Virtqueue::new(driver.layout(), Features::NONE);
    let mut chain = Chain::with_capacity(16);
    for index in 0..16 {
        let flags = if index == 15 { 0 } else { VIRTQ_DESC_F_NEXT };
        driver.descriptor(index, 0x8000, 1, flags, index + 1);
    }
    let allocated = allocation_counter::measure(|| {
        for round in 0..1_000u16 {
            driver.offer(0);
            let head = queue.take(&memory, &mut chain).unwrap().unwrap();
            assert_eq!(chain.len(), 16);
            queue.complete(&memory, head, round.into()).unwrap();
        }
    });
    assert_eq!(allocated.count_total, 0);
}

/// A device whose activation fails.
struct Stillborn(fn() -> DeviceFault);

impl VirtioDevice<Memory> for Stillborn {
    fn device_type(&self) -> u32 {
        42
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[16]
    }

    fn activate(&mut self, _activation: Activation<Memory>) -> Result<(), DeviceFault> {
        Err(self.0())
    }
}

#[test]
fn every_failure_of_an_activation_is_told_and_undone_by_a_reset() {
    let errors: [fn() -> DeviceFault; 5] = [
        || DeviceFault::QueueMissing(3),
        || DeviceFault::device("tap0 is gone"),
        || DeviceFault::Worker(std::io::ErrorKind::OutOfMemory.into()),
        || DeviceFault::Worker(std::io::Error::other("no thread")),
        || DeviceFault::device(Bomb),
    ];
    for error in errors {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let events = Arc::new(EventCounters::default());
        let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let transport = MmioTransport::new(Stillborn(error), Arc::new(memory), line.clone());
        let transport = transport.unwrap().with_observer(events.clone());
        let mut port = port(transport);
        for round in 1..=2 {
            assert!(port.negotiate(Features::NONE));
            assert_eq!(
                (port.set_driver_ok(), port.get(reg::INTERRUPT_STATUS)),
                (15 | 64, INT_CONFIG)
            );
            assert_eq!(line.read().unwrap(), 1);
            assert_eq!(events.snapshot().device_failed, round);
            port.set(reg::STATUS, 0);
            assert_eq!(
                (port.get(reg::STATUS), port.get(reg::INTERRUPT_STATUS)),
                (0, 0)
            );
        }
    }
}

#[test]
fn an_event_fd_that_is_full_is_a_line_that_fails() {
    let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let mut fixture = Fixture::behind_line(line.clone());
    fixture.negotiate();
    fixture.enable_queue(0, 0x1000, 16);
    fixture.set(reg::STATUS, 15);
    let queue = fixture.queue(0);
    line.write(u64::MAX - 1).unwrap();
    queue.signal_used();
    assert_eq!(fixture.events().line_failed, 1);
    assert_eq!(fixture.get(reg::INTERRUPT_STATUS), INT_VRING);
    // The next one is tried again.
    line.read().unwrap();
    queue.signal_used();
    assert_eq!((line.read().unwrap(), fixture.events().line_failed), (1, 1));
}

#[test]
fn a_line_that_hangs_holds_up_its_worker_alone() {
    let (release, hang) = channel::<()>();
    let (entered, inside) = channel();
    let hang = Mutex::new(hang);
    let line = edge_line(move || {
        let _ = entered.send(());
        let _ = hang.lock().unwrap().recv();
        Ok(())
    });
    let mut fixture = Fixture::behind_line(line);
    fixture.negotiate();
    fixture.enable_queue(0, 0x1000, 16);
    fixture.set(reg::STATUS, 15);
    let _ = fixture.kicks(0);
    let queue = fixture.queue(0);
    std::thread::scope(|scope| {
        scope.spawn(|| queue.signal_used());
        inside.recv_timeout(SOON).unwrap();
        assert_eq!(
            (fixture.get(reg::INTERRUPT_STATUS), fixture.status()),
            (INT_VRING, 15)
        );
        assert_eq!(fixture.get(reg::CONFIG), u32::from_le_bytes([1, 2, 3, 4]));
        let _ = fixture.get(reg::CONFIG_GENERATION);
        fixture.set(reg::INTERRUPT_ACK, INT_VRING);
        fixture.set(reg::QUEUE_NOTIFY, 0);
        assert_eq!(
            (fixture.get(reg::INTERRUPT_STATUS), fixture.kicks(0)),
            (0, 1)
        );
        fixture.transport.pause().unwrap();
        fixture.transport.resume();
        drop(release);
    });
    fixture.set(reg::STATUS, 0);
    assert_eq!(fixture.status(), 0);
}

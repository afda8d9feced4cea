// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two real devices behind the registers while their VMM swaps memory, pauses, moves and removes
//! them.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bus::{AccessError, BusDevice, MmioBus};
use virtio_conformance::ramdisk::RamDisk;
use virtio_conformance::{
    CountingLine, DriverQueue, EventCounters, MmioPort, Port, VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE, WatchedMemory, reg,
};
use virtio_device_core::{Features, LoopHandle, StepLoop, VIRTIO_F_EVENT_IDX, VirtioDevice};
use virtio_mmio_transport::{MmioTransport, REGION_SIZE, TransportState};
use virtio_rng_device::EntropyDevice;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

type Plain = GuestMemoryMmap<()>;
/// Memory that the VMM can swap.
type Space = GuestMemoryAtomic<WatchedMemory>;
type Device = Box<dyn VirtioDevice<Space>>;
type Queue<'m> = DriverQueue<'m, Plain>;
type Registers = MmioPort<MmioTransport<Space, Device>>;

const RAM: usize = 0x8000;
const QUEUE: u64 = 0x1000;
const REQUEST: u64 = 0x2000;
const ANSWER: u64 = 0x3000;

/// A kind of device, a request to it, and the answer.
struct Kind {
    make: fn(LoopHandle) -> Device,
    request: &'static [u8],
    answer: &'static [u8],
}

const RNG: Kind = Kind {
    make: |executor| Box::new(EntropyDevice::new(io::repeat(7), executor)),
    request: &[],
    answer: &[7; 64],
};

/// One sector is read.
const DISK: Kind = Kind {
    make: |executor| Box::new(RamDisk::new(Arc::new(Mutex::new(vec![0; 512])), executor)),
    request: &[0; 16],
    answer: &[0; 513],
};

fn plain() -> Plain {
    let plain = Plain::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
    plain.write_slice(&[0xa5; RAM], GuestAddress(0)).unwrap();
    plain
}

fn image(memory: &Plain) -> Vec<u8> {
    let mut image = vec![0; RAM];
    memory.read_slice(&mut image, GuestAddress(0)).unwrap();
    image
}

fn copy(from: &Plain, to: &Plain) {
    to.write_slice(&image(from), GuestAddress(0)).unwrap();
}

fn port(transport: MmioTransport<Space, Device>) -> Registers {
    MmioPort::new(
        transport,
        |it, offset, data| it.read(offset, data).unwrap(),
        |it, offset, data| it.write(offset, data).unwrap(),
    )
}

/// Registers that a test has in its hands, on a bus.
struct OnBus(Registers);

impl BusDevice for OnBus {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        self.0.read(offset, data);
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        self.0.write(offset, data);
        Ok(())
    }
}

/// A device behind a transport.
struct Rig {
    port: Registers,
    space: Space,
    line: CountingLine,
    events: Arc<EventCounters>,
    workers: StepLoop,
    kind: &'static Kind,
}

impl Rig {
    fn new(kind: &'static Kind, memory: &Plain) -> Self {
        Self::with_device(kind, kind.make, memory)
    }

    fn with_device(
        kind: &'static Kind,
        make: impl Fn(LoopHandle) -> Device,
        memory: &Plain,
    ) -> Self {
        let space = Space::new(WatchedMemory::new(memory.clone()));
        let (line, events) = (CountingLine::default(), Arc::<EventCounters>::default());
        let workers = StepLoop::new().unwrap();
        let device = make(workers.handle());
        let transport = MmioTransport::new(device, space.clone(), line.clone()).unwrap();
        Self {
            port: port(transport.with_observer(events.clone())),
            space,
            line,
            events,
            workers,
            kind,
        }
    }

    fn start<'m>(&mut self, memory: &'m Plain, features: Features) -> Queue<'m> {
        let queue = Queue::new(memory, QUEUE, 8);
        assert!(self.port.negotiate(features));
        assert!(self.port.enable(0, queue.setup()));
        assert_eq!(self.port.set_driver_ok(), 15);
        queue
    }

    fn offer(&self, queue: &mut Queue<'_>, memory: &Plain) {
        let Kind {
            request, answer, ..
        } = self.kind;
        let len = u32::try_from(answer.len()).unwrap();
        if request.is_empty() {
            queue.offer_writable(0, ANSWER, len);
            return;
        }
        memory.write_slice(request, GuestAddress(REQUEST)).unwrap();
        let request = u32::try_from(request.len()).unwrap();
        queue.descriptor(0, REQUEST, request, VIRTQ_DESC_F_NEXT, 1);
        queue.descriptor(1, ANSWER, len, VIRTQ_DESC_F_WRITE, 0);
        queue.offer(0);
    }

    /// Lets the device do all that it wants to.
    fn work(&mut self) {
        let _ = (0..20).all(|_| self.workers.step());
    }

    fn transport(&mut self) -> &mut MmioTransport<Space, Device> {
        self.port.device_mut()
    }

    fn answered(&self, memory: &Plain) -> bool {
        let mut answer = vec![0; self.kind.answer.len()];
        memory
            .read_slice(&mut answer, GuestAddress(ANSWER))
            .unwrap();
        answer == self.kind.answer
    }

    fn save(&mut self) -> TransportState {
        self.transport().pause().unwrap();
        self.transport().save().unwrap()
    }
}

#[test]
fn a_request_sees_one_memory_however_it_is_swapped() {
    for kind in [&RNG, &DISK] {
        let mut points = 0;
        loop {
            let (old, new) = (plain(), plain());
            let mut rig = Rig::new(kind, &old);
            let mut queue = rig.start(&old, Features::NONE);
            rig.offer(&mut queue, &old);
            // The memory is swapped at this access of the device to it.
            let swapped = Arc::new(AtomicBool::new(false));
            let (space, to, done) = (rig.space.clone(), new.clone(), swapped.clone());
            let mut left = points;
            let first = rig.space.memory().into_inner();
            first.watch(move |from, _| {
                if left == 0 {
                    copy(from, &to);
                    let map = WatchedMemory::new(to.clone());
                    space.lock().unwrap().replace(map);
                    done.store(true, Ordering::SeqCst);
                }
                left -= 1;
            });
            rig.port.notify(0);
            assert!(rig.workers.step());
            first.unwatch();
            if !swapped.load(Ordering::SeqCst) {
                break;
            }
            points += 1;
            assert_eq!(queue.take_used().len(), 1);
            assert!(rig.answered(&old));
            rig.work();
            // The next request is in the new memory, and only there.
            rig.offer(&mut queue, &old);
            copy(&old, &new);
            new.write_slice(&[0xa5; 0x400], GuestAddress(ANSWER))
                .unwrap();
            let before = image(&old);
            rig.port.notify(0);
            rig.work();
            assert!(image(&old) == before, "the old memory was written");
            let used: u16 = new
                .read_obj(GuestAddress(queue.setup().used_ring + 2))
                .unwrap();
            assert_eq!(u16::from_le(used), 2);
            assert!(rig.answered(&new));
        }
        assert!(points > 8, "the memory was swapped at {points} points only");
    }
}

#[test]
fn memory_that_is_taken_away_is_a_fault() {
    for kind in [&RNG, &DISK] {
        let memory = plain();
        let mut rig = Rig::new(kind, &memory);
        let mut queue = rig.start(&memory, Features::NONE);
        rig.offer(&mut queue, &memory);
        let elsewhere = Plain::from_ranges(&[(GuestAddress(0x10_0000), 0x1000)]).unwrap();
        let map = WatchedMemory::new(elsewhere);
        rig.space.lock().unwrap().replace(map);
        let before = image(&memory);
        rig.port.notify(0);
        rig.work();
        assert_eq!(rig.port.status(), 15 | 64);
        assert_eq!(rig.events.snapshot().ring_fault, 1);
        assert_eq!((rig.port.interrupt_status(), rig.line.raised()), (2, 1));
        assert!(image(&memory) == before);
        // And a queue there cannot be enabled any more.
        assert!(rig.port.negotiate(Features::NONE));
        assert!(!rig.port.enable(0, queue.setup()));
    }
}

#[test]
fn a_request_made_during_a_pause_is_served_after_it() {
    for kind in [&RNG, &DISK] {
        for notified in [false, true] {
            let memory = plain();
            let mut rig = Rig::new(kind, &memory);
            let mut queue = rig.start(&memory, Features::of(&[VIRTIO_F_EVENT_IDX]));
            rig.work();
            rig.transport().pause().unwrap();
            rig.offer(&mut queue, &memory);
            if notified {
                rig.port.notify(0);
            }
            let before = image(&memory);
            rig.work();
            assert!(image(&memory) == before, "paused");
            rig.transport().resume();
            rig.work();
            assert_eq!(queue.take_used().len(), 1);
            assert_eq!((rig.port.interrupt_status(), rig.line.raised()), (1, 1));
        }
    }
}

#[test]
fn neither_side_sleeps_after_a_move() {
    for kind in [&RNG, &DISK] {
        let memory = plain();
        let mut rig = Rig::new(kind, &memory);
        let mut queue = rig.start(&memory, Features::of(&[VIRTIO_F_EVENT_IDX]));
        rig.offer(&mut queue, &memory);
        rig.port.notify(0);
        rig.work();
        assert_eq!(queue.take_used().len(), 1);
        // The driver wants the next interrupt, and its notification is lost with the old machine.
        queue.set_used_event(1);
        let _ = rig.save();
        rig.offer(&mut queue, &memory);
        rig.port.notify(0);
        rig.work();
        let state = rig.save();

        let mut twin = Rig::new(kind, &memory);
        twin.transport().restore(&state).unwrap();
        // It is told in any case.
        assert_eq!(twin.line.raised(), 1);
        twin.work();
        assert_eq!(queue.take_used().len(), 1);
        assert_eq!(twin.line.raised(), 2);
        // The device asks for the next notification, and gets it.
        assert_eq!(queue.avail_event(), queue.avail_index());
        twin.offer(&mut queue, &memory);
        twin.port.notify(0);
        twin.work();
        assert_eq!(queue.take_used().len(), 1);
    }
}

/// Has nothing yet.
struct Dry;

impl Read for Dry {
    fn read(&mut self, _data: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

#[test]
fn a_request_that_waits_is_served_once_after_a_move() {
    let memory = plain();
    let dry = |executor| -> Device { Box::new(EntropyDevice::new(Dry, executor)) };
    let mut rig = Rig::with_device(&RNG, dry, &memory);
    let mut queue = rig.start(&memory, Features::NONE);
    rig.offer(&mut queue, &memory);
    rig.port.notify(0);
    rig.work();
    assert_eq!(queue.take_used(), []);
    let state = rig.save();
    let progress = state.queues[0].progress.as_ref().unwrap();
    assert_eq!((progress.next_avail, progress.next_used), (1, 0));

    let mut twin = Rig::new(&RNG, &memory);
    twin.transport().restore(&state).unwrap();
    twin.work();
    assert_eq!(queue.take_used(), [(0, 64)]);
    assert!(twin.answered(&memory));
    drop(rig);
    twin.port.notify(0);
    twin.work();
    assert_eq!(queue.take_used(), []);
}

#[test]
fn a_device_that_was_removed_is_gone() {
    const BASE: u64 = 0x8000_0000;
    for kind in [&RNG, &DISK] {
        let memory = plain();
        let space = Space::new(WatchedMemory::new(memory.clone()));
        let mut workers = StepLoop::new().unwrap();
        let device = (kind.make)(workers.handle());
        let line = CountingLine::default();
        let transport = MmioTransport::new(device, space, line.clone()).unwrap();
        let mut port = port(transport);
        // Started here, and put on the bus with a request in its queue.
        let queue = Queue::new(&memory, QUEUE, 8);
        assert!(port.negotiate(Features::NONE));
        assert!(port.enable(0, queue.setup()));
        port.set_driver_ok();
        let (_, kick) = port.device_mut().kicks().next().unwrap();
        let kick = kick.try_clone().unwrap();
        let bus = MmioBus::new();
        let id = bus
            .insert(Arc::new(Mutex::new(OnBus(port))), BASE, REGION_SIZE)
            .unwrap();
        kick.write(1).unwrap();
        let mut view = bus.view();
        let vcpu = std::thread::spawn(move || {
            loop {
                let mut word = [0; 4];
                match view.read(BASE + reg::STATUS, &mut word) {
                    Ok(()) => assert_eq!(u32::from_le_bytes(word), 15),
                    Err(error) => return error,
                }
            }
        });
        drop(bus.remove(id).unwrap());
        assert_eq!(vcpu.join().unwrap(), AccessError::Unclaimed);
        let before = image(&memory);
        kick.write(1).unwrap();
        let _ = (0..20).all(|_| workers.step());
        assert!(image(&memory) == before);
        assert_eq!(line.raised(), 0);
    }
}

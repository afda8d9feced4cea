// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device, the driver's side of its queue, and an eye on everything that it does.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use virtio_conformance::DriverQueue;
use virtio_device_core::{
    Activation, ActiveQueue, ConfigNotifier, Features, LoopHandle, StepLoop, VirtioDevice,
    Virtqueue,
    transport::{Interrupt, QueueLayout, Session},
};
use virtio_rng_device::{EntropyDevice, QUEUE_SIZE, RateLimits, RngObserver, SourcePolicy};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(crate) type Memory = Arc<GuestMemoryMmap<()>>;

/// Memory is two regions side by side, then a hole, then a third.
pub(crate) const RAM: u64 = 0x4_0000;
pub(crate) const SEAM: u64 = 0x3_0000;
pub(crate) const HOLE: u64 = RAM;
pub(crate) const ISLAND: u64 = 0x5_0000;
pub(crate) const ISLAND_END: u64 = 0x5_1000;
pub(crate) const BUFFER: u64 = 0x2_0000;
/// What guest memory holds where nobody writes.
pub(crate) const CANARY: u8 = 0xc5;

/// Makes memory that is full of canaries.
pub(crate) fn memory() -> Memory {
    let ranges = [(0, SEAM), (SEAM, RAM - SEAM), (ISLAND, ISLAND_END - ISLAND)];
    let ranges = ranges.map(|(base, len)| (GuestAddress(base), len as usize));
    let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
    for (base, len) in ranges {
        memory.write_slice(&vec![CANARY; len], base).unwrap();
    }
    Arc::new(memory)
}

/// Counts interrupts.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) used: AtomicU32,
    pub(crate) config: AtomicU32,
}

impl Interrupt for Counts {
    fn used_buffers(&self, queue: u16) {
        assert_eq!(queue, 0);
        self.used.fetch_add(1, Ordering::SeqCst);
    }

    fn config_interrupt(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }
}

/// Lends a queue to a device, as a transport does.
pub(crate) fn lend<M>(
    interrupt: Arc<dyn Interrupt>,
    memory: M,
    layout: QueueLayout,
    features: Features,
) -> (Session, Activation<M>) {
    let queue = (
        0,
        Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
        Some(Virtqueue::new(layout, features)),
    );
    let config = ConfigNotifier::new(interrupt);
    Session::new(&config, memory, features, [queue], false)
}

/// A source that counts from 1 to 127, so it never gives the canary, nor the 0 of a wiped buffer;
/// each read gives at most `limit` bytes.
pub(crate) struct Counter {
    next: u8,
    limit: usize,
    pub(crate) reads: Arc<AtomicU32>,
}

pub(crate) fn counter(limit: usize) -> Counter {
    Counter {
        next: 0,
        limit,
        reads: Arc::default(),
    }
}

impl Read for Counter {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        assert!(!data.is_empty() && data.len() <= 65_536);
        assert!(data.iter().all(|&byte| byte == 0), "not wiped");
        let len = data.len().min(self.limit);
        for byte in &mut data[..len] {
            self.next = if self.next >= 0x7f { 1 } else { self.next + 1 };
            *byte = self.next;
        }
        Ok(len)
    }
}

/// What a scripted source does when it is read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// Gives all that it is asked for.
    Give,
    Fail(ErrorKind),
    End,
    ClaimTooMuch,
    Panic,
}

/// Follows its script, then the last step for ever; scribbles over the buffer in any case.
pub(crate) struct Script {
    steps: VecDeque<Step>,
    pub(crate) reads: Arc<AtomicU32>,
}

pub(crate) fn script(steps: &[Step]) -> Script {
    Script {
        steps: steps.iter().copied().collect(),
        reads: Arc::default(),
    }
}

impl Read for Script {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        data.fill(0x55);
        let step = self.steps[0];
        if self.steps.len() > 1 {
            self.steps.pop_front();
        }
        match step {
            Step::Give => Ok(data.len()),
            Step::Fail(kind) => Err(kind.into()),
            Step::End => Ok(0),
            Step::ClaimTooMuch => Ok(data.len() + 1),
            Step::Panic => panic!("the source panics, as the test wants it"),
        }
    }
}

/// A device with an enabled queue, and the driver's side of it.
pub(crate) struct Fixture<'m, S, O = ()> {
    pub(crate) memory: &'m Memory,
    pub(crate) driver: DriverQueue<'m, GuestMemoryMmap<()>>,
    pub(crate) device: EntropyDevice<S, LoopHandle, O>,
    pub(crate) limits: RateLimits,
    pub(crate) workers: StepLoop,
    /// In a place where a source finds it.
    pub(crate) session: Arc<Mutex<Session>>,
    pub(crate) queue: ActiveQueue,
    pub(crate) counts: Arc<Counts>,
    pub(crate) features: Features,
}

/// Failures in a row that the device gives up after.
pub(crate) const ATTEMPTS: u32 = 4;

/// Waits that are over at once, so that no test depends on time.
pub(crate) fn quick() -> SourcePolicy {
    SourcePolicy::default()
        .with_waits(Duration::ZERO, Duration::ZERO)
        .give_up_after(ATTEMPTS)
}

impl<'m, S: Read + Send + 'static> Fixture<'m, S> {
    pub(crate) fn new(memory: &'m Memory, features: Features, source: S) -> Self {
        Self::observed(memory, features, source, ())
    }
}

impl<'m, S: Read + Send + 'static, O: RngObserver + 'static> Fixture<'m, S, O> {
    pub(crate) fn observed(memory: &'m Memory, features: Features, source: S, observer: O) -> Self {
        Self::made(memory, features, false, source, observer)
    }

    /// A device that asks its source during a look at the queue, if `prompt`.
    pub(crate) fn made(
        memory: &'m Memory,
        features: Features,
        prompt: bool,
        source: S,
        observer: O,
    ) -> Self {
        Self::with(memory, features, source, observer, |device| {
            let device = device.with_source_policy(quick());
            if prompt {
                device.with_prompt_source()
            } else {
                device
            }
        })
    }

    pub(crate) fn with(
        memory: &'m Memory,
        features: Features,
        source: S,
        observer: O,
        set: impl FnOnce(EntropyDevice<S, LoopHandle, O>) -> EntropyDevice<S, LoopHandle, O>,
    ) -> Self {
        let workers = StepLoop::new().unwrap();
        let device = EntropyDevice::with_observer(source, workers.handle(), observer);
        let mut device = set(device);
        let driver = DriverQueue::new(&**memory, 0, QUEUE_SIZE);
        let counts = Arc::<Counts>::default();
        let (session, activation) = lend(counts.clone(), memory.clone(), driver.layout(), features);
        let queue = activation.queues[0].clone();
        device.activate(activation).unwrap();
        Self {
            memory,
            limits: device.limits(),
            device,
            workers,
            session: Arc::new(Mutex::new(session)),
            queue,
            driver,
            counts,
            features,
        }
    }

    /// Sets the queue up anew and starts the device.
    pub(crate) fn activate(&mut self) {
        self.driver = DriverQueue::new(&**self.memory, 0, QUEUE_SIZE);
        self.counts = Arc::default();
        let (session, activation) = lend(
            self.counts.clone(),
            self.memory.clone(),
            self.driver.layout(),
            self.features,
        );
        self.queue = activation.queues[0].clone();
        self.device.activate(activation).unwrap();
        self.session = Arc::new(Mutex::new(session));
    }

    /// Takes everything back from the device, as a transport does.
    pub(crate) fn reset(&mut self) {
        self.session.lock().unwrap().revoke();
        VirtioDevice::<Memory>::reset(&mut self.device);
    }

    /// Whatever has happened: after a reset the device works.
    pub(crate) fn reset_and_serve(&mut self) {
        self.reset();
        self.activate();
        self.fill(BUFFER, 8);
        self.driver.offer_writable(0, BUFFER, 4);
        assert!(self.notify());
        assert_eq!(self.driver.take_used(), [(0, 4)]);
        assert_eq!(self.used_interrupts(), 1);
        let bytes = self.bytes(BUFFER, 5);
        assert!(bytes[..4].iter().all(|&byte| byte != CANARY) && bytes[4] == CANARY);
    }

    /// Notifies the device, once; what it waits for comes true. Returns whether the device works.
    pub(crate) fn kick(&mut self) -> bool {
        self.queue.kick.write(1).unwrap();
        self.workers.step();
        !self.is_broken()
    }

    /// Notifies the device until it has nothing more to do, or waits. Returns whether it works.
    pub(crate) fn notify(&mut self) -> bool {
        self.kick();
        let _ = (0..4).all(|_| self.workers.step());
        !self.is_broken()
    }

    /// Whether the worker waits for time to pass.
    pub(crate) fn waits(&mut self) -> bool {
        self.workers.step()
    }

    /// Has the worker's wait be over. Returns whether the device works.
    pub(crate) fn expire(&mut self) -> bool {
        assert!(self.workers.step(), "the worker waits for nothing");
        !self.is_broken()
    }

    /// Lets time pass until `condition` holds.
    pub(crate) fn step_until(&mut self, condition: impl Fn(&mut Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !condition(self) {
            assert!(Instant::now() < deadline, "not in time");
            assert!(self.workers.step(), "the worker waits for nothing");
        }
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.session.lock().unwrap().is_broken()
    }

    pub(crate) fn config_interrupts(&self) -> u32 {
        self.counts.config.load(Ordering::SeqCst)
    }

    pub(crate) fn used_interrupts(&self) -> u32 {
        self.counts.used.load(Ordering::SeqCst)
    }

    pub(crate) fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(addr))
            .unwrap();
        bytes
    }

    /// Puts canaries into memory.
    pub(crate) fn fill(&self, addr: u64, len: usize) {
        self.memory
            .write_slice(&vec![CANARY; len], GuestAddress(addr))
            .unwrap();
    }

    /// All of memory, to be compared with what it becomes.
    pub(crate) fn picture(&self) -> Picture {
        Picture([
            (0, self.bytes(0, RAM as usize)),
            (ISLAND, self.bytes(ISLAND, (ISLAND_END - ISLAND) as usize)),
        ])
    }

    /// Sees that memory differs from `before` only where it may.
    pub(crate) fn only_changed(&self, before: &Picture, may: impl Fn(u64) -> bool) {
        for ((base, old), (_, new)) in before.0.iter().zip(&self.picture().0) {
            // In pages first, which is quick.
            let pages = (*base..)
                .step_by(0x1000)
                .zip(old.chunks(0x1000).zip(new.chunks(0x1000)));
            for (base, (old, new)) in pages.filter(|(_, (old, new))| old != new) {
                for (addr, (old, new)) in (base..).zip(old.iter().zip(new)) {
                    assert!(old == new || may(addr), "changed: {addr:#x}");
                }
            }
        }
    }

    /// Sees that memory differs from `before` in the used ring and in `written` at most, and that
    /// all of `written` holds bytes of the source.
    pub(crate) fn check_memory(&self, before: &Picture, written: &[(u64, u64)]) {
        let used_ring = self.driver.setup().used_ring;
        let used_ring = used_ring..used_ring + 6 + 8 * u64::from(QUEUE_SIZE);
        let written = written.iter().map(|&(base, len)| base..base + len);
        let written: Vec<_> = written.collect();
        self.only_changed(before, |addr| {
            used_ring.contains(&addr) || written.iter().any(|range| range.contains(&addr))
        });
        for range in written {
            let bytes = self.bytes(range.start, (range.end - range.start) as usize);
            assert!(
                bytes.iter().all(|byte| (1..0x80).contains(byte)),
                "{range:?}"
            );
        }
    }
}

/// What memory held.
pub(crate) struct Picture([(u64, Vec<u8>); 2]);

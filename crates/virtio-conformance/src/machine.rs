// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device behind a transport in a memory of its own, and what can be seen of it.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use virtio_device_core::{
    DEVICE_NEEDS_RESET, EventCounters, EventCounts, Features, StepLoop, VIRTIO_F_VERSION_1,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::driver::{DriverQueue, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use crate::memory::WatchedMemory;
use crate::port::Port;
use crate::suite::{CountingLine, MeasureHeap, Parts, Request, Suite};

/// The memory of a [`Machine`].
pub type Memory = Arc<WatchedMemory>;
/// The driver's queue of a [`Machine`].
pub type Queue = DriverQueue<'static, GuestMemoryMmap<()>>;

/// Where memory ends; beyond is nothing.
pub const MEMORY_END: u64 = 0x4_0000;
#[expect(clippy::cast_possible_truncation, reason = "it is small")]
const MEMORY_LEN: usize = MEMORY_END as usize;
/// Where the queue is.
pub const QUEUE: u64 = 0x1000;
/// Where buffers are.
pub const BUFFERS: u64 = 0x2_0000;

/// In steps of this size, memory that is as at first is left out of a search.
const PAGE: usize = 4096;
/// How long a device may take to answer.
const SOON: Duration = Duration::from_secs(5);
/// How long a device on a thread of its own is given to do what it must not do.
const A_WHILE: Duration = Duration::from_millis(3);
/// How often a device on the thread of the test is.
const OFTEN: usize = 20;

/// A device behind a transport, and what can be seen of it.
#[derive(Debug)]
pub struct Machine<P> {
    /// The driver's way to the transport.
    pub port: P,
    /// Guest memory, of [`MEMORY_END`] bytes from 0.
    pub memory: &'static Memory,
    /// Counts interrupts.
    pub line: CountingLine,
    /// The transport's observer.
    pub events: Arc<EventCounters>,
    /// Runs the device's workers, unless they run elsewhere.
    pub workers: StepLoop,
    /// Whether there was a worker in that loop.
    stepped: bool,
    pub(crate) request: Request,
    pub(crate) secret: &'static [u8],
    pub(crate) heap: Option<MeasureHeap>,
}

/// What memory is at first: bytes that tell where they are.
fn canary() -> Vec<u8> {
    let line: Vec<u8> = (0..=250).collect();
    let mut canary = line.repeat(MEMORY_LEN / line.len() + 1);
    canary.truncate(MEMORY_LEN);
    canary
}

/// Keeps a machine's memory for as long as the process lives, so that queues need not borrow it.
fn keep(memory: Memory) -> &'static Memory {
    // Known here, so that it is no leak.
    static KEPT: Mutex<Vec<&'static Memory>> = Mutex::new(Vec::new());
    let memory: &'static Memory = Box::leak(Box::new(memory));
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    kept.push(memory);
    memory
}

#[expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a device that does not conform fails the test"
)]
impl<P: Port> Machine<P> {
    /// Makes the parts, and has `make` put a device behind a transport from them.
    pub fn new(suite: &Suite, make: &impl Fn(Parts) -> P) -> Self {
        let canary = canary();
        let plain = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), canary.len())]).unwrap();
        plain.write_slice(&canary, GuestAddress(0)).unwrap();
        let workers = StepLoop::new().unwrap();
        let parts = Parts {
            memory: Arc::new(WatchedMemory::new(plain)),
            line: CountingLine::default(),
            events: Arc::default(),
            executor: workers.handle(),
        };
        Self {
            port: make(parts.clone()),
            memory: keep(parts.memory),
            line: parts.line,
            events: parts.events,
            workers,
            stepped: false,
            request: suite.request,
            secret: suite.secret,
            heap: suite.heap,
        }
    }

    /// Whether the device offers the feature of this number.
    pub fn offers(&mut self, feature: u32) -> bool {
        self.offered().has(feature)
    }

    fn offered(&mut self) -> Features {
        Features::from_words([0, 1, 2, 3].map(|select| self.port.offered(select)))
    }

    /// Resets the device, and goes up to `FEATURES_OK` with `features`, as far as they are offered.
    pub fn negotiate(&mut self, features: Features) {
        for status in [0, 1, 3] {
            self.port.set_status(status);
            assert_eq!(self.port.status(), status);
        }
        let accepted = features & self.offered() | Features::of(&[VIRTIO_F_VERSION_1]);
        for select in 0..4 {
            self.port.accept(select, accepted.word(select));
        }
        self.port.set_status(11);
        assert_eq!(self.port.status(), 11, "the features are not accepted");
    }

    /// A queue for the device, in 8 descriptors from `base` on, or as many as it has.
    pub fn queue(&mut self, base: u64) -> Queue {
        let size = u16::try_from(self.port.max_size(0).min(8)).unwrap();
        DriverQueue::new(self.memory.plain(), base, size)
    }

    /// Makes the device live, with its first queue at [`QUEUE`] in 8 descriptors, or as many as it
    /// has, and the others left alone.
    pub fn start(&mut self, features: Features) -> Queue {
        self.memory.unwatch();
        self.negotiate(features);
        let queue = self.queue(QUEUE);
        assert!(self.port.enable(0, queue.setup()));
        assert!(self.port.is_enabled(0));
        self.port.set_status(15);
        assert_eq!(self.port.status(), 15, "the device does not start");
        self.step();
        queue
    }

    /// All of guest memory.
    #[must_use]
    pub fn image(&self) -> Vec<u8> {
        let mut image = vec![0; MEMORY_LEN];
        let plain = self.memory.plain();
        plain.read_slice(&mut image, GuestAddress(0)).unwrap();
        image
    }

    /// Makes the valid request, as the chain 0 and 1.
    pub fn offer(&self, queue: &mut Queue) {
        let Request {
            readable, writable, ..
        } = self.request;
        let answer = BUFFERS + 0x1000;
        if readable.is_empty() {
            queue.offer_writable(0, answer, writable);
            return;
        }
        let plain = self.memory.plain();
        plain.write_slice(readable, GuestAddress(BUFFERS)).unwrap();
        let len = u32::try_from(readable.len()).unwrap();
        queue.descriptor(0, BUFFERS, len, VIRTQ_DESC_F_NEXT, 1);
        queue.descriptor(1, answer, writable, VIRTQ_DESC_F_WRITE, 0);
        queue.offer(0);
    }

    /// Has the valid request served, and checks what that has changed.
    pub fn serve(&mut self, queue: &mut Queue) {
        self.offer(queue);
        self.serve_offered(queue);
    }

    /// Has the valid request served that was offered as chain 0 with its answer in one piece from
    /// `BUFFERS + 0x1000` on, and checks what that has changed.
    pub fn serve_offered(&mut self, queue: &mut Queue) {
        let mut expected = self.image();
        self.port.notify(0);
        let used = self.used(queue, 1);
        let &[(0, len)] = used.as_slice() else {
            unreachable!("{used:?} came back instead of chain 0");
        };
        let most = self.request.writable.min(self.request.most);
        assert!(len <= most, "{len} bytes are too many");
        self.wait("an interrupt", |machine| {
            machine.port.interrupt_status() & 1 != 0
        });
        assert!(self.line.raised() != 0);
        self.port.acknowledge(1);

        let image = self.image();
        let answer = usize::try_from(BUFFERS + 0x1000).unwrap();
        let end = answer + usize::try_from(len).unwrap();
        let written = image.get(answer..end).unwrap();
        assert!(
            (self.request.is_answer)(written),
            "{written:?} is no answer"
        );
        expected
            .get_mut(answer..end)
            .unwrap()
            .copy_from_slice(written);
        self.same_but_used_ring(&expected, queue);
    }

    /// Waits for `count` used elements.
    pub fn used(&mut self, queue: &mut Queue, count: usize) -> Vec<(u32, u32)> {
        let mut used = Vec::new();
        self.wait("used buffers", |_| {
            used.extend(queue.take_used());
            used.len() >= count
        });
        assert_eq!(used.len(), count, "a request came back twice");
        used
    }

    /// Checks that memory is `expected` everywhere but in the used ring, which is the device's.
    pub fn same_but_used_ring(&self, expected: &[u8], queue: &Queue) {
        self.same_but(expected, &[queue.used_ring()]);
    }

    /// Checks that memory is `expected` everywhere but in some places.
    pub fn same_but(&self, expected: &[u8], places: &[Range<u64>]) {
        let mut image = self.image();
        for place in places {
            let [from, to] = [place.start, place.end].map(|at| usize::try_from(at).unwrap());
            let theirs = expected.get(from..to).unwrap();
            image.get_mut(from..to).unwrap().copy_from_slice(theirs);
        }
        if image != expected {
            let mut bytes = (0..).zip(image.iter().zip(expected));
            let (at, (byte, _)): (u64, _) = bytes.find(|(_, (a, b))| a != b).unwrap();
            unreachable!("the device has written {byte:#x} at {at:#x}");
        }
    }

    /// Checks that the secret is nowhere within reach of the driver or in what the VMM prints.
    pub fn keeps_its_secret(&self) {
        let secret = self.secret;
        if secret.is_empty() {
            return;
        }
        let text = self.port.visible();
        // A list of bytes is how binary data is printed.
        let list = format!("{secret:?}");
        let list = list.trim_matches(['[', ']']);
        let told = text.contains(&*String::from_utf8_lossy(secret)) || text.contains(list);
        assert!(!told, "the secret is told: {text}");
        let (image, canary) = (self.image(), canary());
        for at in (0..image.len()).step_by(PAGE) {
            let [page, old] = [&image, &canary].map(|bytes| bytes.get(at..at + PAGE));
            if page != old {
                let end = image.len().min(at + PAGE + secret.len());
                let mut windows = image.get(at..end).unwrap().windows(secret.len());
                assert!(!windows.any(|it| it == secret), "the secret is in memory");
            }
        }
    }

    /// Lets the device work, if it does so on this thread; returns whether it had anything to do.
    pub fn step(&mut self) -> bool {
        let stepped = self.workers.step();
        self.stepped |= stepped;
        stepped
    }

    /// Whether the device works on this thread.
    #[must_use]
    pub const fn runs_here(&self) -> bool {
        self.stepped
    }

    /// Waits until `condition` holds, for as long as a device may take.
    pub fn wait(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + SOON;
        let mut idle = 0;
        while !condition(self) {
            assert!(Instant::now() < deadline, "{what}: not in time");
            if self.step() {
                idle = 0;
            } else if self.runs_here() {
                // Nobody else is there to do anything.
                idle += 1;
                assert!(idle < OFTEN, "{what}: never");
            } else {
                thread::sleep(Duration::from_micros(50));
            }
        }
    }

    /// Lets the device do what it wants to.
    pub fn settle(&mut self) {
        let _ = (0..OFTEN).all(|_| self.step());
        if !self.runs_here() {
            thread::sleep(A_WHILE);
        }
    }

    /// Checks that the device does nothing: no byte, no interrupt.
    pub fn nothing_happens(&mut self) {
        let (image, raised) = (self.image(), self.line.raised());
        self.settle();
        assert!(self.image() == image, "the device has written to memory");
        assert_eq!(self.line.raised(), raised);
    }

    /// Checks that the device uses nothing of a queue that it works on: no byte, no interrupt, but
    /// for what the used ring says of the notifications that the device wants.
    pub fn nothing_is_used(&mut self, queue: &mut Queue) {
        let (image, raised) = (self.image(), self.line.raised());
        self.settle();
        let Range { start, end } = queue.used_ring();
        // Its flags and its avail_event.
        self.same_but(&image, &[start..start + 2, end - 2..end]);
        assert_eq!(queue.take_used(), []);
        assert_eq!(self.line.raised(), raised);
    }

    /// Checks that the device has failed as it should: it asks for a reset, has interrupted once
    /// for that, has counted the broken ring and nothing else, and is quiet from then on.
    pub fn ring_has_faulted(&mut self, before: &EventCounts, raised_before: u32) {
        let broken = u32::from(DEVICE_NEEDS_RESET);
        self.wait("DEVICE_NEEDS_RESET", |machine| {
            machine.port.status() & broken != 0 && machine.port.interrupt_status() & 2 != 0
        });
        // The interrupt follows the bit that says why.
        self.wait("the interrupt", |machine| {
            machine.line.raised() > raised_before
        });
        for _ in 0..10 {
            self.port.notify(0);
        }
        self.nothing_happens();
        let mut expected = *before;
        expected.ring_fault += 1;
        assert_eq!(self.events.snapshot(), expected);
        assert_eq!(self.line.raised(), raised_before + 1);
        assert_eq!(self.port.interrupt_status(), 2);
    }
}

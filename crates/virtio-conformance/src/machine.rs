// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device behind a transport in a memory of its own, and its driver.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use virtio_device_core::{Features, StepLoop, VIRTIO_F_VERSION_1};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::driver::DriverQueue;
use crate::memory::WatchedMemory;
use crate::parts::{CountingLine, EventLog, Host, Memory, Parts};
use crate::port::Port;
use crate::subject::{MeasureHeap, Request, Subject};

/// The driver's queue of a [`Machine`].
pub(crate) type Queue = DriverQueue<'static, GuestMemoryMmap<()>>;

/// Where memory ends; beyond is nothing.
pub(crate) const MEMORY_END: u64 = 0x4_0000;
#[expect(clippy::cast_possible_truncation, reason = "it is small")]
pub(crate) const MEMORY_LEN: usize = MEMORY_END as usize;
/// Where the queue of the request is.
pub(crate) const QUEUE: u64 = 0x1000;
/// Where the other queues are, one after the other.
const OTHER_QUEUES: u64 = 0x8000;
const OTHER_QUEUE: u64 = 0x200;
const MOST_OTHER_QUEUES: usize = 128;
/// Where buffers are.
pub(crate) const BUFFERS: u64 = 0x2_0000;

/// How long a device may take to answer, on a host that may be busy.
const SOON: Duration = Duration::from_secs(60);
/// How often a device on the thread of the test may find nothing to do before it answers.
pub(crate) const OFTEN: usize = 20;

/// A device behind a transport, and what can be seen of it.
#[derive(Debug)]
pub(crate) struct Machine<P> {
    /// The driver's way to the transport.
    pub(crate) port: P,
    /// Guest memory, of [`MEMORY_END`] bytes from 0.
    pub(crate) memory: &'static Memory,
    /// Counts interrupts.
    pub(crate) line: CountingLine,
    /// The transport's observer.
    pub(crate) events: Arc<EventLog>,
    /// Runs the device's workers, unless they run elsewhere.
    workers: StepLoop,
    /// Whether there was a worker in that loop.
    stepped: bool,
    pub(crate) host: Host,
    pub(crate) request: Request,
    pub(crate) secret: &'static [u8],
    pub(crate) heap: Option<MeasureHeap>,
    /// The queues that are enabled and stay empty.
    pub(crate) others: Vec<Queue>,
}

/// What memory is at first: bytes that tell where they are.
pub(crate) fn canary() -> Vec<u8> {
    let line: Vec<u8> = (0..=250).collect();
    let mut canary = line.repeat(MEMORY_LEN / line.len() + 1);
    canary.truncate(MEMORY_LEN);
    canary
}

/// Keeps a machine's memory for as long as the process lives, so that queues need not borrow it.
fn keep(memory: Memory) -> &'static Memory {
    // Reachable from here, so that leak checkers do not report it.
    static KEPT: Mutex<Vec<&'static Memory>> = Mutex::new(Vec::new());
    let memory: &'static Memory = Box::leak(Box::new(memory));
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    kept.push(memory);
    memory
}

#[expect(
    clippy::unwrap_used,
    reason = "a device that does not conform fails the test"
)]
impl<P: Port> Machine<P> {
    /// Makes the parts, and has `make` put a device behind a transport from them.
    pub(crate) fn new(subject: Subject, make: &impl Fn(Parts) -> P) -> Self {
        let canary = canary();
        let plain = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), canary.len())]).unwrap();
        plain.write_slice(&canary, GuestAddress(0)).unwrap();
        let workers = StepLoop::new().unwrap();
        let parts = Parts {
            memory: Arc::new(WatchedMemory::new(plain)),
            line: CountingLine::default(),
            events: Arc::default(),
            executor: workers.handle(),
            host: Host::default(),
        };
        Self {
            port: make(parts.clone()),
            memory: keep(parts.memory),
            line: parts.line,
            events: parts.events,
            workers,
            stepped: false,
            host: parts.host,
            request: subject.request,
            secret: subject.secret,
            heap: subject.heap,
            others: Vec::new(),
        }
    }

    /// The queue that requests are made in.
    pub(crate) fn index(&self) -> u32 {
        self.request.queue.into()
    }

    /// Whether the device offers the feature of this number.
    pub(crate) fn offers(&mut self, feature: u32) -> bool {
        self.offered().has(feature)
    }

    fn offered(&mut self) -> Features {
        Features::from_words([0, 1, 2, 3].map(|select| self.port.offered(select)))
    }

    /// Resets the device, and waits until that is complete.
    pub(crate) fn reset(&mut self) {
        self.port.set_status(0);
        self.wait("the end of a reset", |machine| machine.port.status() == 0);
        self.others.clear();
    }

    /// Resets the device, and goes up to `FEATURES_OK` with `features`, as far as they are offered.
    pub(crate) fn negotiate(&mut self, features: Features) {
        self.reset();
        for status in [1, 3] {
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

    /// A queue for requests, in 8 descriptors from `base` on, or as many as it has.
    pub(crate) fn queue(&mut self, base: u64) -> Queue {
        let index = self.index();
        self.queue_of(index, base)
    }

    fn queue_of(&mut self, index: u32, base: u64) -> Queue {
        let size = u16::try_from(self.port.max_size(index).min(8)).unwrap();
        DriverQueue::new(self.memory.plain(), base, size)
    }

    /// Makes the device live, with the queues of [`Machine::set_up`].
    pub(crate) fn start(&mut self, features: Features) -> Queue {
        let queue = self.set_up(features);
        self.go_live();
        queue
    }

    /// Prepares the device until only `DRIVER_OK` is missing. The queue of the request is at
    /// [`QUEUE`], in 8 descriptors, or as many as it has; all others are enabled, and stay empty.
    ///
    /// Who wants to watch the device has to begin here: a worker on a thread of its own looks at its
    /// queues as soon as it lives, and goes on for a while with what it has found.
    pub(crate) fn set_up(&mut self, features: Features) -> Queue {
        self.memory.unwatch();
        self.negotiate(features);
        let mut others = Vec::new();
        for index in 0..=0xffff {
            if self.port.max_size(index) == 0 {
                break;
            }
            if index != self.index() {
                assert!(others.len() < MOST_OTHER_QUEUES, "more queues than fit");
                let base = OTHER_QUEUES + OTHER_QUEUE * others.len() as u64;
                let queue = self.queue_of(index, base);
                assert!(self.port.enable(index, queue.setup()), "queue {index}");
                others.push(queue);
            }
        }
        self.others = others;
        let index = self.index();
        let queue = self.queue(QUEUE);
        assert!(self.port.enable(index, queue.setup()));
        assert!(self.port.is_enabled(index));
        queue
    }

    /// Takes the step to a live device.
    pub(crate) fn go_live(&mut self) {
        let activated = self.events.counts().activated;
        self.port.set_status(15);
        self.wait("the device's start", |machine| {
            machine.is_alive();
            machine.events.counts().activated > activated
        });
        assert_eq!(self.port.status(), 15);
    }

    /// Stops the test if the device has failed.
    fn is_alive(&mut self) {
        let status = self.port.status();
        let reason = self.events.last_failure();
        let reason = reason.as_deref().unwrap_or("no reason was told");
        assert_eq!(status, 15, "the device does not start: {reason}");
    }

    /// All of guest memory.
    pub(crate) fn image(&self) -> Vec<u8> {
        let mut image = vec![0; MEMORY_LEN];
        let plain = self.memory.plain();
        plain.read_slice(&mut image, GuestAddress(0)).unwrap();
        image
    }

    /// What the device may write of the other queues, although they are empty: what it wants to be
    /// notified of.
    pub(crate) fn wishes(&self) -> Vec<Range<u64>> {
        let rings = self.others.iter().map(Queue::used_ring);
        rings.flat_map(|ring| wishes(&ring)).collect()
    }

    /// Lets the device work, if it does so on this thread; returns whether it had anything to do.
    pub(crate) fn step(&mut self) -> bool {
        let stepped = self.workers.step();
        self.stepped |= stepped;
        stepped
    }

    /// Whether the device works on this thread.
    pub(crate) const fn runs_here(&self) -> bool {
        self.stepped
    }

    /// Waits until `condition` holds, for as long as a device may take.
    pub(crate) fn wait(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) {
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
}

/// Flags and `avail_event` of a used ring.
pub(crate) const fn wishes(ring: &Range<u64>) -> [Range<u64>; 2] {
    [ring.start..ring.start + 2, ring.end - 2..ring.end]
}

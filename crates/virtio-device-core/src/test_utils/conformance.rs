// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A suite that any device passes behind any transport, whatever its driver does.
//!
//! A transport is driven through a [`Port`]; a [`Machine`] is one device behind one transport in a
//! memory of its own, and [`check`] puts it through every scenario. After each, all of these hold:
//!
//! * nothing has panicked, also in the worker, which would show as a failed device;
//! * guest memory is as it was, but for the written bytes of accepted requests and the used ring;
//! * every accepted request came back once, with a length that its buffers have;
//! * no interrupt was raised without a used buffer or a change to tell of;
//! * each fault is counted, and told to the driver by exactly one interrupt;
//! * after a reset and a new start a valid request is served;
//! * a second device has gone on working.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::scenarios;
use super::{DriverQueue, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use crate::{
    DEVICE_NEEDS_RESET, EventCounters, QueueSetup, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1,
};

/// The memory of a [`Machine`].
pub type Memory = Arc<GuestMemoryMmap<()>>;

/// Where memory ends; beyond is nothing.
pub const MEMORY_END: u64 = 0x4_0000;
/// Where the queue is.
pub const QUEUE: u64 = 0x1000;
/// Where buffers are.
pub const BUFFERS: u64 = 0x2_0000;

/// How long a device may take to answer.
const SOON: Duration = Duration::from_secs(5);
/// How long a device is given to do what it must not do.
const A_WHILE: Duration = Duration::from_millis(3);

/// What a driver does to a transport, in the transport's own way.
pub trait Port {
    /// Reads the status.
    fn status(&mut self) -> u32;
    /// Writes the status; 0 resets.
    fn set_status(&mut self, status: u32);
    /// A word of the offered features.
    fn offered(&mut self, word: u32) -> u32;
    /// Accepts a word of features.
    fn accept(&mut self, word: u32, features: u32);
    /// The largest size of a queue; 0 if there is none.
    fn max_size(&mut self, queue: u32) -> u32;
    /// Sets a queue up and enables it; returns whether it is enabled afterwards.
    fn enable(&mut self, queue: u32, setup: &QueueSetup) -> bool;
    /// Notifies the device of new buffers.
    fn notify(&mut self, queue: u32);
    /// The causes of the interrupt: 1 for used buffers, 2 for a change.
    fn interrupt_status(&mut self) -> u32;
    /// Acknowledges causes.
    fn acknowledge(&mut self, causes: u32);
    /// Reads the configuration space.
    fn read_config(&mut self, offset: u32, data: &mut [u8]);
    /// The configuration generation.
    fn generation(&mut self) -> u32;
}

/// A request that the device under test serves from its first queue.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// What the device reads.
    pub readable: &'static [u8],
    /// How many bytes it may write.
    pub writable: u32,
    /// Whether the bytes it has written are an answer.
    pub is_answer: fn(&[u8]) -> bool,
}

/// A device behind a transport, and what can be seen of it.
#[derive(Debug)]
pub struct Machine<P> {
    /// The driver's way to the transport.
    pub port: P,
    /// Guest memory, of [`MEMORY_END`] bytes from 0.
    pub memory: Memory,
    /// How often the interrupt was raised: counted by the transport's line.
    pub raised: Arc<AtomicU32>,
    /// The transport's observer.
    pub events: Arc<EventCounters>,
    pub(super) request: Request,
}

#[expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a device that does not conform fails the test"
)]
impl<P: Port> Machine<P> {
    /// Makes memory, a counting line and an observer, and has `make` put a transport over them.
    pub fn new(
        request: Request,
        make: &impl Fn(Memory, Arc<AtomicU32>, Arc<EventCounters>) -> P,
    ) -> Self {
        let len = usize::try_from(MEMORY_END).unwrap();
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len)]).unwrap());
        let canary: Vec<u8> = (0..=250u8).cycle().take(len).collect();
        memory.write_slice(&canary, GuestAddress(0)).unwrap();
        let (raised, events) = (Arc::default(), Arc::default());
        Self {
            port: make(memory.clone(), Arc::clone(&raised), Arc::clone(&events)),
            memory,
            raised,
            events,
            request,
        }
    }

    /// Resets the device, and goes up to `FEATURES_OK` with `features`, as far as they are offered.
    pub fn negotiate(&mut self, features: u64) {
        for status in [0, 1, 3] {
            self.port.set_status(status);
            assert_eq!(self.port.status(), status);
        }
        let offered = u64::from(self.port.offered(0)) | u64::from(self.port.offered(1)) << 32;
        let accepted = features & offered | VIRTIO_F_VERSION_1;
        let word = |word: u64| u32::try_from(word & 0xffff_ffff).unwrap();
        self.port.accept(0, word(accepted));
        self.port.accept(1, word(accepted >> 32));
        self.port.set_status(11);
        assert_eq!(self.port.status(), 11, "the features are not accepted");
    }

    /// Makes the device live, with its first queue at [`QUEUE`] in 8 descriptors, or as many as it
    /// has, and the others left alone.
    pub fn start(&mut self, features: u64) -> DriverQueue<'static, GuestMemoryMmap<()>> {
        self.negotiate(features);
        let size = u16::try_from(self.port.max_size(0).min(8)).unwrap();
        // One queue lives as long as the test: leaked, so that it does not borrow the machine.
        let memory: &'static Memory = Box::leak(Box::new(self.memory.clone()));
        let queue = DriverQueue::new(&**memory, QUEUE, size);
        assert!(self.port.enable(0, queue.setup()));
        self.port.set_status(15);
        assert_eq!(self.port.status(), 15, "the device does not start");
        queue
    }

    /// All of guest memory.
    #[must_use]
    pub fn image(&self) -> Vec<u8> {
        let mut image = vec![0; usize::try_from(MEMORY_END).unwrap()];
        self.memory.read_slice(&mut image, GuestAddress(0)).unwrap();
        image
    }

    /// Makes the valid request, as the chain 0 and 1.
    pub fn offer(&self, queue: &mut DriverQueue<'_, GuestMemoryMmap<()>>) {
        let Request {
            readable, writable, ..
        } = self.request;
        let answer = BUFFERS + 0x1000;
        if readable.is_empty() {
            queue.offer_writable(0, answer, writable);
            return;
        }
        self.memory
            .write_slice(readable, GuestAddress(BUFFERS))
            .unwrap();
        let len = u32::try_from(readable.len()).unwrap();
        queue.descriptor(0, BUFFERS, len, VIRTQ_DESC_F_NEXT, 1);
        queue.descriptor(1, answer, writable, VIRTQ_DESC_F_WRITE, 0);
        queue.offer(0);
    }

    /// Has the valid request served, and checks what that has changed.
    pub fn serve(&mut self, queue: &mut DriverQueue<'_, GuestMemoryMmap<()>>) {
        self.offer(queue);
        let mut expected = self.image();
        self.port.notify(0);
        let used = self.used(queue, 1);
        let &[(0, len)] = used.as_slice() else {
            unreachable!("{used:?} came back instead of chain 0");
        };
        assert!(len <= self.request.writable, "{len} bytes are too many");
        self.wait("an interrupt", |machine| {
            machine.port.interrupt_status() & 1 != 0
        });
        assert!(self.raised.load(Ordering::SeqCst) != 0);
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
    pub fn used(
        &mut self,
        queue: &mut DriverQueue<'_, GuestMemoryMmap<()>>,
        count: usize,
    ) -> Vec<(u32, u32)> {
        let mut used = Vec::new();
        self.wait("used buffers", |_| {
            used.extend(queue.take_used());
            used.len() >= count
        });
        assert_eq!(used.len(), count, "a request came back twice");
        used
    }

    /// Checks that memory is `expected` everywhere but in the used ring, which is the device's.
    pub fn same_but_used_ring(
        &self,
        expected: &[u8],
        queue: &DriverQueue<'_, GuestMemoryMmap<()>>,
    ) {
        let used_ring = queue.setup().used_ring;
        let used_ring = used_ring..used_ring + 6 + 8 * u64::from(queue.setup().size);
        let image = self.image();
        for ((at, byte), expected) in (0u64..).zip(&image).zip(expected) {
            assert!(
                byte == expected || used_ring.contains(&at),
                "the device has written {byte:#x} at {at:#x}"
            );
        }
    }

    /// Waits until `condition` holds, for as long as a device may take.
    pub fn wait(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + SOON;
        while !condition(self) {
            assert!(Instant::now() < deadline, "{what}: not in time");
            thread::sleep(Duration::from_micros(50));
        }
    }

    /// Checks that the device does nothing: no byte, no interrupt.
    pub fn nothing_happens(&self) {
        let (image, raised) = (self.image(), self.raised.load(Ordering::SeqCst));
        thread::sleep(A_WHILE);
        assert!(self.image() == image, "the device has written to memory");
        assert_eq!(self.raised.load(Ordering::SeqCst), raised);
    }

    /// Checks that the device has failed as it should: it asks for a reset, has interrupted once
    /// for that, has counted the broken ring, and is quiet from then on.
    pub fn ring_has_faulted(&mut self, faults_before: u64, raised_before: u32) {
        let broken = u32::from(DEVICE_NEEDS_RESET);
        self.wait("DEVICE_NEEDS_RESET", |machine| {
            machine.port.status() & broken != 0 && machine.port.interrupt_status() & 2 != 0
        });
        // The interrupt follows the bit that says why.
        self.wait("the interrupt", |machine| {
            machine.raised.load(Ordering::SeqCst) > raised_before
        });
        for _ in 0..10 {
            self.port.notify(0);
        }
        self.nothing_happens();
        assert_eq!(self.events.snapshot().ring_fault, faults_before + 1);
        assert_eq!(self.raised.load(Ordering::SeqCst), raised_before + 1);
        assert_eq!(self.port.interrupt_status(), 2);
    }
}

/// Puts devices made by `make` through every scenario.
///
/// `make` puts a fresh device of one kind behind a transport that has the given memory, raises the
/// interrupt by counting, and reports to the given observer. The device has to serve `request` from
/// its first queue, alone.
///
/// # Panics
///
/// If the device or the transport does not conform.
pub fn check<P: Port>(
    request: Request,
    make: impl Fn(Memory, Arc<AtomicU32>, Arc<EventCounters>) -> P,
) {
    let mut sibling = Machine::new(request, &make);
    let mut sibling_queue = sibling.start(VIRTIO_F_INDIRECT_DESC);
    let mut machine = Machine::new(request, &make);
    for &(name, scenario) in &scenarios::all() {
        let passed = catch_unwind(AssertUnwindSafe(|| {
            scenario(&mut machine);
            let mut queue = machine.start(VIRTIO_F_INDIRECT_DESC);
            machine.serve(&mut queue);
            sibling.serve(&mut sibling_queue);
        }));
        assert!(passed.is_ok(), "scenario failed: {name}");
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The entropy device, driven request by request without a thread.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test stops at the unexpected"
)]

use std::io::{self, Read};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use virtio_device_core::test_utils::{DriverQueue, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use virtio_device_core::{
    ActivateError, Activation, ActiveQueue, Executor, Interrupt, InterruptHandle, QueueLease,
    RunningWorker, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VirtioDevice, Virtqueue, Worker,
};
use virtio_rng_device::{MAX_REQUEST, QUEUE_SIZE, Rng};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

type Memory = Arc<GuestMemoryMmap<()>>;

const RAM: u64 = 0x4_0000;
const BUFFER: u64 = 0x2_0000;
/// What guest memory holds where nobody writes.
const CANARY: u8 = 0xc5;

#[derive(Default)]
struct Counts {
    used: AtomicU32,
    status: AtomicU32,
}

impl Interrupt for Counts {
    fn used_buffers(&self, queue: u16) {
        assert_eq!(queue, 0);
        self.used.fetch_add(1, Ordering::SeqCst);
    }

    fn config_changed(&self) {
        unreachable!("the device has no configuration");
    }

    fn status_changed(&self) {
        self.status.fetch_add(1, Ordering::SeqCst);
    }
}

/// Hands the worker to the test instead of running it.
#[derive(Clone, Default)]
struct Capture(Arc<Mutex<Option<Worker>>>);

impl Executor for Capture {
    fn start(&mut self, worker: Worker) -> io::Result<Box<dyn RunningWorker>> {
        *self.0.lock().unwrap() = Some(worker);
        Ok(Box::new(self.clone()))
    }
}

impl RunningWorker for Capture {
    fn stop(&mut self) {
        *self.0.lock().unwrap() = None;
    }
}

/// A counter that never gives the same bytes twice; each read gives at most `limit` bytes.
struct Counter {
    next: u8,
    limit: usize,
    reads: Arc<AtomicU32>,
}

impl Read for Counter {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let len = data.len().min(self.limit);
        for byte in &mut data[..len] {
            // Never the canary, and never the 0 that a wiped buffer holds.
            self.next = if self.next >= 0x7f { 1 } else { self.next + 1 };
            *byte = self.next;
        }
        Ok(len)
    }
}

/// A device with an enabled queue, and the driver's side of it.
struct Fixture<'m, S> {
    memory: &'m Memory,
    driver: DriverQueue<'m, GuestMemoryMmap<()>>,
    device: Rng<S, Capture>,
    worker: Capture,
    lease: QueueLease,
    counts: Arc<Counts>,
    interrupt: InterruptHandle,
}

impl<'m, S: Read + Send + 'static> Fixture<'m, S> {
    fn new(memory: &'m Memory, features: u64, source: S) -> Self {
        let worker = Capture::default();
        let counts = Arc::new(Counts::default());
        let interrupt = InterruptHandle::new(counts.clone());
        let driver = DriverQueue::new(&**memory, 0, QUEUE_SIZE);
        let lease = QueueLease::new(Virtqueue::new(driver.layout(), features));
        let mut device = Rng::new(source, worker.clone());
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let queues = vec![ActiveQueue::new(0, lease.clone(), kick)];
        let activation = Activation::new(memory.clone(), queues, features, interrupt.clone());
        device.activate(activation).unwrap();
        Self {
            memory,
            driver,
            device,
            worker,
            lease,
            counts,
            interrupt,
        }
    }

    /// Notifies the device until it has nothing more to do. Returns whether the worker lives.
    fn notify(&mut self) -> bool {
        let mut worker = self.worker.0.lock().unwrap();
        let worker = worker.as_mut().unwrap();
        worker.queues()[0].kick.write(1).unwrap();
        for _ in 0..4 {
            if !worker.notified(0) {
                return false;
            }
            // A worker that wants more has notified itself.
            let kick = &worker.queues()[0].kick;
            match kick.read() {
                Ok(_) => kick.write(1).unwrap(),
                Err(_) => return true,
            }
        }
        panic!("the worker never gets idle");
    }

    fn used_interrupts(&self) -> u32 {
        self.counts.used.load(Ordering::SeqCst)
    }

    fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(addr))
            .unwrap();
        bytes
    }
}

fn memory() -> Memory {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
    memory
        .write_slice(&vec![CANARY; RAM as usize], GuestAddress(0))
        .unwrap();
    Arc::new(memory)
}

fn counter(limit: usize) -> Counter {
    Counter {
        next: 0,
        limit,
        reads: Arc::default(),
    }
}

#[test]
fn a_request_is_filled_exactly() {
    let memory = memory();
    for len in [1, 7, 8, 64, 4095, 4096, 65_535, 65_536, 65_537] {
        let mut fixture = Fixture::new(&memory, 0, counter(usize::MAX));
        memory
            .write_slice(&[CANARY; 0x1_1000], GuestAddress(BUFFER))
            .unwrap();
        fixture.driver.offer_writable(3, BUFFER, len);
        assert!(fixture.notify());
        let served = (len as usize).min(MAX_REQUEST);
        assert_eq!(fixture.driver.take_used(), [(3, served as u32)]);
        assert_eq!(fixture.used_interrupts(), 1);
        let bytes = fixture.bytes(BUFFER, served + 16);
        assert!(
            bytes[..served]
                .iter()
                .all(|&byte| (1..0x80).contains(&byte))
        );
        assert_eq!(bytes[served..], [CANARY; 16]);
    }
}

#[test]
fn scattered_buffers_are_filled_in_order_by_one_draw() {
    let memory = memory();
    let source = counter(usize::MAX);
    let reads = source.reads.clone();
    let mut fixture = Fixture::new(&memory, 0, source);
    for index in 0..16u16 {
        let flags = VIRTQ_DESC_F_WRITE | if index == 15 { 0 } else { VIRTQ_DESC_F_NEXT };
        fixture.driver.descriptor(
            index,
            BUFFER + 0x100 * u64::from(index),
            2,
            flags,
            index + 1,
        );
    }
    fixture.driver.offer(0);
    assert!(fixture.notify());
    assert_eq!(fixture.driver.take_used(), [(0, 32)]);
    assert_eq!(reads.load(Ordering::SeqCst), 1);
    for index in 0..16u8 {
        let bytes = fixture.bytes(BUFFER + 0x100 * u64::from(index), 3);
        assert_eq!(bytes, [2 * index + 1, 2 * index + 2, CANARY]);
    }
}

#[test]
fn a_source_that_gives_less_makes_a_shorter_answer_without_a_gap() {
    let memory = memory();
    let mut fixture = Fixture::new(&memory, 0, counter(5));
    fixture
        .driver
        .descriptor(0, BUFFER, 3, VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_NEXT, 1);
    fixture
        .driver
        .descriptor(1, BUFFER + 0x10, 8, VIRTQ_DESC_F_WRITE, 0);
    fixture.driver.offer(0);
    assert!(fixture.notify());
    assert_eq!(fixture.driver.take_used(), [(0, 5)]);
    assert_eq!(fixture.bytes(BUFFER, 4), [1, 2, 3, CANARY]);
    assert_eq!(fixture.bytes(BUFFER + 0x10, 3), [4, 5, CANARY]);
}

#[test]
fn requests_that_cannot_be_served_go_back_empty_and_draw_nothing() {
    let memory = memory();
    let source = counter(usize::MAX);
    let reads = source.reads.clone();
    let mut fixture = Fixture::new(&memory, 0, source);
    // Readable only; empty; past the end of memory behind a good buffer; wrapping.
    fixture.driver.descriptor(0, BUFFER, 64, 0, 0);
    fixture
        .driver
        .descriptor(1, BUFFER, 0, VIRTQ_DESC_F_WRITE, 0);
    fixture
        .driver
        .descriptor(2, BUFFER, 64, VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_NEXT, 3);
    fixture
        .driver
        .descriptor(3, RAM - 8, 9, VIRTQ_DESC_F_WRITE, 0);
    fixture
        .driver
        .descriptor(4, u64::MAX - 3, 8, VIRTQ_DESC_F_WRITE, 0);
    for head in [0, 1, 2, 4] {
        fixture.driver.offer(head);
    }
    fixture.driver.offer_writable(5, BUFFER, 4);
    assert!(fixture.notify());
    assert_eq!(
        fixture.driver.take_used(),
        [(0, 0), (1, 0), (2, 0), (4, 0), (5, 4)]
    );
    assert_eq!(fixture.used_interrupts(), 1);
    assert_eq!(reads.load(Ordering::SeqCst), 1);
    assert_eq!(fixture.bytes(BUFFER, 5), [1, 2, 3, 4, CANARY]);
    assert_eq!(fixture.bytes(RAM - 8, 8), [CANARY; 8]);
}

#[test]
fn a_full_queue_is_served_with_one_interrupt() {
    let memory = memory();
    for features in [0, VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC] {
        let mut fixture = Fixture::new(&memory, features, counter(usize::MAX));
        for index in 0..QUEUE_SIZE {
            fixture.driver.offer_writable(index, BUFFER, 4);
        }
        assert!(fixture.notify());
        assert_eq!(fixture.driver.take_used().len(), usize::from(QUEUE_SIZE));
        assert_eq!(fixture.used_interrupts(), 1);
        // A notification with nothing new to do interrupts nobody.
        assert!(fixture.notify());
        assert_eq!(fixture.used_interrupts(), 1);
    }
}

#[test]
fn one_wake_up_takes_one_queue_length_at_most() {
    let memory = memory();
    let mut fixture = Fixture::new(&memory, 0, counter(usize::MAX));
    for index in 0..QUEUE_SIZE {
        fixture
            .driver
            .descriptor(index, BUFFER, 0, VIRTQ_DESC_F_WRITE, 0);
        fixture.driver.offer(index);
    }
    let mut worker = fixture.worker.0.lock().unwrap();
    let worker = worker.as_mut().unwrap();
    assert!(worker.notified(0));
    assert_eq!(fixture.driver.take_used().len(), usize::from(QUEUE_SIZE));
    assert_eq!(
        worker.queues()[0].kick.read().unwrap(),
        1,
        "the worker has notified itself"
    );
}

#[test]
fn the_driver_is_asked_not_to_notify_during_a_batch_and_to_notify_after_it() {
    let memory = memory();
    let flags = |driver: &DriverQueue<'_, GuestMemoryMmap<()>>| -> u16 {
        memory
            .read_obj(GuestAddress(driver.setup().used_ring))
            .unwrap()
    };

    struct Look<F>(F);
    impl<F: FnMut() + Send> Read for Look<F> {
        fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
            (self.0)();
            Ok(data.len())
        }
    }

    let seen = Arc::new(AtomicU32::new(0));
    let (view, during) = (memory.clone(), seen.clone());
    let used_ring = DriverQueue::new(&*memory, 0, QUEUE_SIZE).setup().used_ring;
    let look = Look(move || {
        let flags: u16 = view.read_obj(GuestAddress(used_ring)).unwrap();
        during.store(flags.into(), Ordering::SeqCst);
    });
    let mut fixture = Fixture::new(&memory, 0, look);
    fixture.driver.offer_writable(0, BUFFER, 4);
    assert!(fixture.notify());
    assert_eq!(seen.load(Ordering::SeqCst), 1);
    assert_eq!(flags(&fixture.driver), 0);
}

#[test]
fn a_source_that_fails_asks_for_a_reset_and_completes_nothing() {
    struct Fails(Option<io::Error>, usize);
    impl Read for Fails {
        fn read(&mut self, _data: &mut [u8]) -> io::Result<usize> {
            self.0.take().map_or(Ok(self.1), Err)
        }
    }

    let memory = memory();
    let failures = [
        Fails(None, 0),
        Fails(Some(io::Error::other("broken")), 0),
        // More than there was room for: a broken Read implementation.
        Fails(None, 5),
    ];
    for source in failures {
        let mut fixture = Fixture::new(&memory, 0, source);
        fixture.driver.offer_writable(0, BUFFER, 4);
        assert!(!fixture.notify());
        assert!(fixture.interrupt.is_broken());
        assert_eq!(fixture.counts.status.load(Ordering::SeqCst), 1);
        assert_eq!(fixture.driver.take_used(), []);
        assert_eq!(fixture.bytes(BUFFER, 4), [CANARY; 4]);
    }
}

#[test]
fn an_interrupted_source_is_asked_again_but_not_for_ever() {
    struct Interrupted(u32);
    impl Read for Interrupted {
        fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
            if self.0 == 0 {
                data.fill(7);
                return Ok(data.len());
            }
            self.0 -= 1;
            Err(io::ErrorKind::Interrupted.into())
        }
    }

    let memory = memory();
    for (times, served) in [(3, true), (u32::MAX, false)] {
        let mut fixture = Fixture::new(&memory, 0, Interrupted(times));
        fixture.driver.offer_writable(0, BUFFER, 4);
        assert_eq!(fixture.notify(), served);
        assert_eq!(fixture.interrupt.is_broken(), !served);
    }
}

#[test]
fn a_broken_ring_asks_for_a_reset() {
    let memory = memory();
    let mut fixture = Fixture::new(&memory, 0, counter(usize::MAX));
    fixture.driver.offer(QUEUE_SIZE);
    assert!(!fixture.notify());
    assert!(fixture.interrupt.is_broken());
    assert_eq!(fixture.driver.take_used(), []);
}

#[test]
fn a_queue_taken_back_during_a_draw_is_not_touched() {
    struct TakesBack {
        lease: Arc<Mutex<Option<QueueLease>>>,
    }
    impl Read for TakesBack {
        fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
            let lease = self.lease.lock().unwrap().take().unwrap();
            // Returns at once: the worker does not hold the queue while it draws.
            assert!(lease.revoke().is_some());
            data.fill(7);
            Ok(data.len())
        }
    }

    let memory = memory();
    let lease = Arc::new(Mutex::new(None));
    let mut fixture = Fixture::new(
        &memory,
        0,
        TakesBack {
            lease: lease.clone(),
        },
    );
    *lease.lock().unwrap() = Some(fixture.lease.clone());
    fixture.driver.offer_writable(0, BUFFER, 4);
    fixture.notify();
    assert_eq!(fixture.driver.take_used(), []);
    assert_eq!(fixture.bytes(BUFFER, 4), [CANARY; 4]);
    assert_eq!(fixture.used_interrupts(), 0);
}

#[test]
fn the_device_needs_its_queue_and_works_again_after_a_reset() {
    let memory = memory();
    let mut fixture = Fixture::new(&memory, 0, counter(usize::MAX));
    let again = |fixture: &Fixture<'_, Counter>, queues| {
        Activation::new(memory.clone(), queues, 0, fixture.interrupt.clone())
    };
    let activation = again(&fixture, Vec::new());
    let active = fixture.device.activate(activation).unwrap_err();
    assert!(matches!(active, ActivateError::AlreadyActive));

    for _ in 0..2 {
        VirtioDevice::<Memory>::reset(&mut fixture.device);
        assert!(fixture.worker.0.lock().unwrap().is_none());
    }
    let activation = again(&fixture, Vec::new());
    let missing = fixture.device.activate(activation).unwrap_err();
    assert!(matches!(missing, ActivateError::QueueMissing(0)));

    let mut driver = DriverQueue::new(&*memory, 0, QUEUE_SIZE);
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let lease = QueueLease::new(Virtqueue::new(driver.layout(), 0));
    let activation = again(&fixture, vec![ActiveQueue::new(0, lease, kick)]);
    fixture.device.activate(activation).unwrap();
    driver.offer_writable(0, BUFFER, 4);
    assert!(fixture.notify());
    assert_eq!(driver.take_used(), [(0, 4)]);
}

#[test]
fn debug_output_says_nothing_of_the_source() {
    let rng = Rng::new(&b"secret"[..], Capture::default());
    assert_eq!(format!("{rng:?}"), "Rng { running: false, .. }");
}

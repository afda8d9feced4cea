// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests that a driver may make, and some that it should not.

use std::collections::HashSet;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use virtio_conformance::{DriverQueue, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use virtio_device_core::{
    ConfigNotifier, DeviceFault, Executor, Features, Lease, StepLoop, VirtioDevice, Worker,
    transport::Session,
};
use virtio_rng_device::{EntropyDevice, KernelEntropy, MAX_REQUEST, QUEUE_SIZE, RateLimit};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::support::{
    BUFFER, CANARY, Counter, Counts, Fixture, Memory, RAM, counter, lend, memory,
};

#[test]
fn a_request_is_filled_exactly() {
    let memory = memory();
    for len in [1, 7, 8, 64, 4095, 4096, 65_535, 65_536, 65_537] {
        let mut fixture = Fixture::new(&memory, Features::NONE, counter(usize::MAX));
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
    let mut fixture = Fixture::new(&memory, Features::NONE, source);
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
    let mut fixture = Fixture::new(&memory, Features::NONE, counter(5));
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
    let mut fixture = Fixture::new(&memory, Features::NONE, source);
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
    for features in [Features::NONE, Features::QUEUE] {
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
    let mut fixture = Fixture::new(&memory, Features::NONE, counter(usize::MAX));
    for index in 0..QUEUE_SIZE {
        fixture
            .driver
            .descriptor(index, BUFFER, 0, VIRTQ_DESC_F_WRITE, 0);
        fixture.driver.offer(index);
    }
    assert!(fixture.kick());
    assert_eq!(fixture.driver.take_used().len(), usize::from(QUEUE_SIZE));
    fixture.driver.offer_writable(0, BUFFER, 4);
    assert_eq!(fixture.driver.take_used(), []);
    // Without a notification: the worker wants more by itself.
    assert!(fixture.workers.step());
    assert_eq!(fixture.driver.take_used(), [(0, 4)]);
    assert!(!fixture.workers.step());
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
    let mut fixture = Fixture::new(&memory, Features::NONE, look);
    fixture.driver.offer_writable(0, BUFFER, 4);
    assert!(fixture.notify());
    assert_eq!(seen.load(Ordering::SeqCst), 1);
    assert_eq!(flags(&fixture.driver), 0);
}

#[test]
fn a_broken_ring_asks_for_a_reset() {
    let memory = memory();
    let mut fixture = Fixture::new(&memory, Features::NONE, counter(usize::MAX));
    fixture.driver.offer(QUEUE_SIZE);
    assert!(!fixture.notify());
    assert!(fixture.is_broken());
    assert_eq!(fixture.driver.take_used(), []);
}

#[test]
fn a_queue_taken_back_during_a_draw_is_not_touched() {
    struct TakesBack {
        session: Arc<Mutex<Option<Arc<Mutex<Session>>>>>,
    }
    impl Read for TakesBack {
        fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
            let session = self.session.lock().unwrap().take().unwrap();
            // Returns at once: the worker does not hold the queue while it draws.
            session.lock().unwrap().revoke();
            data.fill(7);
            Ok(data.len())
        }
    }

    // More than a page is never drawn with the queue held, whatever the source promises.
    for (prompt, len) in [(false, 4), (false, 4097), (true, 4097)] {
        let memory = memory();
        let session = Arc::new(Mutex::new(None));
        let source = TakesBack {
            session: session.clone(),
        };
        let mut fixture = Fixture::made(&memory, Features::NONE, prompt, source, ());
        *session.lock().unwrap() = Some(fixture.session.clone());
        fixture.driver.offer_writable(0, BUFFER, len);
        fixture.notify();
        assert_eq!(fixture.driver.take_used(), []);
        assert_eq!(fixture.bytes(BUFFER, 4), [CANARY; 4]);
        assert_eq!(fixture.used_interrupts(), 0);
    }
}

#[test]
fn a_prompt_source_is_asked_with_the_queue_held_and_serves_the_same() {
    /// Counts up like [`Counter`], and sees that the queue is held when it should be.
    struct Looks {
        source: Counter,
        lease: Arc<Mutex<Option<Lease>>>,
        prompt: bool,
    }
    impl Read for Looks {
        fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
            let lease = self.lease.lock().unwrap().clone().unwrap();
            let (sender, receiver) = channel();
            std::thread::spawn(move || {
                let _ = lease.with(|_| ());
                let _ = sender.send(());
            });
            // Who waits for a queue that is held gets its turn after this draw.
            let held = self.prompt && data.len() <= 4096;
            let long = Duration::from_millis(if held { 50 } else { 60_000 });
            assert_eq!(receiver.recv_timeout(long).is_err(), held);
            self.source.read(data)
        }
    }

    let memory = memory();
    for prompt in [false, true] {
        let lease = Arc::default();
        let source = Looks {
            source: counter(usize::MAX),
            lease: Arc::clone(&lease),
            prompt,
        };
        let mut fixture = Fixture::made(&memory, Features::NONE, prompt, source, ());
        *lease.lock().unwrap() = Some(fixture.queue.lease.clone());
        for (index, len) in (0..).zip([1, 4096, 4097, 64]) {
            fixture.driver.offer_writable(index, BUFFER, len);
        }
        assert!(fixture.notify());
        assert_eq!(
            fixture.driver.take_used(),
            [(0, 1), (1, 4096), (2, 4097), (3, 64)]
        );
        assert_eq!(fixture.used_interrupts(), 1);
    }
}

#[test]
fn the_device_needs_its_queue_and_works_again_after_a_reset() {
    let memory = memory();
    let mut fixture = Fixture::new(&memory, Features::NONE, counter(usize::MAX));
    for _ in 0..2 {
        fixture.reset();
    }
    let config = ConfigNotifier::new(fixture.counts.clone());
    let (_session, activation) = Session::new(&config, memory.clone(), Features::NONE, [], false);
    let missing = fixture.device.activate(activation).unwrap_err();
    assert!(matches!(missing, DeviceFault::QueueMissing(0)));
    fixture.reset_and_serve();
}

#[test]
fn a_device_that_cannot_start_leaves_no_waker_behind() {
    struct Refuses;
    impl Executor for Refuses {
        fn start(&mut self, _worker: Worker) -> Result<(), DeviceFault> {
            Err(DeviceFault::Worker(io::ErrorKind::OutOfMemory.into()))
        }
    }
    let memory = memory();
    let mut device = EntropyDevice::new(io::repeat(7), Refuses);
    let driver = DriverQueue::new(&*memory, 0, QUEUE_SIZE);
    let counts = Arc::<Counts>::default();
    let (_session, activation) = lend(counts, memory.clone(), driver.layout(), Features::NONE);
    let kick = activation.queues[0].kick.clone();
    let error = device.activate(activation).unwrap_err();
    assert!(matches!(error, DeviceFault::Worker(_)), "{error}");
    device.limits().set(RateLimit::new(1, 1), None);
    assert!(
        kick.read().is_err(),
        "a queue that nobody serves is notified"
    );
}

#[test]
fn the_device_offers_what_it_can_do() {
    let rng = EntropyDevice::new(io::empty(), StepLoop::new().unwrap().handle());
    let device: &dyn VirtioDevice<Memory> = &rng;
    assert_eq!(device.device_type(), 4);
    assert_eq!(device.queue_max_sizes(), [256]);
    assert_eq!(device.features(), Features::NONE);
    assert_eq!(device.queue_features(), Features::QUEUE);
    assert_eq!(device.config_size(), 0);
}

#[test]
fn no_two_answers_are_alike() {
    let memory = memory();
    let mut seen = HashSet::new();
    for _ in 0..2 {
        let mut fixture = Fixture::new(&memory, Features::NONE, KernelEntropy);
        for index in 0..QUEUE_SIZE / 2 {
            let addr = BUFFER + 64 * u64::from(index);
            fixture.driver.offer_writable(index, addr, 64);
        }
        assert!(fixture.notify());
        let bytes = fixture.bytes(BUFFER, 8192);
        for block in bytes.chunks_exact(16) {
            assert!(seen.insert(block.to_vec()));
        }
        let ones: u32 = bytes.iter().map(|byte| byte.count_ones()).sum();
        // Eight standard deviations of 128 around one half.
        assert!((31_744..=33_792).contains(&ones), "{ones}");
    }
}

#[test]
fn debug_output_says_nothing_of_the_source() {
    let rng = EntropyDevice::new(&b"secret"[..], StepLoop::new().unwrap().handle());
    let text = format!("{rng:?} {:?}", rng.limits());
    assert!(text.starts_with("EntropyDevice { limits: "), "{text}");
    // Neither as text nor as numbers.
    assert!(
        !text.contains("secret") && !text.contains("115, 101"),
        "{text}"
    );
}

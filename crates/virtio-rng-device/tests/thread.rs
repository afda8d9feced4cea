// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device on a thread of its own: timers that go off, and sources that never answer.
#![cfg(not(miri))]
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

use std::io::{self, ErrorKind, Read};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use virtio_conformance::DriverQueue;
use virtio_device_core::{
    Activation, ActiveQueue, Features, Interrupt, InterruptHandle, QueueLease, VirtioDevice,
    Virtqueue, WorkerThread,
};
use virtio_rng_device::{QUEUE_SIZE, RateLimit, Retry, Rng};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

type Memory = Arc<GuestMemoryMmap<()>>;

const SOON: Duration = Duration::from_secs(10);
const BUFFER: u64 = 0x1_0000;

/// Sends the time of each interrupt.
struct Line(Mutex<Sender<Instant>>);

impl Line {
    fn raise(&self) {
        let _ = self.0.lock().unwrap().send(Instant::now());
    }
}

impl Interrupt for Line {
    fn used_buffers(&self, _queue: u16) {
        self.raise();
    }

    fn config_changed(&self) {}

    fn status_changed(&self) {
        self.raise();
    }
}

/// What a transport and a driver have of a device that is active.
struct Active<'m> {
    driver: DriverQueue<'m, GuestMemoryMmap<()>>,
    lease: QueueLease,
    kick: Arc<EventFd>,
    interrupt: InterruptHandle,
    interrupts: Receiver<Instant>,
}

fn memory() -> Memory {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2_0000)]).unwrap())
}

fn activate<'m, S: Read + Send + 'static>(
    rng: &mut Rng<S, WorkerThread>,
    memory: &'m Memory,
) -> Result<Active<'m>, virtio_device_core::ActivateError> {
    let driver = DriverQueue::new(&**memory, 0, QUEUE_SIZE);
    let lease = QueueLease::new(Virtqueue::new(driver.layout(), Features::NONE));
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let (sender, interrupts) = channel();
    let interrupt = InterruptHandle::new(Arc::new(Line(Mutex::new(sender))));
    let queues = vec![ActiveQueue::new(0, lease.clone(), kick.clone())];
    rng.activate(Activation::new(
        memory.clone(),
        queues,
        Features::NONE,
        interrupt.clone(),
    ))?;
    Ok(Active {
        driver,
        lease,
        kick,
        interrupt,
        interrupts,
    })
}

fn reset<S: Read + Send + 'static>(rng: &mut Rng<S, WorkerThread>, active: &Active<'_>) {
    drop(active.lease.revoke());
    active.interrupt.revoke();
    VirtioDevice::<Memory>::reset(rng);
}

#[test]
fn a_throttled_request_is_served_by_the_timer_alone() {
    let memory = memory();
    let mut rng = Rng::new(io::repeat(7), WorkerThread::named("rng"));
    rng.limits().set(RateLimit::new(200, 4), None);
    let mut active = activate(&mut rng, &memory).unwrap();
    for index in 0..4 {
        active.driver.offer_writable(index, BUFFER, 4);
    }
    active.kick.write(1).unwrap();
    let times = [(); 4].map(|()| active.interrupts.recv_timeout(SOON).unwrap());
    assert_eq!(active.driver.take_used(), [(0, 4), (1, 4), (2, 4), (3, 4)]);
    // The second waits for one token, the others for four each, of 5 ms a token.
    let [first, .., last] = times;
    assert!(last - first >= Duration::from_millis(40));
}

#[test]
fn a_limit_that_is_lifted_frees_a_request_at_once() {
    let memory = memory();
    let mut rng = Rng::new(io::repeat(7), WorkerThread::named("rng"));
    let limits = rng.limits();
    limits.set(None, RateLimit::new(1, 1));
    let mut active = activate(&mut rng, &memory).unwrap();
    for index in 0..100 {
        active.driver.offer_writable(index, BUFFER, 4);
    }
    active.kick.write(1).unwrap();
    active.interrupts.recv_timeout(SOON).unwrap();
    limits.set(None, None);
    let deadline = Instant::now() + SOON;
    let mut served = 0;
    while served < 100 {
        assert!(Instant::now() < deadline, "{served} of 100");
        served += active.driver.take_used().len();
    }
}

#[test]
fn a_source_that_fails_for_a_while_is_asked_again_by_the_timer() {
    struct Sometimes(u32);
    impl Read for Sometimes {
        fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
            self.0 += 1;
            if self.0 % 3 != 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            Ok(data.len())
        }
    }
    let memory = memory();
    let mut rng = Rng::new(Sometimes(0), WorkerThread::named("rng"));
    let mut active = activate(&mut rng, &memory).unwrap();
    for index in 0..10 {
        active.driver.offer_writable(index, BUFFER, 4);
    }
    active.kick.write(1).unwrap();
    for _ in 0..10 {
        active.interrupts.recv_timeout(SOON).unwrap();
    }
    assert_eq!(active.driver.take_used().len(), 10);
    assert!(!active.interrupt.is_broken());
}

#[test]
fn a_reset_cancels_a_wait() {
    let memory = memory();
    let mut rng = Rng::new(io::repeat(7), WorkerThread::named("rng"));
    rng.limits().set(RateLimit::new(100, 1), None);
    let mut active = activate(&mut rng, &memory).unwrap();
    active.driver.offer_writable(0, BUFFER, 1);
    active.driver.offer_writable(1, BUFFER, 1);
    active.kick.write(1).unwrap();
    active.interrupts.recv_timeout(SOON).unwrap();
    reset(&mut rng, &active);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(active.driver.used_index(), 1);
    active.interrupts.try_recv().unwrap_err();
}

/// Answers when it is told to.
struct Stuck {
    entered: Sender<()>,
    release: Receiver<()>,
}

impl Read for Stuck {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let _ = self.entered.send(());
        let _ = self.release.recv();
        data.fill(0x77);
        Ok(data.len())
    }
}

#[test]
fn a_source_that_never_answers_holds_up_nobody_but_its_worker() {
    let memory = memory();
    let (entered, inside) = channel();
    let (release, released) = channel();
    let source = Stuck {
        entered,
        release: released,
    };
    let mut rng = Rng::new(source, WorkerThread::named("rng")).with_retry(Retry::default());
    let mut active = activate(&mut rng, &memory).unwrap();
    active.driver.offer_writable(0, BUFFER, 4);
    active.kick.write(1).unwrap();
    inside.recv_timeout(SOON).unwrap();

    // A reset does not wait, and from then on guest memory is out of reach.
    let begin = Instant::now();
    reset(&mut rng, &active);
    assert!(begin.elapsed() < Duration::from_secs(1));
    // The next worker does not start while the last one is stuck, and that is said in time.
    let begin = Instant::now();
    activate(&mut rng, &memory).err().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(2));

    let used = active.driver.used_index();
    release.send(()).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(active.driver.used_index(), used);

    // Once it has answered, the device works again.
    let deadline = Instant::now() + SOON;
    let mut active = loop {
        match activate(&mut rng, &memory) {
            Ok(active) => break active,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    active.driver.offer_writable(0, BUFFER, 4);
    active.kick.write(1).unwrap();
    release.send(()).unwrap();
    active.interrupts.recv_timeout(SOON).unwrap();
    assert_eq!(active.driver.take_used(), [(0, 4)]);

    // And a device that is dropped does not wait for its source either.
    active.driver.offer_writable(1, BUFFER, 4);
    active.kick.write(1).unwrap();
    let begin = Instant::now();
    drop(rng);
    assert!(begin.elapsed() < Duration::from_secs(1));
}

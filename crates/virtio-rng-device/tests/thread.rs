// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device in a loop that waits: timers that go off, sources with a descriptor, and sources that
//! never answer.
#![cfg(not(miri))] // Miri has no level-triggered epoll.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at the unexpected"
)]

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use virtio_conformance::DriverQueue;
use virtio_device_core::{
    ActiveQueue, ConfigNotifier, Executor, Features, LoopHandle, VirtioDevice, Virtqueue,
    WorkerLoop, WorkerThread,
    transport::{Interrupt, Session},
};
use virtio_rng_device::{EntropyDevice, QUEUE_SIZE, RateLimit, SourcePolicy};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

type Memory = Arc<GuestMemoryMmap<()>>;

/// Far beyond what a healthy device takes on a busy machine.
const SOON: Duration = Duration::from_secs(60);
const BUFFER: u64 = 0x1_0000;

/// Sends the time of each interrupt.
struct Line(Mutex<Sender<Instant>>);

impl Interrupt for Line {
    fn used_buffers(&self, _queue: u16) {
        let _ = self.0.lock().unwrap().send(Instant::now());
    }

    fn config_interrupt(&self) {
        let _ = self.0.lock().unwrap().send(Instant::now());
    }
}

/// What a transport and a driver have of a device that is active.
struct Active<'m> {
    driver: DriverQueue<'m, GuestMemoryMmap<()>>,
    session: Session,
    queue: ActiveQueue,
    interrupts: Receiver<Instant>,
}

fn memory() -> Memory {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2_0000)]).unwrap())
}

fn activate<'m, S: Read + Send + 'static, E: Executor>(
    rng: &mut EntropyDevice<S, E>,
    memory: &'m Memory,
) -> Active<'m> {
    let driver = DriverQueue::new(&**memory, 0, QUEUE_SIZE);
    let (sender, interrupts) = channel();
    let config = ConfigNotifier::new(Arc::new(Line(Mutex::new(sender))));
    let queue = (
        0,
        Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
        Some(Virtqueue::new(driver.layout(), Features::NONE)),
    );
    let (session, activation) =
        Session::new(&config, memory.clone(), Features::NONE, [queue], false);
    let queue = activation.queues[0].clone();
    rng.activate(activation).unwrap();
    Active {
        driver,
        session,
        queue,
        interrupts,
    }
}

impl Active<'_> {
    fn kick(&self) {
        self.queue.kick.write(1).unwrap();
    }

    fn reset<S: Read + Send + 'static, E: Executor>(&self, rng: &mut EntropyDevice<S, E>) {
        self.session.revoke();
        VirtioDevice::<Memory>::reset(rng);
    }
}

fn thread() -> WorkerThread {
    WorkerThread::named("rng").unwrap()
}

#[test]
fn a_throttled_request_is_served_by_the_timer_alone() {
    let memory = memory();
    let mut rng = EntropyDevice::new(io::repeat(7), thread());
    rng.limits().set(RateLimit::new(200, 4), None);
    let mut active = activate(&mut rng, &memory);
    for index in 0..4 {
        active.driver.offer_writable(index, BUFFER, 4);
    }
    active.kick();
    let times = [(); 4].map(|()| active.interrupts.recv_timeout(SOON).unwrap());
    assert_eq!(active.driver.take_used(), [(0, 4), (1, 4), (2, 4), (3, 4)]);
    // The second waits for one token, the others for four each, of 5 ms a token.
    let [first, .., last] = times;
    assert!(last - first >= Duration::from_millis(40));
}

#[test]
fn a_limit_that_is_lifted_frees_a_request_at_once() {
    let memory = memory();
    let mut rng = EntropyDevice::new(io::repeat(7), thread());
    let limits = rng.limits();
    limits.set(None, RateLimit::new(1, 1));
    let mut active = activate(&mut rng, &memory);
    for index in 0..100 {
        active.driver.offer_writable(index, BUFFER, 4);
    }
    active.kick();
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
    let mut rng = EntropyDevice::new(Sometimes(0), thread());
    let mut active = activate(&mut rng, &memory);
    for index in 0..10 {
        active.driver.offer_writable(index, BUFFER, 4);
    }
    active.kick();
    for _ in 0..10 {
        active.interrupts.recv_timeout(SOON).unwrap();
    }
    assert_eq!(active.driver.take_used().len(), 10);
    assert!(!active.session.is_broken());
}

#[test]
fn a_reset_cancels_a_wait() {
    let memory = memory();
    let mut rng = EntropyDevice::new(io::repeat(7), thread());
    rng.limits().set(RateLimit::new(100, 1), None);
    let mut active = activate(&mut rng, &memory);
    active.driver.offer_writable(0, BUFFER, 1);
    active.driver.offer_writable(1, BUFFER, 1);
    active.kick();
    active.interrupts.recv_timeout(SOON).unwrap();
    active.reset(&mut rng);
    // On a busy host the second request is served before that.
    let served = active.driver.used_index();
    while active.interrupts.try_recv().is_ok() {}
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(active.driver.used_index(), served);
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
    // A name that no other thread of this program has.
    let mut rng = EntropyDevice::new(source, WorkerThread::named("rng-stuck").unwrap());
    let active = activate(&mut rng, &memory);
    let mut driver = active.driver;
    driver.offer_writable(0, BUFFER, 4);
    active.queue.kick.write(1).unwrap();
    inside.recv_timeout(SOON).unwrap();

    // No reset waits, and from the first one on guest memory is out of reach.
    active.session.revoke();
    assert!(active.session.wait_idle(Some(Duration::ZERO)));
    VirtioDevice::<Memory>::reset(&mut rng);
    let mut last = activate(&mut rng, &memory);
    for _ in 0..300 {
        last.reset(&mut rng);
        last = activate(&mut rng, &memory);
        last.driver.offer_writable(7, BUFFER, 4);
        last.kick();
    }
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let names =
        threads.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    assert_eq!(names.filter(|name| name == "rng-stuck\n").count(), 1);
    assert_eq!(last.driver.used_index(), 0);
    assert!(!last.session.is_broken());

    // Once the source has answered, to nobody, the driver that is there by now is served.
    release.send(()).unwrap();
    release.send(()).unwrap();
    last.interrupts.recv_timeout(SOON).unwrap();
    assert_eq!(last.driver.take_used(), [(7, 4)]);
    assert!(!last.session.is_broken());

    // And a device that is dropped does not wait for its source either.
    while inside.try_recv().is_ok() {}
    last.driver.offer_writable(1, BUFFER, 4);
    last.kick();
    inside.recv_timeout(SOON).unwrap();
    last.session.revoke();
    drop(rng);
    drop(release);
}

#[test]
fn a_driver_that_reloads_beside_busy_loops_is_always_served() {
    let stop = Arc::new(AtomicBool::new(false));
    let busy = |stop: Arc<AtomicBool>| {
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        })
    };
    let loops: Vec<_> = (0..6).map(|_| busy(stop.clone())).collect();
    let memory = memory();
    let mut rng = EntropyDevice::new(io::repeat(7), thread());
    for round in 0..200 {
        let mut active = activate(&mut rng, &memory);
        active.driver.offer_writable(3, BUFFER, 4);
        active.kick();
        let interrupt = active.interrupts.recv_timeout(SOON);
        assert!(interrupt.is_ok(), "round {round}: not served");
        assert_eq!(active.driver.take_used(), [(3, 4)]);
        assert!(!active.session.is_broken(), "round {round}");
        active.reset(&mut rng);
    }
    stop.store(true, Ordering::Relaxed);
    loops.into_iter().for_each(|busy| busy.join().unwrap());
}

/// A stream that does not block, and counts how often it is read.
struct Stream(UnixStream, Arc<AtomicU32>);

impl Read for Stream {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.read(data)
    }
}

/// A device in a loop that the test dispatches, whose source is one end of the stream.
struct Streamed<'m> {
    rng: EntropyDevice<Stream, LoopHandle>,
    workers: WorkerLoop,
    active: Active<'m>,
    host: UnixStream,
    reads: Arc<AtomicU32>,
}

/// A policy by which no wait ends in a test's time.
fn for_hours() -> SourcePolicy {
    let hour = Duration::from_secs(3600);
    SourcePolicy::default().with_waits(hour, hour)
}

/// `readiness` makes the descriptor of the device's end of the stream.
fn streamed<'m>(
    memory: &'m Memory,
    policy: SourcePolicy,
    readiness: impl FnOnce(&UnixStream) -> OwnedFd,
) -> Streamed<'m> {
    let (host, device) = UnixStream::pair().unwrap();
    device.set_nonblocking(true).unwrap();
    let fd = readiness(&device);
    let reads = Arc::<AtomicU32>::default();
    let mut workers = WorkerLoop::new().unwrap();
    let rng = EntropyDevice::new(Stream(device, reads.clone()), workers.handle());
    let mut rng = rng.with_source_policy(policy).with_readiness(fd).unwrap();
    let mut active = activate(&mut rng, memory);
    active.driver.offer_writable(0, BUFFER, 4);
    workers.dispatch().unwrap();
    active.kick();
    Streamed {
        rng,
        workers,
        active,
        host,
        reads,
    }
}

fn own(device: &UnixStream) -> OwnedFd {
    device.try_clone().unwrap().into()
}

impl Streamed<'_> {
    /// Dispatches for as long as the loop has anything to do within `wait`; returns how often.
    fn dispatch(&mut self, wait: Duration) -> u32 {
        let epoll = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        let fd = self.workers.as_raw_fd();
        epoll.ctl(ControlOperation::Add, fd, event).unwrap();
        let wait = i32::try_from(wait.as_millis()).unwrap();
        let mut count = 0;
        while count < 1000 && epoll.wait(wait, &mut [EpollEvent::default()]).unwrap() == 1 {
            self.workers.dispatch().unwrap();
            count += 1;
        }
        count
    }

    fn reads(&self) -> u32 {
        self.reads.load(Ordering::SeqCst)
    }
}

#[test]
fn a_source_with_a_descriptor_wakes_the_worker_and_is_not_polled() {
    let memory = memory();
    // The descriptor alone keeps the source from being asked: every wait is over at once.
    let at_once = SourcePolicy::default().with_waits(Duration::ZERO, Duration::ZERO);
    let mut it = streamed(&memory, at_once, own);
    it.dispatch(Duration::ZERO);
    assert_eq!(it.reads(), 1);
    // Neither time nor a driver that floods kicks has the source asked.
    for _ in 0..100 {
        it.active.kick();
        it.dispatch(Duration::ZERO);
    }
    assert_eq!(it.reads(), 1);
    for round in 1..=10 {
        it.host.write_all(&[round; 4]).unwrap();
        assert!(it.dispatch(Duration::ZERO) > 0, "nobody was woken");
        assert_eq!(it.active.driver.take_used(), [(0, 4)]);
        it.active.driver.offer_writable(0, BUFFER, 4);
        it.active.kick();
        it.dispatch(Duration::ZERO);
    }
    assert!(!it.active.session.is_broken());
}

#[test]
fn a_pause_neither_loses_what_a_source_with_a_descriptor_has_nor_ends_the_device() {
    let memory = memory();
    let mut it = streamed(&memory, for_hours(), own);
    it.dispatch(Duration::ZERO);
    it.active.session.pause();
    it.host.write_all(b"abcd").unwrap();
    it.active.kick();
    it.dispatch(Duration::ZERO);
    assert_eq!(it.active.driver.used_index(), 0);
    it.active.session.resume();
    it.dispatch(Duration::ZERO);
    assert_eq!(it.active.driver.take_used(), [(0, 4)]);
    let mut bytes = [0; 4];
    memory.read_slice(&mut bytes, GuestAddress(BUFFER)).unwrap();
    assert_eq!(&bytes, b"abcd");
}

#[test]
fn a_descriptor_that_is_ready_for_nothing_does_not_make_the_worker_spin() {
    type Wrong = fn(&UnixStream) -> OwnedFd;
    let undrained: Wrong = |_| {
        let (mut peer, wrong) = UnixStream::pair().unwrap();
        peer.write_all(b"x").unwrap();
        wrong.into()
    };
    let hung_up: Wrong = |_| UnixStream::pair().unwrap().0.into();
    for readiness in [undrained, hung_up] {
        let memory = memory();
        let mut it = streamed(&memory, for_hours(), readiness);
        // The kick, the descriptor, and then an hour of waiting.
        it.dispatch(Duration::from_millis(20));
        assert_eq!(it.reads(), 2);
        assert!(!it.active.session.is_broken());
    }
    // Waits go on to double: 1, 2, 4 ... 250 ms, and two draws for each.
    let memory = memory();
    let mut it = streamed(&memory, SourcePolicy::default(), undrained);
    let begin = Instant::now();
    it.dispatch(Duration::from_millis(120));
    let waits = begin.elapsed().as_millis();
    assert!(u128::from(it.reads()) <= 2 * u128::from(waits.ilog2()) + 4);
}

#[test]
fn a_descriptor_that_cannot_be_waited_for_leaves_the_timer_and_survives_a_pause() {
    let memory = memory();
    let policy = SourcePolicy::default();
    let file = |_: &UnixStream| std::fs::File::open("/proc/self/exe").unwrap().into();
    let mut it = streamed(&memory, policy, file);
    it.dispatch(Duration::ZERO);
    for _ in 0..3 {
        it.active.session.pause();
        it.dispatch(Duration::ZERO);
        it.active.session.resume();
        it.dispatch(Duration::ZERO);
        assert!(!it.active.session.is_broken());
    }
    it.host.write_all(b"abcd").unwrap();
    let deadline = Instant::now() + SOON;
    while it.active.driver.used_index() == 0 {
        assert!(Instant::now() < deadline, "the timer never goes off");
        it.dispatch(Duration::from_millis(5));
    }
    assert_eq!(it.active.driver.take_used(), [(0, 4)]);
}

#[test]
fn a_reset_while_a_descriptor_is_waited_for_gives_the_source_back() {
    let memory = memory();
    let mut it = streamed(&memory, for_hours(), own);
    for _ in 0..3 {
        it.dispatch(Duration::ZERO);
        it.active.reset(&mut it.rng);
        it.active = activate(&mut it.rng, &memory);
        it.active.driver.offer_writable(0, BUFFER, 4);
        it.active.kick();
    }
    it.dispatch(Duration::ZERO);
    it.host.write_all(b"abcd").unwrap();
    it.dispatch(Duration::ZERO);
    assert_eq!(it.active.driver.take_used(), [(0, 4)]);
}

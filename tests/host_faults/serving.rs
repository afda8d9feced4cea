// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that are made, and that serve, on a host that refuses calls.

use std::fs;
use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bus::{AccessError, BusDevice, MmioBus};
use virtio_blk_device::{Block, FileBackend, FileOptions};
use virtio_conformance::{
    DriverQueue, EventLog, MmioPort, Port, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, reg,
};
use virtio_device_core::{
    Activation, Context, DeviceFault, Features, Progress, QueueHandler, VirtioDevice, WorkerThread,
    edge_line,
};
use virtio_mmio_transport::MmioTransport;
use virtio_rng_device::{EntropyDevice, KernelEntropy};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::common::Folder;
use crate::refuse::{Refused, refuse, refused};

type Plain = GuestMemoryMmap<()>;
type Memory = Arc<Plain>;
type Transport = MmioTransport<Memory, Box<dyn VirtioDevice<Memory>>>;
type Queue<'m> = DriverQueue<'m, Plain>;

const SOON: Duration = Duration::from_secs(60);
const HEADER: u64 = 0x4000;
const DATA: u64 = 0x5000;
const STATUS: u64 = 0x6000;
const SECTOR: u32 = 512;
/// `VIRTIO_BLK_F_FLUSH`.
const FLUSH: u32 = 1 << 9;
/// What was never written, and what a driver writes.
const CANARY: u8 = 0xa5;
const WRITTEN: u8 = 0x3c;

fn memory() -> Memory {
    Arc::new(Plain::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap())
}

fn owned() -> (usize, usize) {
    let count = |folder| fs::read_dir(folder).unwrap().count();
    // Threads first: one that ends may not have closed its descriptors.
    let threads = count("/proc/self/task");
    (count("/proc/self/fd"), threads)
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
    }
}

/// A device behind its registers, and what it has told.
struct Machine {
    port: MmioPort<Transport>,
    events: Arc<EventLog>,
    line: Arc<EventFd>,
}

impl Machine {
    fn new(device: Box<dyn VirtioDevice<Memory>>, memory: &Memory) -> Self {
        let (events, line) = (
            Arc::new(EventLog::default()),
            Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
        );
        let transport = MmioTransport::new(device, memory.clone(), line.clone()).unwrap();
        Self {
            port: MmioPort::new(
                transport.with_observer(events.clone()),
                |it, offset, data| it.read(offset, data).unwrap(),
                |it, offset, data| it.write(offset, data).unwrap(),
            ),
            events,
            line,
        }
    }

    /// A worker's thread that is refused these calls when it has started.
    fn worker(refused: Vec<Refused>) -> WorkerThread {
        WorkerThread::with_hook("refused", move || refuse(&refused)).unwrap()
    }

    fn start<'m>(&mut self, memory: &'m Plain) -> Queue<'m> {
        let queue = Queue::new(memory, 0x1000, 8);
        // A disk whose driver can flush does not flush by itself.
        let flush = self.port.offered(0) & FLUSH;
        assert!(self.port.negotiate(Features::from_words([flush, 0, 0, 0])));
        assert!(self.port.enable(0, queue.setup()));
        self.port.set_driver_ok();
        queue
    }
}

const CHILD: &str = "HOST_FAULTS_CHILD";

/// Runs the test `name` of this program again, in a process that is refused these calls.
fn again(name: &str, calls: &[Refused]) {
    let child = refused(calls, || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let command = command.args(["--exact", name, "--nocapture"]);
        command.env(CHILD, "1").output().unwrap()
    });
    assert!(child.status.success(), "{child:?}");
}

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

#[test]
fn a_device_that_cannot_be_made_is_an_error_and_leaves_nothing_behind() {
    if !is_child() {
        // In a process in which no other test has anything of its own.
        let name = "serving::a_device_that_cannot_be_made_is_an_error_and_leaves_nothing_behind";
        return again(name, &[]);
    }
    let memory = memory();
    for (name, calls) in [
        (
            "epoll_create1",
            Refused::always(libc::SYS_epoll_create1, libc::EMFILE),
        ),
        (
            "eventfd2",
            Refused::always(libc::SYS_eventfd2, libc::ENFILE),
        ),
        (
            "timerfd_create",
            Refused::always(libc::SYS_timerfd_create, libc::ENOMEM),
        ),
        (
            "epoll_ctl",
            Refused::always(libc::SYS_epoll_ctl, libc::ENOSPC),
        ),
        ("clone", Refused::threads()),
    ] {
        let before = owned();
        let made = refused(&calls, || {
            let worker = WorkerThread::named("refused").map_err(|error| error.to_string())?;
            let device = EntropyDevice::new(io::repeat(7), worker);
            let line = edge_line(|| Ok(()));
            let transport = MmioTransport::new(device, memory.clone(), line);
            transport.map(drop).map_err(|error| error.to_string())
        });
        let error = made.expect_err(name);
        assert!(error.contains("os error"), "{name}: {error}");
        until(name, || owned() == before);
    }
}

/// Waits until the driver is told to reset the device, and says why that is.
fn failure(machine: &mut Machine) -> String {
    until("the failure", || machine.port.get(reg::STATUS) == 15 | 64);
    until("the interrupt", || {
        machine.port.get(reg::INTERRUPT_STATUS) == 2
    });
    until("the reason", || machine.events.last_failure().is_some());
    machine.events.last_failure().unwrap()
}

#[test]
fn a_queue_that_cannot_be_waited_for_is_told_as_a_failed_activation() {
    let memory = memory();
    let worker = Machine::worker(Refused::always(libc::SYS_epoll_ctl, libc::ENOSPC));
    let mut machine = Machine::new(Box::new(EntropyDevice::new(io::repeat(7), worker)), &memory);
    machine.start(&memory);
    let reason = failure(&mut machine);
    assert!(reason.contains("No space left"), "{reason}");
}

/// Waits for time on behalf of one queue, until the other has made the host refuse calls in the middle
/// of that.
struct Waits {
    refused: Vec<Refused>,
    waiting: bool,
    rounds: u32,
}

impl QueueHandler for Waits {
    fn process(&mut self, queue: u16, _cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        if queue == 0 {
            self.waiting = true;
            return Ok(match self.rounds {
                0..3 => Progress::After(Duration::from_millis(50)),
                _ => Progress::Idle,
            });
        }
        // The timer is set at the end of a round.
        self.rounds += u32::from(self.waiting);
        if self.rounds < 3 {
            return Ok(Progress::More);
        }
        refuse(&self.refused).unwrap();
        Ok(Progress::Idle)
    }
}

struct Waiting(WorkerThread, Vec<Refused>);

impl VirtioDevice<Memory> for Waiting {
    fn device_type(&self) -> u32 {
        42
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[8, 8]
    }

    fn activate(&mut self, activation: Activation<Memory>) -> Result<(), DeviceFault> {
        let refused = self.1.clone();
        activation.serve(&mut self.0, |_| Waits {
            refused,
            waiting: false,
            rounds: 0,
        })
    }
}

#[test]
fn a_loop_that_fails_in_the_middle_of_its_work_says_why() {
    #[cfg(target_arch = "x86_64")]
    let wait = libc::SYS_epoll_wait;
    #[cfg(not(target_arch = "x86_64"))]
    let wait = libc::SYS_epoll_pwait;
    // A timer that is set already cannot be stopped; events cannot be waited for.
    for call in [libc::SYS_timerfd_settime, wait] {
        let memory = memory();
        let refused = Refused::always(call, libc::EPERM);
        let device = Waiting(Machine::worker(Vec::new()), refused);
        let mut machine = Machine::new(Box::new(device), &memory);
        assert!(machine.port.negotiate(Features::NONE));
        for queue in 0..2_u32 {
            let rings = Queue::new(&*memory, 0x1000 * u64::from(1 + queue), 8);
            assert!(machine.port.enable(queue, rings.setup()));
        }
        machine.port.set_driver_ok();
        let reason = failure(&mut machine);
        assert!(reason.contains("Operation not permitted"), "{reason}");
    }
}

fn disk(folder: &Folder, refused: Vec<Refused>) -> Box<dyn VirtioDevice<Memory>> {
    let image = folder.file("disk", &[0x5a; 16 * 512]);
    let backend = Arc::new(FileBackend::open(image, FileOptions::default()).unwrap());
    Box::new(Block::new(backend, Machine::worker(refused)).unwrap())
}

/// Asks a disk for one sector, and returns its answer and the driver's data afterwards.
fn ask(machine: &mut Machine, memory: &Plain, queue: &mut Queue<'_>, kind: u32) -> (u8, Vec<u8>) {
    let (write, next) = (VIRTQ_DESC_F_WRITE, VIRTQ_DESC_F_NEXT);
    memory
        .write_obj(u64::from(kind), GuestAddress(HEADER))
        .unwrap();
    memory.write_obj(0_u64, GuestAddress(HEADER + 8)).unwrap();
    memory
        .write_slice(
            &[if kind == 1 { WRITTEN } else { CANARY }; 512],
            GuestAddress(DATA),
        )
        .unwrap();
    memory.write_obj(0xa5_u8, GuestAddress(STATUS)).unwrap();
    queue.descriptor(0, HEADER, 16, next, 1);
    let data = if kind == 0 { write } else { 0 } | next;
    queue.descriptor(1, DATA, if kind == 4 { 0 } else { SECTOR }, data, 2);
    queue.descriptor(2, STATUS, 1, write, 0);
    queue.offer(0);
    machine.port.set(reg::QUEUE_NOTIFY, 0);
    until("the answer", || !queue.take_used().is_empty());
    let mut data = vec![0; 512];
    memory.read_slice(&mut data, GuestAddress(DATA)).unwrap();
    (memory.read_obj(GuestAddress(STATUS)).unwrap(), data)
}

#[test]
fn a_call_that_fails_for_a_disk_fails_its_request_alone() {
    // For data in one piece and in several.
    const CALLS: [(u32, &[i64]); 3] = [
        (0, &[libc::SYS_pread64, libc::SYS_preadv]),
        (1, &[libc::SYS_pwrite64, libc::SYS_pwritev]),
        (4, &[libc::SYS_fdatasync]),
    ];
    for (refused_kind, calls) in CALLS {
        let (folder, memory) = (Folder::new("host-faults"), memory());
        let refused = calls
            .iter()
            .flat_map(|&call| Refused::always(call, libc::EIO));
        let device = disk(&folder, refused.collect());
        let mut machine = Machine::new(device, &memory);
        let mut queue = machine.start(&memory);
        for _ in 0..2 {
            for (kind, _) in CALLS {
                let (status, data) = ask(&mut machine, &memory, &mut queue, kind);
                let failed = kind == refused_kind;
                assert_eq!(
                    status,
                    u8::from(failed),
                    "request {kind} without calls {calls:?}"
                );
                // A read that fails has brought nothing.
                let untouched = kind == 0 && failed || kind == 4;
                assert_eq!(
                    data[0] == CANARY,
                    untouched,
                    "request {kind} without calls {calls:?}"
                );
            }
        }
        assert_eq!(machine.port.get(reg::STATUS), 15);
    }
}

#[test]
fn entropy_that_the_host_refuses_is_waited_for_and_never_made_up() {
    let memory = memory();
    let worker = Machine::worker(Refused::always(libc::SYS_getrandom, libc::EIO));
    let mut machine = Machine::new(Box::new(EntropyDevice::new(KernelEntropy, worker)), &memory);
    let mut queue = machine.start(&memory);
    memory.write_slice(&[0xa5; 64], GuestAddress(DATA)).unwrap();
    queue.offer_writable(0, DATA, 64);
    machine.port.set(reg::QUEUE_NOTIFY, 0);
    std::thread::sleep(Duration::from_millis(50));
    assert!(queue.take_used().is_empty());
    let mut bytes = [0; 64];
    memory.read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
    assert_eq!(bytes, [0xa5; 64]);
    // It is saved with the request that waits, and a driver that gives up gets its memory back.
    machine.port.device_mut().pause().unwrap();
    machine.port.device_mut().save().unwrap();
    machine.port.device_mut().resume();
    assert_eq!(machine.port.get(reg::STATUS), 15);
    machine.port.set(reg::STATUS, 0);
    assert_eq!(machine.port.get(reg::STATUS), 0);
}

#[test]
fn an_interrupt_that_cannot_be_written_leaves_its_cause_to_be_read() {
    let memory = memory();
    let worker = Machine::worker(Refused::always(libc::SYS_write, libc::EBADF));
    let mut machine = Machine::new(Box::new(EntropyDevice::new(io::repeat(7), worker)), &memory);
    let mut queue = machine.start(&memory);
    queue.offer_writable(0, DATA, 64);
    machine.port.set(reg::QUEUE_NOTIFY, 0);
    until("the request", || queue.take_used() == [(0, 64)]);
    until("the cause", || machine.port.get(reg::INTERRUPT_STATUS) == 1);
    until("the observer", || machine.events.counts().line_failed == 1);
    machine.line.read().unwrap_err();
}

struct Answers;

impl BusDevice for Answers {
    fn read(&mut self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        data.fill(7);
        Ok(())
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) -> Result<(), AccessError> {
        Ok(())
    }
}

#[test]
fn a_bus_without_membarrier_removes_devices_all_the_same() {
    if !is_child() {
        let name = "serving::a_bus_without_membarrier_removes_devices_all_the_same";
        for error in [libc::ENOSYS, libc::EPERM, libc::EINVAL] {
            again(name, &Refused::always(libc::SYS_membarrier, error));
        }
        return;
    }
    let bus = MmioBus::new();
    for _ in 0..200 {
        let id = bus.insert(Arc::new(Mutex::new(Answers)), 0, 8).unwrap();
        let mut view = bus.view();
        let mut word = [0; 4];
        view.read(0, &mut word).unwrap();
        let vcpu = std::thread::spawn(move || {
            let mut word = [0; 4];
            while view.read(0, &mut word).is_ok() {}
            view.read(0, &mut word)
        });
        drop(bus.remove(id).unwrap());
        assert_eq!(vcpu.join().unwrap(), Err(AccessError::Unclaimed));
        assert_eq!(word, [7; 4]);
    }
}

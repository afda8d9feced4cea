// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How long a block device takes for a request, against its peers and against the limits.
//!
//! `cargo bench -p vmm-devices-benches --bench blk_requests -- [--quick] [--write docs/blk-requests.md]`
//!
//! All devices sit behind the same split queue of 256 in guest memory of their own, and have the same
//! file. The driver has set its ring up once, and makes one or 32 requests available with one store; then
//! the device serves them. Peers are stand-ins, written for this benchmark after the strategy of devices
//! that are no crates: they use `virtio-queue` and leave out everything but the strategy.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a program for the people who change it"
)]

#[path = "../crates/virtio-blk-device/examples/memory_disk.rs"]
mod memory_disk;
#[path = "blk_requests/peers.rs"]
mod peers;

use std::any::Any;
use std::cell::RefCell;
use std::fs::File;
use std::hint::black_box;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use memory_disk::MemoryDisk;
use virtio_blk_device::{Backend, Block, FileBackend, FileOptions};
use virtio_conformance::{DriverQueue, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use virtio_device_core::transport::{Interrupt, QueueLayout, QueueSetup, Session};
use virtio_device_core::{
    Activation, ConfigNotifier, Executor, Features, QueueHandler, StepLoop, VirtioDevice,
    Virtqueue, Worker, WorkerLoop, WorkerThread,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_devices_benches::{Case, Report, Results, Table, interleave, raise_priority};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

type Memory = Arc<GuestMemoryMmap<()>>;

const QUEUE_SIZE: u16 = 256;
/// Requests that the driver has prepared, and the descriptors of each.
const REQUESTS: u16 = 64;
const DESCRIPTORS: u16 = 3;
const RINGS: u64 = 0x1000;
const HEADERS: u64 = 0x8000;
const BUFFERS: u64 = 0x10_0000;
/// Length of the file: more than most processors' caches.
const FILE: u64 = 64 << 20;
/// The driver can flush, so writes need not be stable at once.
const CAN_FLUSH: u32 = 9;

/// What a driver asks for.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    write: bool,
    /// Bytes.
    len: u32,
    /// Requests for each notification.
    depth: u16,
    /// Queues, each with a thread of its own if there are several.
    queues: u16,
}

const fn shape(name: &'static str, write: bool, len: u32, depth: u16, queues: u16) -> Shape {
    Shape {
        name,
        write,
        len,
        depth,
        queues,
    }
}

const SMALL: u32 = 4 << 10;
const LARGE: u32 = 128 << 10;

const SHAPES: [Shape; 10] = [
    shape("read 4 KiB", false, SMALL, 1, 1),
    shape("read 4 KiB, 32", false, SMALL, 32, 1),
    shape("read 4 KiB, 32, 4 queues", false, SMALL, 32, 4),
    shape("write 4 KiB", true, SMALL, 1, 1),
    shape("write 4 KiB, 32", true, SMALL, 32, 1),
    shape("write 4 KiB, 32, 4 queues", true, SMALL, 32, 4),
    shape("read 128 KiB", false, LARGE, 1, 1),
    shape("read 128 KiB, 32", false, LARGE, 32, 1),
    shape("write 128 KiB", true, LARGE, 1, 1),
    shape("write 128 KiB, 32", true, LARGE, 32, 1),
];

/// A driver whose requests never change.
struct Driver {
    memory: Memory,
    setup: QueueSetup,
    kick: EventFd,
    index: u16,
    shape: Shape,
}

impl Driver {
    fn new(shape: Shape) -> Self {
        let ram = BUFFERS as usize + usize::from(REQUESTS) * shape.len as usize;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), ram)]).unwrap();
        let memory: Memory = Arc::new(memory);
        // Touched before, so that no page is met for the first time while the clock runs.
        memory
            .write_slice(&vec![0x5a; ram], GuestAddress(0))
            .unwrap();
        let mut queue = DriverQueue::new(&*memory, RINGS, QUEUE_SIZE);
        let mut noise = 1_u64;
        for request in 0..u64::from(REQUESTS) {
            noise = noise
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let blocks = FILE / u64::from(shape.len);
            // Small requests are anywhere, large ones follow each other.
            let block = if shape.len == SMALL {
                noise >> 33
            } else {
                request
            };
            let sector = block % blocks * u64::from(shape.len) / 512;
            let header = HEADERS + 32 * request;
            let kind = u64::from(shape.write);
            let bytes = [kind.to_le_bytes(), sector.to_le_bytes()].concat();
            memory.write_slice(&bytes, GuestAddress(header)).unwrap();
            let first = DESCRIPTORS * request as u16;
            let (next, write) = (VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE);
            let data = if shape.write { next } else { next | write };
            let buffer = BUFFERS + request * u64::from(shape.len);
            queue.descriptor(first, header, 16, next, first + 1);
            queue.descriptor(first + 1, buffer, shape.len, data, first + 2);
            queue.descriptor(first + 2, header + 16, 1, write, 0);
        }
        (0..QUEUE_SIZE).for_each(|slot| queue.offer(slot % REQUESTS * DESCRIPTORS));
        queue.set_avail_index(0);
        // No interrupts.
        queue.set_avail_flags(1);
        let setup = *queue.setup();
        Self {
            setup,
            memory,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            index: 0,
            shape,
        }
    }

    /// Lends the queue to a device.
    fn lend(&self) -> (Session, Activation<Memory>) {
        let layout = QueueLayout::check(&self.setup, QUEUE_SIZE, &*self.memory).unwrap();
        let features = Features::of(&[CAN_FLUSH]);
        let queue = (
            0,
            Arc::new(self.kick.try_clone().unwrap()),
            Some(Virtqueue::new(layout, features)),
        );
        let config = ConfigNotifier::new(Arc::new(Nobody));
        Session::new(&config, self.memory.clone(), features, [queue], false)
    }

    /// Makes the next requests available.
    fn offer(&mut self) {
        self.index = self.index.wrapping_add(self.shape.depth);
        let addr = GuestAddress(self.setup.avail_ring + 2);
        self.memory
            .store(self.index, addr, Ordering::Release)
            .unwrap();
    }

    fn is_served(&self) -> bool {
        let addr = GuestAddress(self.setup.used_ring + 2);
        let used: u16 = self.memory.load(addr, Ordering::Acquire).unwrap();
        used == self.index
    }

    fn check(&self) {
        let status: u8 = self.memory.read_obj(GuestAddress(HEADERS + 16)).unwrap();
        assert_eq!(status, 0, "a request has failed");
    }
}

struct Nobody;

impl Interrupt for Nobody {
    fn used_buffers(&self, _queue: u16) {}

    fn config_interrupt(&self) {}
}

/// Where a case's workers are.
enum Loop {
    /// On the driver's thread, without an event fd.
    Steps(StepLoop),
    /// On the driver's thread, which waits for descriptors.
    Events(WorkerLoop),
    /// On threads of their own.
    Threads,
}

impl Loop {
    /// Has workers look once at what there is.
    fn serve(&mut self) {
        match self {
            Self::Steps(steps) => steps.look(),
            Self::Events(events) => events.dispatch().unwrap(),
            Self::Threads => std::thread::yield_now(),
        }
    }
}

thread_local! {
    /// The loops of all cases; they stay on the thread that made them.
    static LOOPS: RefCell<Vec<Loop>> = const { RefCell::new(Vec::new()) };
}

/// What has to live as long as a case.
type Kept = Box<dyn Any + Send>;

/// A case of which each operation is a request. `start` starts a device's worker by an executor; one that
/// waits for descriptors needs a loop that does.
fn case(
    name: &str,
    shape: Shape,
    waits: bool,
    start: impl Fn(Activation<Memory>, Box<dyn Executor>) -> Kept,
) -> Case {
    let mut drivers: Vec<_> = (0..shape.queues).map(|_| Driver::new(shape)).collect();
    let mut kept = Vec::new();
    let mut activate = |executor: Box<dyn Executor>, driver: &Driver| {
        let (session, activation) = driver.lend();
        kept.push((session, start(activation, executor)));
    };
    let mut workers = if shape.queues > 1 {
        for driver in &drivers {
            activate(Box::new(WorkerThread::named("queue").unwrap()), driver);
        }
        Loop::Threads
    } else if waits {
        let events = WorkerLoop::new().unwrap();
        activate(Box::new(events.handle()), &drivers[0]);
        Loop::Events(events)
    } else {
        let steps = StepLoop::new().unwrap();
        activate(Box::new(steps.handle()), &drivers[0]);
        Loop::Steps(steps)
    };
    if let Loop::Steps(steps) = &mut workers {
        assert!(steps.step(), "nothing was started");
    }
    let place = LOOPS.with_borrow_mut(|loops| {
        loops.push(workers);
        loops.len() - 1
    });
    let kicks = shape.queues > 1 || waits;
    Case::new(name, move |count| {
        let _kept = &kept;
        LOOPS.with_borrow_mut(|loops| {
            for _ in 0..count / u64::from(shape.depth * shape.queues) {
                for driver in &mut drivers {
                    driver.offer();
                    if kicks {
                        driver.kick.write(1).unwrap();
                    }
                }
                while !drivers.iter().all(Driver::is_served) {
                    loops[place].serve();
                }
            }
        });
        drivers.iter().for_each(Driver::check);
        u64::from(drivers[0].index)
    })
}

const OURS: &str = "**virtio-blk-device**";
const OURS_URING: &str = "**virtio-blk-device, `io-uring`**";
const FC: &str = "stand-in for Firecracker (a seek, and a call for each descriptor)";
const URING: &str = "stand-in for Cloud Hypervisor and crosvm (`io_uring`)";
const STRAIGHT: &str = "*limit: virtio-queue, one vectored call*";

/// The device of this workspace, whole.
fn ours(name: &str, shape: Shape, backend: &Arc<dyn Backend>, uring: bool) -> Case {
    case(name, shape, uring, |activation, executor| {
        let mut device = Block::new(backend.clone(), executor).unwrap();
        if uring {
            device = device.with_io_uring().unwrap();
        }
        device.activate(activation).unwrap();
        Box::new(device)
    })
}

/// A peer, which a worker calls as it calls the device of this workspace.
fn peer<H: QueueHandler + Send + 'static>(
    name: &str,
    shape: Shape,
    waits: bool,
    make: impl Fn(&Activation<Memory>, &QueueLayout) -> H,
) -> Case {
    case(name, shape, waits, |activation, mut executor| {
        let layout = activation.queues[0].lease.with(|queue| *queue.layout());
        let handler = make(&activation, &layout.unwrap());
        let worker = Worker::new(handler, activation.queues, activation.interrupt);
        executor.start(worker).unwrap();
        Box::new(executor)
    })
}

/// A file of zeroes, in a folder that has direct I/O: beside the program.
fn file() -> io::Result<PathBuf> {
    let mut path = std::env::current_exe()?;
    path.set_file_name("blk_requests.img");
    let file = File::create(&path)?;
    let piece = vec![0xc3; 1 << 20];
    for at in (0..FILE).step_by(piece.len()) {
        file.write_all_at(&piece, at)?;
    }
    file.sync_all()?;
    Ok(path)
}

/// The file as a device has it, when nobody else has it any more.
fn open(path: &PathBuf, direct: bool) -> io::Result<Arc<dyn Backend>> {
    let options = FileOptions {
        read_only: false,
        direct,
    };
    loop {
        match FileBackend::open(path, options) {
            // A worker lets go of it on its own thread.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => std::thread::yield_now(),
            result => return Ok(Arc::new(result?)),
        }
    }
}

/// The file as a peer opens it.
fn peers_file(path: &PathBuf, direct: bool) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let flags = if direct { libc::O_DIRECT } else { 0 };
    let mut options = File::options();
    options
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
}

fn cases(shape: Shape, path: &PathBuf, direct: bool) -> Vec<Case> {
    LOOPS.with_borrow_mut(Vec::clear);
    let backend = open(path, direct).unwrap();
    let file = || peers_file(path, direct).unwrap();
    vec![
        ours(OURS, shape, &backend, false),
        ours(OURS_URING, shape, &backend, true),
        peer(FC, shape, false, |it, layout| {
            peers::Sync::new(
                it.memory.clone(),
                layout,
                file(),
                peers::Way::EachDescriptor,
            )
        }),
        peer(URING, shape, true, |it, layout| {
            peers::Uring::new(it.memory.clone(), layout, file())
        }),
        peer(STRAIGHT, shape, false, |it, layout| {
            peers::Sync::new(it.memory.clone(), layout, file(), peers::Way::Vectored)
        }),
    ]
}

const MACHINERY: &str = "virtio-blk-device on a disk in memory";
const COPY: &str = "the driver and the copy alone";

/// The machinery alone, and the copy that a disk in memory makes.
fn machinery(shape: Shape) -> Vec<Case> {
    let disk = MemoryDisk::new(FILE as usize).unwrap();
    // So that every page of it is there.
    disk.write_zeroes(0..FILE, false).unwrap();
    let disk: Arc<dyn Backend> = Arc::new(disk);
    let mut driver = Driver::new(shape);
    let bytes = vec![0xc3; FILE as usize];
    let places: Vec<usize> = (0..u64::from(REQUESTS))
        .map(|request| {
            let sector = GuestAddress(HEADERS + 32 * request + 8);
            512 * driver.memory.read_obj::<u64>(sector).unwrap() as usize
        })
        .collect();
    // What the driver does for each notification is on both sides.
    let mut next = 0;
    let copy = Case::new(COPY, move |count| {
        for _ in 0..count / u64::from(shape.depth) {
            driver.offer();
            for _ in 0..shape.depth {
                let at = places[next];
                let buffer = GuestAddress(BUFFERS + next as u64 * u64::from(shape.len));
                let piece = &bytes[at..at + shape.len as usize];
                driver.memory.write_slice(piece, buffer).unwrap();
                next = (next + 1) % places.len();
            }
            black_box(driver.is_served());
        }
        next as u64
    });
    vec![ours(MACHINERY, shape, &disk, false), copy]
}

fn table(results: &[(Shape, Results)], cell: impl Fn(&Shape, &Results, &str) -> String) -> Table {
    let mut columns = vec![""];
    columns.extend(results.iter().map(|(shape, _)| shape.name));
    let mut table = Table::new(&columns);
    for name in results[0].1.names() {
        let mut row = vec![name.clone()];
        row.extend(results.iter().map(|(shape, it)| cell(shape, it, name)));
        table.row(&row);
    }
    table
}

/// How to read the report.
const ABOUT: &str = "\
A column is what a driver asks for at once: `read 4 KiB` is one request, `read 4 KiB, 32` is 32 of them
for one notification, `4 queues` is that on each of four queues with a thread each. Small requests are
anywhere in a file of 64 MiB, large ones follow each other. Medians of rounds in which all competitors
take turns. Interrupts are left out for all, and event fds for those that wait for one request after the
other, but not where there are four queues. Stand-ins are written for this benchmark, after the strategy
of devices that are no crates; they check nothing.";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut report = Report::new("Block requests", "blk_requests", ABOUT);
    let rounds = report.rounds(101, 5);
    raise_priority();
    let path = file()?;

    let mut of = |title: &str, direct: bool| {
        let results: Vec<_> = SHAPES
            .map(|shape| {
                let large = shape.len == LARGE || direct;
                let count = if large { 128 } else { 256 };
                (
                    shape,
                    interleave(cases(shape, &path, direct), rounds, count),
                )
            })
            .into();
        report.say(format_args!(
            "## {title}: times as long as Firecracker's stand-in\n"
        ));
        let ratio = |_: &Shape, it: &Results, name: &str| format!("{:.2}", it.ratio(name, FC));
        report.say(table(&results, ratio));
        report.say(format_args!(
            "## {title}: microseconds for a request, this run\n"
        ));
        let micros = |_: &Shape, it: &Results, name: &str| format!("{:.2}", it.median(name) / 1e3);
        report.say(table(&results, micros));
        let mut target = |shape: &str, name: &str, base: &str, at_most: f64| {
            let of = |(it, _): &&(Shape, Results)| it.name == shape;
            let measured = results.iter().find(of).unwrap().1.ratio(name, base);
            let what = format!("{title}, {shape}: {name} / {base}");
            report.target(&what, at_most, measured);
        };
        if direct {
            target("read 4 KiB, 32", OURS_URING, OURS, 1.0 / 1.2);
        } else {
            target("read 128 KiB", OURS, STRAIGHT, 1.0 / 0.95);
            target("read 128 KiB, 32", OURS, STRAIGHT, 1.0 / 0.95);
        }
        for shape in ["read 4 KiB", "write 4 KiB"] {
            target(shape, OURS, FC, 1.0);
            target(shape, OURS, URING, 1.0);
        }
    };
    of("Page cache", false);
    of("`O_DIRECT`", true);

    report.say("## The machinery alone\n");
    let mut rows = Table::new(&["", "the copy", "the device", "more"]);
    for shape in SHAPES
        .into_iter()
        .filter(|it| !it.write && it.queues == 1 && it.len == SMALL)
    {
        let results = interleave(machinery(shape), report.rounds(401, 41), 512);
        let [device, copy] = [MACHINERY, COPY].map(|name| results.median(name));
        let cells = [copy, device, device - copy].map(|nanos| format!("{nanos:.0} ns"));
        rows.row(&[&[shape.name.to_owned()], &cells[..]].concat());
        let what = format!("{}: nanoseconds more than the copy", shape.name);
        report.target(&what, 150.0, device - copy);
    }
    report.say(rows);
    std::fs::remove_file(path)?;
    report.finish()
}

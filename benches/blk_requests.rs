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

#[path = "blk_requests/driver.rs"]
mod driver;
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

use driver::{BUFFERS, Driver, FILE, HEADERS, LARGE, Memory, REQUESTS, SHAPES, SMALL, Shape};
use memory_disk::MemoryDisk;
use virtio_blk_device::{Backend, Block, FileBackend, FileOptions};
use virtio_device_core::transport::QueueLayout;
use virtio_device_core::{
    Activation, Executor, QueueHandler, StepLoop, VirtioDevice, Worker, WorkerLoop, WorkerThread,
};
use vm_memory::{Bytes, GuestAddress};
use vmm_devices_benches::{Case, Report, Results, Table, interleave, raise_priority};

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

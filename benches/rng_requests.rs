// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How long an entropy device takes for a request, against its peers and against the limits.
//!
//! `cargo bench -p vmm-devices-benches --bench rng_requests -- [--quick] [--write docs/rng-requests.md]`
//!
//! All devices sit behind the same split queue of 256 in the same guest memory. The driver has set
//! its ring up once, and makes one or many requests available with one store; then the device
//! serves them. Peers are stand-ins, written for this benchmark after the strategy of devices that
//! are no crates: they use `virtio-queue` and leave out everything but the strategy.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a program for the people who change it"
)]

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng as _, SeedableRng};
use virtio_conformance::{DriverQueue, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use virtio_device_core::{
    Activation, ConfigNotifier, Context, DeviceFault, Executor, Features, LoopHandle, Progress,
    QueueHandler, StepLoop, VirtioDevice, Virtqueue, Worker,
    transport::{Interrupt, QueueLayout, QueueSetup, Session},
};
use virtio_queue::{Queue, QueueT};
use virtio_rng_device::{
    EntropyDevice, FastEntropy, KernelEntropy, RateLimit, RngCounters, RngObserver,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_devices_benches::{Case, Report, Results, Table, interleave, pin, raise_priority};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

type Memory = Arc<GuestMemoryMmap<()>>;

const QUEUE_SIZE: u16 = 256;
/// Each device has rings of its own, this far apart; all use the same buffers.
const RINGS: u64 = 0x4000;
const BUFFERS: u64 = 0x10_0000;
const RAM: usize = 0x30_0000;

/// What a driver asks for.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    /// Length of each buffer.
    len: u32,
    /// Buffers in a request.
    buffers: u16,
    /// Requests for each notification.
    batch: u16,
    /// Requests in a sample, a multiple of `batch`.
    count: u64,
}

const fn shape(name: &'static str, len: u32, buffers: u16, batch: u16, count: u64) -> Shape {
    Shape {
        name,
        len,
        buffers,
        batch,
        count,
    }
}

const SHAPES: [Shape; 10] = [
    shape("4 B", 4, 1, 1, 2048),
    shape("4 B, 256", 4, 1, 256, 2048),
    shape("64 B", 64, 1, 1, 2048),
    shape("64 B, 256", 64, 1, 256, 2048),
    shape("2 KiB", 2048, 1, 1, 256),
    shape("2 KiB, 256", 2048, 1, 256, 256),
    shape("64 KiB", 65_536, 1, 1, 16),
    shape("64 KiB, 16", 65_536, 1, 16, 16),
    shape("16 x 128 B", 128, 16, 1, 256),
    shape("16 x 128 B, 16", 128, 16, 16, 256),
];

/// A driver whose requests never change.
struct Driver {
    memory: Memory,
    setup: QueueSetup,
    index: u16,
    batch: u16,
}

impl Driver {
    fn new(memory: &Memory, rings: u64, shape: Shape) -> Self {
        let mut queue = DriverQueue::new(&**memory, rings * RINGS, QUEUE_SIZE);
        for index in 0..QUEUE_SIZE {
            let last = (index + 1) % shape.buffers == 0;
            let flags = VIRTQ_DESC_F_WRITE | if last { 0 } else { VIRTQ_DESC_F_NEXT };
            let addr = BUFFERS + u64::from(index % 16) * 0x1_0000;
            queue.descriptor(index, addr, shape.len, flags, index + 1);
        }
        let heads = QUEUE_SIZE / shape.buffers;
        (0..QUEUE_SIZE).for_each(|slot| queue.offer(slot % heads * shape.buffers));
        queue.set_avail_index(0);
        // No interrupts.
        queue.set_avail_flags(1);
        Self {
            memory: memory.clone(),
            setup: *queue.setup(),
            index: 0,
            batch: shape.batch,
        }
    }

    /// Lends the queue to a device.
    fn lend(&self) -> (Session, Activation<Memory>) {
        let layout = QueueLayout::check(&self.setup, QUEUE_SIZE, &*self.memory).unwrap();
        let queue = (
            0,
            Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            Some(Virtqueue::new(layout, Features::NONE)),
        );
        let config = ConfigNotifier::new(Arc::new(Nobody));
        Session::new(&config, self.memory.clone(), Features::NONE, [queue], false)
    }

    /// Makes the next batch available.
    fn offer(&mut self) {
        self.index = self.index.wrapping_add(self.batch);
        let addr = GuestAddress(self.setup.avail_ring + 2);
        self.memory
            .store(self.index, addr, Ordering::Release)
            .unwrap();
    }

    /// The length in the last used element.
    fn last_len(&self) -> u32 {
        let slot = u64::from(self.index.wrapping_sub(1) % QUEUE_SIZE);
        let addr = GuestAddress(self.setup.used_ring + 4 + 8 * slot + 4);
        self.memory.read_obj(addr).unwrap()
    }

    fn used_index(&self) -> u16 {
        let addr = GuestAddress(self.setup.used_ring + 2);
        self.memory.read_obj(addr).unwrap()
    }
}

/// A case of which each operation is a request; `serve` serves all that are available.
fn case(
    name: &str,
    mut driver: Driver,
    shape: Shape,
    mut serve: impl FnMut() + Send + 'static,
) -> Case {
    let total = shape.len * u32::from(shape.buffers);
    Case::new(name, move |count| {
        for _ in 0..count / u64::from(shape.batch) {
            driver.offer();
            serve();
        }
        assert_eq!(driver.used_index(), driver.index, "not all was served");
        assert_eq!(driver.last_len(), total, "not all was filled");
        u64::from(driver.index)
    })
}

struct Nobody;

impl Interrupt for Nobody {
    fn used_buffers(&self, _queue: u16) {}

    fn config_interrupt(&self) {}
}

thread_local! {
    /// The loops of all cases; they stay on the thread that made them.
    static LOOPS: RefCell<Vec<StepLoop>> = const { RefCell::new(Vec::new()) };
}

/// Starts whatever `start` gives to a loop of its own, and returns how to serve its queue without
/// an event fd.
fn on_a_loop(start: impl FnOnce(LoopHandle)) -> impl FnMut() + Send + 'static {
    let mut workers = StepLoop::new().unwrap();
    start(workers.handle());
    assert!(workers.step(), "nothing was started");
    let place = LOOPS.with_borrow_mut(|loops| {
        loops.push(workers);
        loops.len() - 1
    });
    move || LOOPS.with_borrow_mut(|loops| loops[place].look())
}

/// The device of this workspace, whole: locks, checks, wiping, everything.
fn ours<S, O>(name: &str, memory: &Memory, rings: u64, shape: Shape, source: S, observer: O) -> Case
where
    S: Read + Send + 'static,
    O: RngObserver + 'static,
{
    let driver = Driver::new(memory, rings, shape);
    let (session, activation) = driver.lend();
    let mut serve = on_a_loop(|executor| {
        let mut device = EntropyDevice::with_observer(source, executor, observer);
        if name != OURS_KERNEL {
            // The others compute what they give.
            device = device.with_prompt_source();
        }
        if name == OURS_WATCHED {
            let limit = RateLimit::new(u64::MAX, u64::MAX);
            device.limits().set(limit, limit);
        }
        device.activate(activation).unwrap();
    });
    case(name, driver, shape, move || {
        let _owner = &session;
        serve();
    })
}

/// A peer, which a worker calls as it calls the device of this workspace.
struct Peer<F> {
    memory: Memory,
    queue: Queue,
    buffers: Vec<(GuestAddress, usize)>,
    /// Fills the buffers of one request, by address and length.
    fill: F,
}

impl<F> QueueHandler for Peer<F>
where
    F: FnMut(&GuestMemoryMmap<()>, &[(GuestAddress, usize)]) + Send,
{
    fn process(&mut self, _: u16, _: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let memory = &*self.memory;
        while let Some(chain) = self.queue.pop_descriptor_chain(memory) {
            let head = chain.head_index();
            self.buffers.clear();
            let writable = chain.filter(|d| d.is_write_only());
            self.buffers
                .extend(writable.map(|d| (d.addr(), d.len() as usize)));
            (self.fill)(memory, &self.buffers);
            let len: usize = self.buffers.iter().map(|&(_, len)| len).sum();
            self.queue.add_used(memory, head, len as u32).unwrap();
        }
        Ok(Progress::Idle)
    }
}

fn peer<F>(name: &str, memory: &Memory, rings: u64, shape: Shape, fill: F) -> Case
where
    F: FnMut(&GuestMemoryMmap<()>, &[(GuestAddress, usize)]) + Send + 'static,
{
    let driver = Driver::new(memory, rings, shape);
    let mut queue = Queue::new(QUEUE_SIZE).unwrap();
    queue.set_size(QUEUE_SIZE);
    queue.set_desc_table_address(Some(driver.setup.desc_table as u32), None);
    queue.set_avail_ring_address(Some(driver.setup.avail_ring as u32), None);
    queue.set_used_ring_address(Some(driver.setup.used_ring as u32), None);
    queue.set_ready(true);
    let handler = Peer {
        memory: memory.clone(),
        queue,
        buffers: Vec::with_capacity(QUEUE_SIZE.into()),
        fill,
    };
    let (session, activation) = driver.lend();
    let mut serve = on_a_loop(|mut executor| {
        let worker = Worker::new(handler, activation.queues, activation.interrupt);
        executor.start(worker).unwrap();
    });
    case(name, driver, shape, move || {
        let _owner = &session;
        serve();
    })
}

const OURS_KERNEL: &str = "**virtio-rng-device, `KernelEntropy`**";
const OURS_FAST: &str = "**virtio-rng-device, `FastEntropy`**";
const OURS_WATCHED: &str = "**virtio-rng-device, `FastEntropy`, both limits and counters**";
const OURS_NOTHING: &str = "*limit: virtio-rng-device, source that does nothing*";
const CHACHA: &str = "virtio-rng-device, `chacha20::ChaCha20Rng`, not reseeded";
const QUEUE_ALONE: &str = "*limit: virtio-queue, nothing filled*";
const MEMSET: &str = "*limit: virtio-queue, memset*";
const SYSCALL: &str = "*limit: virtio-queue, getrandom into guest memory*";
const CH: &str = "stand-in for Cloud Hypervisor (kernel device into guest memory, by descriptor)";
const FC: &str = "stand-in for Firecracker (aws-lc-rs into a zeroed `Vec`, copied)";
const CROSVM: &str = "stand-in for crosvm (64-byte chunks of the thread's generator)";
const OPEN: &str = "kernel device opened for each descriptor";

/// A generator of a crate of its own, as a source: what `FastEntropy` would rest on if it were not
/// much slower for large requests.
struct ChaCha(ChaCha20Rng);

impl Read for ChaCha {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        self.0.fill_bytes(data);
        Ok(data.len())
    }
}

/// A source that says it has filled everything.
struct Nothing;

impl Read for Nothing {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        Ok(data.len())
    }
}

fn cases(memory: &Memory, shape: Shape) -> Vec<Case> {
    let device = || File::open("/dev/urandom").unwrap();
    let mut urandom = device();
    let mut scratch = vec![0; 65_536];
    let zeros = vec![0; 65_536];
    let fast = || FastEntropy::new().unwrap();
    let seeded = || {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).unwrap();
        ChaCha20Rng::from_seed(seed)
    };
    vec![
        ours(OURS_KERNEL, memory, 0, shape, KernelEntropy, ()),
        ours(OURS_FAST, memory, 1, shape, fast(), ()),
        ours(
            OURS_WATCHED,
            memory,
            2,
            shape,
            fast(),
            RngCounters::default(),
        ),
        peer(CH, memory, 3, shape, move |memory, buffers| {
            for &(addr, len) in buffers {
                memory
                    .read_exact_volatile_from(addr, &mut urandom, len)
                    .unwrap();
            }
        }),
        peer(FC, memory, 4, shape, move |memory, buffers| {
            let total = buffers.iter().map(|&(_, len)| len).sum::<usize>();
            let mut bytes = vec![0; total.min(65_536)];
            aws_lc_rs::rand::fill(&mut bytes).unwrap();
            let mut rest = &bytes[..];
            for &(addr, len) in buffers {
                let (now, later) = rest.split_at(len.min(rest.len()));
                memory.write_slice(now, addr).unwrap();
                rest = later;
            }
        }),
        peer(CROSVM, memory, 5, shape, move |memory, buffers| {
            for &(addr, len) in buffers {
                for offset in (0..len).step_by(64) {
                    let chunk = rand::random::<[u8; 64]>();
                    let addr = GuestAddress(addr.0 + offset as u64);
                    memory
                        .write_slice(&chunk[..64.min(len - offset)], addr)
                        .unwrap();
                }
            }
        }),
        peer(OPEN, memory, 6, shape, move |memory, buffers| {
            for &(addr, len) in buffers {
                let mut urandom = device();
                memory
                    .read_exact_volatile_from(addr, &mut urandom, len)
                    .unwrap();
            }
        }),
        ours(OURS_NOTHING, memory, 7, shape, Nothing, ()),
        ours(CHACHA, memory, 11, shape, ChaCha(seeded()), ()),
        peer(QUEUE_ALONE, memory, 8, shape, |_, _| {}),
        peer(MEMSET, memory, 9, shape, move |memory, buffers| {
            for &(addr, len) in buffers {
                memory.write_slice(&zeros[..len], addr).unwrap();
            }
        }),
        peer(SYSCALL, memory, 10, shape, move |memory, buffers| {
            let total = buffers.iter().map(|&(_, len)| len).sum::<usize>();
            getrandom::fill(&mut scratch[..total]).unwrap();
            let mut rest = &scratch[..total];
            for &(addr, len) in buffers {
                let (now, later) = rest.split_at(len);
                memory.write_slice(now, addr).unwrap();
                rest = later;
            }
        }),
    ]
}

/// Numbers for each case and shape.
fn table(
    results: &[(Shape, Results)],
    corner: &str,
    cell: impl Fn(&Shape, &Results, &str) -> String,
) -> Table {
    let mut columns = vec![corner.to_owned()];
    columns.extend(results.iter().map(|(shape, _)| shape.name.to_owned()));
    let mut table = Table::new(&columns);
    for name in results[0].1.names() {
        let mut row = vec![name.clone()];
        row.extend(
            results
                .iter()
                .map(|(shape, result)| cell(shape, result, name)),
        );
        table.row(&row);
    }
    table
}

/// How to read the report.
const ABOUT: &str = "\
A column is what a driver asks for at once: `64 B` is one request of 64 bytes, `64 B, 256` is 256
of them for one notification, `16 x 128 B` is one request of 16 buffers. Medians of rounds in which
all competitors take turns. Event fds and interrupts are left out for all. Stand-ins are written
for this benchmark, after the strategy of devices that are no crates. `FastEntropy` rests on the
crates `aes` and `ctr`; `chacha20`'s generator would take its place if it took at most 1.3 times as
long for 64 KiB.";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut report = Report::new("Entropy requests", "rng_requests", ABOUT);
    let rounds = report.rounds(61, 11);
    raise_priority();
    pin(0);

    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
    let memory = Arc::new(memory);
    let results: Vec<_> = SHAPES
        .map(|shape| {
            (
                shape,
                interleave(cases(&memory, shape), rounds, shape.count),
            )
        })
        .into();

    report.say("## Times as long as the stand-in for Cloud Hypervisor\n");
    let ratio = |_: &Shape, r: &Results, name: &str| format!("{:.2}", r.ratio(name, CH));
    report.say(table(&results, "", ratio));
    report.say("## Nanoseconds for a request, this run\n");
    let nanos = |_: &Shape, r: &Results, name: &str| format!("{:.0}", r.median(name));
    report.say(table(&results, "", nanos));
    report.say("## GB/s, this run\n");
    let speed = |shape: &Shape, r: &Results, name: &str| {
        let bytes = f64::from(shape.len * u32::from(shape.buffers));
        format!("{:.2}", bytes / r.median(name))
    };
    report.say(table(&results, "", speed));

    let mut target = |shape: &str, name: &str, base: &str, at_most: f64| {
        let of = |(s, _): &&(Shape, Results)| s.name == shape;
        let measured = results.iter().find(of).unwrap().1.ratio(name, base);
        report.target(&format!("{shape}: {name} / {base}"), at_most, measured);
    };
    target("64 B", OURS_KERNEL, CH, 1.0);
    target("64 B", OURS_FAST, CH, 0.2);
    for shape in ["2 KiB", "2 KiB, 256"] {
        target(shape, OURS_FAST, CH, 1.0 / 8.0);
        target(shape, OURS_FAST, FC, 1.0 / 1.7);
    }
    for shape in ["64 KiB", "64 KiB, 16"] {
        target(shape, OURS_FAST, CH, 1.0 / 9.0);
        target(shape, OURS_FAST, FC, 1.0);
    }
    target("16 x 128 B", OURS_FAST, CH, 0.1);
    report.finish()
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How long a network device takes for a packet, in either direction, against the strategies of others.
//!
//! `cargo bench -p vmm-devices-benches --bench net_packets -- [--quick] [--write docs/net-packets.md]`
//!
//! All devices sit behind the same split queue of 256 in the same guest memory, and before the same
//! host: memory that packets are copied to and from, piece by piece, as `readv` and `writev` would; then
//! a tap.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a program for the people who change it"
)]

#[path = "net_packets/host.rs"]
mod host;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use host::{Host, Place, enter_namespace};

use virtio_conformance::{DriverQueue, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use virtio_device_core::transport::{Interrupt, QueueLayout, QueueSetup, Session};
use virtio_device_core::{
    Activation, ConfigNotifier, Context, DeviceFault, Executor, Features, LoopHandle, Progress,
    QueueHandler, StepLoop, VirtioDevice, Virtqueue, Worker,
};
use virtio_net_device::Net;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, VolatileSlice};
use vmm_devices_benches::{Case, Report, Results, Table, interleave, pin, raise_priority};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

type Memory = Arc<GuestMemoryMmap<()>>;

const QUEUE_SIZE: u16 = 256;
const RINGS: u64 = 0x4000;
const BUFFERS: u64 = 0x10_0000;
const RAM: usize = 0x30_0000;
const PAGE: u32 = 4096;
/// Bytes of a chain that cost a Firecracker-like device a look: header and Ethernet addresses.
const LOOK: usize = 26;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Send,
    Receive,
}

#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    way: Way,
    /// Length of a packet with its header.
    len: u32,
    /// Packets for each wake-up.
    batch: u16,
    /// Packets in a sample, a multiple of `batch`.
    count: u64,
}

const fn shape(name: &'static str, way: Way, len: u32, batch: u16, count: u64) -> Shape {
    Shape {
        name,
        way,
        len,
        batch,
        count,
    }
}

const SHAPES: [Shape; 12] = [
    shape("send 64 B", Way::Send, 76, 1, 2048),
    shape("send 64 B, 32", Way::Send, 76, 32, 2048),
    shape("send 1500 B", Way::Send, 1526, 1, 1024),
    shape("send 1500 B, 32", Way::Send, 1526, 32, 1024),
    shape("send 64 KiB", Way::Send, 65_562, 1, 64),
    shape("send 64 KiB, 8", Way::Send, 65_562, 8, 64),
    shape("receive 64 B", Way::Receive, 76, 1, 2048),
    shape("receive 64 B, 32", Way::Receive, 76, 32, 2048),
    shape("receive 1500 B", Way::Receive, 1526, 1, 1024),
    shape("receive 1500 B, 32", Way::Receive, 1526, 32, 1024),
    shape("receive 64 KiB", Way::Receive, 65_562, 1, 64),
    shape("receive 64 KiB, 8", Way::Receive, 65_562, 8, 64),
];

/// Packets that lie in one buffer, through a tap.
const TAP_SHAPES: [Shape; 8] = [
    shape("tap: send 64 B", Way::Send, 76, 1, 512),
    shape("tap: send 64 B, 32", Way::Send, 76, 32, 512),
    shape("tap: send 1500 B", Way::Send, 1526, 1, 512),
    shape("tap: send 1500 B, 32", Way::Send, 1526, 32, 512),
    shape("tap: receive 64 B", Way::Receive, 76, 1, 512),
    shape("tap: receive 64 B, 32", Way::Receive, 76, 32, 512),
    shape("tap: receive 1500 B", Way::Receive, 1526, 1, 512),
    shape("tap: receive 1500 B, 32", Way::Receive, 1526, 32, 512),
];

impl Shape {
    /// Descriptors of a packet: pages, as Linux has them.
    fn buffers(self) -> u16 {
        self.len.div_ceil(PAGE) as u16
    }

    /// Buffers that lie in the ring for packets to come: a driver keeps its ring filled.
    fn ahead(self) -> u16 {
        match self.way {
            Way::Receive if self.buffers() == 1 => QUEUE_SIZE / 2,
            _ => 0,
        }
    }

    fn queue(self) -> u16 {
        u16::from(self.way == Way::Send)
    }
}

/// A driver whose packets never change.
struct Driver {
    memory: Memory,
    setup: QueueSetup,
    index: u16,
    shape: Shape,
}

impl Driver {
    fn new(memory: &Memory, rings: u64, shape: Shape) -> Self {
        let mut queue = DriverQueue::new(&**memory, rings * RINGS, QUEUE_SIZE);
        let (each, way) = (shape.buffers(), shape.way);
        let heads = QUEUE_SIZE / each;
        for head in 0..heads {
            for at in 0..each {
                let index = head * each + at;
                let last = at + 1 == each;
                let len = if last {
                    shape.len - u32::from(at) * PAGE
                } else {
                    PAGE
                };
                let write = if way == Way::Receive {
                    VIRTQ_DESC_F_WRITE
                } else {
                    0
                };
                let flags = write | if last { 0 } else { VIRTQ_DESC_F_NEXT };
                let addr = BUFFERS + u64::from(index) * u64::from(PAGE);
                queue.descriptor(index, addr, len, flags, index + 1);
            }
        }
        // As many as are on their way at once, over and over.
        (0..QUEUE_SIZE).for_each(|slot| queue.offer(slot % 8 * each % (heads * each)));
        if each == 1 {
            queue.set_avail_index(0);
            (0..QUEUE_SIZE).for_each(|slot| queue.offer(slot));
        }
        queue.set_avail_index(0);
        // No interrupts.
        queue.set_avail_flags(1);
        Self {
            memory: memory.clone(),
            setup: *queue.setup(),
            index: 0,
            shape,
        }
    }

    fn lend(&self) -> (Session, Activation<Memory>) {
        let layout = QueueLayout::check(&self.setup, QUEUE_SIZE, &*self.memory).unwrap();
        let queue = (
            self.shape.queue(),
            Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            Some(Virtqueue::new(layout, Features::NONE)),
        );
        let config = ConfigNotifier::new(Arc::new(Nobody));
        Session::new(&config, self.memory.clone(), Features::NONE, [queue], false)
    }

    fn offer(&mut self) {
        self.index = self.index.wrapping_add(self.shape.batch);
        let addr = GuestAddress(self.setup.avail_ring + 2);
        let offered = self.index.wrapping_add(self.shape.ahead());
        self.memory.store(offered, addr, Ordering::Release).unwrap();
    }

    fn used_index(&self) -> u16 {
        let addr = GuestAddress(self.setup.used_ring + 2);
        self.memory.read_obj(addr).unwrap()
    }

    fn last_len(&self) -> u32 {
        let slot = u64::from(self.index.wrapping_sub(1) % QUEUE_SIZE);
        let addr = GuestAddress(self.setup.used_ring + 4 + 8 * slot + 4);
        self.memory.read_obj(addr).unwrap()
    }
}

fn case(
    mut driver: Driver,
    name: &str,
    host: Host,
    mut serve: impl FnMut() + Send + 'static,
) -> Case {
    let shape = driver.shape;
    Case::new(name, move |count| {
        let before = host.sent();
        for _ in 0..count / u64::from(shape.batch) {
            if shape.way == Way::Receive {
                host.give(shape.batch.into());
            }
            driver.offer();
            serve();
        }
        assert_eq!(driver.used_index(), driver.index, "not all was served");
        if shape.way == Way::Receive {
            assert_eq!(driver.last_len(), shape.len);
        } else {
            let sent = host.sent().zip(before);
            let sent = sent.map(|(after, before)| u64::from(after.wrapping_sub(before)));
            assert_eq!(sent.unwrap_or(count), count);
        }
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

fn ours(memory: &Memory, place: &Place, shape: Shape) -> Case {
    let driver = Driver::new(memory, 1, shape);
    let (session, activation) = driver.lend();
    let host = Host::new(place.clone(), shape.len as usize);
    let (backend, tap) = (host.clone(), host.tap());
    let mut serve = on_a_loop(|executor| {
        let mac = [2, 0, 0, 0, 0, 1];
        let mut device = match tap {
            Some(tap) => Net::new(vec![tap], mac, executor).unwrap(),
            None => Net::new(vec![backend], mac, executor).unwrap(),
        };
        device.activate(activation).unwrap();
    });
    case(driver, OURS, host, move || {
        let _owner = &session;
        serve();
    })
}

/// What a peer does once a packet, and once a wake-up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Strategy {
    /// Looks at the first bytes of each packet; tells the driver at the end.
    Firecracker,
    /// Asks after each packet whether the driver is to be told.
    CloudHypervisor,
}

/// A peer, which a worker calls as it calls the device of this workspace.
struct Peer {
    memory: Memory,
    queue: Queue,
    host: Host,
    way: Way,
    strategy: Strategy,
    list: Vec<(GuestAddress, usize)>,
}

impl Peer {
    fn slices(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        let memory = &*self.memory;
        let slice = |&(addr, len): &(GuestAddress, usize)| {
            memory
                .get_slices(addr, len, vm_memory::Permissions::ReadWrite)
                .unwrap()
                .next()
                .unwrap()
                .unwrap()
        };
        self.list.iter().map(slice)
    }
}

impl QueueHandler for Peer {
    fn process(&mut self, _: u16, _: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let memory = self.memory.clone();
        self.queue.disable_notification(&*memory).unwrap();
        loop {
            let Some(chain) = self.queue.pop_descriptor_chain(&*memory) else {
                if self.queue.enable_notification(&*memory).unwrap() {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            self.list.clear();
            self.list
                .extend(chain.map(|d| (d.addr(), d.len() as usize)));
            let len = if self.way == Way::Send {
                if self.strategy == Strategy::Firecracker {
                    let mut start = [0; LOOK];
                    memory.read_slice(&mut start, self.list[0].0).unwrap();
                    std::hint::black_box(start);
                }
                let mut host = self.host.lend();
                host.write(self.slices());
                self.host.take_back(host);
                0
            } else {
                match self.host.read(self.slices()) {
                    Ok(len) => {
                        let buffers = self.list[0].0.0 + 10;
                        memory.write_obj(1_u16, GuestAddress(buffers)).unwrap();
                        len as u32
                    }
                    Err(_) => {
                        self.queue.go_to_previous_position();
                        break;
                    }
                }
            };
            self.queue.add_used(&*memory, head, len).unwrap();
            if self.strategy == Strategy::CloudHypervisor {
                std::hint::black_box(self.queue.needs_notification(&*memory).unwrap());
            }
        }
        if self.strategy == Strategy::Firecracker {
            std::hint::black_box(self.queue.needs_notification(&*memory).unwrap());
        }
        Ok(Progress::Idle)
    }
}

fn peer(
    (name, rings, strategy): (&str, u64, Strategy),
    memory: &Memory,
    place: &Place,
    shape: Shape,
) -> Case {
    let driver = Driver::new(memory, rings, shape);
    let mut queue = Queue::new(QUEUE_SIZE).unwrap();
    queue.set_size(QUEUE_SIZE);
    queue.set_desc_table_address(Some(driver.setup.desc_table as u32), None);
    queue.set_avail_ring_address(Some(driver.setup.avail_ring as u32), None);
    queue.set_used_ring_address(Some(driver.setup.used_ring as u32), None);
    queue.set_ready(true);
    let host = Host::new(place.clone(), shape.len as usize);
    let handler = Peer {
        memory: memory.clone(),
        queue,
        host: host.clone(),
        way: shape.way,
        strategy,
        list: Vec::with_capacity(QUEUE_SIZE.into()),
    };
    let (session, activation) = driver.lend();
    let mut serve = on_a_loop(|mut executor| {
        let worker = Worker::new(handler, activation.queues, activation.interrupt);
        executor.start(worker).unwrap();
    });
    case(driver, name, host, move || {
        let _owner = &session;
        serve();
    })
}

const OURS: &str = "**virtio-net-device**";
const FC: &str = "stand-in for Firecracker (looks at each packet's start, tells the driver once)";
const CH: &str =
    "stand-in for Cloud Hypervisor (asks after each packet whether to tell the driver)";

fn cases(memory: &Memory, place: &Place, shape: Shape) -> Vec<Case> {
    let peer = |what| peer(what, memory, place, shape);
    vec![
        ours(memory, place, shape),
        peer((FC, 2, Strategy::Firecracker)),
        peer((CH, 3, Strategy::CloudHypervisor)),
    ]
}

fn table(results: &[(Shape, Results)], cell: impl Fn(&Shape, &Results, &str) -> String) -> Table {
    let mut columns = vec![String::new()];
    columns.extend(results[0].1.names().iter().cloned());
    let mut table = Table::new(&columns);
    for (shape, result) in results {
        let mut row = vec![shape.name.to_owned()];
        row.extend(result.names().iter().map(|name| cell(shape, result, name)));
        table.row(&row);
    }
    table
}

/// How to read the report.
const ABOUT: &str = "\
A row is what a driver and its host do at once: `64 B, 32` is 32 packets for one wake-up. Packets of
64 KiB lie in 17 pages. For those that lie in one the driver has buffers in the ring beyond what comes,
as drivers have. Medians of rounds in which all competitors take turns. The host is memory for
all of them, so system calls are left out, and so are event fds and interrupts. Rows that begin with
`tap` go through one tap for all of them, in a network namespace of its own; what is received there is
sent by a socket of the host, in the same time. Stand-ins are written
for this benchmark after the strategy of devices that are no crates, and leave out everything else:
offloads, filters, limits, counters, checks of headers. Both use `virtio-queue`; Firecracker has a
queue of its own, so what is said of it here is said of its strategy alone.";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    enter_namespace();
    let mut report = Report::new("Network packets", "net_packets", ABOUT);
    let rounds = report.rounds(61, 11);
    raise_priority();
    pin(0);
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
    let memory = Arc::new(memory);
    let run = |shapes: &[Shape], place: &Place| -> Vec<_> {
        let run = |shape: &Shape| {
            let cases = cases(&memory, place, *shape);
            (*shape, interleave(cases, rounds, shape.count))
        };
        shapes.iter().map(run).collect()
    };
    let mut results = run(&SHAPES, &Place::memory());
    match Place::tap() {
        Ok(tap) => results.extend(run(&TAP_SHAPES, &tap)),
        Err(error) => eprintln!("skipped: no tap can be made here: {error}"),
    }
    report.say("## Times as long as virtio-net-device\n");
    let ratio = |_: &Shape, r: &Results, name: &str| format!("{:.2}", r.ratio(name, OURS));
    report.say(table(&results, ratio));
    report.say("## Nanoseconds for a packet, this run\n");
    let nanos = |_: &Shape, r: &Results, name: &str| format!("{:.0}", r.median(name));
    report.say(table(&results, nanos));
    for (shape, result) in &results {
        let at_most = if ["send 64 B, 32", "receive 64 B, 32"].contains(&shape.name) {
            1.0 / 1.2
        } else {
            1.0
        };
        for peer in [FC, CH] {
            let what = format!("{}: {OURS} / {peer}", shape.name);
            report.target(&what, at_most, result.ratio(OURS, peer));
        }
    }
    report.finish()
}

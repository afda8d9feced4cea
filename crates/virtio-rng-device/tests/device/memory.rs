// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory that goes away while the device works, and the order in which it is written.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use virtio_conformance::{DriverQueue, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, WatchedMemory};
use virtio_device_core::{
    ActiveQueue, Features, LoopHandle, StepLoop, VIRTIO_F_EVENT_IDX, VirtioDevice,
    transport::{Interrupt, Session},
};
use virtio_rng_device::{EntropyDevice, QUEUE_SIZE, RngCounters};
use vm_memory::guest_memory::{Error, GuestMemorySliceIterator, Result};
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryAtomic, GuestMemoryMmap,
    GuestRegionMmap, Permissions,
};

use crate::support::{CANARY, Counts, lend};

type Plain = GuestMemoryMmap<()>;
type Region = Arc<GuestRegionMmap<()>>;

/// The rings have a region of their own, and so have the buffers.
const RINGS: Range<u64> = 0..0x4000;
const BUFFERS: Range<u64> = 0x1_0000..0x2_0000;

fn region(range: Range<u64>) -> Region {
    let (base, len) = (
        GuestAddress(range.start),
        (range.end - range.start) as usize,
    );
    Arc::new(GuestRegionMmap::from_range(base, len, None).unwrap())
}

fn plain() -> Plain {
    let memory = Plain::from_arc_regions(vec![region(RINGS), region(BUFFERS)]).unwrap();
    let buffers = GuestAddress(BUFFERS.start);
    memory.write_slice(&[CANARY; 0x1000], buffers).unwrap();
    memory
}

/// Does something at its first read, and gives sevens.
struct Source<F> {
    first: Option<F>,
    reads: Arc<AtomicU32>,
}

impl<F: FnOnce() + Send> Read for Source<F> {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if let Some(first) = self.first.take() {
            first();
        }
        data.fill(7);
        Ok(data.len())
    }
}

/// A device whose guest memory is an `M`.
struct Machine<F> {
    device: EntropyDevice<Source<F>, LoopHandle, Arc<RngCounters>>,
    workers: StepLoop,
    session: Session,
    queue: ActiveQueue,
    counters: Arc<RngCounters>,
    reads: Arc<AtomicU32>,
}

impl<F: FnOnce() + Send + 'static> Machine<F> {
    fn new<M>(
        memory: M,
        driver: &DriverQueue<'_, Plain>,
        features: Features,
        prompt: bool,
        interrupt: Arc<dyn Interrupt>,
        first: F,
    ) -> Self
    where
        M: GuestAddressSpace + Send + 'static,
    {
        let (workers, reads) = (StepLoop::new().unwrap(), Arc::<AtomicU32>::default());
        let counters = Arc::new(RngCounters::default());
        let source = Source {
            first: Some(first),
            reads: reads.clone(),
        };
        let mut device = EntropyDevice::with_observer(source, workers.handle(), counters.clone());
        if prompt {
            device = device.with_prompt_source();
        }
        let (session, activation) = lend(interrupt, memory, driver.layout(), features);
        let queue = activation.queues[0].clone();
        device.activate(activation).unwrap();
        Self {
            device,
            workers,
            session,
            queue,
            counters,
            reads,
        }
    }

    fn activate<M>(&mut self, memory: M, driver: &DriverQueue<'_, Plain>)
    where
        M: GuestAddressSpace + Send + 'static,
    {
        let counts = Arc::<Counts>::default();
        let (session, activation) = lend(counts, memory, driver.layout(), Features::NONE);
        self.queue = activation.queues[0].clone();
        self.device.activate(activation).unwrap();
        self.session = session;
    }

    fn notify(&mut self) -> bool {
        self.queue.kick.write(1).unwrap();
        self.workers.step();
        !self.session.is_broken()
    }

    fn reads(&self) -> u32 {
        self.reads.load(Ordering::SeqCst)
    }
}

#[test]
fn a_region_taken_away_during_a_request_is_missed_by_the_next_one_only() {
    for prompt in [false, true] {
        for range in [RINGS, BUFFERS] {
            let all = plain();
            let len = range.end - range.start;
            let (rest, _) = all.remove_region(GuestAddress(range.start), len).unwrap();
            let memory = GuestMemoryAtomic::new(all.clone());
            let view = memory.clone();
            let take = move || view.lock().unwrap().replace(rest);
            let counts = Arc::<Counts>::default();
            let mut driver = DriverQueue::new(&all, RINGS.start, QUEUE_SIZE);
            driver.offer_writable(0, BUFFERS.start, 8);
            let mut machine = Machine::new(
                memory.clone(),
                &driver,
                Features::NONE,
                prompt,
                counts.clone(),
                take,
            );
            // The request under way is served in the memory that it began in.
            assert!(machine.notify());
            assert_eq!(driver.take_used(), [(0, 8)]);
            assert_eq!(first_bytes(&all), [7, 7, 7, 7, 7, 7, 7, 7, CANARY]);

            driver.offer_writable(1, BUFFERS.start, 8);
            if range == BUFFERS {
                assert!(machine.notify());
                assert_eq!(driver.take_used(), [(1, 0)]);
                assert_eq!(machine.counters.malformed(), 1);
                assert!(!machine.session.is_broken());
            } else {
                assert!(!machine.notify() && !machine.notify());
                assert_eq!(driver.take_used(), []);
                assert!(machine.counters.broken_rings() > 0);
                assert!(machine.session.is_broken());
                assert_eq!(counts.config.load(Ordering::SeqCst), 1);
            }
            assert_eq!(machine.reads(), 1);

            // With its memory back, and after a reset, the device works.
            memory.lock().unwrap().replace(all.clone());
            machine.session.revoke();
            VirtioDevice::<GuestMemoryAtomic<Plain>>::reset(&mut machine.device);
            let mut driver = DriverQueue::new(&all, RINGS.start, QUEUE_SIZE);
            machine.activate(memory, &driver);
            driver.offer_writable(5, BUFFERS.start, 3);
            assert!(machine.notify());
            assert_eq!(driver.take_used(), [(5, 3)]);
        }
    }
}

fn first_bytes(memory: &Plain) -> [u8; 9] {
    let mut bytes = [0; 9];
    let buffer = GuestAddress(BUFFERS.start);
    memory.read_slice(&mut bytes, buffer).unwrap();
    bytes
}

/// Memory behind an IOMMU, of which a part can go away at any time.
struct Iommu {
    plain: Plain,
    gone: Arc<Mutex<Range<u64>>>,
}

impl Iommu {
    fn has(&self, addr: GuestAddress, count: usize) -> bool {
        let gone = self.gone.lock().unwrap();
        addr.0 >= gone.end || addr.0 + count as u64 <= gone.start
    }
}

impl GuestMemory for Iommu {
    type PhysicalMemory = Plain;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.has(addr, count) && GuestMemory::check_range(&self.plain, addr, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>> {
        if !self.has(addr, count) {
            return Err(Error::InvalidGuestAddress(addr));
        }
        GuestMemory::get_slices(&self.plain, addr, count, access)
    }
}

#[test]
fn memory_unmapped_during_a_draw_is_not_written_and_nothing_is_claimed() {
    let rings = *DriverQueue::new(&plain(), RINGS.start, QUEUE_SIZE).setup();
    let second = BUFFERS.start + 0x100;
    // What goes away, and whether the driver finds its request answered, or a broken device.
    let cases = [
        (BUFFERS, true),
        (second..second + 1, true),
        (rings.used_ring..RINGS.end, false),
        (rings.avail_ring..rings.used_ring, false),
    ];
    for prompt in [false, true] {
        for (range, answered) in cases.clone() {
            let gone = Arc::new(Mutex::new(0..0));
            let memory = Arc::new(Iommu {
                plain: plain(),
                gone: gone.clone(),
            });
            let mut driver = DriverQueue::new(&memory.plain, RINGS.start, QUEUE_SIZE);
            let chained = VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_NEXT;
            driver.descriptor(0, BUFFERS.start, 4, chained, 1);
            driver.descriptor(1, second, 4, VIRTQ_DESC_F_WRITE, 0);
            driver.offer(0);
            let counts = Arc::<Counts>::default();
            let unmapped = range.clone();
            let take = move || *gone.lock().unwrap() = unmapped;
            let mut machine = Machine::new(
                memory.clone(),
                &driver,
                Features::NONE,
                prompt,
                counts.clone(),
                take,
            );
            assert_eq!(machine.notify(), answered, "{range:x?}");
            assert_eq!(machine.reads(), 1);
            assert_eq!(machine.session.is_broken(), !answered);
            assert_eq!(counts.config.load(Ordering::SeqCst), u32::from(!answered));
            let used = driver.take_used();
            if answered {
                assert_eq!(used, [(0, 0)]);
                assert_eq!(machine.counters.malformed(), 1);
            } else if range.start == rings.used_ring {
                assert_eq!(used, []);
            }
            if range == BUFFERS {
                assert_eq!(first_bytes(&memory.plain), [CANARY; 9]);
            }
        }
    }
}

/// What the device does that somebody else may see, in the order in which it does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    WritesBuffer,
    WritesElement,
    WritesIndex,
    AsksForTheWish,
    Interrupts,
}

struct Line(Arc<Mutex<Vec<Deed>>>);

impl Interrupt for Line {
    fn used_buffers(&self, _queue: u16) {
        self.0.lock().unwrap().push(Deed::Interrupts);
    }

    fn config_interrupt(&self) {}
}

#[test]
fn a_request_is_published_buffer_first_index_last() {
    use Deed::{AsksForTheWish, Interrupts, WritesBuffer, WritesElement, WritesIndex};
    for features in [Features::NONE, Features::of(&[VIRTIO_F_EVENT_IDX])] {
        let memory = Arc::new(WatchedMemory::new(plain()));
        let mut driver = DriverQueue::new(memory.plain(), RINGS.start, QUEUE_SIZE);
        let rings = *driver.setup();
        let deeds = Arc::<Mutex<Vec<Deed>>>::default();
        let line = Arc::new(Line(deeds.clone()));
        let mut machine = Machine::new(memory.clone(), &driver, features, false, line, || ());
        let wish = if features == Features::NONE {
            rings.avail_ring
        } else {
            rings.avail_ring + 4 + 2 * u64::from(QUEUE_SIZE)
        };
        let elements = rings.used_ring + 4..rings.used_ring + 4 + 8 * u64::from(QUEUE_SIZE);
        let list = deeds.clone();
        memory.watch(move |_, access| {
            let deed = match (access.addr, access.write) {
                (addr, true) if BUFFERS.contains(&addr) => WritesBuffer,
                (addr, true) if elements.contains(&addr) => WritesElement,
                (addr, true) if addr == rings.used_ring + 2 => WritesIndex,
                (addr, false) if addr == wish => AsksForTheWish,
                _ => return,
            };
            list.lock().unwrap().push(deed);
        });
        let chained = VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_NEXT;
        driver.descriptor(0, BUFFERS.start, 4, chained, 1);
        driver.descriptor(1, BUFFERS.start + 8, 4, VIRTQ_DESC_F_WRITE, 0);
        driver.offer(0);
        driver.offer_writable(2, BUFFERS.start, 8);
        assert!(machine.notify());
        // The identifier and the length of an element are two writes.
        let first = [
            WritesBuffer,
            WritesBuffer,
            WritesElement,
            WritesElement,
            WritesIndex,
        ];
        let end = [AsksForTheWish, Interrupts];
        let expected = [&first[..], &first[1..], &end].concat();
        assert_eq!(*deeds.lock().unwrap(), expected, "{features:#x}");
        assert_eq!(driver.take_used(), [(0, 8), (2, 8)]);
    }
}

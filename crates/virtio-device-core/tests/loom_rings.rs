// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver and a device at the two ends of one queue, in every order that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --manifest-path loom/Cargo.toml`

#![cfg(loom)]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test stops at the unexpected"
)]

use std::sync::Arc;

use loom::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
use loom::thread;
use virtio_conformance::{DriverQueue, VIRTQ_DESC_F_WRITE};
use virtio_device_core::{
    Chain, Features, QueuePart, RingCache, RingMemory, VIRTIO_F_EVENT_IDX, Virtqueue,
};
use vm_memory::{AtomicAccess, ByteValued, GuestAddress, GuestMemoryMmap};

type Memory = GuestMemoryMmap<()>;

/// A queue of one descriptor.
const SIZE: u16 = 1;
const BUFFER: u64 = 0x800;
const LEN: u32 = 77;
const SECRET: u32 = 0x1234_5678;

/// The memory that both ends share. The driver's accesses have exactly the orders that a driver
/// needs, and the device's those that the queue asks for.
#[derive(Default)]
struct Shared {
    descriptor: [AtomicU64; 2],
    avail_flags: AtomicU16,
    avail_index: AtomicU16,
    used_event: AtomicU16,
    used_flags: AtomicU16,
    used_index: AtomicU16,
    used_id: AtomicU32,
    used_len: AtomicU32,
    avail_event: AtomicU16,
    /// What the device is asked for.
    buffer: AtomicU32,
}

/// [`Shared`] as the device reaches it.
struct Rings {
    /// Never looked at: every field is known.
    memory: Memory,
    shared: Arc<Shared>,
}

fn to<T: ByteValued>(bytes: &[u8]) -> T {
    let mut value = T::zeroed();
    value.as_mut_slice().copy_from_slice(bytes);
    value
}

impl RingMemory for Rings {
    fn memory(&self) -> &Memory {
        &self.memory
    }
}

impl RingCache for Rings {
    type Memory = Memory;
    type Bitmap = ();

    fn known_load<T: AtomicAccess>(
        &self,
        part: QueuePart,
        offset: usize,
        order: Ordering,
    ) -> Option<T> {
        let value = match (part, offset) {
            (QueuePart::AvailRing, 0) => self.shared.avail_flags.load(order),
            (QueuePart::AvailRing, 2) => self.shared.avail_index.load(order),
            // The only head there is.
            (QueuePart::AvailRing, 4) => 0,
            (QueuePart::AvailRing, 6) => self.shared.used_event.load(order),
            _ => panic!("no field to load: {part:?} {offset}"),
        };
        Some(to(&value.to_le_bytes()))
    }

    fn known_store<T: AtomicAccess>(
        &self,
        part: QueuePart,
        offset: usize,
        value: T,
        order: Ordering,
    ) -> bool {
        assert_eq!(part, QueuePart::UsedRing);
        let bytes = value.as_slice();
        let short = || u16::from_le_bytes(bytes.try_into().unwrap());
        let long = || u32::from_le_bytes(bytes.try_into().unwrap());
        match offset {
            0 => self.shared.used_flags.store(short(), order),
            2 => self.shared.used_index.store(short(), order),
            4 => self.shared.used_id.store(long(), order),
            8 => self.shared.used_len.store(long(), order),
            12 => self.shared.avail_event.store(short(), order),
            _ => panic!("no field to store: {offset}"),
        }
        true
    }

    fn known_read<T: ByteValued>(&self, part: QueuePart, offset: usize) -> Option<T> {
        assert_eq!((part, offset), (QueuePart::DescTable, 0));
        let halves = self.shared.descriptor.each_ref();
        let halves = halves.map(|half| half.load(Ordering::Relaxed).to_le_bytes());
        Some(to(halves.as_flattened()))
    }
}

impl Shared {
    /// Makes the only chain available.
    fn offer(&self) {
        let rest = u64::from(LEN) | u64::from(VIRTQ_DESC_F_WRITE) << 32;
        self.descriptor[0].store(BUFFER, Ordering::Relaxed);
        self.descriptor[1].store(rest, Ordering::Relaxed);
        self.avail_index.store(1, Ordering::Release);
    }

    /// Whether the device wants to be notified of the chain that was offered.
    fn wants_notification(&self, features: Features) -> bool {
        fence(Ordering::SeqCst);
        if features.has(VIRTIO_F_EVENT_IDX) {
            self.avail_event.load(Ordering::Relaxed) == 0
        } else {
            self.used_flags.load(Ordering::Relaxed) == 0
        }
    }

    /// Asks for interrupts, and returns whether a chain has been given back already.
    fn enable_interrupts(&self) -> bool {
        self.avail_flags.store(0, Ordering::Relaxed);
        self.used_event.store(0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.used_index.load(Ordering::Acquire) == 1
    }
}

/// The two ways to give a chain back.
#[derive(Clone, Copy, Debug)]
enum Complete {
    Single,
    Group,
}

const WAYS: [Complete; 2] = [Complete::Single, Complete::Group];

/// The device's end.
struct Device {
    way: Complete,
    rings: Rings,
    queue: Virtqueue,
    chain: Chain,
}

impl Device {
    /// Takes the only chain, if it is there yet.
    fn serve(&mut self) -> bool {
        let taken = self.queue.take(&self.rings, &mut self.chain).unwrap();
        let Some(head) = taken else {
            return false;
        };
        // The descriptor is there as well.
        let seen: Vec<_> = self
            .chain
            .writable()
            .map(|(addr, len)| (addr.0, len))
            .collect();
        assert_eq!(seen, [(BUFFER, LEN)]);
        self.rings.shared.buffer.store(SECRET, Ordering::Relaxed);
        let completed = match self.way {
            Complete::Single => self.queue.complete(&self.rings, head, LEN),
            Complete::Group => self.queue.complete_all(&self.rings, [(head, LEN)]),
        };
        completed.unwrap();
        true
    }
}

fn pair(features: Features, way: Complete) -> (Arc<Shared>, Device) {
    let memory = Memory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let layout = DriverQueue::new(&memory, 0, SIZE).layout();
    let shared = Arc::<Shared>::default();
    let device = Device {
        way,
        rings: Rings {
            memory,
            shared: shared.clone(),
        },
        queue: Virtqueue::new(layout, features),
        chain: Chain::with_capacity(SIZE),
    };
    (shared, device)
}

#[test]
fn who_sees_the_used_index_sees_the_element_and_the_buffer() {
    for way in WAYS {
        loom::model(move || {
            let (shared, mut device) = pair(Features::NONE, way);
            shared.offer();
            let worker = thread::spawn(move || assert!(device.serve()));
            if shared.used_index.load(Ordering::Acquire) == 1 {
                assert_eq!(shared.used_id.load(Ordering::Relaxed), 0);
                assert_eq!(shared.used_len.load(Ordering::Relaxed), LEN);
                assert_eq!(shared.buffer.load(Ordering::Relaxed), SECRET);
            }
            worker.join().unwrap();
        });
    }
}

#[test]
fn who_sees_the_available_index_sees_the_chain() {
    loom::model(|| {
        let (shared, mut device) = pair(Features::NONE, Complete::Single);
        let worker = thread::spawn(move || device.serve());
        shared.offer();
        worker.join().unwrap();
    });
}

#[test]
fn a_device_that_goes_to_sleep_is_notified_or_has_seen_the_chain() {
    for features in [Features::NONE, Features::of(&[VIRTIO_F_EVENT_IDX])] {
        loom::model(move || {
            let (shared, mut device) = pair(features, Complete::Single);
            // While a device is awake it does not want to be told.
            shared.avail_event.store(0x8000, Ordering::Relaxed);
            shared.used_flags.store(1, Ordering::Relaxed);
            let worker = thread::spawn(move || {
                device.serve() || device.queue.enable_notification(&device.rings).unwrap()
            });
            shared.offer();
            let notified = shared.wants_notification(features);
            assert!(worker.join().unwrap() || notified, "{features:#x}");
        });
    }
}

/// When a device enables notifications, which executes a fence as well.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Enables {
    Never,
    Before,
    After,
}

#[test]
fn a_driver_that_goes_to_sleep_is_interrupted_or_has_seen_the_used_chain() {
    for features in [Features::NONE, Features::of(&[VIRTIO_F_EVENT_IDX])] {
        for way in WAYS {
            for enables in [Enables::Never, Enables::Before, Enables::After] {
                loom::model(move || goes_to_sleep(features, way, enables));
            }
        }
    }
}

fn goes_to_sleep(features: Features, way: Complete, enables: Enables) {
    let (shared, mut device) = pair(features, way);
    shared.offer();
    // While a driver is awake it does not want to be told.
    shared.avail_flags.store(1, Ordering::Relaxed);
    shared.used_event.store(0x8000, Ordering::Relaxed);
    let worker = thread::spawn(move || {
        // This fence does not order a used index that is published later.
        if enables == Enables::Before {
            assert!(device.queue.enable_notification(&device.rings).unwrap());
        }
        assert!(device.serve());
        if enables == Enables::After {
            assert!(!device.queue.enable_notification(&device.rings).unwrap());
        }
        device.queue.needs_interrupt(&device.rings).unwrap()
    });
    let seen = shared.enable_interrupts();
    let interrupted = worker.join().unwrap();
    assert!(interrupted || seen, "{features:#x} {way:?} {enables:?}");
}

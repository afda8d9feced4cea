// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a driver asks for, and the driver.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_conformance::{DriverQueue, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use virtio_device_core::transport::{Interrupt, QueueLayout, QueueSetup, Session};
use virtio_device_core::{Activation, ConfigNotifier, Features, Virtqueue};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(crate) type Memory = Arc<GuestMemoryMmap<()>>;

const QUEUE_SIZE: u16 = 256;
/// Requests that the driver has prepared, and the descriptors of each.
pub(crate) const REQUESTS: u16 = 64;
const DESCRIPTORS: u16 = 3;
const RINGS: u64 = 0x1000;
pub(crate) const HEADERS: u64 = 0x8000;
pub(crate) const BUFFERS: u64 = 0x10_0000;
/// Length of the file: more than most processors' caches.
pub(crate) const FILE: u64 = 64 << 20;
/// The driver can flush, so writes need not be stable at once.
const CAN_FLUSH: u32 = 9;

/// What a driver asks for.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) write: bool,
    /// Bytes.
    pub(crate) len: u32,
    /// Requests for each notification.
    pub(crate) depth: u16,
    /// Queues, each with a thread of its own if there are several.
    pub(crate) queues: u16,
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

pub(crate) const SMALL: u32 = 4 << 10;
pub(crate) const LARGE: u32 = 128 << 10;

pub(crate) const SHAPES: [Shape; 10] = [
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
pub(crate) struct Driver {
    pub(crate) memory: Memory,
    pub(crate) setup: QueueSetup,
    pub(crate) kick: EventFd,
    pub(crate) index: u16,
    pub(crate) shape: Shape,
}

impl Driver {
    pub(crate) fn new(shape: Shape) -> Self {
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
    pub(crate) fn lend(&self) -> (Session, Activation<Memory>) {
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
    pub(crate) fn offer(&mut self) {
        self.index = self.index.wrapping_add(self.shape.depth);
        let addr = GuestAddress(self.setup.avail_ring + 2);
        self.memory
            .store(self.index, addr, Ordering::Release)
            .unwrap();
    }

    pub(crate) fn is_served(&self) -> bool {
        let addr = GuestAddress(self.setup.used_ring + 2);
        let used: u16 = self.memory.load(addr, Ordering::Acquire).unwrap();
        used == self.index
    }

    pub(crate) fn check(&self) {
        let status: u8 = self.memory.read_obj(GuestAddress(HEADERS + 16)).unwrap();
        assert_eq!(status, 0, "a request has failed");
    }
}

struct Nobody;

impl Interrupt for Nobody {
    fn used_buffers(&self, _queue: u16) {}

    fn config_interrupt(&self) {}
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Shape 5: I/O straight into guest memory, without a copy and without a lock held: reset, pause and
//! drop wait for it, or stay pending.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use virtio_conformance::reg;
use virtio_device_core::{
    Activation, ActiveQueue, Chain, Context, DeviceFault, Head, InFlight, Progress, QueueHandler,
    RingFault, VirtioDevice,
};
use vm_memory::ReadVolatile;

use crate::support::{Guest, Memory, Plain, QUEUE_SIZE, Shape, ordeal, thread, wait};

struct Submit {
    memory: Memory,
    file: Arc<UnixStream>,
    begun: Arc<AtomicU32>,
}

impl QueueHandler for Submit {
    fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let Some(active) = cx.queue(queue) else {
            return Ok(Progress::Idle);
        };
        let looked = active.lease.with(|ring| {
            let mut chain = Chain::with_capacity(QUEUE_SIZE);
            let Some(head) = ring.take(&*self.memory, &mut chain)? else {
                return Ok(Progress::Idle);
            };
            let Ok(in_flight) = active.lease.hold() else {
                ring.put_back(head); // a pause has begun
                return Ok(Progress::Idle);
            };
            let (memory, file, active) = (self.memory.clone(), self.file.clone(), active.clone());
            self.begun.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || transfer(&memory, &file, &chain, head, &in_flight, &active));
            Ok::<_, RingFault>(Progress::More)
        });
        Ok(looked.unwrap_or(Ok(Progress::Idle))?)
    }
}

/// Reads into guest memory for as long as that takes, and holds no lock meanwhile.
fn transfer(
    memory: &Memory,
    mut file: &UnixStream,
    chain: &Chain,
    head: Head,
    in_flight: &InFlight,
    active: &ActiveQueue,
) {
    let slices = chain
        .writable_slices(&**memory)
        .collect::<Result<Vec<_>, _>>();
    let mut len = 0;
    for mut slice in slices.unwrap_or_default() {
        len += file.read_volatile(&mut slice).unwrap_or(0);
    }
    // Fails if nobody wants it any more.
    let _ = in_flight.with(|ring| {
        let completed = ring.complete(&**memory, head, len as u32);
        if completed.is_ok() && ring.needs_interrupt(&**memory) == Ok(true) {
            active.signal_used();
        }
    });
}

struct IoStraightIntoGuestMemory {
    far: UnixStream,
    near: Arc<UnixStream>,
    /// Requests that were in flight at one time or another.
    begun: Arc<AtomicU32>,
    next: u8,
}

impl IoStraightIntoGuestMemory {
    fn new() -> Self {
        let (far, near) = UnixStream::pair().unwrap();
        Self {
            far,
            near: Arc::new(near),
            begun: Arc::default(),
            next: 0,
        }
    }

    /// A request that hangs until the host says something.
    fn hang(&self, guest: &mut Guest<Box<dyn VirtioDevice<Memory>>>) {
        let before = self.begun.load(Ordering::SeqCst);
        guest.offer_writable(0, 0, 3);
        wait("the request to be in flight", || {
            self.begun.load(Ordering::SeqCst) != before
        });
    }
}

impl Shape for IoStraightIntoGuestMemory {
    type Device = Box<dyn VirtioDevice<Memory>>;

    fn device(&mut self) -> Self::Device {
        let (file, begun) = (self.near.clone(), self.begun.clone());
        let mut executor = thread();
        let activate = move |activation: Activation<Memory>| {
            activation.serve(&mut executor, |memory| Submit {
                memory,
                file: file.clone(),
                begun: begun.clone(),
            })
        };
        Box::new(Plain {
            queues: &[QUEUE_SIZE],
            activate,
        })
    }

    fn begin(&mut self, guest: &mut Guest<Self::Device>) {
        self.next = self.next.wrapping_add(1);
        self.far.write_all(&[self.next; 3]).unwrap();
        guest.offer_writable(0, 0, 3);
    }

    fn finish(&mut self, guest: &mut Guest<Self::Device>) {
        assert_eq!(guest.used(0, 1), [(0, 3)]);
        assert_eq!(guest.bytes(0, 0, 3), [self.next; 3]);
    }

    fn abandon(&mut self) {
        // What was not read is still there.
        self.near.set_nonblocking(true).unwrap();
        while (&*self.near)
            .read(&mut [0; 64])
            .is_ok_and(|count| count != 0)
        {}
        self.near.set_nonblocking(false).unwrap();
    }
}

#[test]
fn io_straight_into_guest_memory() {
    ordeal(IoStraightIntoGuestMemory::new());
}

#[test]
fn a_reset_stays_pending_while_io_is_in_flight_and_is_final_afterwards() {
    let mut shape = IoStraightIntoGuestMemory::new();
    let mut guest = Guest::new(shape.device()).bound(Duration::from_millis(1));
    guest.start();
    // The host says nothing, and the request hangs: so does the reset, but not the vCPU.
    shape.hang(&mut guest);
    guest.set(reg::STATUS, 0);
    assert_eq!(guest.status(), 0x40);
    for status in [1, 3, 11, 15, 128, 0] {
        guest.set(reg::STATUS, status);
        assert_eq!(guest.status(), 0x40, "{status} was taken");
    }
    guest.transport.save().unwrap_err();
    shape.far.write_all(b"abc").unwrap();
    wait("the end of the reset", || guest.status() == 0);
    guest.settled();
    assert!(guest.queues[0].take_used().is_empty());
    guest.start();
    crate::support::exchange(&mut shape, &mut guest);
}

#[test]
fn a_pause_waits_for_io_in_flight_and_completes_it() {
    let mut shape = IoStraightIntoGuestMemory::new();
    let mut guest = Guest::new(shape.device()).bound(Duration::from_millis(1));
    guest.start();
    shape.hang(&mut guest);
    assert!(guest.transport.pause().is_err());
    guest.transport.save().unwrap_err();
    shape.far.write_all(b"abc").unwrap();
    wait("the pause", || guest.transport.pause().is_ok());
    assert_eq!(guest.queues[0].take_used(), [(0, 3)]);
    assert_eq!(guest.bytes(0, 0, 3), b"abc");
    let state = guest.transport.save().unwrap();
    let progress = state.queues[0].progress.as_ref().unwrap();
    assert_eq!(progress.taken.len(), 0);
}

#[test]
fn the_reset_of_a_queue_stays_pending_while_its_io_is_in_flight() {
    let mut shape = IoStraightIntoGuestMemory::new();
    let mut guest = Guest::new(shape.device()).bound(Duration::from_millis(1));
    guest.start();
    shape.hang(&mut guest);
    guest.set(reg::QUEUE_SEL, 0);
    guest.set(reg::QUEUE_RESET, 1);
    assert_eq!(
        (guest.get(reg::QUEUE_RESET), guest.get(reg::QUEUE_READY)),
        (1, 1)
    );
    guest.set(reg::QUEUE_READY, 1);
    assert_eq!(guest.get(reg::QUEUE_RESET), 1, "it cannot be enabled yet");
    shape.far.write_all(b"abc").unwrap();
    wait("the end of the reset", || guest.get(reg::QUEUE_RESET) == 0);
    assert_eq!(guest.get(reg::QUEUE_READY), 0);
    guest.restart_queue(0);
    crate::support::exchange(&mut shape, &mut guest);
}

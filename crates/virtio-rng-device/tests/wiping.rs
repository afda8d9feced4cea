// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is left of random bytes in memory that is given back to the allocator. By itself in a file:
//! the allocator is the whole program's.
#![expect(unsafe_code, reason = "an allocator looks at what it gets back")]
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use virtio_conformance::DriverQueue;
use virtio_device_core::{
    ConfigNotifier, Features, StepLoop, VirtioDevice, Virtqueue,
    transport::{Interrupt, Session},
};
use virtio_rng_device::{EntropyDevice, MAX_REQUEST, QUEUE_SIZE};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Blocks as large as the room for a request that were given back, and the bytes in them that were
/// not zero.
static BLOCKS: AtomicUsize = AtomicUsize::new(0);
static LEFT: AtomicUsize = AtomicUsize::new(0);

struct Looks;

// SAFETY: the system's allocator does all of it.
unsafe impl GlobalAlloc for Looks {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // Nothing else is as large and aligned like that.
        if layout.size() == MAX_REQUEST && layout.align() == 64 {
            // SAFETY: the block has this size, was initialised by its owner, and is nobody's any more.
            let bytes = unsafe { std::slice::from_raw_parts(block, layout.size()) };
            let left = bytes.iter().filter(|&&byte| byte != 0).count();
            LEFT.fetch_add(left, Ordering::SeqCst);
            BLOCKS.fetch_add(1, Ordering::SeqCst);
        }
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(block, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Looks = Looks;

struct Quiet;

impl Interrupt for Quiet {
    fn used_buffers(&self, _queue: u16) {}

    fn config_interrupt(&self) {}
}

/// Pauses the device during a draw, so that nobody takes what was drawn.
struct Pauses(Arc<Mutex<Option<Session>>>);

impl Read for Pauses {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        self.0.lock().unwrap().as_ref().unwrap().pause();
        data.fill(0x77);
        Ok(data.len())
    }
}

#[test]
fn no_random_byte_outlives_the_worker_that_drew_it() {
    let memory =
        Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x4_0000)]).unwrap());
    let mut driver = DriverQueue::new(&*memory, 0, QUEUE_SIZE);
    let (session, mut workers) = (Arc::default(), StepLoop::new().unwrap());
    let mut device = EntropyDevice::new(Pauses(Arc::clone(&session)), workers.handle());
    let queue = Virtqueue::new(driver.layout(), Features::NONE);
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let config = ConfigNotifier::new(Arc::new(Quiet));
    let (lent, activation) = Session::new(
        &config,
        memory.clone(),
        Features::NONE,
        [(0, kick.clone(), Some(queue))],
        false,
    );
    *session.lock().unwrap() = Some(lent);
    device.activate(activation).unwrap();
    driver.offer_writable(0, 0x1_0000, 64);
    kick.write(1).unwrap();
    let _ = (0..10).all(|_| workers.step());
    assert_eq!(driver.take_used(), [], "it is paused, with bytes in hand");

    session.lock().unwrap().take().unwrap().revoke();
    let _ = (0..10).all(|_| workers.step());
    assert_eq!(BLOCKS.load(Ordering::SeqCst), 1);
    assert_eq!(LEFT.load(Ordering::SeqCst), 0);
}

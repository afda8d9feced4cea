// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An entropy device in a loop of one's own, without a thread, limited and counted:
//! `cargo run -p virtio-rng-device --example own_loop`
//!
//! The driver's side, which is a guest's as a rule, is played by the test helpers of
//! `virtio-device-core`.

use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use virtio_conformance::DriverQueue;
use virtio_device_core::{
    Activation, ActiveQueue, Executor, Features, Interrupt, InterruptHandle, QueueLease,
    RunningWorker, VirtioDevice, Virtqueue, Worker,
};
use virtio_rng_device::{KernelEntropy, QUEUE_SIZE, RateLimit, Rng, RngCounters};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const BUFFER: u64 = 0x1_0000;

/// Where the loop finds the worker of a device that is active.
#[derive(Clone, Default)]
struct Slot(Arc<Mutex<Option<Worker>>>);

impl Executor for Slot {
    fn start(&mut self, worker: Worker) -> io::Result<Box<dyn RunningWorker>> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(worker);
        Ok(Box::new(self.clone()))
    }
}

impl RunningWorker for Slot {
    fn stop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Says so when the device interrupts.
struct Line;

impl Interrupt for Line {
    fn used_buffers(&self, queue: u16) {
        println!("interrupt: queue {queue} has used buffers");
    }

    fn config_changed(&self) {}

    fn status_changed(&self) {
        println!("interrupt: the device needs a reset");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let slot = Slot::default();
    let counters = Arc::new(RngCounters::default());
    let mut rng = Rng::with_observer(KernelEntropy, slot.clone(), counters.clone());
    // 100 bytes at once, and 1000 bytes per second from then on.
    rng.limits().set(RateLimit::new(1000, 100), None);

    // What a transport does when the driver is ready.
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x2_0000)])?;
    let memory = Arc::new(memory);
    let mut driver = DriverQueue::new(&*memory, 0, QUEUE_SIZE);
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK)?);
    let queue = QueueLease::new(Virtqueue::new(driver.layout(), Features::NONE));
    let queues = vec![ActiveQueue::new(0, queue, kick.clone())];
    let interrupt = InterruptHandle::new(Arc::new(Line));
    rng.activate(Activation::new(
        memory.clone(),
        queues,
        Features::NONE,
        interrupt,
    ))?;

    // What the driver does: three requests of 64 bytes, one notification.
    for index in 0..3 {
        driver.offer_writable(index, BUFFER + 64 * u64::from(index), 64);
    }
    kick.write(1)?;

    // The loop. A real one would wait for the event fd and for the time at once.
    let mut worker = slot.0.lock().unwrap_or_else(PoisonError::into_inner);
    let worker = worker.as_mut().ok_or("the device is not active")?;
    let mut alive = worker.notified(0);
    while let (true, Some(wait)) = (alive, worker.wait()) {
        println!("the rate limit makes the driver wait for {wait:?}");
        std::thread::sleep(wait);
        alive = worker.expired();
    }

    let mut bytes = [0; 3 * 64];
    memory.read_slice(&mut bytes, GuestAddress(BUFFER))?;
    println!("{bytes:02x?}");
    println!("{counters:?}");
    Ok(())
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An entropy device in a loop of one's own, without a thread, limited and counted:
//! `cargo run -p virtio-rng-device --example own_loop`
//!
//! The driver's side, which is a guest's as a rule, is played by `virtio-conformance`.

use std::error::Error;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use virtio_conformance::DriverQueue;
use virtio_device_core::{
    ConfigNotifier, Features, VirtioDevice, Virtqueue, WorkerLoop,
    transport::{Interrupt, Session},
};
use virtio_rng_device::{EntropyDevice, KernelEntropy, QUEUE_SIZE, RateLimit, RngCounters};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const BUFFER: u64 = 0x1_0000;

/// Says so when the device interrupts.
struct Line;

impl Interrupt for Line {
    fn used_buffers(&self, queue: u16) {
        println!("interrupt: queue {queue} has used buffers");
    }

    fn config_interrupt(&self) {
        println!("interrupt: the device needs a reset");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut workers = WorkerLoop::new()?;
    let counters = Arc::new(RngCounters::default());
    let mut rng = EntropyDevice::with_observer(KernelEntropy, workers.handle(), counters.clone());
    // 100 bytes at once, and 1000 bytes per second from then on.
    rng.limits().set(RateLimit::new(1000, 100), None);

    // What a transport does when the driver is ready.
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x2_0000)])?;
    let memory = Arc::new(memory);
    let mut driver = DriverQueue::new(&*memory, 0, QUEUE_SIZE);
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK)?);
    let queue = (
        0,
        kick.clone(),
        Some(Virtqueue::new(driver.layout(), Features::NONE)),
    );
    let config = ConfigNotifier::new(Arc::new(Line));
    let (session, activation) =
        Session::new(&config, memory.clone(), Features::NONE, [queue], false);
    rng.activate(activation)?;

    // What the driver does: three requests of 64 bytes, one notification.
    for index in 0..3 {
        driver.offer_writable(index, BUFFER + 64 * u64::from(index), 64);
    }
    kick.write(1)?;

    // The loop. A real one watches the rest of the VMM as well.
    let epoll = Epoll::new()?;
    let readable = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, workers.as_raw_fd(), readable)?;
    while driver.used_index() < 3 {
        epoll.wait(-1, &mut [EpollEvent::default()])?;
        workers.dispatch()?;
    }

    let mut bytes = [0; 3 * 64];
    memory.read_slice(&mut bytes, GuestAddress(BUFFER))?;
    println!("{bytes:02x?}");
    println!("{counters:?}");
    // What a transport does at reset, and before it goes away.
    session.revoke();
    Ok(())
}

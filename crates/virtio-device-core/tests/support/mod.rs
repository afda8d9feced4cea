// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An activation without a transport, and a handler that does what the test says.
#![allow(
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    clippy::allow_attributes,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "each test uses a part of it, and stops at the unexpected"
)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use virtio_device_core::vm_memory::{GuestAddress, GuestMemoryMmap};
use virtio_device_core::vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use virtio_device_core::{
    ActiveQueue, ConfigNotifier, Context, DeviceFault, Event, Features, InterruptHandle, Progress,
    QueueHandler, Virtqueue, Worker,
    transport::{Interrupt, QueueLayout, QueueSetup, Session},
    vmm_sys_util::epoll::EventSet,
};

/// Far beyond what a healthy worker takes on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// What the driver and the VMM have been told.
#[derive(Default)]
pub struct Told {
    pub used: AtomicU32,
    pub config: AtomicU32,
    pub events: Mutex<Vec<String>>,
}

impl Interrupt for Told {
    fn used_buffers(&self, _queue: u16) {
        self.used.fetch_add(1, Ordering::SeqCst);
    }

    fn config_interrupt(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }

    fn observe(&self, event: &Event<'_>) {
        self.events.lock().unwrap().push(format!("{event:?}"));
    }
}

/// A virtqueue of 4 descriptors in memory of its own.
pub fn virtqueue() -> Virtqueue {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let setup = QueueSetup::new(4)
        .with_desc_table(0)
        .with_avail_ring(0x100)
        .with_used_ring(0x200);
    let layout = QueueLayout::check(&setup, 4, &memory).unwrap();
    Virtqueue::new(layout, Features::NONE)
}

/// An activation, from both sides.
pub struct Activated {
    pub told: Arc<Told>,
    pub session: Session,
    pub queues: Vec<ActiveQueue>,
    pub interrupt: InterruptHandle,
}

/// An activation with `count` queues; `kicks` are used again if there are any.
pub fn activated_with(kicks: &[Arc<EventFd>]) -> Activated {
    let told = Arc::new(Told::default());
    let config = ConfigNotifier::new(told.clone());
    let queues = (0..)
        .zip(kicks)
        .map(|(index, kick)| (index, kick.clone(), Some(virtqueue())));
    let (session, activation) = Session::new(&config, (), Features::NONE, queues, false);
    Activated {
        told,
        session,
        queues: activation.queues,
        interrupt: activation.interrupt,
    }
}

pub fn kicks(count: usize) -> Vec<Arc<EventFd>> {
    let kick = || Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    std::iter::repeat_with(kick).take(count).collect()
}

pub fn activated(count: usize) -> Activated {
    activated_with(&kicks(count))
}

impl Activated {
    pub fn kick(&self, index: usize) {
        self.queues[index].kick.write(1).unwrap();
    }

    /// A worker for all queues that does what `script` says, for the queue that it is given.
    pub fn worker<F>(&self, script: F) -> Worker
    where
        F: FnMut(u16, &mut Context<'_>) -> Result<Progress, DeviceFault> + Send + 'static,
    {
        Worker::new(Script(script), self.queues.clone(), self.interrupt.clone())
    }

    /// A worker that never has anything to do.
    pub fn idle(&self) -> Worker {
        self.worker(|_, _| Ok(Progress::Idle))
    }
}

/// Does what the test's closure says, once per call.
pub struct Script<F>(pub F);

impl<F> QueueHandler for Script<F>
where
    F: FnMut(u16, &mut Context<'_>) -> Result<Progress, DeviceFault>,
{
    fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        (self.0)(queue, cx)
    }
}

/// A handler of host input: `start` once, and `ready` for each event.
pub struct Input<S, R>(pub S, pub R);

impl<S, R> QueueHandler for Input<S, R>
where
    S: FnMut(&mut Context<'_>) -> Result<(), DeviceFault>,
    R: FnMut(u32, EventSet, &mut Context<'_>) -> Result<Progress, DeviceFault>,
{
    fn process(&mut self, _queue: u16, _cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        Ok(Progress::Idle)
    }

    fn start(&mut self, cx: &mut Context<'_>) -> Result<(), DeviceFault> {
        (self.0)(cx)
    }

    fn ready(
        &mut self,
        source: u32,
        readiness: EventSet,
        cx: &mut Context<'_>,
    ) -> Result<Progress, DeviceFault> {
        (self.1)(source, readiness, cx)
    }
}

pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(1));
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The virtio device model, without any transport.
//!
//! This crate holds what every virtio device and every transport share (VIRTIO 1.3):
//!
//! * [`VirtioDevice`], what a device implements, and [`Activation`], what it is given;
//! * [`DeviceStatus`] and [`Negotiation`], the start-up protocol as a table and a check;
//! * [`QueueLayout`], a queue's place in guest memory, checked as a whole;
//! * [`Virtqueue`] and [`Chain`], a split virtqueue and its descriptor chains, walked strictly;
//! * [`QueueLease`] and [`InterruptHandle`], by which a transport takes both back at reset;
//! * [`QueueHandler`], [`Worker`] and [`Executor`], which keep a device's work apart from the
//!   thread it runs on.
//!
//! What a VMM may want to know about all that reaches it as an [`Event`], through an [`Observer`].
//!
//! A device depends on this crate alone. A VMM puts it behind a transport such as
//! `virtio-mmio-transport`.
//!
//! # For device authors
//!
//! A device is two objects: one that is configured and activated from vCPU threads, and a
//! [`QueueHandler`] that is made at activation and serves the queues. The [`guide`] has a whole
//! block device; this one fills every request with the letter `x`:
//!
//! ```
//! use virtio_device_core::{
//!     ActivateError, Activation, Chain, DeviceFault, Executor, InterruptHandle, Progress,
//!     QueueHandler, QueueLease, RunningWorker, VirtioDevice, Worker,
//! };
//! use vm_memory::GuestAddressSpace;
//!
//! struct Letters<E> {
//!     executor: E,
//!     running: Option<Box<dyn RunningWorker>>,
//! }
//!
//! impl<M, E> VirtioDevice<M> for Letters<E>
//! where
//!     M: GuestAddressSpace + Send + 'static,
//!     E: Executor,
//! {
//!     fn device_type(&self) -> u32 {
//!         4
//!     }
//!
//!     fn queue_max_sizes(&self) -> &[u16] {
//!         &[64]
//!     }
//!
//!     fn activate(&mut self, activation: Activation<M>) -> Result<(), ActivateError> {
//!         let Activation { memory, queues, interrupt, .. } = activation;
//!         let queue = queues.first().ok_or(ActivateError::QueueMissing(0))?.queue.clone();
//!         let chain = Chain::with_capacity(64);
//!         let handler = Handler { memory, queue, interrupt: interrupt.clone(), chain };
//!         let worker = Worker::new(Box::new(handler), queues, interrupt);
//!         self.running = Some(self.executor.start(worker).map_err(ActivateError::Worker)?);
//!         Ok(())
//!     }
//!
//!     fn reset(&mut self) {
//!         self.running = None; // dropping it stops it
//!     }
//! }
//!
//! struct Handler<M> {
//!     memory: M,
//!     queue: QueueLease,
//!     interrupt: InterruptHandle,
//!     chain: Chain,
//! }
//!
//! impl<M: GuestAddressSpace + Send> QueueHandler for Handler<M> {
//!     fn process(&mut self, index: u16) -> Result<Progress, DeviceFault> {
//!         let memory = self.memory.memory();
//!         // Once the queue has been taken back there is nothing to do.
//!         let served = self.queue.with(|queue| {
//!             let Some(head) = queue.take(&*memory, &mut self.chain)? else {
//!                 return Ok(Progress::Idle);
//!             };
//!             // A buffer outside of memory spoils the request, not the ring.
//!             let len = match self.chain.check(&*memory) {
//!                 Ok(()) => self.chain.write(&*memory, b"xxxx").unwrap_or(0),
//!                 Err(_) => 0,
//!             };
//!             queue.complete(&*memory, head, len)?;
//!             if queue.needs_interrupt(&*memory)? {
//!                 self.interrupt.used_buffers(index);
//!             }
//!             Ok(Progress::More)
//!         });
//!         served.unwrap_or(Ok(Progress::Idle))
//!     }
//! }
//! ```

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

// The example of a device names this crate as any other would.
#[cfg(feature = "test-utils")]
extern crate self as virtio_device_core;

mod device;
mod fault;
#[cfg(any(doc, doctest))]
pub mod guide;
mod interrupt;
mod negotiation;
mod observer;
mod queue;
mod sync;
#[cfg(feature = "test-utils")]
pub mod test_utils;
#[cfg(feature = "worker")]
mod thread;
mod worker;

pub use device::{ActivateError, Activation, ActiveQueue, SharedMemoryRegion, VirtioDevice};
pub use fault::{BadRequest, RingFault};
pub use interrupt::{Interrupt, InterruptHandle, InterruptLine, LevelLine};
pub use negotiation::{
    ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, DeviceStatus, FAILED, FEATURES_OK,
    FeatureError, FeatureRule, Features, Negotiation, StatusWrite, VIRTIO_F_ACCESS_PLATFORM,
    VIRTIO_F_EVENT_IDX, VIRTIO_F_IN_ORDER, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_NOTIFICATION_DATA,
    VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1,
};
pub use observer::{Event, EventCounters, EventCounts, Observer};
pub use queue::{
    Buffer, Chain, Head, MAX_QUEUE_SIZE, ProgressError, QueueLayout, QueueLease, QueuePart,
    QueueProgress, QueueSetup, QueueSetupError, Reader, RingMemory, Rings, Virtqueue, Writer,
};
#[cfg(feature = "worker")]
pub use thread::WorkerThread;
pub use worker::{DeviceFault, Executor, Progress, QueueHandler, RunningWorker, Worker};
#[cfg(loom)]
pub use {queue::RingCache, sync::eventfd_edge};

// These appear in this crate's interface; use them from here to get the same versions.
#[cfg(feature = "virtio-queue")]
pub use virtio_queue;
pub use {vm_memory, vmm_sys_util};

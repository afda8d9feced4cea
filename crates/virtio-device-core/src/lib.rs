// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The virtio device model, without any transport.
//!
//! ```console
//! cargo add virtio-device-core
//! # Which the first example uses as well:
//! cargo add vm-memory
//! ```
//!
#![doc = include_str!("../picture.svg")]
//!
//! # Five types for device authors
//!
//! * [`VirtioDevice`] is what a device implements, and [`Activation`] what it is given;
//! * [`QueueHandler`] serves its queues, with a [`Context`] around it;
//! * [`Chain`] is a request: a descriptor chain, walked strictly.
//!
//! A device is two objects: one that is configured and activated from vCPU threads, and a
//! [`QueueHandler`] that is made at activation and works where the VMM's [`Executor`] says. A whole
//! block device is in `virtio_conformance::ramdisk`; this one fills every request with the letter `x`:
//!
//! ```
//! use virtio_device_core::{
//!     Activation, Chain, Context, DeviceFault, Executor, Progress, QueueHandler, VirtioDevice,
//! };
//! use vm_memory::GuestAddressSpace;
//!
//! struct Letters<E> {
//!     executor: E,
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
//!     fn activate(&mut self, activation: Activation<M>) -> Result<(), DeviceFault> {
//!         activation.queue(0)?; // the driver must have enabled it
//!         let handler = |memory| Handler { memory, chain: Chain::with_capacity(64) };
//!         activation.serve(&mut self.executor, handler)
//!     }
//! }
//!
//! struct Handler<M> {
//!     memory: M,
//!     chain: Chain,
//! }
//!
//! impl<M: GuestAddressSpace> QueueHandler for Handler<M> {
//!     fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
//!         let memory = self.memory.memory();
//!         let Some(active) = cx.queue(queue) else { return Ok(Progress::Idle) };
//!         let served = active.lease.with(|queue| {
//!             let Some(head) = queue.take(&*memory, &mut self.chain)? else {
//!                 // Have the driver notify of the next request, which may be there by now.
//!                 let more = queue.enable_notification(&*memory)?;
//!                 return Ok(if more { Progress::More } else { Progress::Idle });
//!             };
//!             // A buffer outside of memory spoils the request, not the ring.
//!             let len = match self.chain.check(&*memory) {
//!                 Ok(()) => self.chain.write(&*memory, b"xxxx").unwrap_or(0),
//!                 Err(_) => 0,
//!             };
//!             queue.complete(&*memory, head, len)?;
//!             if queue.needs_interrupt(&*memory)? {
//!                 active.signal_used();
//!             }
//!             Ok(Progress::More)
//!         });
//!         // While the device is paused, or after reset, there is nothing to do.
//!         served.unwrap_or(Ok(Progress::Idle))
//!     }
//! }
//! ```
//!
//! # What a device can need
//!
//! | a device that ... | uses |
//! |---|---|
//! | is woken by a socket, a tap or a terminal | [`Context::watch`], [`QueueHandler::ready`] |
//! | waits until the host takes more | [`Context::set_interest`] |
//! | waits for time to pass, or keeps a rate limit | [`Progress::After`], [`RateLimits`] |
//! | has a thread for each queue | several [`Worker`]s, a `Vec` of [`WorkerThread`]s |
//! | has requests in flight, or I/O straight into guest memory | [`Lease::hold`], [`Context::watch_in_flight`] |
//! | has the kernel move data between a descriptor and guest memory | `Buffers`, with the feature `vectored-io` |
//! | touches guest memory outside of its queues | [`Activation::lease`] |
//! | has its queues served elsewhere (vhost) | [`VirtioDevice::pause`], [`ActiveQueue::interrupt_fd`], [`Virtqueue::handed_back`] |
//! | has its configuration changed by the host | [`ConfigNotifier`] |
//! | has state of its own to save | [`VirtioDevice::save`], [`DeviceState`] |
//! | runs in the VMM's own loop | [`WorkerLoop`] |
//! | has a handler that is not `Send` | [`Worker::build`] |
//!
//! # For transports
//!
//! A transport shows registers to the driver; everything behind them is in [`transport`].
//! `virtio-mmio-transport` is one.
//!
//! What a VMM may want to know reaches it as an [`Event`], through an [`Observer`].
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | `virtio-queue` | queues are lent to devices that are written against the crate of that name |
//! | `serde` | saved state can be serialised |
//! | `vectored-io` | `Buffers`: the kernel moves data between descriptors and guest memory |
//!
//! # Unsafe code
//!
//! There is none but with the feature `vectored-io`, in the one module that hands guest memory to the kernel
//! by its address. Guest memory must be mapped for as long as it is guest memory, as all but that of Xen is.
//!
//! # Limits
//!
//! * Split queues only: `VIRTIO_F_RING_PACKED` is not offered.
//! * There is no IOMMU: addresses in rings are guest-physical.
//! * Linux, because workers wait for event fds.
//!
//! # Versions
//!
//! | | version |
//! |---|---|
//! | Rust | 1.85 |
//! | [VIRTIO](https://docs.oasis-open.org/virtio/virtio/v1.3/virtio-v1.3.html) | 1.3 |
//! | vm-memory | 0.18, re-exported |
//! | vmm-sys-util | 0.15, re-exported |
//! | virtio-queue | 0.18, re-exported with the feature of that name |
//! | kvm-ioctls | not needed; 0.25 in this family, whose versions agree |
//!
//! # Threat model
//!
//! | the driver | what happens |
//! |---|---|
//! | writes any status, feature or queue value | a table decides; what is not in it changes nothing |
//! | puts a ring outside of memory, misaligned or wrapping | the queue cannot be enabled |
//! | links descriptors in a loop, out of the table, into nested tables | latched fault, `DEVICE_NEEDS_RESET`, nothing written |
//! | names buffers outside of memory | the request is given back with length 0 before a byte moves |
//! | moves the available index by more than the queue | latched fault |
//! | makes a chain available again before it has it back | latched fault |
//! | accepts a feature without the one that it needs | `FEATURES_OK` stays clear |
//! | resets while a worker is busy | the queue is out of the worker's reach when the reset returns |
//! | resets over and over while the backend hangs | at most one stuck thread; the next worker waits for it, and the driver for its requests |
//!
//! # Siblings
//!
//! | crate | what it is |
//! |---|---|
//! | [virtio-mmio-transport](https://docs.rs/virtio-mmio-transport) | the registers of VIRTIO 1.3, section 4.2 |
//! | [virtio-conformance](https://docs.rs/virtio-conformance) | a suite for any virtio device behind any transport |
//! | [virtio-rng-device](https://docs.rs/virtio-rng-device) | a virtio entropy device |
//! | [virtio-console-device](https://docs.rs/virtio-console-device) | a virtio console with several ports |
//! | [virtio-net-device](https://docs.rs/virtio-net-device) | a virtio network device |
//! | [virtio-blk-device](https://docs.rs/virtio-blk-device) | a virtio block device |

#![cfg_attr(not(feature = "vectored-io"), forbid(unsafe_code))]
#![cfg_attr(feature = "vectored-io", deny(unsafe_code))]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod device;
mod fault;
mod gate;
mod interrupt;
mod limits;
mod line;
mod negotiation;
mod observer;
mod panics;
mod queue;
mod session;
mod state;
mod sync;
pub mod transport;
mod worker;

pub use device::{Activation, ActiveQueue, VirtioDevice};
pub use fault::{BadRequest, DeviceFault, RingFault};
pub use interrupt::{ConfigNotifier, InterruptHandle};
pub use limits::{RateLimit, RateLimits};
pub use line::{InterruptLine, edge_line, level_line};
pub use negotiation::{
    Features, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_EVENT_IDX, VIRTIO_F_IN_ORDER,
    VIRTIO_F_INDIRECT_DESC, VIRTIO_F_NOTIFICATION_DATA, VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET,
    VIRTIO_F_VERSION_1,
};
pub use observer::{Event, Observer};
#[cfg(feature = "vectored-io")]
#[cfg_attr(docsrs, doc(cfg(feature = "vectored-io")))]
pub use queue::{Buffers, Vectors};
pub use queue::{
    Chain, ChainStream, Head, InFlight, Lease, MAX_QUEUE_SIZE, RingMemory, Rings, Unavailable,
    Virtqueue,
};
pub use state::{DeviceState, MAX_DEVICE_STATE};
pub use worker::{
    Context, Executor, LoopHandle, Progress, QueueHandler, StepLoop, Worker, WorkerLoop,
    WorkerThread,
};
#[cfg(loom)]
pub use {
    queue::{Lent, QueuePart, RingCache},
    sync::eventfd_edge,
};

// These appear in this crate's interface; use them from here to get the same versions.
#[cfg(feature = "virtio-queue")]
pub use virtio_queue;
pub use {vm_memory, vmm_sys_util};

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio network device (VIRTIO 1.3, section 5.1).
//!
//! [`Net`] is the device; it knows no transport and no hypervisor. Its packets go to and come from a
//! [`Backend`]: a [`Tap`], a [`Stream`] socket (passt, QEMU), another device ([`MemoryLink`]), or
//! whatever implements that small trait.
//!
//! ```
//! use virtio_device_core::WorkerThread;
//! use virtio_net_device::{Net, Stream};
//!
//! # fn net(path: &std::path::Path) -> std::io::Result<()> {
//! let passt = Stream::connect(path)?;
//! let mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
//! let device = Net::new(vec![passt], mac, WorkerThread::named("net")?)?.with_mtu(1500)?;
//! // For when somebody pulls the cable out.
//! let handle = device.handle();
//! handle.set_cable(false);
//! // Now put `device` behind a transport.
//! # Ok(())
//! # }
//! ```
//!
//! # What holds
//!
//! * **Back-pressure in both directions.** Nothing is asked of the host before the driver has a buffer for
//!   it, and what the host does not take stays in the driver's queue. Neither holds a vCPU, and nobody
//!   polls meanwhile: the worker sleeps.
//! * **What was agreed on, and no more.** The header that a driver writes is read once, checked, and
//!   passed on without what has no meaning. A packet of the host's that needs an offload which the driver
//!   has not agreed to does not reach it.
//! * **Packets may be lost, and nothing else.** One that is malformed, too long, or sent without a link is
//!   counted ([`NetHandle::drops`]). A pause, a reset of one queue, saving and restoring double none.
//! * **A back end that fails takes the link down**, and is tried again five times a second. The device
//!   goes on: what the driver sends meanwhile is dropped.
//! * **No copy, no allocation a packet.** The kernel moves packets between a tap and guest memory; one that
//!   is longer than the one before is copied once.
//!
//! # Unsafe code
//!
//! One module has it: what hands guest memory to the kernel by its address. Guest memory must be mapped
//! for as long as it is guest memory, as all but that of Xen is.

#![deny(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod config;
mod control;
mod device;
mod header;
mod observer;
mod raw;
mod settings;
mod shared;
mod worker;

pub use backend::{Backend, MemoryLink, Packet, Stream, Tap};
pub use device::{MAX_PAIRS, MIN_MTU, Net, NetHandle};
pub use observer::{NetDrops, NetEvent, NetObserver};
pub use settings::Mac;

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A suite that any virtio device passes behind any transport, whatever its driver does.
//!
//! ```console
//! cargo add --dev virtio-conformance virtio-mmio-transport vmm-bus
//! ```
//!
#![doc = include_str!("../picture.svg")]
//!
//! All of these hold, in every scenario:
//!
//! * nothing panics, also in the worker, which would show as a failed device;
//! * guest memory is as it was, but for the written bytes of accepted requests and the used ring;
//! * the device's memory in the host does not grow ([`Suite::with_heap`]);
//! * one wake-up does a bounded amount of work, and each descriptor is read once;
//! * every accepted request comes back once, with a length that its buffers have;
//! * no request waits for a notification that the device has not asked for (section 2.7.10);
//! * no interrupt is raised without a used buffer or a change to tell of;
//! * each fault is counted as what it is, and told to the driver by exactly one interrupt;
//! * what the host keeps to itself reaches neither guest memory nor debug output
//!   ([`Suite::with_secret`]);
//! * after each scenario a reset and a new start are enough for a valid request to be served;
//! * a second device goes on working all the while.
//!
//! # A first example: for the author of a device
//!
//! Say what a request is, and put a fresh device behind a transport from the [`Parts`] that you are
//! given. Any transport will do; `virtio-mmio-transport` is one.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use bus::BusDevice;
//! use virtio_conformance::ramdisk::RamDisk; // or a device of yours
//! use virtio_conformance::{MmioPort, Request, Suite};
//! use virtio_mmio_transport::MmioTransport;
//!
//! // Read sector 0: a header of 16 bytes, then room for the sector and for the status.
//! let request = Request::new(|bytes| bytes == [0; 513]).readable(&[0; 16]).writable(513);
//! Suite::new(request.at_most(4096 + 1)).check(|parts| {
//!     let disk = Arc::new(Mutex::new(vec![0; 4096]));
//!     let device = RamDisk::new(disk, parts.executor.clone());
//!     let transport = MmioTransport::new(device, parts.memory, parts.line).unwrap();
//!     MmioPort::new(
//!         transport.with_observer(parts.events),
//!         |it, offset, data| it.read(offset, data).unwrap(),
//!         |it, offset, data| it.write(offset, data).unwrap(),
//!     )
//! });
//! ```
//!
//! A device that watches file descriptors of the host needs a `WorkerThread` in place of
//! [`Parts::executor`]; one that waits for the host to deliver something is fed by
//! [`Host::deliver_by`]. A device with several queues is checked once for each kind of request:
//! [`Request::queue`].
//!
//! # For the author of a transport or a VMM
//!
//! A [`Port`] is a driver's way to a transport. For registers of virtio-mmio there is one,
//! [`MmioPort`], which needs two functions that read and write at an offset; it also checks each
//! register at every width. Run the suite with [`ramdisk::RamDisk`] behind your transport, made of
//! [`Parts::memory`], [`Parts::line`] and [`Parts::events`].
//!
//! # For tests of your own
//!
//! [`Guest`] starts a device and makes requests of whatever buffers it is told to; [`DriverQueue`] is the
//! driver's side of one virtqueue. [`WatchedMemory`] shows each access of a device to guest memory, and can
//! change memory before it happens. With the feature `virtio-drivers`, which needs a newer Rust than the rest, the crate of that
//! name is a driver to test with.
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | `virtio-drivers` | the published crate of that name as a driver: `GuestHal`, `RegisterTransport`; needs a newer Rust |
//!
//! The rest needs Rust 1.85.
//!
//! # Limits
//!
//! * The suite checks what all devices have in common. What a request means is for tests of your own.
//! * It plays a driver of split queues. Configuration spaces are read, and not known.
//! * A finding is a panic with what was expected and the steps that led there.
//!
//! # Versions
//!
//! | | version |
//! |---|---|
//! | Rust | 1.85 |
//! | [VIRTIO](https://docs.oasis-open.org/virtio/virtio/v1.3/virtio-v1.3.html) | 1.3 |
//! | vm-memory | 0.18, re-exported by virtio-device-core |
//! | virtio-drivers | 0.13, with the feature of that name: it needs the current Rust |
//! | kvm-ioctls | not needed; 0.25 in this family, whose versions agree |
//!
//! # Threat model
//!
//! This is a tool for tests, run by who wrote the device; nothing in it is meant for a guest. It plays
//! these parts:
//!
//! | part | what it does |
//! |---|---|
//! | a driver without any sense | every register at every width, rings and chains that break each rule, resets at each step |
//! | a guest that watches | each access of the device to its memory is compared with what was offered |
//! | a guest that changes its mind | memory changes between two reads of the device: [`WatchedMemory`] |
//!
//! # Siblings
//!
//! | crate | what it is |
//! |---|---|
//! | [virtio-device-core](https://docs.rs/virtio-device-core) | life cycle, features, queues, chains and workers of any virtio device |
//! | [virtio-mmio-transport](https://docs.rs/virtio-mmio-transport) | the registers of VIRTIO 1.3, section 4.2 |

// Only the `Hal` of virtio-drivers, which promises things about memory, has any.
#![cfg_attr(not(feature = "virtio-drivers"), forbid(unsafe_code))]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod checks;
mod counters;
mod driver;
mod guest;
mod machine;
mod memory;
mod mmio;
mod parts;
mod port;
pub mod ramdisk;
pub mod reg;
mod scenarios;
mod serving;
mod subject;
mod suite;
#[cfg(feature = "virtio-drivers")]
#[cfg_attr(docsrs, doc(cfg(feature = "virtio-drivers")))]
pub mod virtio_drivers;

pub use counters::{EventCounters, EventCounts};
pub use driver::{DriverQueue, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
pub use guest::{Answer, Buf, Guest, Offered};
pub use memory::{Access, WatchedMemory};
pub use mmio::{MmioPort, READABLE};
pub use parts::{CountingLine, EventLog, Host, Memory, Parts};
pub use port::Port;
pub use subject::{HeapGrowth, MeasureHeap, Request};
pub use suite::Suite;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;

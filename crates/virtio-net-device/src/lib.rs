// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio network device (VIRTIO 1.3, section 5.1).
//!
//! [`Net`] is the device; it knows no transport and no hypervisor. Its packets go to and come from a
//! [`Backend`]: a [`Tap`], a [`Stream`] socket (passt, QEMU), or whatever implements that small trait,
//! such as a cable to another device.
//!
//! ```console
//! cargo add virtio-net-device
//! # Which the first example uses as well:
//! cargo add virtio-device-core
//! ```
//!
#![doc = include_str!("../picture.svg")]
//!
//! # A first example
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
//! One module has it, for the system calls of a tap. Guest memory is handed to the kernel by its address, by
//! [`Buffers`] of virtio-device-core, so it must be mapped for as long as it is guest memory, as all but that of
//! Xen is.
//!
//! # Features
//!
//! | feature | what there is |
//! |---|---|
//! | `VIRTIO_NET_F_MAC`, `STATUS`, `MTU` | `Net::new`; `NetHandle::set_cable` at any time; `Net::with_mtu` |
//! | `VIRTIO_NET_F_CSUM`, `HOST_TSO4`, `HOST_TSO6`, `HOST_ECN`, `HOST_UFO`, `HOST_USO` | as the back end has them: a tap all, `HOST_USO` from Linux 6.2 on |
//! | `VIRTIO_NET_F_GUEST_CSUM`, `GUEST_TSO4`, `GUEST_TSO6`, `GUEST_ECN`, `GUEST_UFO`, `GUEST_USO4`, `GUEST_USO6` | the same; the tap is told exactly what was agreed on |
//! | `VIRTIO_NET_F_MRG_RXBUF` | always |
//! | `VIRTIO_NET_F_CTRL_VQ`, `CTRL_RX`, `CTRL_RX_EXTRA`, `CTRL_VLAN`, `CTRL_MAC_ADDR` | always; up to 64 addresses of each kind, beyond that all pass |
//! | `VIRTIO_NET_F_CTRL_GUEST_OFFLOADS` | always |
//! | `VIRTIO_NET_F_GUEST_ANNOUNCE` | after a restore, and by `NetHandle::announce` |
//! | `VIRTIO_NET_F_MQ` | with several back ends: up to 32 pairs |
//!
//! There are byte and packet limits for each direction: `Net::receive_limits`, `Net::send_limits`.
//!
//! # Limits
//!
//! * No receive-side scaling (`VIRTIO_NET_F_RSS`, `VIRTIO_NET_F_HASH_REPORT`) and no vhost: the worker
//!   moves packets itself.
//! * A filter is no secret-keeping: what must not be seen by a guest must not come to its tap.
//! * Linux only, and guest memory that is mapped: not that of Xen.
//!
//! # Versions
//!
//! | | version |
//! |---|---|
//! | Rust | 1.85 |
//! | [VIRTIO](https://docs.oasis-open.org/virtio/virtio/v1.3/virtio-v1.3.html) | 1.3 |
//! | vm-memory | 0.18, re-exported by virtio-device-core |
//! | vmm-sys-util | 0.15, re-exported by virtio-device-core |
//! | kvm-ioctls | not needed; 0.25 in this family, whose versions agree |
//!
//! # System calls
//!
//! On a worker's thread, beside those of its loop (see `WorkerThread`): `readv`, `writev`, and `ioctl` when offloads or
//! pairs of queues change, for a `Tap`; `recvfrom`, `sendto` for a `Stream`.
//! `fcntl` at the start, and after a failure also `openat`, `statx` and `close` (`Tap`) or `socket` and `connect` (`Stream`).
//!
//! # Threat model
//!
//! | the driver | what happens |
//! |---|---|
//! | writes a header that leads out of its frame, or asks for what was not agreed on | the packet is dropped and counted, and does not reach the host |
//! | changes a header afterwards | nothing: it was copied |
//! | sends less than a frame, more than 64 KiB, or from outside of memory | the same |
//! | offers buffers that are too small, of the wrong direction, or outside of memory | they come back with length 0; a packet that does not fit is dropped and counted |
//! | offers none | nothing is read from the host |
//! | makes up commands, or tables without end | `VIRTIO_NET_ERR`, and nothing changes; no more than 64 addresses are read |
//! | sends without end | a turn of 128 packets, then everybody else gets one |
//! | breaks a ring | `DEVICE_NEEDS_RESET`, once; nothing is served until reset |
//!
//! | the host | what happens |
//! |---|---|
//! | fails, or goes away | the link is down until it is back, and the observer is told |
//! | takes its time | packets wait in the driver's queue |
//! | sends what was not agreed on, or is no frame | dropped and counted |
//! | a saved state from elsewhere | refused unless it makes sense; it gets no pairs and offloads that its driver has not agreed on |
//!
//! A packet that is not for the driver, or is dropped, may have been in the driver's free buffers for a moment: filters are
//! no secret-keeping. What must not be seen by a guest must not come to its tap.
//!
//! # Siblings
//!
//! | crate | what it is |
//! |---|---|
//! | [virtio-device-core](https://docs.rs/virtio-device-core) | life cycle, features, queues, chains and workers of any virtio device |
//! | [virtio-mmio-transport](https://docs.rs/virtio-mmio-transport) | the registers of VIRTIO 1.3, section 4.2 |
//! | [virtio-conformance](https://docs.rs/virtio-conformance) | a suite for any virtio device behind any transport |

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

pub use backend::{Backend, Buffers, Stream, Tap};
pub use device::{MAX_PAIRS, MIN_MTU, Net, NetHandle};
pub use observer::{NetDrops, NetEvent, NetObserver};
pub use settings::Mac;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;

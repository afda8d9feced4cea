// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio block device (VIRTIO 1.3, section 5.2).
//!
//! [`Block`] is the device; it knows no transport and no hypervisor. Its sectors are in a
//! [`Backend`]: an image file or a block device ([`FileBackend`]), or whatever implements that small
//! trait.
//!
//! ```
//! use std::sync::Arc;
//! use virtio_blk_device::{Block, FileBackend, FileOptions};
//! use virtio_device_core::WorkerThread;
//!
//! # fn disk(path: &std::path::Path) -> std::io::Result<()> {
//! let file = FileBackend::open(path, FileOptions::default())?;
//! // A worker for each queue, on two threads.
//! let threads = (0..2).map(|n| WorkerThread::named(format!("disk{n}")));
//! let pool = threads.collect::<Result<Vec<_>, _>>()?;
//! let device = Block::new(Arc::new(file), pool)?.with_queues(2).with_id("root")?;
//! // For when the file has another length.
//! let handle = device.handle();
//! handle.refresh()?;
//! // Now put `device` behind a transport.
//! # Ok(())
//! # }
//! ```
//!
//! # What holds
//!
//! * **What is flushed lasts.** A flush that has succeeded has put on the disk all that was written before,
//!   whatever becomes of the VMM. Without a cache (`writeback` is 0, or the driver has accepted neither
//!   `VIRTIO_BLK_F_FLUSH` nor `VIRTIO_BLK_F_CONFIG_WCE`) every write has that meaning.
//! * **Every request is answered once**, its status byte written after its data; the used length says how
//!   much was written from the first device-writable byte on, and not a byte more.
//! * **A request that is refused touches nothing** but its status byte: sectors beyond the end, lengths
//!   that are no multiple of 512, writes to a read-only disk, unknown types and flags, chains that are not
//!   laid out as section 5.2.6 has it.
//! * **What the host fails at fails in the guest**, and nowhere else; see [`BlockObserver`].
//! * **No copy.** The kernel moves data between the file and guest memory. A request takes no memory of
//!   the host's that its length decides on.
//!
//! # Many requests in flight
//!
//! A queue's worker waits for one request after the other. With the feature `io-uring`,
//! `Block::with_io_uring` has the kernel work on all requests of a queue at the same time.
//!
//! # Unsafe code
//!
//! The modules have it that hand guest memory to the kernel by its address: one, and another with the
//! feature `io-uring`. Guest memory must be mapped
//! for as long as it is guest memory, as all but that of Xen is.

#![deny(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod config;
mod device;
mod observer;
mod raw;
mod request;
mod shared;
#[cfg(feature = "io-uring")]
mod uring;
mod worker;

pub use backend::{Backend, Buffers, FileBackend, FileOptions, Geometry};
pub use device::{Block, BlockHandle, MAX_QUEUES};
pub use observer::{BlockEvent, BlockObserver, Operation};

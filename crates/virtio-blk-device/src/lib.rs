// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio block device (VIRTIO 1.3, section 5.2).
//!
//! [`Block`] is the device; it knows no transport and no hypervisor. Its sectors are in a
//! [`Backend`]: an image file or a block device ([`FileBackend`]), or whatever implements that small
//! trait.
//!
//! ```console
//! cargo add virtio-blk-device
//! # Which the first example uses as well:
//! cargo add virtio-device-core
//! ```
//!
#![doc = include_str!("../picture.svg")]
//!
//! # A first example
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
//! One module has it, for structures of C, and another with the feature `io-uring`, which hands guest memory to
//! the kernel by its address, as [`Buffers`] of virtio-device-core do. Guest memory must be mapped for as long
//! as it is guest memory, as all but that of Xen is.
//!
//! # Features
//!
//! | feature | what there is |
//! |---|---|
//! | `VIRTIO_BLK_F_SIZE_MAX`, `SEG_MAX` | 4 MiB, 254; more is served |
//! | `VIRTIO_BLK_F_RO` | as the back end is |
//! | `VIRTIO_BLK_F_BLK_SIZE`, `TOPOLOGY` | the back end's `Geometry` |
//! | `VIRTIO_BLK_F_FLUSH`, `CONFIG_WCE` | always; the cache is on until the driver switches it off |
//! | `VIRTIO_BLK_F_MQ` | with `Block::with_queues` |
//! | `VIRTIO_BLK_F_DISCARD`, `WRITE_ZEROES` | unless read-only: one range a request, up to 1 GiB and 32 MiB; `VIRTIO_BLK_S_UNSUPP` where the host cannot |
//!
//! # Limits
//!
//! * Images are raw: a format such as qcow2 is a `Backend` of your own, as `docs/guides/src/qcow2.rs` in the
//!   repository is one by the crate `imago`.
//! * No `VIRTIO_BLK_F_LIFETIME`, `SECURE_ERASE` or `ZONED`.
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
//! | io-uring | 0.7, with the feature of that name; Linux 5.6 |
//!
//! # System calls
//!
//! On a worker's thread, beside those of its loop (see `WorkerThread`), for a `FileBackend`: `pread64`, `pwrite64`, `preadv`,
//! `pwritev`, `fdatasync`, and `fallocate`. `FileBackend::new` calls `fstat`, `fcntl`, `statx`, and
//! `openat` of `/proc/self/fd` for direct I/O, and `ioctl` for block devices; `BlockHandle::refresh` calls `lseek`, as
//! whatever changes a file does first. With rings, `io_uring_enter` on a worker's thread, and `io_uring_setup`,
//! `io_uring_register` and `mmap` when the device is made. Activation writes one event fd a queue.
//!
//! # Threat model
//!
//! | the driver | what happens |
//! |---|---|
//! | names buffers outside of memory, of the wrong order or direction, or none for the status | `VIRTIO_BLK_S_IOERR` where there is a place for it, and no byte moves |
//! | asks for sectors beyond the end, or so far that a multiplication overflows, or for half ones | `VIRTIO_BLK_S_IOERR`, and no byte moves |
//! | writes to a read-only disk | `VIRTIO_BLK_S_IOERR`; the file is not even open for that |
//! | makes up types and flags | `VIRTIO_BLK_S_UNSUPP` |
//! | makes requests without end | at most one queue-length of them in a row, then everybody else gets a turn |
//! | breaks a ring | `DEVICE_NEEDS_RESET`, once; nothing is served until reset |
//!
//! | the host | what happens |
//! |---|---|
//! | fails, has no room, shrinks the file | that request fails, and the observer is told |
//! | takes its time | the guest waits; a reset stays pending, and neither a vCPU nor another queue waits, but a flush for one at the same time |
//! | a saved state from elsewhere | refused unless every bit of it means something; sectors that are not there are errors |
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

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;

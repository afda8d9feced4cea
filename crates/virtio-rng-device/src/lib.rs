// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio entropy device (VIRTIO 1.3, section 5.4).
//!
//! The driver puts empty buffers into a queue, and the device gives them back full of random bytes:
//! one request for up to 64 KiB, served by a worker while the guest goes on. [`EntropyDevice`] is the device;
//! it knows no transport and no hypervisor. Its source is any [`Read`](std::io::Read);
//! [`KernelEntropy`] is the one to use if nothing speaks for another.
//!
//! ```console
//! cargo add virtio-rng-device
//! # Which the first example uses as well:
//! cargo add vmm-bus virtio-device-core virtio-mmio-transport
//! cargo add vm-memory --features backend-mmap
//! ```
//!
#![doc = include_str!("../picture.svg")]
//!
//! # A first example
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use bus::MmioBus;
//! use virtio_device_core::{WorkerThread, vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd}};
//! use virtio_mmio_transport::{MmioTransport, REGION_SIZE};
//! use virtio_rng_device::{EntropyDevice, KernelEntropy, RateLimit};
//! use vm_memory::{GuestAddress, GuestMemoryMmap};
//!
//! // The worker's thread exists from here on: make it before the guest runs.
//! let rng = EntropyDevice::new(KernelEntropy, WorkerThread::named("virtio-rng")?);
//! // 64 KiB at once and 1 MiB a second; as many requests as the driver likes.
//! rng.limits().set(RateLimit::new(1 << 20, 1 << 16), None);
//!
//! // Behind a transport, on a bus, in a machine with some memory.
//! let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)])?;
//! let irq = Arc::new(EventFd::new(EFD_NONBLOCK)?);
//! let transport = MmioTransport::new(rng, Arc::new(memory), irq)?;
//! let bus = MmioBus::new();
//! bus.insert(Arc::new(Mutex::new(transport)), 0x8000_2000, REGION_SIZE)?;
//!
//! // A driver reads DeviceID, and finds an entropy device.
//! let mut device_id = [0; 4];
//! bus.view().read(0x8000_2008, &mut device_id)?;
//! assert_eq!(u32::from_le_bytes(device_id), 4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The package's example `own_loop` has a driver ask it for bytes, in a loop of the VMM's own.
//!
//! # What a request is given
//!
//!
//! | request | answer |
//! |---|---|
//! | up to [`MAX_REQUEST`] writable bytes | as many as the source gives in one read, from the first writable byte on |
//! | more | [`MAX_REQUEST`] bytes at most, and no more than the byte limit's burst |
//! | no writable byte, or a buffer outside of memory | length 0, and no byte is written |
//! | beyond the [`RateLimits`] | none yet: it waits in its queue |
//! | while the source fails | none yet: it waits in its queue, as [`SourcePolicy`] says |
//! | the source has ended, panicked or lied | the device asks for a reset; never an empty answer |
//! | a broken ring | the device asks for a reset |
//!
//! With the feature `fast-entropy` there is `FastEntropy`, a generator in this process that is
//! reseeded from the kernel's.
//!
//! # Features
//!
//! | feature | adds |
//! |---|---|
//! | `fast-entropy` | `FastEntropy`: AES-256-CTR in this process with fast key erasure, reseeded from the kernel after each MiB |
//!
//! # Limits
//!
//! * A guest that is restored twice from one snapshot has the same state twice in its own generator: use
//!   `VMGenID` for that.
//! * There is one queue, and so one worker: requests of several vCPUs are served in their order.
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
//! | getrandom | 0.4 |
//!
//! # System calls
//!
//! On the worker's thread, in its steady state, which a test runs under exactly this filter:
//!
//! | system call | when |
//! |---|---|
//! | `epoll_wait`, `read` | a notification |
//! | `write` | an interrupt by irqfd; a queue that holds more than one wake-up may serve |
//! | `epoll_ctl` | only with `with_readiness`: the source is empty, or has something again; a pause |
//! | `timerfd_settime` | a request begins or ends to wait |
//! | `getrandom` | `KernelEntropy`, for each request; `FastEntropy`, for each MiB; another source calls what it calls |
//! | `futex` | two threads want the same lock |
//!
//! | phase | thread | system calls |
//! |---|---|---|
//! | `WorkerThread::named` | the embedder's | `eventfd2`, `epoll_create1`, `epoll_ctl`, `timerfd_create`, and what making a thread takes |
//! | `EntropyDevice::new`, `with_observer`, `limits` | the embedder's | none; `FastEntropy::new` calls `getrandom`, `with_readiness` calls `fcntl` |
//! | activation | the vCPU's | `write`, to wake the worker |
//! | activation | the worker's | `epoll_ctl`, and `fcntl` for a source with a descriptor |
//! | reset | the vCPU's | `write`, to tell the worker |
//! | end of an activation | the worker's | `epoll_ctl`, `close` |
//! | `RateLimits::set`, `restore` | the embedder's | `write`, to have a request that waits looked at again |
//!
//! Nothing is opened after activation. A test activates a device under a filter that allows `write` alone.
//!
//! # Threat model
//!
//! | the driver | what happens |
//! |---|---|
//! | asks for 4 GiB, or for the same megabyte 256 times | 64 KiB at most, and no memory is allocated |
//! | names buffers outside of memory, or none to write | the request goes back with length 0, no byte written; costs one operation |
//! | asks for more than the limits allow | the request stays in its queue until they do; a reset does not fill the buckets |
//! | floods the queue | one queue-length per wake-up, then everybody else gets a turn |
//! | notifies over and over while the source fails | the source is asked no more often for that |
//! | reloads, however often, while the source hangs | no vCPU waits, and the last activation is served once the source is back |
//! | breaks the ring | `DEVICE_NEEDS_RESET`, once; nothing is served until reset |
//!
//! | the source | what happens |
//! |---|---|
//! | gives less than it was asked for | a shorter answer, never one with a gap |
//! | is interrupted | it is asked again at once, 64 times at most |
//! | fails, or has nothing yet | the request waits, from 1 ms to 250 ms at a time, for as long as it takes; `SourcePolicy::give_up_after` ends that with `DEVICE_NEEDS_RESET` |
//! | has a descriptor that is ready for nothing, or hung up | as above: the worker does not spin |
//! | ends, panics, or claims more than it had room for | `DEVICE_NEEDS_RESET`; one that has panicked is never asked again |
//! | blocks | its worker waits, and nobody else does: a reset returns at once, unless it was promised that the source never waits |
//!
//! A valid request is never answered with nothing. `Debug` output and observers say nothing of any random byte.
//!
//! # Siblings
//!
//! | crate | what it is |
//! |---|---|
//! | [virtio-device-core](https://docs.rs/virtio-device-core) | life cycle, features, queues, chains and workers of any virtio device |
//! | [virtio-mmio-transport](https://docs.rs/virtio-mmio-transport) | the registers of VIRTIO 1.3, section 4.2 |
//! | [virtio-conformance](https://docs.rs/virtio-conformance) | a suite for any virtio device behind any transport |
//! | [mmio-rng-legacy](https://docs.rs/mmio-rng-legacy) | a random number generator with one register, to compare with |

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod device;
mod observer;
mod queue;
mod reader;
mod source;

pub use device::{DEVICE_TYPE, EntropyDevice, QUEUE_SIZE};
pub use observer::{RngCounters, RngEvent, RngObserver, SourceFailure};
pub use queue::MAX_REQUEST;
pub use reader::SourcePolicy;
pub use source::KernelEntropy;
#[cfg(feature = "fast-entropy")]
pub use source::{FastEntropy, Reseed};
pub use virtio_device_core::{RateLimit, RateLimits};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;

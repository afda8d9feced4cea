// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio entropy device (VIRTIO 1.3, section 5.4).
//!
//! The driver puts empty buffers into a queue, and the device gives them back full of random bytes:
//! one request for up to 64 KiB, served by a worker while the guest goes on. [`EntropyDevice`] is the device;
//! it knows no transport and no hypervisor. Its source is any [`Read`](std::io::Read);
//! [`KernelEntropy`] is the one to use if nothing speaks for another.
//!
//! What a request is given:
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

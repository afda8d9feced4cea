// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Split virtqueues (VIRTIO 1.3, section 2.7): where one lives, who may use it, what is in it.

mod chain;
#[cfg(feature = "virtio-queue")]
mod compat;
mod foreign;
mod group;
mod layout;
mod lease;
mod memory;
mod progress;
mod stream;
mod taken;
mod virtqueue;

pub use chain::{Buffer, Chain, Head};
pub use layout::{MAX_QUEUE_SIZE, QueueLayout, QueuePart, QueueSetup, QueueSetupError};
pub use lease::{DeviceLease, InFlight, Lease, Lent, QueueLease, Unavailable};
#[cfg(loom)]
pub use memory::RingCache;
pub use memory::{RingMemory, Rings};
pub use progress::{ProgressError, QueueProgress};
pub use stream::{Reader, Writer};
pub use virtqueue::Virtqueue;

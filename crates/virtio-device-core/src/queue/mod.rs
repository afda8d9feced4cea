// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Split virtqueues (VIRTIO 1.3, section 2.7): where one lives, who may use it, what is in it.

mod chain;
#[cfg(feature = "virtio-queue")]
mod compat;
mod foreign;
mod group;
mod layout;
#[cfg_attr(
    not(loom),
    expect(unreachable_pub, reason = "models reach the owner's half")
)]
mod lease;
mod memory;
mod progress;
mod stream;
mod taken;
#[cfg(feature = "vectored-io")]
mod vectors;
mod virtqueue;

pub use chain::{Chain, Head};
#[cfg(loom)]
pub use layout::QueuePart;
pub use layout::{MAX_QUEUE_SIZE, QueueLayout, QueueSetup};
#[cfg(not(loom))]
pub(crate) use lease::Lent;
#[cfg(loom)]
pub use lease::Lent;
pub use lease::{InFlight, Lease, Unavailable};
#[cfg(loom)]
pub use memory::RingCache;
pub use memory::{RingMemory, Rings};
pub use progress::QueueProgress;
pub use stream::ChainStream;
#[cfg(feature = "vectored-io")]
pub use vectors::{Buffers, Vectors};
pub use virtqueue::Virtqueue;

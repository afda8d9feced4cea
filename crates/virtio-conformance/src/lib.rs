// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A suite that any virtio device passes behind any transport, and what it is made of.

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod driver;
mod machine;
mod memory;
mod mmio;
mod port;
pub mod ramdisk;
mod scenarios;
mod suite;

pub use driver::{DriverQueue, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
pub use machine::{BUFFERS, MEMORY_END, Machine, Memory, QUEUE, Queue};
pub use memory::{Access, WatchedMemory};
pub use mmio::{MmioPort, READABLE};
pub use port::Port;
pub use suite::{CountingLine, HeapGrowth, MeasureHeap, Parts, Request, Suite};

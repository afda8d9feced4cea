// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine's memory map, which VMM and guest agree on.

/// Length of guest memory, from address 0 on: 64 MiB.
pub(crate) const RAM_SIZE: usize = 64 << 20;

/// Segment descriptors.
pub(crate) const GDT: u64 = 0x1000;
/// Interrupt descriptors; the guest fills them.
pub(crate) const IDT: u64 = 0x2000;
/// The guest's stack grows down from here.
pub(crate) const STACK_TOP: u64 = 0x8000;
/// Page tables, six pages.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
/// The guest's program.
pub(crate) const IMAGE: u64 = 0x10_0000;
/// Length of the guest's program.
pub(crate) const IMAGE_SIZE: usize = 4096;
/// The guest's virtqueue.
pub(crate) const QUEUE: u64 = 0x20_0000;
/// Where the guest puts what it reads from the register.
pub(crate) const BUFFER_LEGACY: u64 = 0x100_0000;
/// Where the guest has the virtio device put its bytes.
pub(crate) const BUFFER_VIRTIO: u64 = 0x200_0000;
/// Length of each of the two buffers: 16 MiB.
pub(crate) const BUFFER_SIZE: u64 = 16 << 20;

/// Rngboi1337, and its register `rng0`.
pub(crate) const RNG0: u64 = 0x8000_1000;
/// The virtio-mmio slot of virtio-rng.
pub(crate) const VIRTIO_RNG: u64 = 0x8000_2000;
/// Interrupt line of virtio-rng, a pin of the I/O APIC.
pub(crate) const VIRTIO_GSI: u32 = 5;

/// The port that a phase's start is announced on: 4 bytes, the number of the device.
pub(crate) const PORT_START: u16 = 0x500;
/// The port that a phase's end is announced on: 4 bytes, the number of requests made.
pub(crate) const PORT_END: u16 = 0x504;
/// The port that the guest's end is announced on: 4 bytes, the number of a failed check or 0.
pub(crate) const PORT_CHECK: u16 = 0x508;
/// Length of the port region, from [`PORT_START`] on.
pub(crate) const PORTS_SIZE: u64 = 12;

/// Selector of the 64-bit code segment.
pub(crate) const CODE_SELECTOR: u16 = 0x08;
/// Selector of the data segment.
pub(crate) const DATA_SELECTOR: u16 = 0x10;

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory map of both kinds of machine: RAM from [`RAM_START`] to [`WINDOW`] at most and from
//! [`HIGH_RAM`] on, devices between them.

pub(crate) use crate::arch::layout::RAM_START;

/// Where the window of devices begins, and RAM below it ends at the latest.
pub(crate) const WINDOW: u64 = 0x8000_0000;
/// Rngboi1337, and its register `rng0`.
pub(crate) const RNG0: u64 = 0x8000_1000;
/// The virtio-mmio slot of virtio-rng.
pub(crate) const VIRTIO_RNG: u64 = 0x8000_2000;
/// Interrupt line of virtio-rng, a pin of the I/O APIC.
pub(crate) const VIRTIO_GSI: u32 = 5;
/// The virtio-mmio slot of the virtio console.
pub(crate) const VIRTIO_CONSOLE: u64 = 0x8000_3000;
/// Interrupt line of the virtio console.
pub(crate) const VIRTIO_CONSOLE_GSI: u32 = 6;
/// The virtio-mmio slots of up to eight disks, one after the other.
pub(crate) const VIRTIO_DISKS: u64 = 0x8000_4000;
/// The virtio-mmio slot of the network, behind those of the disks.
pub(crate) const VIRTIO_NET: u64 = 0x8000_c000;
/// Interrupt line of the network.
pub(crate) const VIRTIO_NET_GSI: u32 = 12;
/// Length of the serial port's registers.
pub(crate) const SERIAL_SIZE: u64 = 8;
/// Interrupt line of the serial port.
pub(crate) const SERIAL_GSI: u32 = 4;
/// Where RAM goes on that is not below [`WINDOW`].
pub(crate) const HIGH_RAM: u64 = 1 << 32;

/// Where RAM is, of which there are `size` bytes: as address and length.
pub(crate) fn ram(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(WINDOW - RAM_START);
    let mut ranges = vec![(RAM_START, low)];
    if size > low {
        ranges.push((HIGH_RAM, size - low));
    }
    ranges
}

// --- The case study.

/// Length of guest memory, 64 MiB.
pub(crate) const RAM_SIZE: usize = 64 << 20;
/// The guest's program.
pub(crate) const IMAGE: u64 = RAM_START + 0x10_0000;
/// Length of the guest's program.
pub(crate) const IMAGE_SIZE: usize = 4096;
/// The guest's virtqueue.
pub(crate) const QUEUE: u64 = RAM_START + 0x20_0000;
/// Where the guest puts what it reads from the register.
pub(crate) const BUFFER_LEGACY: u64 = RAM_START + 0x100_0000;
/// Where the guest has the virtio device put its bytes.
pub(crate) const BUFFER_VIRTIO: u64 = RAM_START + 0x200_0000;
/// Length of each of the two buffers: 16 MiB.
pub(crate) const BUFFER_SIZE: u64 = 16 << 20;

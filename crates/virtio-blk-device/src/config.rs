// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The configuration space (VIRTIO 1.3, section 5.2.4).

use std::mem::offset_of;

use virtio_bindings::virtio_blk::virtio_blk_config;

use crate::raw;
use crate::request::SECTOR;
use crate::shared::Shared;

/// Descriptors of each queue.
pub(crate) const QUEUE_SIZE: u16 = 256;
/// Most bytes of a descriptor: 4 MiB.
const SIZE_MAX: u32 = 4 << 20;
/// Most sectors that are discarded at once: 1 GiB. None of these limits may be 0.
pub(crate) const MAX_DISCARD_SECTORS: u32 = 2 << 20;
/// Most sectors that are zeroed at once, by hand where the host has no better way: 32 MiB.
pub(crate) const MAX_ZEROES_SECTORS: u32 = 64 << 10;

/// Bytes of the configuration space: up to the limits for secure erasure.
pub(crate) const LEN: usize = offset_of!(virtio_blk_config, max_secure_erase_sectors);
/// The one field that the driver may write.
pub(crate) const WRITEBACK: usize = offset_of!(virtio_blk_config, wce);

/// The space as the driver reads it.
pub(crate) fn space(shared: &Shared, queues: u16) -> [u8; LEN] {
    let (logical, physical) = shared.backend.geometry().sizes();
    let blocks = physical / logical;
    raw::config_bytes(virtio_blk_config {
        capacity: (shared.capacity() / SECTOR).to_le(),
        size_max: SIZE_MAX.to_le(),
        // One has the header, and one the status.
        seg_max: (u32::from(QUEUE_SIZE) - 2).to_le(),
        blk_size: logical.to_le(),
        // Both are small, because the sizes are.
        physical_block_exp: u8::try_from(blocks.trailing_zeros()).unwrap_or(0),
        min_io_size: u16::try_from(blocks).unwrap_or(1).to_le(),
        wce: shared.writeback().into(),
        num_queues: queues.to_le(),
        max_discard_sectors: MAX_DISCARD_SECTORS.to_le(),
        max_discard_seg: 1_u32.to_le(),
        discard_sector_alignment: (physical / 512).to_le(),
        max_write_zeroes_sectors: MAX_ZEROES_SECTORS.to_le(),
        max_write_zeroes_seg: 1_u32.to_le(),
        write_zeroes_may_unmap: 1,
        ..virtio_blk_config::default()
    })
}

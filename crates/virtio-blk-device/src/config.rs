// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The configuration space (VIRTIO 1.3, section 5.2.4).

use std::mem::offset_of;

use virtio_bindings::virtio_blk::virtio_blk_config;

use crate::backend::Geometry;
use crate::request::SECTOR;

/// Descriptors of each queue, and how many of them hold data.
pub(crate) const QUEUE_SIZE: u16 = 256;
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
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

/// What the configuration space tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    /// Bytes.
    pub(crate) capacity: u64,
    pub(crate) geometry: Geometry,
    pub(crate) writeback: bool,
    pub(crate) queues: u16,
    /// Whether there is anything to discard on.
    pub(crate) discard: bool,
}

impl Config {
    /// The space as the driver reads it.
    pub(crate) fn bytes(self) -> [u8; LEN] {
        let mut space = [0; LEN];
        let mut put = |at: usize, bytes: &[u8]| {
            let field = space.get_mut(at..at + bytes.len());
            field.unwrap_or_default().copy_from_slice(bytes);
        };
        macro_rules! fields {
            ($($field:ident: $value:expr,)*) => {
                $(put(offset_of!(virtio_blk_config, $field), &$value.to_le_bytes());)*
            };
        }
        let (logical, physical) = (self.geometry.logical(), self.geometry.physical());
        let blocks = physical / logical;
        // Both are small, because the sizes are.
        let exponent = u8::try_from(blocks.trailing_zeros()).unwrap_or(0);
        let min_io = u16::try_from(blocks).unwrap_or(1);
        fields! {
            capacity: (self.capacity / SECTOR),
            size_max: SIZE_MAX,
            seg_max: SEG_MAX,
            blk_size: logical,
            physical_block_exp: exponent,
            min_io_size: min_io,
            wce: u8::from(self.writeback),
            num_queues: self.queues,
        }
        if self.discard {
            fields! {
                max_discard_sectors: MAX_DISCARD_SECTORS,
                max_discard_seg: 1_u32,
                discard_sector_alignment: (physical / 512),
                max_write_zeroes_sectors: MAX_ZEROES_SECTORS,
                max_write_zeroes_seg: 1_u32,
                write_zeroes_may_unmap: 1_u8,
            }
        }
        space
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Watching what the host fails at.

use std::io;
use std::ops::Range;
use std::sync::Arc;

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Reading sectors (`VIRTIO_BLK_T_IN`).
    Read,
    /// Writing sectors (`VIRTIO_BLK_T_OUT`).
    Write,
    /// Flushing writes to stable storage (`VIRTIO_BLK_T_FLUSH`).
    Flush,
    /// Asking for the device's ID (`VIRTIO_BLK_T_GET_ID`).
    GetId,
    /// Deallocating sectors (`VIRTIO_BLK_T_DISCARD`).
    Discard,
    /// Writing zeroes (`VIRTIO_BLK_T_WRITE_ZEROES`).
    WriteZeroes,
}

/// Something that a VMM may want to know about a disk.
#[derive(Debug)]
#[non_exhaustive]
pub enum BlockEvent<'a> {
    /// The host has failed to serve a request for these bytes of the disk. The guest sees the
    /// request fail, and decides how to go on.
    Failed(Operation, &'a Range<u64>, &'a io::Error),
}

/// Receives [`BlockEvent`]s.
///
/// Called on a worker's thread: it must not wait, and must not call the device. Limit what you log:
/// on a failing disk the guest decides how often it is called.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use virtio_blk_device::{BlockEvent, BlockObserver};
///
/// /// Counts, and says the first failure.
/// #[derive(Default)]
/// struct Health(AtomicU64);
///
/// impl BlockObserver for Health {
///     fn event(&self, event: &BlockEvent<'_>) {
///         let BlockEvent::Failed(operation, range, error) = event else { return };
///         if self.0.fetch_add(1, Ordering::Relaxed) == 0 {
///             eprintln!("{operation:?} of bytes {range:?}: {error}");
///         }
///     }
/// }
/// ```
pub trait BlockObserver: Send + Sync {
    /// Takes note of `event`.
    fn event(&self, event: &BlockEvent<'_>);
}

impl<T: BlockObserver + ?Sized> BlockObserver for Arc<T> {
    fn event(&self, event: &BlockEvent<'_>) {
        (**self).event(event);
    }
}

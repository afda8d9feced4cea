// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device's progress in a queue, saved and restored.

use super::layout::QueueLayout;
use super::taken::Taken;
use super::virtqueue::Virtqueue;
use crate::fault::SetupError;
use crate::negotiation::Features;

/// A device's progress in a queue: plain data, to be saved.
///
/// ```
/// use virtio_device_core::transport::QueueProgress;
///
/// // Three requests were taken and two given back: the one with head 5 is in flight.
/// let progress = QueueProgress::new(3, 2, vec![5]);
/// assert_eq!(progress.taken, [5]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct QueueProgress {
    /// The available index up to which chains were taken.
    pub next_avail: u16,
    /// The used index up to which chains were given back.
    pub next_used: u16,
    /// Heads of the chains in flight: taken, and not given back.
    pub taken: Vec<u16>,
}

impl QueueProgress {
    /// Describes a queue that has come to these indices, with the heads of the chains in flight, the
    /// next to be served first.
    #[must_use]
    pub const fn new(next_avail: u16, next_used: u16, taken: Vec<u16>) -> Self {
        Self {
            next_avail,
            next_used,
            taken,
        }
    }
}

impl Virtqueue {
    /// Makes the queue that lives at `layout` and goes on where `progress` says. Chains that were in
    /// flight come first, so that each is served once.
    ///
    /// # Errors
    ///
    /// What in `progress` contradicts itself or the layout.
    pub fn resume(
        layout: QueueLayout,
        features: Features,
        progress: &QueueProgress,
    ) -> Result<Self, SetupError> {
        let expected = progress.next_avail.wrapping_sub(progress.next_used);
        let taken = progress.taken.len();
        if taken != usize::from(expected) || expected > layout.size() {
            return Err(SetupError::InFlightCount { expected, taken });
        }
        let mut seen = Taken::new(layout.size());
        for &head in &progress.taken {
            if head >= layout.size() || !seen.insert(head) {
                return Err(SetupError::InFlightHead(head));
            }
        }
        let mut queue = Self::new(layout, features);
        queue.again = progress.taken.iter().rev().copied().collect();
        queue.next_avail = progress.next_avail;
        queue.next_used = progress.next_used;
        Ok(queue)
    }

    /// The device's progress. [`resume`](Self::resume) takes it, whatever has happened to the
    /// queue.
    #[must_use]
    pub fn progress(&self) -> QueueProgress {
        let again = self.again.iter().rev().copied();
        QueueProgress {
            next_avail: self.next_avail,
            next_used: self.next_used,
            taken: self.taken.heads().chain(again).collect(),
        }
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Feature bits and their negotiation (VIRTIO 1.3, sections 2.2 and 6).

use std::fmt;

/// Chains may hold one descriptor that points to a table of descriptors (section 2.7.5.3).
pub const VIRTIO_F_INDIRECT_DESC: u64 = 1 << 28;
/// Notifications are steered by indices instead of flags (section 2.7.7).
pub const VIRTIO_F_EVENT_IDX: u64 = 1 << 29;
/// The device follows VIRTIO 1.0 or later; this family requires it.
pub const VIRTIO_F_VERSION_1: u64 = 1 << 32;

/// Why `FEATURES_OK` was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FeatureError {
    /// The driver accepted bits that the device does not offer; those below bit 64 are given.
    NotOffered(u64),
    /// The driver did not accept `VIRTIO_F_VERSION_1`.
    NoVersion1,
}

impl fmt::Display for FeatureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOffered(bits) => write!(f, "driver accepted bits never offered: {bits:#x}"),
            Self::NoVersion1 => f.write_str("driver did not accept VIRTIO_F_VERSION_1"),
        }
    }
}

impl std::error::Error for FeatureError {}

/// The features that a device offers and a driver is about to accept.
///
/// The driver sees both as a row of 32-bit words and may select words that do not exist.
///
/// ```
/// use virtio_device_core::{FeatureError, Negotiation, VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1};
///
/// let mut features = Negotiation::new(VIRTIO_F_EVENT_IDX);
/// assert_eq!(features.offered_word(1), 1); // VIRTIO_F_VERSION_1 is always offered
/// assert_eq!(features.check(), Err(FeatureError::NoVersion1));
/// features.accept_word(1, 1);
/// assert_eq!(features.check(), Ok(VIRTIO_F_VERSION_1));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Negotiation {
    offered: u64,
    accepted: u64,
    /// The driver set a bit beyond the 64 that exist here; nothing there is ever offered.
    accepted_beyond: bool,
}

impl Negotiation {
    /// Starts a negotiation in which `features` and `VIRTIO_F_VERSION_1` are offered.
    #[must_use]
    pub const fn new(features: u64) -> Self {
        Self {
            offered: features | VIRTIO_F_VERSION_1,
            accepted: 0,
            accepted_beyond: false,
        }
    }

    /// Word `select` of the offered features; words that do not exist are 0.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a word is the low 32 bits")]
    pub const fn offered_word(&self, select: u32) -> u32 {
        match select {
            0 => self.offered as u32,
            1 => (self.offered >> 32) as u32,
            _ => 0,
        }
    }

    /// Replaces word `select` of what the driver accepts. Nothing is masked: a bit never offered is
    /// remembered, and makes the check fail.
    pub fn accept_word(&mut self, select: u32, value: u32) {
        let value = u64::from(value);
        match select {
            0 => self.accepted = self.accepted & !0xffff_ffff | value,
            1 => self.accepted = self.accepted & 0xffff_ffff | value << 32,
            _ => self.accepted_beyond |= value != 0,
        }
    }

    /// The features that both sides have agreed on.
    ///
    /// # Errors
    ///
    /// The reason why the device does not work with this set; `FEATURES_OK` must then stay clear
    /// (section 2.2.2).
    pub const fn check(&self) -> Result<u64, FeatureError> {
        let unknown = self.accepted & !self.offered;
        if unknown != 0 || self.accepted_beyond {
            return Err(FeatureError::NotOffered(unknown));
        }
        if self.accepted & VIRTIO_F_VERSION_1 == 0 {
            return Err(FeatureError::NoVersion1);
        }
        Ok(self.accepted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_beyond_the_second_do_not_exist() {
        let features = Negotiation::new(u64::MAX);
        for select in [2, 3, 31, 32, 64, 1 << 31, u32::MAX] {
            assert_eq!(features.offered_word(select), 0);
        }
    }

    #[test]
    fn a_bit_beyond_the_second_word_is_refused_and_zero_is_not() {
        let mut features = Negotiation::new(0);
        features.accept_word(1, 1);
        features.accept_word(2, 0);
        assert_eq!(features.check(), Ok(VIRTIO_F_VERSION_1));
        features.accept_word(u32::MAX, 4);
        assert_eq!(features.check(), Err(FeatureError::NotOffered(0)));
    }

    #[test]
    fn a_bit_not_offered_is_refused_by_name() {
        let mut features = Negotiation::new(VIRTIO_F_EVENT_IDX);
        features.accept_word(1, 1);
        features.accept_word(0, 1 << 28);
        assert_eq!(
            features.check(),
            Err(FeatureError::NotOffered(VIRTIO_F_INDIRECT_DESC))
        );
        features.accept_word(0, 1 << 29);
        assert_eq!(
            features.check(),
            Ok(VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX)
        );
    }
}

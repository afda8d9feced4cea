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

/// The driver's notifications say how far it has come in the ring (section 2.9).
pub const VIRTIO_F_NOTIFICATION_DATA: u64 = 1 << 38;
/// Queues can be reset one by one (section 2.6.1). A device that offers it implements
/// [`VirtioDevice::restart_queue`](crate::VirtioDevice::restart_queue).
pub const VIRTIO_F_RING_RESET: u64 = 1 << 40;

/// Features of queues that this crate does not have: `VIRTIO_F_RING_PACKED`.
const NO_SUCH_QUEUES: u64 = 1 << 34;

/// A feature that makes no sense without another one (section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureRule {
    /// The feature bit.
    pub feature: u64,
    /// The bits of which it needs at least one.
    pub needs: u64,
}

const fn rule(feature: u32, needs: u64) -> FeatureRule {
    FeatureRule {
        feature: 1 << feature,
        needs,
    }
}

const NET_CSUM: u64 = 1 << 0;
const NET_GUEST_CSUM: u64 = 1 << 1;
const NET_GUEST_TSO: u64 = 1 << 7 | 1 << 8;
const NET_HOST_TSO: u64 = 1 << 11 | 1 << 12;
const NET_CTRL_VQ: u64 = 1 << 17;
const NET_HASHES: u64 = 1 << 57 | 1 << 60;

/// What section 5.1.3.1 says of network devices.
const NET: [FeatureRule; 22] = [
    rule(7, NET_GUEST_CSUM),  // GUEST_TSO4
    rule(8, NET_GUEST_CSUM),  // GUEST_TSO6
    rule(9, NET_GUEST_TSO),   // GUEST_ECN
    rule(10, NET_GUEST_CSUM), // GUEST_UFO
    rule(54, NET_GUEST_CSUM), // GUEST_USO4
    rule(55, NET_GUEST_CSUM), // GUEST_USO6
    rule(11, NET_CSUM),       // HOST_TSO4
    rule(12, NET_CSUM),       // HOST_TSO6
    rule(13, NET_HOST_TSO),   // HOST_ECN
    rule(14, NET_CSUM),       // HOST_UFO
    rule(56, NET_CSUM),       // HOST_USO
    rule(18, NET_CTRL_VQ),    // CTRL_RX
    rule(19, NET_CTRL_VQ),    // CTRL_VLAN
    rule(21, NET_CTRL_VQ),    // GUEST_ANNOUNCE
    rule(22, NET_CTRL_VQ),    // MQ
    rule(23, NET_CTRL_VQ),    // CTRL_MAC_ADDR
    rule(53, NET_CTRL_VQ),    // NOTF_COAL
    rule(61, NET_HOST_TSO),   // RSC_EXT
    rule(60, NET_CTRL_VQ),    // RSS
    rule(52, NET_CTRL_VQ),    // VQ_NOTF_COAL
    rule(51, NET_CTRL_VQ),    // HASH_TUNNEL
    rule(51, NET_HASHES),     // HASH_TUNNEL
];

impl FeatureRule {
    /// The rules for devices of type `device_type`; most have none.
    #[must_use]
    pub const fn of(device_type: u32) -> &'static [Self] {
        match device_type {
            1 => &NET,
            _ => &[],
        }
    }

    /// Whether `features` break this rule.
    const fn broken_by(&self, features: u64) -> bool {
        features & self.feature != 0 && features & self.needs == 0
    }
}

/// Why `FEATURES_OK` was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FeatureError {
    /// The driver accepted bits that the device does not offer; those below bit 64 are given.
    NotOffered(u64),
    /// The driver did not accept `VIRTIO_F_VERSION_1`.
    NoVersion1,
    /// The driver accepted a feature without the one that it needs.
    Missing(FeatureRule),
}

impl fmt::Display for FeatureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOffered(bits) => write!(f, "driver accepted bits never offered: {bits:#x}"),
            Self::NoVersion1 => f.write_str("driver did not accept VIRTIO_F_VERSION_1"),
            Self::Missing(FeatureRule { feature, needs }) => {
                write!(f, "driver accepted {feature:#x} without any of {needs:#x}")
            }
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
/// let mut features = Negotiation::new(4, VIRTIO_F_EVENT_IDX); // an entropy device
/// assert_eq!(features.offered_word(1), 1); // VIRTIO_F_VERSION_1 is always offered
/// assert_eq!(features.check(), Err(FeatureError::NoVersion1));
/// features.accept_word(1, 1);
/// assert_eq!(features.check(), Ok(VIRTIO_F_VERSION_1));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Negotiation {
    rules: &'static [FeatureRule],
    offered: u64,
    accepted: u64,
    /// The driver set a bit beyond the 64 that exist here; nothing there is ever offered.
    accepted_beyond: bool,
}

impl Negotiation {
    /// Starts a negotiation in which a device of type `device_type` offers `features`, and
    /// `VIRTIO_F_VERSION_1` in any case.
    ///
    /// What a device must not offer is left out: a feature without the one that it needs, and
    /// packed queues, which this crate does not have.
    #[must_use]
    pub fn new(device_type: u32, features: u64) -> Self {
        let rules = FeatureRule::of(device_type);
        let mut offered = features & !NO_SUCH_QUEUES | VIRTIO_F_VERSION_1;
        // Leaving one out may break the rule of another; each round leaves out at least one.
        while let Some(rule) = rules.iter().find(|rule| rule.broken_by(offered)) {
            offered &= !rule.feature;
        }
        Self {
            rules,
            offered,
            accepted: 0,
            accepted_beyond: false,
        }
    }

    /// What the driver has accepted so far, checked or not, and whether it has accepted bits
    /// beyond the first 64.
    #[must_use]
    pub const fn accepted(&self) -> (u64, bool) {
        (self.accepted, self.accepted_beyond)
    }

    /// Puts back what the driver had accepted, as [`Negotiation::accepted`] said.
    pub const fn restore(&mut self, accepted: u64, beyond: bool) {
        self.accepted = accepted;
        self.accepted_beyond = beyond;
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
    pub fn check(&self) -> Result<u64, FeatureError> {
        let unknown = self.accepted & !self.offered;
        if unknown != 0 || self.accepted_beyond {
            return Err(FeatureError::NotOffered(unknown));
        }
        if self.accepted & VIRTIO_F_VERSION_1 == 0 {
            return Err(FeatureError::NoVersion1);
        }
        if let Some(rule) = self.rules.iter().find(|rule| rule.broken_by(self.accepted)) {
            return Err(FeatureError::Missing(*rule));
        }
        Ok(self.accepted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_beyond_the_second_do_not_exist() {
        let features = Negotiation::new(4, u64::MAX);
        for select in [2, 3, 31, 32, 64, 1 << 31, u32::MAX] {
            assert_eq!(features.offered_word(select), 0);
        }
    }

    #[test]
    fn a_bit_beyond_the_second_word_is_refused_and_zero_is_not() {
        let mut features = Negotiation::new(4, 0);
        features.accept_word(1, 1);
        features.accept_word(2, 0);
        assert_eq!(features.check(), Ok(VIRTIO_F_VERSION_1));
        features.accept_word(u32::MAX, 4);
        assert_eq!(features.check(), Err(FeatureError::NotOffered(0)));
    }

    #[test]
    fn a_bit_not_offered_is_refused_by_name() {
        let mut features = Negotiation::new(4, VIRTIO_F_EVENT_IDX);
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

    fn offered(negotiation: Negotiation) -> u64 {
        u64::from(negotiation.offered_word(0)) | u64::from(negotiation.offered_word(1)) << 32
    }

    fn accept(negotiation: &mut Negotiation, features: u64) {
        let low = u32::try_from(features & 0xffff_ffff).unwrap();
        negotiation.accept_word(0, low);
        negotiation.accept_word(1, u32::try_from(features >> 32).unwrap());
    }

    #[test]
    fn packed_queues_are_never_offered() {
        assert_eq!(offered(Negotiation::new(4, u64::MAX)), !(1 << 34));
        assert_eq!(offered(Negotiation::new(4, 0)), VIRTIO_F_VERSION_1);
    }

    #[test]
    fn a_feature_is_not_offered_without_the_one_it_needs() {
        // GUEST_ECN needs one of GUEST_TSO4 and GUEST_TSO6, and they need GUEST_CSUM.
        let ecn = 1 << 9;
        let needed = VIRTIO_F_VERSION_1 | 1 << 1;
        assert_eq!(
            offered(Negotiation::new(1, ecn | 1 << 7)),
            VIRTIO_F_VERSION_1
        );
        for tso in [1 << 7, 1 << 8] {
            let all = ecn | tso | needed;
            assert_eq!(offered(Negotiation::new(1, all)), all);
        }
        assert_eq!(offered(Negotiation::new(1, ecn | needed)), needed);
        // The bits mean something else to another type of device.
        assert_eq!(offered(Negotiation::new(2, ecn)), ecn | VIRTIO_F_VERSION_1);
    }

    #[test]
    fn a_feature_is_not_accepted_without_the_one_it_needs() {
        for rule in FeatureRule::of(1) {
            let mut features = Negotiation::new(1, u64::MAX);
            accept(&mut features, rule.feature | VIRTIO_F_VERSION_1);
            assert!(
                matches!(features.check(), Err(FeatureError::Missing(missing))
                    if missing.feature == rule.feature),
                "{rule:?}"
            );
            let everything = !(1 << 34);
            accept(&mut features, everything);
            assert_eq!(features.check(), Ok(everything));
            accept(&mut features, everything & !rule.needs);
            assert!(matches!(features.check(), Err(FeatureError::Missing(_))));
        }
    }

    #[test]
    fn what_was_accepted_can_be_saved() {
        let mut features = Negotiation::new(4, 0);
        accept(&mut features, 0x5_0000_0003);
        assert_eq!(features.accepted(), (0x5_0000_0003, false));
        features.accept_word(2, 1);
        assert_eq!(features.accepted(), (0x5_0000_0003, true));
    }
}

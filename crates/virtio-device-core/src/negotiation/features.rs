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
    /// Number of the feature bit.
    pub feature: u32,
    /// Numbers of the bits of which it needs at least one.
    pub needs: &'static [u32],
}

const fn rule(feature: u32, needs: &'static [u32]) -> FeatureRule {
    FeatureRule { feature, needs }
}

/// What section 5.1.3.1 says of network devices. Bit 0 is CSUM, 1 is `GUEST_CSUM`, 17 is `CTRL_VQ`.
const NET: [FeatureRule; 22] = [
    rule(7, &[1]),       // GUEST_TSO4
    rule(8, &[1]),       // GUEST_TSO6
    rule(9, &[7, 8]),    // GUEST_ECN
    rule(10, &[1]),      // GUEST_UFO
    rule(54, &[1]),      // GUEST_USO4
    rule(55, &[1]),      // GUEST_USO6
    rule(11, &[0]),      // HOST_TSO4
    rule(12, &[0]),      // HOST_TSO6
    rule(13, &[11, 12]), // HOST_ECN
    rule(14, &[0]),      // HOST_UFO
    rule(56, &[0]),      // HOST_USO
    rule(18, &[17]),     // CTRL_RX
    rule(19, &[17]),     // CTRL_VLAN
    rule(21, &[17]),     // GUEST_ANNOUNCE
    rule(22, &[17]),     // MQ
    rule(23, &[17]),     // CTRL_MAC_ADDR
    rule(53, &[17]),     // NOTF_COAL
    rule(61, &[11, 12]), // RSC_EXT
    rule(60, &[17]),     // RSS
    rule(52, &[17]),     // VQ_NOTF_COAL
    rule(51, &[17]),     // HASH_TUNNEL
    rule(51, &[57, 60]), // HASH_TUNNEL
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
    fn broken_by(&self, features: u64) -> bool {
        let has = |bit: u32| features & 1 << bit != 0;
        has(self.feature) && !self.needs.iter().any(|&bit| has(bit))
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
                write!(f, "driver accepted bit {feature} without any of {needs:?}")
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
            offered &= !(1 << rule.feature);
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
    fn version_1_must_be_accepted() {
        let mut features = Negotiation::new(4, VIRTIO_F_EVENT_IDX);
        assert_eq!(features.check(), Err(FeatureError::NoVersion1));
        accept(&mut features, VIRTIO_F_EVENT_IDX);
        assert_eq!(features.check(), Err(FeatureError::NoVersion1));
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
            accept(&mut features, 1 << rule.feature | VIRTIO_F_VERSION_1);
            assert!(
                matches!(features.check(), Err(FeatureError::Missing(missing))
                    if missing.feature == rule.feature),
                "{rule:?}"
            );
            let everything = !(1 << 34);
            accept(&mut features, everything);
            assert_eq!(features.check(), Ok(everything));
            // Any one of those it needs will do, and none will not.
            let needed = rule.needs.iter().fold(0, |all, bit| all | 1u64 << bit);
            accept(&mut features, everything & !needed);
            assert!(matches!(features.check(), Err(FeatureError::Missing(_))));
        }
    }

    #[test]
    fn bits_and_messages_are_those_of_the_specification() {
        let bits = [
            (VIRTIO_F_INDIRECT_DESC, 0x1000_0000),
            (VIRTIO_F_EVENT_IDX, 0x2000_0000),
            (VIRTIO_F_VERSION_1, 0x1_0000_0000),
            (VIRTIO_F_NOTIFICATION_DATA, 0x40_0000_0000),
            (VIRTIO_F_RING_RESET, 0x100_0000_0000),
        ];
        for (name, value) in bits {
            assert_eq!(name, value);
        }
        let missing = FeatureError::Missing(rule(9, &[7, 8]));
        assert_eq!(
            missing.to_string(),
            "driver accepted bit 9 without any of [7, 8]"
        );
        let unknown = FeatureError::NotOffered(0x10).to_string();
        assert!(unknown.ends_with("0x10"), "{unknown}");
        assert!(FeatureError::NoVersion1.to_string().contains("VERSION_1"));
    }

    #[test]
    fn what_was_accepted_can_be_saved() {
        let mut features = Negotiation::new(4, 0);
        accept(&mut features, 0x5_0000_0003);
        assert_eq!(features.accepted(), (0x5_0000_0003, false));
        features.accept_word(2, 1);
        assert_eq!(features.accepted(), (0x5_0000_0003, true));
        let mut restored = Negotiation::new(4, 0);
        restored.restore(0x5_0000_0003, true);
        assert_eq!(restored.accepted(), features.accepted());
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Feature bits and their negotiation (VIRTIO 1.3, sections 2.2 and 6).

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{BitAnd, BitOr, Sub};

use crate::fault::SetupError;

pub use virtio_bindings::virtio_config::{
    VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_IN_ORDER, VIRTIO_F_NOTIFICATION_DATA, VIRTIO_F_RING_PACKED,
    VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1,
};
// Linux names these two after the ring, the specification like all others.
pub use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX as VIRTIO_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC as VIRTIO_F_INDIRECT_DESC,
};

/// A set of feature bits, numbered 0 to 127 (VIRTIO 1.3, section 2.2): all that the specification
/// gives a meaning to or leaves to device types.
///
/// ```
/// use virtio_device_core::{Features, VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1};
///
/// let features = Features::QUEUE | Features::of(&[VIRTIO_F_VERSION_1]);
/// assert!(features.has(VIRTIO_F_EVENT_IDX));
/// assert_eq!(features.word(1), 1);
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Features(u128);

/// Number of 32-bit words in a [`Features`].
const WORDS: u32 = 4;

impl Features {
    /// No feature.
    pub const NONE: Self = Self(0);

    /// What [`Virtqueue`](crate::Virtqueue) can do: `VIRTIO_F_EVENT_IDX` and
    /// `VIRTIO_F_INDIRECT_DESC`.
    pub const QUEUE: Self = Self::of(&[VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC]);

    /// The bits that device types give a meaning to: 0 to 23, and 50 to 127. Those between belong to
    /// queues and transports.
    pub const DEVICE_TYPE: Self = Self(!(((1 << 26) - 1) << 24));

    /// The set of the bits with these numbers.
    ///
    /// # Panics
    ///
    /// If a number is 128 or more; at compile time if the set is a constant.
    #[must_use]
    pub const fn of(mut bits: &[u32]) -> Self {
        let mut features = 0;
        while let [bit, rest @ ..] = bits {
            assert!(*bit < u128::BITS, "feature bits are numbered 0 to 127");
            features |= 1 << *bit;
            bits = rest;
        }
        Self(features)
    }

    /// Whether the set has the bit with this number.
    #[must_use]
    pub const fn has(self, bit: u32) -> bool {
        bit < u128::BITS && self.0 & 1 << bit != 0
    }

    /// Whether the set is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Bits `32 * select` to `32 * select + 31`, as a driver reads them; 0 beyond bit 127.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a word is the low 32 bits")]
    pub const fn word(self, select: u32) -> u32 {
        if select < WORDS {
            (self.0 >> (32 * select)) as u32
        } else {
            0
        }
    }

    /// The set that a driver reads as these words, bits 0 to 31 first.
    #[must_use]
    pub fn from_words(words: [u32; WORDS as usize]) -> Self {
        let numbered = (0..WORDS).zip(words);
        numbered.fold(Self::NONE, |all, (select, word)| {
            all.with_word(select, word)
        })
    }

    /// Bits 0 to 63.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
    pub const fn low(self) -> u64 {
        self.0 as u64
    }

    /// The set with word `select` replaced; `select` is less than [`WORDS`].
    const fn with_word(self, select: u32, word: u32) -> Self {
        let shift = 32 * select;
        Self(self.0 & !(0xffff_ffff << shift) | (word as u128) << shift)
    }
}

impl From<u64> for Features {
    /// Bits 0 to 63.
    fn from(bits: u64) -> Self {
        Self(bits.into())
    }
}

impl BitOr for Features {
    type Output = Self;

    /// What is in either set.
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Features {
    type Output = Self;

    /// What is in both sets.
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Sub for Features {
    type Output = Self;

    /// What is in this set and not in the other.
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl fmt::LowerHex for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({:#x})", self.0)
    }
}

/// A feature that makes no sense without another one (section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FeatureRule {
    /// Number of the feature bit.
    feature: u32,
    /// Numbers of the bits of which it needs at least one.
    needs: &'static [u32],
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
    const fn of(device_type: u32) -> &'static [Self] {
        match device_type {
            1 => &NET,
            _ => &[],
        }
    }

    const fn error(&self) -> SetupError {
        let Self { feature, needs } = *self;
        SetupError::MissingFeature { feature, needs }
    }

    /// Whether `features` break this rule.
    fn broken_by(&self, features: Features) -> bool {
        features.has(self.feature) && !self.needs.iter().any(|&bit| features.has(bit))
    }
}

/// How many words beyond bit 127 a driver may fill and still clear again. No known driver fills one.
pub(crate) const MAX_WORDS_BEYOND: usize = 16;

/// The features that a device offers and a driver is about to accept.
///
/// The driver sees both as 32-bit words and may select any of 2^32, although only the first four
/// exist. What it writes to a word replaces what it wrote there before; that holds for words that do
/// not exist too, as long as no more than 16 of those are not 0 at a time. A driver that fills more
/// is refused until the next reset.
///
/// ```
/// use virtio_device_core::transport::{Negotiation, SetupError};
/// use virtio_device_core::{Features, VIRTIO_F_VERSION_1};
///
/// let mut features = Negotiation::new(4, Features::QUEUE); // an entropy device
/// assert_eq!(features.offered().word(1), 1); // VIRTIO_F_VERSION_1 is always offered
/// assert_eq!(features.check(), Err(SetupError::NoVersion1));
/// features.accept_word(1, 1);
/// assert_eq!(features.check(), Ok(Features::of(&[VIRTIO_F_VERSION_1])));
/// ```
#[derive(Clone, Debug)]
pub struct Negotiation {
    rules: &'static [FeatureRule],
    offered: Features,
    accepted: Features,
    /// Words beyond those of `accepted` that are not 0, by selector. Once there are more than
    /// [`MAX_WORDS_BEYOND`], nothing changes them any more.
    beyond: BTreeMap<u32, u32>,
}

impl Negotiation {
    /// Starts a negotiation in which a device of type `device_type` and its transport offer
    /// `features`, and `VIRTIO_F_VERSION_1` in any case.
    ///
    /// What must not be offered is left out: a feature without the one that it needs, and packed
    /// queues, which this crate does not have.
    #[must_use]
    pub fn new(device_type: u32, features: Features) -> Self {
        let rules = FeatureRule::of(device_type);
        let mut offered = (features - Features::of(&[VIRTIO_F_RING_PACKED]))
            | Features::of(&[VIRTIO_F_VERSION_1]);
        // Leaving one out may break the rule of another; each round leaves out at least one.
        while let Some(rule) = rules.iter().find(|rule| rule.broken_by(offered)) {
            offered = offered - Features::of(&[rule.feature]);
        }
        Self {
            rules,
            offered,
            accepted: Features::NONE,
            beyond: BTreeMap::new(),
        }
    }

    /// The features that device and transport offer. Words that do not exist read 0.
    #[must_use]
    pub const fn offered(&self) -> Features {
        self.offered
    }

    /// What the driver has accepted so far of bits 0 to 127, checked or not.
    #[must_use]
    pub const fn accepted(&self) -> Features {
        self.accepted
    }

    /// The words that the driver has written and that are not 0, with their selectors, in rising
    /// order. [`accept_word`](Self::accept_word) with each restores them.
    pub fn accepted_words(&self) -> impl Iterator<Item = (u32, u32)> {
        let words = (0..WORDS).map(|select| (select, self.accepted.word(select)));
        let beyond = self.beyond.iter().map(|(&select, &word)| (select, word));
        words.filter(|&(_, word)| word != 0).chain(beyond)
    }

    /// Replaces word `select` of what the driver accepts. Nothing is masked: a bit never offered is
    /// remembered, and makes the check fail.
    pub fn accept_word(&mut self, select: u32, word: u32) {
        if select < WORDS {
            self.accepted = self.accepted.with_word(select, word);
        } else if self.beyond.len() > MAX_WORDS_BEYOND {
            // Too many words: they are not remembered, and the check fails in any case.
        } else if word == 0 {
            self.beyond.remove(&select);
        } else {
            self.beyond.insert(select, word);
        }
    }

    /// The features that both sides have agreed on.
    ///
    /// # Errors
    ///
    /// The reason why the device does not work with this set; `FEATURES_OK` must then stay clear
    /// (section 2.2.2).
    pub fn check(&self) -> Result<Features, SetupError> {
        let unknown = self.accepted - self.offered;
        if !unknown.is_empty() {
            return Err(SetupError::NotOffered(unknown));
        }
        if self.beyond.len() > MAX_WORDS_BEYOND {
            return Err(SetupError::TooManyWords);
        }
        if let Some((&select, _)) = self.beyond.first_key_value() {
            return Err(SetupError::NoSuchWord(select));
        }
        if !self.accepted.has(VIRTIO_F_VERSION_1) {
            return Err(SetupError::NoVersion1);
        }
        if let Some(rule) = self.rules.iter().find(|rule| rule.broken_by(self.accepted)) {
            return Err(rule.error());
        }
        Ok(self.accepted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION_1: Features = Features::of(&[VIRTIO_F_VERSION_1]);
    const ALL: Features = Features(u128::MAX);
    const PACKED: Features = Features::of(&[VIRTIO_F_RING_PACKED]);

    fn accept(negotiation: &mut Negotiation, features: Features) {
        (0..WORDS).for_each(|select| negotiation.accept_word(select, features.word(select)));
    }

    #[test]
    fn a_set_is_made_of_numbered_bits() {
        let features = Features::of(&[0, 33, 127]);
        for bit in 0..200 {
            assert_eq!(features.has(bit), [0, 33, 127].contains(&bit), "{bit}");
        }
        let words = [1, 2, 0, 1 << 31];
        assert_eq!([0, 1, 2, 3].map(|n| features.word(n)), words);
        assert_eq!(Features::from_words(words), features);
        assert_eq!(features.low(), 0x2_0000_0001);
        assert_eq!(
            Features::from(0x2_0000_0001) | Features::of(&[127]),
            features
        );
        assert_eq!(features & Features::of(&[1, 33]), Features::of(&[33]));
        assert_eq!(features - Features::of(&[1, 33]), Features::of(&[0, 127]));
        assert!(Features::NONE.is_empty() && !features.is_empty());
        assert_eq!(format!("{:?}", Features::of(&[4])), "Features(0x10)");
    }

    #[test]
    #[should_panic = "0 to 127"]
    fn a_bit_that_no_set_can_hold_is_a_mistake() {
        let _ = Features::of(&[128]);
    }

    #[test]
    fn words_beyond_bit_127_read_as_zero() {
        let features = Negotiation::new(4, ALL);
        for select in [4, 5, 31, 32, 64, 128, 1 << 31, u32::MAX] {
            assert_eq!(features.offered().word(select), 0);
        }
        assert_eq!(features.offered().word(3), u32::MAX);
    }

    #[test]
    fn every_word_holds_what_was_written_last() {
        for select in [0, 1, 2, 3, 4, 9, 64, 1 << 31, u32::MAX] {
            let mut features = Negotiation::new(4, Features::NONE);
            accept(&mut features, VERSION_1);
            features.accept_word(select, 3);
            assert!(features.check().is_err(), "{select}");
            features.accept_word(select, VERSION_1.word(select));
            assert_eq!(features.check(), Ok(VERSION_1), "{select}");
        }
    }

    #[test]
    fn a_word_that_does_not_exist_is_refused_by_name() {
        let mut features = Negotiation::new(4, Features::NONE);
        accept(&mut features, VERSION_1);
        features.accept_word(u32::MAX, 4);
        features.accept_word(9, 4);
        assert_eq!(features.check(), Err(SetupError::NoSuchWord(9)));
        features.accept_word(9, 0);
        assert_eq!(features.check(), Err(SetupError::NoSuchWord(u32::MAX)));
    }

    #[test]
    fn words_that_do_not_exist_take_bounded_memory() {
        let mut features = Negotiation::new(4, Features::NONE);
        accept(&mut features, VERSION_1);
        let last = 4 + u32::try_from(MAX_WORDS_BEYOND).unwrap();
        let fill = |features: &mut Negotiation, end| {
            (4..end).for_each(|select| features.accept_word(select, 1));
        };
        let clear = |features: &mut Negotiation| {
            (4..10_000).for_each(|select| features.accept_word(select, 0));
        };
        fill(&mut features, last);
        clear(&mut features);
        assert_eq!(features.check(), Ok(VERSION_1));
        fill(&mut features, 10_000);
        assert_eq!(features.beyond.len(), MAX_WORDS_BEYOND + 1);
        clear(&mut features);
        assert_eq!(features.check(), Err(SetupError::TooManyWords));
    }

    #[test]
    fn words_are_restored_as_they_were_saved() {
        for count in [0, 1, 16, 17, 40] {
            let mut features = Negotiation::new(4, Features::NONE);
            accept(&mut features, Features::of(&[0, 33, 70, 127]));
            (0..count).for_each(|n| features.accept_word(4 + 7 * n, n + 1));
            let mut restored = Negotiation::new(4, Features::NONE);
            let words = features.accepted_words().collect::<Vec<_>>();
            assert!(words.iter().all(|&(_, word)| word != 0));
            (words.iter().rev()).for_each(|&(select, word)| restored.accept_word(select, word));
            assert_eq!(restored.accepted(), features.accepted());
            assert!(restored.accepted_words().eq(words));
            assert_eq!(restored.check(), features.check());
        }
    }

    #[test]
    fn a_bit_not_offered_is_refused_by_name() {
        for bit in [28, 63, 64, 127] {
            let mut features = Negotiation::new(4, Features::of(&[VIRTIO_F_EVENT_IDX]));
            accept(&mut features, VERSION_1 | Features::of(&[bit]));
            let error = SetupError::NotOffered(Features::of(&[bit]));
            assert_eq!(features.check(), Err(error));
            let agreed = VERSION_1 | Features::of(&[VIRTIO_F_EVENT_IDX]);
            accept(&mut features, agreed);
            assert_eq!(features.check(), Ok(agreed));
        }
    }

    #[test]
    fn version_1_must_be_accepted() {
        let mut features = Negotiation::new(4, Features::QUEUE);
        assert_eq!(features.check(), Err(SetupError::NoVersion1));
        accept(&mut features, Features::QUEUE);
        assert_eq!(features.check(), Err(SetupError::NoVersion1));
    }

    #[test]
    fn packed_queues_are_never_offered() {
        assert_eq!(Negotiation::new(4, ALL).offered(), ALL - PACKED);
        assert_eq!(Negotiation::new(4, Features::NONE).offered(), VERSION_1);
    }

    #[test]
    fn a_feature_is_not_offered_without_the_one_it_needs() {
        let offered = |features| Negotiation::new(1, features).offered();
        // GUEST_ECN needs one of GUEST_TSO4 and GUEST_TSO6, and they need GUEST_CSUM.
        let ecn = Features::of(&[9]);
        let needed = VERSION_1 | Features::of(&[1]);
        assert_eq!(offered(ecn | Features::of(&[7])), VERSION_1);
        for tso in [7, 8] {
            let all = ecn | Features::of(&[tso]) | needed;
            assert_eq!(offered(all), all);
        }
        assert_eq!(offered(ecn | needed), needed);
        // The bits mean something else to another type of device.
        assert_eq!(Negotiation::new(2, ecn).offered(), ecn | VERSION_1);
    }

    #[test]
    fn a_feature_is_not_accepted_without_the_one_it_needs() {
        for rule in FeatureRule::of(1) {
            let mut features = Negotiation::new(1, ALL);
            accept(&mut features, Features::of(&[rule.feature]) | VERSION_1);
            assert!(
                matches!(features.check(), Err(SetupError::MissingFeature { feature, .. })
                    if feature == rule.feature),
                "{rule:?}"
            );
            let everything = ALL - PACKED;
            accept(&mut features, everything);
            assert_eq!(features.check(), Ok(everything));
            // One of the features that it needs is enough; without any of them the check fails.
            accept(&mut features, everything - Features::of(rule.needs));
            assert!(matches!(
                features.check(),
                Err(SetupError::MissingFeature { .. })
            ));
        }
    }

    #[test]
    fn bits_and_messages_are_those_of_the_specification() {
        let bits = [
            (VIRTIO_F_INDIRECT_DESC, 28),
            (VIRTIO_F_EVENT_IDX, 29),
            (VIRTIO_F_VERSION_1, 32),
            (VIRTIO_F_ACCESS_PLATFORM, 33),
            (VIRTIO_F_RING_PACKED, 34),
            (VIRTIO_F_IN_ORDER, 35),
            (VIRTIO_F_NOTIFICATION_DATA, 38),
            (VIRTIO_F_RING_RESET, 40),
        ];
        for (name, number) in bits {
            assert_eq!(name, number);
        }
        let messages = [
            (
                rule(9, &[7, 8]).error(),
                "driver accepted bit 9 without any of [7, 8]",
            ),
            (
                SetupError::NotOffered(Features::of(&[4])),
                "driver accepted bits never offered: 0x10",
            ),
            (
                SetupError::NoSuchWord(9),
                "driver accepted bits of feature word 9, which is never offered",
            ),
            (
                SetupError::TooManyWords,
                "driver accepted bits of more than 16 feature words never offered",
            ),
            (
                SetupError::NoVersion1,
                "driver did not accept VIRTIO_F_VERSION_1",
            ),
        ];
        for (error, text) in messages {
            assert_eq!(error.to_string(), text);
        }
    }
}

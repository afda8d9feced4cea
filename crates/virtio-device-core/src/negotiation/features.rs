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
mod tests;

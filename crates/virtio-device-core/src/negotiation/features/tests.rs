// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

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

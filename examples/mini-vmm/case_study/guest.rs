// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The built-in guest of the case study: a program that drives both random number generators.
//!
//! The program itself is assembly, and belongs to the architecture.

use std::fmt;

use crate::layout::{BUFFER_LEGACY, BUFFER_VIRTIO, QUEUE};

/// Most bytes that the guest asks for in one virtio request.
pub(crate) const MAX_REQUEST: u32 = 64 * 1024;
/// Number of descriptors in the guest's queue.
pub(crate) const QUEUE_SIZE: u32 = 16;
/// Offsets of the queue's parts.
pub(crate) const AVAIL: u64 = 0x100;
pub(crate) const USED: u64 = 0x200;
/// The interrupt handler leaves what it read from `InterruptStatus` here.
pub(crate) const CAUSES: u64 = QUEUE + 0x300;

/// The two devices, by the number that the guest announces a phase with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    /// Rngboi1337: a register.
    Legacy = 1,
    /// virtio-rng: a queue.
    Virtio = 2,
}

impl Device {
    /// The device of a phase that the guest announces.
    pub(crate) const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Legacy),
            2 => Some(Self::Virtio),
            _ => None,
        }
    }

    /// Where the guest puts the device's bytes.
    pub(crate) const fn buffer(self) -> u64 {
        match self {
            Self::Legacy => BUFFER_LEGACY,
            Self::Virtio => BUFFER_VIRTIO,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Legacy => "mmio-rng-legacy",
            Self::Virtio => "virtio-rng",
        })
    }
}

macro_rules! checks {
    ($($name:ident = $number:literal: $text:literal,)*) => {
        /// The checks that the guest makes, by the number it reports a failed one with.
        pub(crate) mod check {
            $(pub(crate) const $name: u32 = $number;)*
        }

        /// What was checked, by the number that the guest reports.
        pub(crate) fn check_name(number: u32) -> &'static str {
            match number {
                $($number => $text,)*
                _ => "a check that this program does not know",
            }
        }
    };
}

checks! {
    MAGIC = 1: "virtio: MagicValue is \"virt\"",
    VERSION = 2: "virtio: Version is 2",
    DEVICE_ID = 3: "virtio: DeviceID is 4, an entropy device",
    RESET = 4: "virtio: Status is 0 after reset",
    VERSION_1 = 5: "virtio: the device offers VIRTIO_F_VERSION_1",
    FEATURES_OK = 6: "virtio: FEATURES_OK stays set",
    QUEUE_FREE = 7: "virtio: QueueReady is 0 before set-up",
    QUEUE_SIZE_MAX = 8: "virtio: QueueSizeMax is large enough",
    QUEUE_READY = 9: "virtio: QueueReady stays set",
    DRIVER_OK = 10: "virtio: DRIVER_OK stays set, and nothing else is",
    CAUSE = 11: "virtio: the interrupt is about a used buffer, not about a failure",
    USED_INDEX = 12: "virtio: the used index has moved by one",
    USED_ID = 13: "virtio: the used element names the request",
    USED_LENGTH = 14: "virtio: the used length is between 1 and the length asked for",
}

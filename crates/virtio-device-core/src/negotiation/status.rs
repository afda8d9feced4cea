// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device status field and its legal transitions (VIRTIO 1.3, section 2.1).

use std::fmt;

/// The device status field: how far driver and device have come with each other.
///
/// Only [`DeviceStatus::after_write`] makes new values, so a status that the specification does
/// not know cannot be built.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct DeviceStatus(u8);

/// The driver has noticed the device.
pub const ACKNOWLEDGE: u8 = 1;
/// The driver knows how to drive the device.
pub const DRIVER: u8 = 2;
/// The driver is set up and the device is live.
pub const DRIVER_OK: u8 = 4;
/// Driver and device agree on the features.
pub const FEATURES_OK: u8 = 8;
/// The device has met an error that only a reset clears; set by the device alone.
pub const DEVICE_NEEDS_RESET: u8 = 64;
/// The driver has given up on the device.
pub const FAILED: u8 = 128;

/// What a driver's write to the status field asks of the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusWrite {
    /// Nothing changes: the same value again, or a step that is not allowed from here.
    Ignored,
    /// The driver wrote 0: everything goes back to the start.
    Reset,
    /// A step without further conditions; the status becomes the value inside.
    Step(DeviceStatus),
    /// The driver asks whether its features are accepted. The status becomes the value inside if
    /// they are, and stays as it is if not.
    CheckFeatures(DeviceStatus),
    /// The driver is ready: the status becomes the value inside and the device is to be activated.
    Activate(DeviceStatus),
}

const INIT: u8 = 0;
const SEEN: u8 = ACKNOWLEDGE;
const DRIVING: u8 = ACKNOWLEDGE | DRIVER;
const AGREED: u8 = DRIVING | FEATURES_OK;
const LIVE: u8 = AGREED | DRIVER_OK;

/// Every step of section 3.1.1 as (from, to); drivers may take the first two in one write.
const STEPS: [(u8, u8); 5] = [
    (INIT, SEEN),
    (INIT, DRIVING),
    (SEEN, DRIVING),
    (DRIVING, AGREED),
    (AGREED, LIVE),
];

impl DeviceStatus {
    /// The status after reset: no bit set.
    pub const RESET: Self = Self(INIT);

    /// The status with these bits, if a driver can come to it; `DEVICE_NEEDS_RESET` is not among
    /// them. For a state that was saved.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits & !FAILED {
            INIT | SEEN | DRIVING | AGREED | LIVE => Some(Self(bits)),
            _ => None,
        }
    }

    /// The bits as the driver reads them, without `DEVICE_NEEDS_RESET`, which the device keeps.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether features may be written: the driver is known, but has not asked for agreement.
    #[must_use]
    pub const fn negotiating(self) -> bool {
        self.0 == DRIVING
    }

    /// Whether queues may be set up: features are agreed on and the device is not live yet.
    #[must_use]
    pub const fn configuring_queues(self) -> bool {
        self.0 == AGREED
    }

    /// Whether the features are agreed on, be it that the driver has given up since.
    #[must_use]
    pub const fn features_ok(self) -> bool {
        self.0 & FEATURES_OK != 0
    }

    /// Whether the driver has given up.
    #[must_use]
    pub const fn failed(self) -> bool {
        self.0 & FAILED != 0
    }

    /// Whether the driver has set `DRIVER_OK` and has not given up since.
    #[must_use]
    pub const fn live(self) -> bool {
        self.0 == LIVE
    }

    /// Whether the driver has set `DRIVER_OK`, be it that it has given up since.
    #[must_use]
    pub const fn driver_ok(self) -> bool {
        self.0 & DRIVER_OK != 0
    }

    /// What the driver's write of `value` means in this state.
    ///
    /// `broken` says that the device shows `DEVICE_NEEDS_RESET`; a driver that adds a bit to what it
    /// read then writes that bit back. FAILED is taken in every state and stays until reset. No
    /// other bit can be cleared, skipped or invented (sections 2.1.1 and 3.1.1).
    ///
    /// ```
    /// use virtio_device_core::{DeviceStatus, StatusWrite};
    ///
    /// let start = DeviceStatus::RESET;
    /// assert!(matches!(start.after_write(1, false), StatusWrite::Step(_)));
    /// assert_eq!(start.after_write(0xf, false), StatusWrite::Ignored);
    /// ```
    #[must_use]
    pub fn after_write(self, value: u32, broken: bool) -> StatusWrite {
        if value == 0 {
            return StatusWrite::Reset;
        }
        let Ok(mut value) = u8::try_from(value) else {
            return StatusWrite::Ignored;
        };
        if broken {
            value &= !DEVICE_NEEDS_RESET;
        }
        if self.failed() {
            return StatusWrite::Ignored;
        }
        if value == self.0 | FAILED {
            return StatusWrite::Step(Self(value));
        }
        if broken || !STEPS.contains(&(self.0, value)) {
            return StatusWrite::Ignored;
        }
        match value {
            AGREED => StatusWrite::CheckFeatures(Self(AGREED)),
            LIVE => StatusWrite::Activate(Self(LIVE)),
            _ => StatusWrite::Step(Self(value)),
        }
    }
}

impl fmt::Debug for DeviceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceStatus({:#04x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every state the machine can be in.
    fn states() -> Vec<DeviceStatus> {
        let plain = [INIT, SEEN, DRIVING, AGREED, LIVE];
        plain
            .iter()
            .flat_map(|&s| [DeviceStatus(s), DeviceStatus(s | FAILED)])
            .collect()
    }

    /// An independent statement of section 2.1.1, one bit at a time.
    fn expected(from: u8, value: u8) -> StatusWrite {
        if value == 0 {
            return StatusWrite::Reset;
        }
        if from & FAILED != 0 {
            return StatusWrite::Ignored;
        }
        let added = value & !from;
        if from & !value != 0 {
            return StatusWrite::Ignored;
        }
        match (from, added) {
            (_, FAILED) => StatusWrite::Step(DeviceStatus(value)),
            (0, 1 | 3) | (1, 2) => StatusWrite::Step(DeviceStatus(value)),
            (3, 8) => StatusWrite::CheckFeatures(DeviceStatus(value)),
            (11, 4) => StatusWrite::Activate(DeviceStatus(value)),
            _ => StatusWrite::Ignored,
        }
    }

    #[test]
    fn every_value_in_every_state() {
        for from in states() {
            for value in 0..=255u8 {
                assert_eq!(
                    from.after_write(value.into(), false),
                    expected(from.0, value),
                    "{from:?} <- {value:#x}"
                );
            }
        }
    }

    #[test]
    fn only_reachable_states_can_be_restored() {
        for bits in 0..=255u8 {
            let reachable = states().contains(&DeviceStatus(bits));
            let status = DeviceStatus::from_bits(bits);
            assert_eq!(status, reachable.then_some(DeviceStatus(bits)), "{bits:#x}");
            let Some(status) = status else { continue };
            assert_eq!(status.bits(), bits);
            assert_eq!(status.features_ok(), bits & 8 != 0);
            assert_eq!(status.driver_ok(), bits & 4 != 0);
            assert_eq!(status.failed(), bits & 128 != 0);
            assert_eq!(status.negotiating(), bits == 3);
            assert_eq!(status.configuring_queues(), bits == 11);
            assert_eq!(status.live(), bits == 15);
            let text = format!("{status:?}");
            assert!(text.contains(&format!("{bits:#04x}")), "{text}");
        }
    }

    #[test]
    fn bits_beyond_the_register_are_not_cut_off() {
        for from in states() {
            for high in [0x100, 0x1_0000, 0x8000_0000u32] {
                assert_eq!(from.after_write(high, false), StatusWrite::Ignored);
                assert_eq!(from.after_write(high | 0xf, false), StatusWrite::Ignored);
            }
        }
    }

    #[test]
    fn a_broken_device_takes_failed_and_reset_only() {
        for from in states() {
            for value in 0..=255u8 {
                let got = from.after_write(value.into(), true);
                let bare = value & !DEVICE_NEEDS_RESET;
                let want = if value == 0 {
                    StatusWrite::Reset
                } else if from.0 & FAILED == 0 && bare == from.0 | FAILED {
                    StatusWrite::Step(DeviceStatus(bare))
                } else {
                    StatusWrite::Ignored
                };
                assert_eq!(got, want, "{from:?} <- {value:#x}");
            }
        }
    }
}

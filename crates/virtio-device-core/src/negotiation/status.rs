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

    /// The status that the driver's write of `value` asks for; `None` if it changes nothing, because it
    /// is the same value again or a step that is not allowed from here.
    ///
    /// [`RESET`](Self::RESET) asks for a reset. A status that is [`live`](Self::live) asks for the
    /// device to be activated, one that is [`configuring_queues`](Self::configuring_queues) whether the
    /// features are accepted: the status stays as it is if they are not.
    ///
    /// `broken` says that the device shows `DEVICE_NEEDS_RESET`; a driver that adds a bit to what it
    /// read then writes that bit back. FAILED is taken in every state and stays until reset. No
    /// other bit can be cleared, skipped or invented (sections 2.1.1 and 3.1.1).
    ///
    /// ```
    /// use virtio_device_core::transport::DeviceStatus;
    ///
    /// let start = DeviceStatus::RESET;
    /// let next = start.after_write(1, false);
    /// assert_eq!(next.map(DeviceStatus::bits), Some(1));
    /// assert_eq!(start.after_write(0xf, false), None);
    /// ```
    #[must_use]
    pub fn after_write(self, value: u32, broken: bool) -> Option<Self> {
        if value == 0 {
            return Some(Self::RESET);
        }
        let mut value = u8::try_from(value).ok()?;
        if broken {
            value &= !DEVICE_NEEDS_RESET;
        }
        let gives_up = !self.failed() && value == self.0 | FAILED;
        let step = !broken && STEPS.contains(&(self.0, value));
        (gives_up || step).then_some(Self(value))
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
    fn expected(from: u8, value: u8) -> Option<DeviceStatus> {
        if value == 0 {
            return Some(DeviceStatus::RESET);
        }
        if from & FAILED != 0 || from & !value != 0 {
            return None;
        }
        let allowed = matches!(
            (from, value & !from),
            (_, FAILED) | (0, 1 | 3) | (1, 2) | (3, 8) | (11, 4)
        );
        allowed.then_some(DeviceStatus(value))
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
                assert_eq!(from.after_write(high, false), None);
                assert_eq!(from.after_write(high | 0xf, false), None);
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
                    Some(DeviceStatus::RESET)
                } else if from.0 & FAILED == 0 && bare == from.0 | FAILED {
                    Some(DeviceStatus(bare))
                } else {
                    None
                };
                assert_eq!(got, want, "{from:?} <- {value:#x}");
            }
        }
    }
}

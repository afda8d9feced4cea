// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device itself saves: a version, and bytes that mean something to that device alone.

use crate::fault::DeviceFault;

/// Most bytes that a device may save: 1 MiB.
pub const MAX_DEVICE_STATE: usize = 1 << 20;

/// A device's own state, to be saved with its transport's; empty for a device that has none.
///
/// ```
/// use virtio_device_core::DeviceState;
///
/// let state = DeviceState::new(1, b"80x25".to_vec())?;
/// assert_eq!(state.data(1)?, b"80x25");
/// assert!(state.data(2).is_err());
/// # Ok::<(), virtio_device_core::DeviceFault>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Raw"))]
pub struct DeviceState {
    version: u32,
    data: Vec<u8>,
}

/// What is stored, of any length.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct Raw {
    version: u32,
    data: Vec<u8>,
}

#[cfg(feature = "serde")]
impl TryFrom<Raw> for DeviceState {
    type Error = DeviceFault;

    fn try_from(raw: Raw) -> Result<Self, DeviceFault> {
        Self::new(raw.version, raw.data)
    }
}

impl DeviceState {
    /// Makes a state of `version`, which the device chooses, and `data`.
    ///
    /// # Errors
    ///
    /// [`DeviceFault::StateSize`] for more than [`MAX_DEVICE_STATE`] bytes.
    pub fn new(version: u32, data: Vec<u8>) -> Result<Self, DeviceFault> {
        if data.len() > MAX_DEVICE_STATE {
            return Err(DeviceFault::StateSize(data.len()));
        }
        Ok(Self { version, data })
    }

    /// The version that the device gave it; 0 if it has no state.
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// The bytes, if the state is of `version`.
    ///
    /// # Errors
    ///
    /// [`DeviceFault::StateVersion`] if not.
    pub fn data(&self, version: u32) -> Result<&[u8], DeviceFault> {
        if self.version == version {
            Ok(&self.data)
        } else {
            Err(DeviceFault::StateVersion(self.version))
        }
    }

    /// For a device without a state of its own.
    pub(crate) fn expect_empty(&self) -> Result<(), DeviceFault> {
        match (self.version, self.data.is_empty()) {
            (0, true) => Ok(()),
            (0, false) => Err(DeviceFault::State("the device saves nothing")),
            (version, _) => Err(DeviceFault::StateVersion(version)),
        }
    }
}

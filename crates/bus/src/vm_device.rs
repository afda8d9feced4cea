// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices of [vm-device 0.1](https://docs.rs/vm-device/0.1) on this bus, and devices of this bus in its
//! [`IoManager`](https://docs.rs/vm-device/0.1/vm_device/device_manager/struct.IoManager.html).
//!
//! ```
//! use bus::vm_device::{FromMmio, IntoVmDevice};
//! use bus::{AccessError, BusDevice, MmioBus};
//! use std::sync::{Arc, Mutex};
//! use vm_device::bus::{MmioAddress, MmioAddressOffset, MmioRange};
//! use vm_device::device_manager::{IoManager, MmioManager};
//! use vm_device::MutDeviceMmio;
//!
//! /// A device that was written for vm-device.
//! struct Theirs;
//! impl MutDeviceMmio for Theirs {
//!     fn mmio_read(&mut self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
//!         data.fill(offset as u8);
//!     }
//!     fn mmio_write(&mut self, _: MmioAddress, _: MmioAddressOffset, _: &[u8]) {}
//! }
//!
//! let bus = MmioBus::new();
//! let device = FromMmio::new(Theirs, 0x1000);
//! bus.insert(Arc::new(Mutex::new(device)), 0x1000, 0x100)?;
//! let mut data = [0];
//! bus.view().read(0x1042, &mut data)?;
//! assert_eq!(data, [0x42]);
//!
//! /// A device that was written for this bus.
//! struct Ours;
//! impl BusDevice for Ours {
//!     fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
//!         data.fill(offset as u8);
//!         Ok(())
//!     }
//! }
//!
//! let mut manager = IoManager::new();
//! let device = Mutex::new(IntoVmDevice::new(Ours));
//! let range = MmioRange::new(MmioAddress(0x2000), 0x100)?;
//! manager.register_mmio(range, Arc::new(device))?;
//! manager.mmio_read(MmioAddress(0x2042), &mut data)?;
//! assert_eq!(data, [0x42]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::ops::Range;

use ::vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset};
use ::vm_device::{DeviceMmio, DevicePio, MutDeviceMmio, MutDevicePio};

use crate::width::pieces;
use crate::{AccessError, BusDevice, BusDeviceSync};

/// A memory-mapped device of vm-device, as a device of this bus.
///
/// With a [`MutDeviceMmio`] inside it is a [`BusDevice`], with a [`DeviceMmio`] a
/// [`BusDeviceSync`]. Such a device is told its base in each access: always the one given here, so
/// make this anew if the device moves and cares.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use bus::{MmioBus, vm_device::FromMmio};
/// # use vm_device::{MutDeviceMmio, bus::{MmioAddress, MmioAddressOffset}};
/// # struct Theirs;
/// # impl MutDeviceMmio for Theirs {
/// #     fn mmio_read(&mut self, _: MmioAddress, _: MmioAddressOffset, data: &mut [u8]) { data.fill(7) }
/// #     fn mmio_write(&mut self, _: MmioAddress, _: MmioAddressOffset, _: &[u8]) {}
/// # }
///
/// // `Theirs` is a `MutDeviceMmio` of vm-device.
/// let bus = MmioBus::new();
/// bus.insert(Arc::new(Mutex::new(FromMmio::new(Theirs, 0x1000))), 0x1000, 0x100)?;
/// let mut data = [0];
/// bus.view().read(0x1000, &mut data)?;
/// assert_eq!(data, [7]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct FromMmio<D> {
    device: D,
    base: MmioAddress,
}

impl<D> FromMmio<D> {
    /// Wraps a device that is going to be inserted at `base`.
    pub const fn new(device: D, base: u64) -> Self {
        Self {
            device,
            base: MmioAddress(base),
        }
    }

    /// The device.
    pub fn into_inner(self) -> D {
        self.device
    }
}

/// A port device of vm-device, as a device of this bus; otherwise like [`FromMmio`].
#[derive(Clone, Debug)]
pub struct FromPio<D> {
    device: D,
    base: PioAddress,
}

impl<D> FromPio<D> {
    /// Wraps a device that is going to be inserted at `base`.
    pub const fn new(device: D, base: u16) -> Self {
        Self {
            device,
            base: PioAddress(base),
        }
    }

    /// The device.
    pub fn into_inner(self) -> D {
        self.device
    }
}

/// A device of this bus, as a device of vm-device.
///
/// With a [`BusDevice`] inside it is a [`MutDeviceMmio`] and [`MutDevicePio`], with a
/// [`BusDeviceSync`] a [`DeviceMmio`] and [`DevicePio`]. It gets accesses of the
/// [lengths](crate#lengths) that it gets of a bus. vm-device has no way to report errors: a read that
/// is refused gives all ones, a write is dropped.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use bus::{BusDevice, vm_device::IntoVmDevice};
/// use vm_device::{bus::{MmioAddress, MmioRange}, device_manager::{IoManager, MmioManager}};
///
/// struct Ours;
/// impl BusDevice for Ours {}
///
/// let mut devices = IoManager::new();
/// let range = MmioRange::new(MmioAddress(0x1000), 0x100)?;
/// devices.register_mmio(range, Arc::new(Mutex::new(IntoVmDevice::new(Ours))))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct IntoVmDevice<D>(D);

impl<D> IntoVmDevice<D> {
    /// Wraps a device.
    pub const fn new(device: D) -> Self {
        Self(device)
    }

    /// The device.
    pub fn into_inner(self) -> D {
        self.0
    }
}

/// Passes on what a device is to get of an access at `offset`, piece by piece, until one is refused.
fn each_piece(
    offset: u64,
    width: usize,
    mut pass: impl FnMut(u64, Range<usize>) -> Option<()>,
) -> Option<()> {
    if !(1..=8).contains(&width) {
        return None;
    }
    let mut pieces = pieces(offset, width);
    pieces.try_for_each(|piece| pass(offset.checked_add(piece.start as u64)?, piece))
}

/// Passes accesses on between a trait of this bus and one of vm-device, both ways.
macro_rules! pass_on {
    ($Ours:ident, $From:ident, $Theirs:ident $(+ $auto:ident)*, $self:ident: $receiver:ty,
     $read:ident, $write:ident, $Address:ident, $Offset:ident) => {
        impl<D: $Theirs $(+ $auto)*> $Ours for $From<D> {
            fn read($self: $receiver, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
                // A bus for memory-mapped I/O has larger offsets than there are ports.
                let offset = $Offset::try_from(offset).map_err(|_| AccessError::Offset)?;
                $self.device.$read($self.base, offset, data);
                Ok(())
            }

            fn write($self: $receiver, offset: u64, data: &[u8]) -> Result<(), AccessError> {
                let offset = $Offset::try_from(offset).map_err(|_| AccessError::Offset)?;
                $self.device.$write($self.base, offset, data);
                Ok(())
            }
        }

        impl<D: $Ours> $Theirs for IntoVmDevice<D> {
            fn $read($self: $receiver, _base: $Address, offset: $Offset, data: &mut [u8]) {
                data.fill(0xff);
                let is_read = each_piece(offset.into(), data.len(), |at, piece| {
                    $self.0.read(at, data.get_mut(piece)?).ok()
                });
                if is_read.is_none() {
                    data.fill(0xff);
                }
            }

            fn $write($self: $receiver, _base: $Address, offset: $Offset, data: &[u8]) {
                let _ = each_piece(offset.into(), data.len(), |at, piece| {
                    $self.0.write(at, data.get(piece)?).ok()
                });
            }
        }
    };
}

pass_on!(
    BusDevice, FromMmio, MutDeviceMmio + Send, self: &mut Self,
    mmio_read, mmio_write, MmioAddress, MmioAddressOffset
);
pass_on!(
    BusDeviceSync, FromMmio, DeviceMmio + Send + Sync, self: &Self,
    mmio_read, mmio_write, MmioAddress, MmioAddressOffset
);
pass_on!(
    BusDevice, FromPio, MutDevicePio + Send, self: &mut Self,
    pio_read, pio_write, PioAddress, PioAddressOffset
);
pass_on!(
    BusDeviceSync, FromPio, DevicePio + Send + Sync, self: &Self,
    pio_read, pio_write, PioAddress, PioAddressOffset
);

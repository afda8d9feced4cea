// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices of [vm-device 0.1](::vm_device) on this bus, and devices of this bus in its
//! [`IoManager`](::vm_device::device_manager::IoManager).
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
//! bus.read(0x1042, &mut data)?;
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

use ::vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset};
use ::vm_device::{DeviceMmio, DevicePio, MutDeviceMmio, MutDevicePio};

use crate::{AccessError, BusDevice, BusDeviceSync};

/// A memory-mapped device of vm-device, as a device of this bus.
///
/// With a [`MutDeviceMmio`] inside it is a [`BusDevice`], with a [`DeviceMmio`] a
/// [`BusDeviceSync`]. Such a device is told its base in each access: always the one given here, so
/// make this anew if the device moves and cares.
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

impl<D: MutDeviceMmio + Send> BusDevice for FromMmio<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        self.device.mmio_read(self.base, offset, data);
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        self.device.mmio_write(self.base, offset, data);
        Ok(())
    }
}

impl<D: DeviceMmio + Send + Sync> BusDeviceSync for FromMmio<D> {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        self.device.mmio_read(self.base, offset, data);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        self.device.mmio_write(self.base, offset, data);
        Ok(())
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

/// An offset among ports; larger ones exist only on a bus for memory-mapped I/O.
fn port(offset: u64) -> Result<PioAddressOffset, AccessError> {
    offset.try_into().map_err(|_| AccessError::Offset)
}

impl<D: MutDevicePio + Send> BusDevice for FromPio<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        self.device.pio_read(self.base, port(offset)?, data);
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        self.device.pio_write(self.base, port(offset)?, data);
        Ok(())
    }
}

impl<D: DevicePio + Send + Sync> BusDeviceSync for FromPio<D> {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        self.device.pio_read(self.base, port(offset)?, data);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        self.device.pio_write(self.base, port(offset)?, data);
        Ok(())
    }
}

/// A device of this bus, as a device of vm-device.
///
/// With a [`BusDevice`] inside it is a [`MutDeviceMmio`] and [`MutDevicePio`], with a
/// [`BusDeviceSync`] a [`DeviceMmio`] and [`DevicePio`]. vm-device has no way to report errors: a
/// read that the device refuses gives all ones, a write is dropped.
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

/// Reads with a defined answer, whatever the device does.
fn read_or_ones(data: &mut [u8], read: impl FnOnce(&mut [u8]) -> Result<(), AccessError>) {
    data.fill(0xff);
    if read(data).is_err() {
        data.fill(0xff);
    }
}

impl<D: BusDevice> MutDeviceMmio for IntoVmDevice<D> {
    fn mmio_read(&mut self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        read_or_ones(data, |data| self.0.read(offset, data));
    }

    fn mmio_write(&mut self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        let _ = self.0.write(offset, data);
    }
}

impl<D: BusDevice> MutDevicePio for IntoVmDevice<D> {
    fn pio_read(&mut self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        read_or_ones(data, |data| self.0.read(offset.into(), data));
    }

    fn pio_write(&mut self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let _ = self.0.write(offset.into(), data);
    }
}

impl<D: BusDeviceSync> DeviceMmio for IntoVmDevice<D> {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        read_or_ones(data, |data| self.0.read(offset, data));
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        let _ = self.0.write(offset, data);
    }
}

impl<D: BusDeviceSync> DevicePio for IntoVmDevice<D> {
    fn pio_read(&self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        read_or_ones(data, |data| self.0.read(offset.into(), data));
    }

    fn pio_write(&self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let _ = self.0.write(offset.into(), data);
    }
}

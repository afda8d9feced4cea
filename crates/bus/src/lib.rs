// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device bus for virtual machine monitors.

#![forbid(unsafe_code)]

mod bus;
mod device;
mod error;
mod io;
mod map;
mod nesting;
mod observer;
mod presence;
mod range;
mod region;
mod shared;
mod sync;
mod view;
#[cfg(feature = "vm-device")]
pub mod vm_device;

pub use bus::{Bus, BusBuilder, MmioBus, PioBus, WeakBus};
pub use device::{AccessError, BusDevice, BusDeviceSync};
pub use error::BusError;
pub use observer::{Access, Direction};
pub use range::{Address, BusRange};
pub use region::{Counts, Region, RegionId, RegionInfo, Widths};
pub use view::{BusView, MmioView, PioView};

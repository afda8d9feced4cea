// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device bus for virtual machine monitors.

#![forbid(unsafe_code)]

mod device;

pub use device::{AccessError, BusDevice, BusDeviceSync};

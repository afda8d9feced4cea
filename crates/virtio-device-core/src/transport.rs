// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a transport is made of, apart from its registers.
//!
//! [`DeviceStatus`] and [`Negotiation`] are the start-up protocol, as a table and a check;
//! [`QueueSetup`] is what a driver writes about a queue, and [`QueueLayout`] its place in guest memory,
//! checked as a whole; [`Session`] lends queues, memory and interrupts to the device and takes them
//! back in the right order; and [`Interrupt`] is how the device reaches the driver. Panics of devices and of
//! the VMM's hooks end in [`caught`] and [`discard`].

pub use crate::fault::SetupError;
pub use crate::interrupt::Interrupt;
pub use crate::negotiation::{
    ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, DeviceStatus, FAILED, FEATURES_OK,
    Negotiation,
};
pub use crate::panics::{caught, discard};
pub use crate::queue::{QueueLayout, QueueProgress, QueueSetup};
pub use crate::session::Session;

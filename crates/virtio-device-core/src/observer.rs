// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Watching what a driver does wrong, and what becomes of the device.

use std::io;
use std::sync::Arc;

use crate::fault::{BadRequest, DeviceFault, SetupError};
use crate::negotiation::{DeviceStatus, Features};

/// Something that a VMM may want to know about a device or its driver.
///
/// The first group are errors of the driver, which can cause them as often as it likes; the second
/// is the device's life, and the third are failures of the host.
///
/// ```
/// use virtio_device_core::Event;
///
/// /// Whether the host is to blame, and an operator should look.
/// fn is_of_the_host(event: &Event<'_>) -> bool {
///     matches!(event, Event::LineFailed(_))
/// }
/// assert!(!is_of_the_host(&Event::Reset));
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A control register was accessed by something other than an aligned 32-bit word.
    BadWidth {
        /// Offset of the access.
        offset: u64,
        /// Its width in bytes.
        width: usize,
    },
    /// There is no register, or no configuration field, at this offset.
    UnknownRegister {
        /// Offset of the access.
        offset: u64,
    },
    /// A register was read that can only be written, or written that can only be read.
    WrongDirection {
        /// Offset of the register.
        offset: u64,
    },
    /// A register was written that does not take this write in this state.
    WrongState {
        /// Offset of the register.
        offset: u64,
        /// The status at that time.
        status: DeviceStatus,
    },
    /// A status was written that does not follow from the present one.
    StatusRefused {
        /// The present status.
        status: DeviceStatus,
        /// What was written.
        value: u32,
    },
    /// `FEATURES_OK` was refused.
    FeaturesRefused(SetupError),
    /// A queue was not enabled.
    QueueRefused {
        /// The selected queue.
        queue: u32,
        /// What is wrong with its set-up.
        error: SetupError,
    },
    /// A notification for a queue that does not exist, or is not live.
    NotificationIgnored {
        /// What was written.
        value: u32,
    },
    /// A request was given back unserved.
    BadRequest {
        /// Index of the queue.
        queue: u16,
        /// What is wrong with the request.
        error: BadRequest,
    },

    /// The device went live.
    Activated {
        /// The features that both sides have agreed on.
        features: Features,
    },
    /// One queue was reset (`VIRTIO_F_RING_RESET`).
    QueueReset(u16),
    /// One queue was enabled again after its reset.
    QueueRestarted(u16),
    /// The driver has set `FAILED`: it has given up on the device.
    DriverFailed,
    /// The device was reset.
    Reset,
    /// The device does not work any more and shows `DEVICE_NEEDS_RESET`, for this reason. Comes
    /// once for each activation.
    DeviceFailed(&'a DeviceFault),

    /// The interrupt line did not take a change. The cause stays in the interrupt status.
    LineFailed(&'a io::Error),
}

/// Receives [`Event`]s.
///
/// Called on the thread that met the event, be it a vCPU's or a worker's. An observer must not wait,
/// because a reset waits for it, and must not call the device or its transport; the handles of either
/// may be used.
/// No event is on the path of a driver that does nothing wrong, so `()`, which ignores them all,
/// costs nothing.
///
/// ```
/// use virtio_device_core::{Event, Observer};
///
/// /// Prints what ends a device; a driver cannot cause this more often than once a start.
/// struct Log;
///
/// impl Observer for Log {
///     fn event(&self, event: &Event<'_>) {
///         if let Event::DeviceFailed(cause) = event {
///             eprintln!("the device needs a reset: {cause}");
///         }
///     }
/// }
/// ```
pub trait Observer: Send + Sync {
    /// Called for each event.
    fn event(&self, event: &Event<'_>);
}

impl Observer for () {
    fn event(&self, _event: &Event<'_>) {}
}

impl<T: Observer + ?Sized> Observer for Arc<T> {
    fn event(&self, event: &Event<'_>) {
        (**self).event(event);
    }
}

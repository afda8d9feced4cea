// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Watching what a driver does wrong, and what becomes of the device.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::fault::{BadRequest, DeviceFault};
use crate::negotiation::{DeviceStatus, FeatureError, Features};
use crate::queue::QueueSetupError;

/// Something that a VMM may want to know about a device or its driver.
///
/// The first group are errors of the driver, which can cause them as often as it likes; the second
/// is the device's life, and the third are failures of the host.
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
    FeaturesRefused(FeatureError),
    /// A queue was not enabled.
    QueueRefused {
        /// The selected queue.
        queue: u32,
        /// What is wrong with its set-up.
        error: QueueSetupError,
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
/// Called on the thread that met the event, be it a vCPU's or a worker's, and with the device's
/// interrupt held back: an observer must not wait, and must not call the device or its transport.
/// No event is on the path of a driver that does nothing wrong, so `()`, which ignores them all,
/// costs nothing.
pub trait Observer: Send + Sync {
    /// Takes note of `event`.
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

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident: $event:pat,)*) => {
        /// An observer that counts.
        ///
        /// ```
        /// use virtio_device_core::{Event, EventCounters, Observer};
        ///
        /// let counters = EventCounters::default();
        /// counters.event(&Event::UnknownRegister { offset: 0x68 });
        /// assert_eq!(counters.snapshot().unknown_register, 1);
        /// ```
        #[derive(Debug, Default)]
        pub struct EventCounters {
            $($name: AtomicU64,)*
        }

        /// What [`EventCounters`] has counted so far.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct EventCounts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl EventCounters {
            /// All counts; each is right, though they may be of slightly different moments.
            #[must_use]
            pub fn snapshot(&self) -> EventCounts {
                EventCounts {
                    $($name: self.$name.load(Ordering::Relaxed),)*
                }
            }
        }

        impl Observer for EventCounters {
            fn event(&self, event: &Event<'_>) {
                let counter = match event {
                    $($event => &self.$name,)*
                };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
}

counters! {
    /// [`Event::BadWidth`].
    bad_width: Event::BadWidth { .. },
    /// [`Event::UnknownRegister`].
    unknown_register: Event::UnknownRegister { .. },
    /// [`Event::WrongDirection`].
    wrong_direction: Event::WrongDirection { .. },
    /// [`Event::WrongState`].
    wrong_state: Event::WrongState { .. },
    /// [`Event::StatusRefused`].
    status_refused: Event::StatusRefused { .. },
    /// [`Event::FeaturesRefused`].
    features_refused: Event::FeaturesRefused(_),
    /// [`Event::QueueRefused`].
    queue_refused: Event::QueueRefused { .. },
    /// [`Event::NotificationIgnored`].
    notification_ignored: Event::NotificationIgnored { .. },
    /// [`Event::BadRequest`].
    bad_request: Event::BadRequest { .. },
    /// [`Event::Activated`].
    activated: Event::Activated { .. },
    /// [`Event::QueueReset`].
    queue_reset: Event::QueueReset(_),
    /// [`Event::QueueRestarted`].
    queue_restarted: Event::QueueRestarted(_),
    /// [`Event::DriverFailed`].
    driver_failed: Event::DriverFailed,
    /// [`Event::Reset`].
    reset: Event::Reset,
    /// [`Event::DeviceFailed`] because the driver has broken a ring.
    ring_fault: Event::DeviceFailed(DeviceFault::Ring(_)),
    /// [`Event::DeviceFailed`] because the device could not be activated.
    activation_failed: Event::DeviceFailed(DeviceFault::Activation(_)),
    /// [`Event::DeviceFailed`] for any other reason.
    device_failed: Event::DeviceFailed(_),
    /// [`Event::LineFailed`].
    line_failed: Event::LineFailed(_),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::RingFault;

    #[test]
    fn a_failure_is_counted_by_its_cause() {
        let counters = Arc::new(EventCounters::default());
        counters.event(&Event::DeviceFailed(&RingFault::ChainTooLong.into()));
        counters.event(&Event::DeviceFailed(&DeviceFault::Panicked));
        counters.event(&Event::Reset);
        counters.event(&Event::Reset);
        let expected = EventCounts {
            ring_fault: 1,
            device_failed: 1,
            reset: 2,
            ..EventCounts::default()
        };
        assert_eq!(counters.snapshot(), expected);
    }
}

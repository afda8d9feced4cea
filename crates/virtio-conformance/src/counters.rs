// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An observer that counts the events of a device and its transport.

use std::sync::atomic::{AtomicU64, Ordering};

use virtio_device_core::{DeviceFault, Event, Observer};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident: $event:pat,)*) => {
        /// An observer that counts.
        ///
        /// ```
        /// use virtio_conformance::EventCounters;
        /// use virtio_device_core::{Event, Observer};
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
            /// All counts. Each is exact, but they are not read at one and the same moment.
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
                    _ => return,
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
    /// [`Event::DeviceFailed`] for any other reason.
    device_failed: Event::DeviceFailed(_),
    /// [`Event::LineFailed`].
    line_failed: Event::LineFailed(_),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use virtio_device_core::RingFault;

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

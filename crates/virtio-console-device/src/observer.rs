// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Watching what becomes of a port, on both of its sides.

use std::io;
use std::sync::Arc;

/// Something that a VMM may want to know about a console.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConsoleEvent<'a> {
    /// A program in the guest has opened or closed a port.
    GuestOpened {
        /// Number of the port.
        port: u32,
        /// Whether it is open now.
        open: bool,
    },
    /// The driver could not set a port up.
    PortFailed {
        /// Number of the port.
        port: u32,
    },
    /// The driver sent a control message that names no port or says nothing known; it was ignored.
    BadControl {
        /// The port that it names.
        port: u32,
        /// Its kind.
        event: u16,
    },
    /// There is no more input from the host: its end was reached, or there was an error.
    InputEnded {
        /// Number of the port.
        port: u32,
        /// The error, if it was one.
        error: Option<&'a io::Error>,
    },
    /// Output is discarded from now on, because the host takes no more.
    OutputEnded {
        /// Number of the port.
        port: u32,
        /// What the host said.
        error: &'a io::Error,
    },
    /// A terminal that had hung up is there again.
    HostReturned {
        /// Number of the port.
        port: u32,
    },
    /// A character of the emergency write was lost, because the host did not take it at once.
    EmergencyLost,
}

/// Receives [`ConsoleEvent`]s.
///
/// Called on the worker's thread, under a queue's lock, and on vCPUs' threads: it must not wait, and
/// must not call the device. `()` ignores all events.
///
/// ```
/// use virtio_console_device::{ConsoleEvent, ConsoleObserver};
///
/// /// Says so when nobody reads the guest's output any more.
/// struct Log;
///
/// impl ConsoleObserver for Log {
///     fn event(&self, event: &ConsoleEvent<'_>) {
///         if let ConsoleEvent::OutputEnded { .. } = event {
///             eprintln!("the console's output goes nowhere");
///         }
///     }
/// }
/// ```
pub trait ConsoleObserver: Send + Sync {
    /// Called for each event.
    fn event(&self, event: &ConsoleEvent<'_>);
}

impl ConsoleObserver for () {
    fn event(&self, _event: &ConsoleEvent<'_>) {}
}

impl<T: ConsoleObserver + ?Sized> ConsoleObserver for Arc<T> {
    fn event(&self, event: &ConsoleEvent<'_>) {
        (**self).event(event);
    }
}

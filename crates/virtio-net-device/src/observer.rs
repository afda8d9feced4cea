// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Watching what the host does to the link, and what is lost.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What happens to a device's link.
#[derive(Debug)]
#[non_exhaustive]
pub enum NetEvent<'a> {
    /// The back end of a pair of queues has failed: the link is down, if the driver uses that pair.
    BackendFailed {
        /// Number of the pair.
        pair: usize,
        /// Why it failed.
        error: &'a io::Error,
    },
    /// A back end that had failed works again.
    BackendReturned {
        /// Number of the pair.
        pair: usize,
    },
}

/// Receives [`NetEvent`]s.
///
/// Called on a worker's thread: it must not wait, and must not call the device. `()` ignores all
/// events.
///
/// ```
/// use virtio_net_device::{NetEvent, NetObserver};
///
/// struct Log;
///
/// impl NetObserver for Log {
///     fn event(&self, event: &NetEvent<'_>) {
///         match event {
///             NetEvent::BackendFailed { pair, error } => eprintln!("queue pair {pair}: {error}"),
///             NetEvent::BackendReturned { pair } => eprintln!("queue pair {pair} is back"),
///             _ => {}
///         }
///     }
/// }
/// ```
pub trait NetObserver: Send + Sync {
    /// Takes note of `event`.
    fn event(&self, event: &NetEvent<'_>);
}

impl NetObserver for () {
    fn event(&self, _event: &NetEvent<'_>) {}
}

impl<T: NetObserver + ?Sized> NetObserver for Arc<T> {
    fn event(&self, event: &NetEvent<'_>) {
        (**self).event(event);
    }
}

/// Packets that were lost in the device, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetDrops {
    /// From the host: too long for the driver's buffers, too short for a frame, or in need of an
    /// offload that was not negotiated. Packets that the driver's own filters drop are not counted.
    pub received: u64,
    /// From the driver: malformed, refused by the host, or sent without a link.
    pub sent: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Drops {
    pub(crate) received: AtomicU64,
    pub(crate) sent: AtomicU64,
}

/// Counts one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

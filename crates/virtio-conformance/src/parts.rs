// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the suite hands out for a device and its transport to be made of.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_device_core::{Event, InterruptLine, LoopHandle, Observer};

use crate::counters::{EventCounters, EventCounts};
use crate::memory::WatchedMemory;

/// Guest memory of a device under test.
pub type Memory = Arc<WatchedMemory>;

/// What a device under test and its transport are made of.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use bus::BusDevice;
/// use virtio_conformance::ramdisk::RamDisk;
/// use virtio_conformance::{MmioPort, Parts};
/// use virtio_mmio_transport::MmioTransport;
///
/// /// Makes the device under test, and another one that works beside it.
/// fn disk(parts: Parts) -> MmioPort<MmioTransport<virtio_conformance::Memory, RamDisk<impl virtio_device_core::Executor>>> {
///     let device = RamDisk::new(Arc::new(Mutex::new(vec![0; 4096])), parts.executor.clone());
///     let transport = MmioTransport::new(device, parts.memory, parts.line).unwrap();
///     MmioPort::new(
///         transport.with_observer(parts.events),
///         |it, offset, data| it.read(offset, data).unwrap(),
///         |it, offset, data| it.write(offset, data).unwrap(),
///     )
/// }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Parts {
    /// Guest memory.
    pub memory: Memory,
    /// The line to the guest's interrupt controller, which counts its interrupts.
    pub line: CountingLine,
    /// An observer for the transport.
    pub events: Arc<EventLog>,
    /// Runs workers on the thread of the test, step by step. It cannot watch host descriptors: a
    /// device that does needs a `WorkerThread`, and then how much it does in one wake-up is not
    /// checked.
    pub executor: LoopHandle,
    /// The host's side, for a device whose requests wait for host input.
    pub host: Host,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line that counts how often it is raised.
///
/// ```
/// use virtio_conformance::CountingLine;
/// use virtio_device_core::InterruptLine;
///
/// let line = CountingLine::default();
/// line.clone().trigger()?; // what a transport does with it
/// assert_eq!(line.raised(), 1);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct CountingLine(Arc<AtomicU32>);

impl CountingLine {
    /// The number of interrupts so far.
    #[must_use]
    pub fn raised(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

impl InterruptLine for CountingLine {
    fn trigger(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// An observer that counts, and remembers why the device failed last.
///
/// ```
/// use virtio_conformance::EventLog;
/// use virtio_device_core::{DeviceFault, Event, Observer};
///
/// let events = EventLog::default();
/// events.event(&Event::DeviceFailed(&DeviceFault::Panicked)); // what a transport does with it
/// assert!(events.last_failure().is_some());
/// ```
#[derive(Debug, Default)]
pub struct EventLog {
    counters: EventCounters,
    failure: Mutex<Option<String>>,
}

impl EventLog {
    /// The counts so far.
    #[must_use]
    pub fn counts(&self) -> EventCounts {
        self.counters.snapshot()
    }

    /// Why the device failed last, with all causes.
    #[must_use]
    pub fn last_failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }
}

impl Observer for EventLog {
    fn event(&self, event: &Event<'_>) {
        if let Event::DeviceFailed(fault) = event {
            let mut reason = fault.to_string();
            let mut source = fault.source();
            while let Some(cause) = source {
                reason = format!("{reason}: {cause}");
                source = cause.source();
            }
            *lock(&self.failure) = Some(reason);
        }
        // Counted last: a thread that sees the count also finds the reason.
        self.counters.event(event);
    }
}

/// What a host does for a request: delivers what the device answers it with.
type Deliver = Box<dyn FnMut() + Send>;

/// The host's side of a device that completes a request only when the host has something for it: a
/// packet, a key.
#[derive(Clone, Default)]
pub struct Host(Arc<Mutex<Option<Deliver>>>);

impl Host {
    /// Sets `deliver`, which has the host deliver what completes one request. It is called once for
    /// each request that the suite makes, valid or not. It must not wait, and may leave out what
    /// does not fit any more.
    ///
    /// It is called before the request is made available, so a device has to keep what it is given
    /// until there is room. For one that drops it, as some network cards do, `deliver` can only wake a
    /// thread of the test, which delivers again and again until the device has an answer.
    ///
    /// ```no_run
    /// # let parts: virtio_conformance::Parts = unimplemented!();
    /// use std::io::Write;
    /// use std::os::unix::net::UnixStream;
    ///
    /// let (mut host, device) = UnixStream::pair()?;
    /// host.set_nonblocking(true)?;
    /// parts.host.deliver_by(move || drop(host.write(b"key")));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn deliver_by(&self, deliver: impl FnMut() + Send + 'static) {
        *lock(&self.0) = Some(Box::new(deliver));
    }

    pub(crate) fn deliver(&self) {
        if let Some(deliver) = &mut *lock(&self.0) {
            deliver();
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}

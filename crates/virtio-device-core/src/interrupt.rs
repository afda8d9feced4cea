// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a device reaches its driver.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

/// The wire from a transport to the guest's interrupt controller: what a VMM passes in.
///
/// An `EventFd` registered as irqfd is one, and so is any closure.
pub trait InterruptLine: Send + Sync {
    /// Raises the interrupt once.
    ///
    /// # Errors
    ///
    /// Whatever kept the interrupt from being raised. The cause stays visible to the driver in the
    /// transport's interrupt status.
    fn trigger(&self) -> io::Result<()>;
}

impl InterruptLine for EventFd {
    fn trigger(&self) -> io::Result<()> {
        self.write(1)
    }
}

impl<T: InterruptLine + ?Sized> InterruptLine for Arc<T> {
    fn trigger(&self) -> io::Result<()> {
        (**self).trigger()
    }
}

impl<F: Fn() -> io::Result<()> + Send + Sync> InterruptLine for F {
    fn trigger(&self) -> io::Result<()> {
        self()
    }
}

/// A transport's notifications to the driver (VIRTIO 1.3, section 2.3).
///
/// Implemented by transports; devices use an [`InterruptHandle`].
pub trait Interrupt: Send + Sync {
    /// Tells the driver that queue `queue` holds used buffers.
    fn used_buffers(&self, queue: u16);

    /// Tells the driver that the device's configuration space has changed.
    fn config_changed(&self);

    /// Tells the driver that the status has changed: a configuration interrupt, too, but the
    /// configuration space is as it was.
    fn status_changed(&self);
}

/// The device's end of the interrupt, good for one activation.
///
/// After the transport has revoked it nothing reaches the driver any more, whoever still holds a
/// clone: a worker that is late cannot interrupt a driver that has reset the device.
#[derive(Clone)]
pub struct InterruptHandle {
    inner: Arc<Inner>,
}

struct Inner {
    /// Outside of the lock: transports read it on every status read.
    broken: AtomicBool,
    target: Mutex<Option<Arc<dyn Interrupt>>>,
}

impl InterruptHandle {
    /// Makes a handle that reaches the driver through `interrupt`; for transports.
    #[must_use]
    pub fn new(interrupt: Arc<dyn Interrupt>) -> Self {
        let target = Mutex::new(Some(interrupt));
        Self {
            inner: Arc::new(Inner {
                broken: AtomicBool::new(false),
                target,
            }),
        }
    }

    /// Tells the driver that queue `queue` holds used buffers.
    pub fn used_buffers(&self, queue: u16) {
        self.with_target(|target| target.used_buffers(queue));
    }

    /// Tells the driver that the device's configuration space has changed.
    pub fn config_changed(&self) {
        self.with_target(|target| target.config_changed());
    }

    /// Marks the device as broken: the driver sees `DEVICE_NEEDS_RESET` and gets one configuration
    /// interrupt, however often this is called (VIRTIO 1.3, section 2.1.2).
    pub fn device_failed(&self) {
        self.with_target(|target| {
            if !self.inner.broken.swap(true, Ordering::AcqRel) {
                target.status_changed();
            }
        });
    }

    /// Whether the device has been marked as broken.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.inner.broken.load(Ordering::Acquire)
    }

    /// Cuts all clones of this handle off; returns when no notification is on its way any more.
    pub fn revoke(&self) {
        *self
            .inner
            .target
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn with_target(&self, notify: impl FnOnce(&dyn Interrupt)) {
        // A line that panicked in another thread leaves nothing half-done behind this lock.
        let target = self
            .inner
            .target
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(target) = target.as_deref() {
            notify(target);
        }
    }
}

impl fmt::Debug for InterruptHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterruptHandle")
            .field("broken", &self.is_broken())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[derive(Default)]
    struct Counts {
        used: AtomicU32,
        config: AtomicU32,
        status: AtomicU32,
    }

    impl Interrupt for Counts {
        fn used_buffers(&self, _queue: u16) {
            self.used.fetch_add(1, Ordering::SeqCst);
        }

        fn config_changed(&self) {
            self.config.fetch_add(1, Ordering::SeqCst);
        }

        fn status_changed(&self) {
            self.status.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_failure_is_announced_once() {
        let counts = Arc::new(Counts::default());
        let handle = InterruptHandle::new(counts.clone());
        handle.device_failed();
        handle.clone().device_failed();
        assert!(handle.is_broken());
        assert_eq!(counts.status.load(Ordering::SeqCst), 1);
        assert_eq!(counts.config.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_revoked_handle_is_silent() {
        let counts = Arc::new(Counts::default());
        let handle = InterruptHandle::new(counts.clone());
        let late = handle.clone();
        handle.used_buffers(0);
        handle.revoke();
        late.used_buffers(0);
        late.config_changed();
        late.device_failed();
        assert!(!late.is_broken());
        assert_eq!(counts.used.load(Ordering::SeqCst), 1);
        assert_eq!(counts.config.load(Ordering::SeqCst), 0);
        assert_eq!(counts.status.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn closures_and_eventfds_are_lines() {
        let event = Arc::new(EventFd::new(0).unwrap());
        event.trigger().unwrap();
        assert_eq!(event.read().unwrap(), 1);
        let line = move || event.write(2);
        InterruptLine::trigger(&line).unwrap();
    }
}

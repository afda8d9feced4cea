// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a device reaches its driver.

use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::fault::BadRequest;
use crate::observer::Event;
use crate::sync::{AtomicBool, Mutex, MutexGuard, Ordering};
use crate::worker::DeviceFault;

/// The wire from a transport to the guest's interrupt controller: what a VMM passes in.
///
/// An `EventFd` registered as irqfd is one, and so is any closure: both are edge-triggered. For a
/// level-triggered line there is [`LevelLine`].
///
/// A line must not wait: a reset waits for an interrupt that is on its way. So an `EventFd` must be
/// non-blocking.
pub trait InterruptLine: Send + Sync {
    /// Raises the interrupt: once, or, if the line is level-triggered, until it is cleared.
    ///
    /// # Errors
    ///
    /// Whatever kept the interrupt from being raised. The cause stays visible to the driver in the
    /// transport's interrupt status.
    fn trigger(&self) -> io::Result<()>;

    /// Takes a level-triggered line down again.
    ///
    /// # Errors
    ///
    /// Whatever kept the line from going down; it is tried again with the next change.
    fn clear(&self) -> io::Result<()> {
        Ok(())
    }

    /// Whether the line is to be held for as long as the driver has causes to acknowledge.
    fn is_level(&self) -> bool {
        false
    }
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

    fn clear(&self) -> io::Result<()> {
        (**self).clear()
    }

    fn is_level(&self) -> bool {
        (**self).is_level()
    }
}

impl<F: Fn() -> io::Result<()> + Send + Sync> InterruptLine for F {
    fn trigger(&self) -> io::Result<()> {
        self()
    }
}

/// A level-triggered line: the closure is called with `true` to assert it, when the first cause
/// comes up, and with `false` to take it down, when the driver has acknowledged the last.
///
/// The calls come one at a time, and never twice in a row with the same level unless the first
/// failed.
///
/// ```
/// use virtio_device_core::{InterruptLine, LevelLine};
///
/// // With KVM: `LevelLine(move |level| Ok(vm.set_irq_line(gsi, level)?))`
/// let line = LevelLine(|level| { println!("line is {level}"); Ok(()) });
/// assert!(line.is_level());
/// ```
#[derive(Clone, Copy)]
pub struct LevelLine<F>(pub F);

impl<F: Fn(bool) -> io::Result<()> + Send + Sync> InterruptLine for LevelLine<F> {
    fn trigger(&self) -> io::Result<()> {
        (self.0)(true)
    }

    fn clear(&self) -> io::Result<()> {
        (self.0)(false)
    }

    fn is_level(&self) -> bool {
        true
    }
}

impl<F> fmt::Debug for LevelLine<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LevelLine").finish_non_exhaustive()
    }
}

/// A transport's notifications to the driver (VIRTIO 1.3, section 2.3).
///
/// Implemented by transports; devices use an [`InterruptHandle`].
pub trait Interrupt: Send + Sync {
    /// Tells the driver that queue `queue` holds used buffers.
    fn used_buffers(&self, queue: u16);

    /// The device is about to change its configuration space; [`config_changed`] will follow.
    ///
    /// From here to there, no two looks of the driver at the generation may be equal.
    ///
    /// [`config_changed`]: Interrupt::config_changed
    fn config_changing(&self) {}

    /// Tells the driver that the device's configuration space has changed.
    fn config_changed(&self);

    /// Tells the driver that the status has changed: a configuration interrupt, too, but the
    /// configuration space is as it was.
    fn status_changed(&self);

    /// Passes on to the VMM what the device has to say.
    fn observe(&self, event: &Event<'_>) {
        let _ = event;
    }
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
    /// Outside of the lock: workers ask at every wake-up.
    revoked: AtomicBool,
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
                revoked: AtomicBool::new(false),
                target,
            }),
        }
    }

    /// Makes a handle of a device that is broken already, as a saved state may say; for transports.
    #[must_use]
    pub fn broken(interrupt: Arc<dyn Interrupt>) -> Self {
        let handle = Self::new(interrupt);
        handle.inner.broken.store(true, Ordering::Release);
        handle
    }

    /// Tells the driver that queue `queue` holds used buffers.
    pub fn used_buffers(&self, queue: u16) {
        self.with_target(|target| target.used_buffers(queue));
    }

    /// Runs `change`, which changes the device's configuration space, and tells the driver.
    ///
    /// A driver that reads several fields while they change, with the configuration generation read
    /// before and after, finds the generations different and starts over (VIRTIO 1.3, section
    /// 2.5). `change` must not wait, and must not use this handle. It runs in any case, also when
    /// there is no driver to tell any more.
    pub fn update_config<T>(&self, change: impl FnOnce() -> T) -> T {
        /// Ends the change even if it panics: the generation would never come to rest.
        struct Changed<'a>(&'a dyn Interrupt);

        impl Drop for Changed<'_> {
            fn drop(&mut self) {
                self.0.config_changed();
            }
        }

        let target = self.target();
        let _changed = target.as_deref().map(|target| {
            target.config_changing();
            Changed(target)
        });
        change()
    }

    /// Marks the device as broken: the driver sees `DEVICE_NEEDS_RESET` and gets one configuration
    /// interrupt, however often this is called (VIRTIO 1.3, section 2.1.2). The VMM's observer is
    /// told the first `cause`.
    pub fn device_failed(&self, cause: &DeviceFault) {
        self.with_target(|target| {
            if !self.inner.broken.swap(true, Ordering::AcqRel) {
                target.observe(&Event::DeviceFailed(cause));
                target.status_changed();
            }
        });
    }

    /// Tells the VMM's observer that a request in queue `queue` was given back unserved.
    pub fn bad_request(&self, queue: u16, error: BadRequest) {
        self.with_target(|target| target.observe(&Event::BadRequest { queue, error }));
    }

    /// Whether the device has been marked as broken.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.inner.broken.load(Ordering::Acquire)
    }

    /// Whether the transport has cut this handle off, or is about to: the device was reset.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.inner.revoked.load(Ordering::Acquire)
    }

    /// Cuts all clones of this handle off; returns when no notification is on its way any more.
    pub fn revoke(&self) {
        self.inner.revoked.store(true, Ordering::Release);
        *self.target() = None;
    }

    fn target(&self) -> MutexGuard<'_, Option<Arc<dyn Interrupt>>> {
        // A line that panicked in another thread leaves nothing half-done behind this lock.
        let target = self.inner.target.lock();
        target.unwrap_or_else(PoisonError::into_inner)
    }

    fn with_target(&self, notify: impl FnOnce(&dyn Interrupt)) {
        if let Some(target) = self.target().as_deref() {
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
        handle.device_failed(&DeviceFault::Panicked);
        handle.clone().device_failed(&DeviceFault::Panicked);
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
        let ran = late.update_config(|| true);
        assert!(ran, "the change itself is the device's business");
        late.device_failed(&DeviceFault::Panicked);
        assert!(!late.is_broken());
        assert_eq!(counts.used.load(Ordering::SeqCst), 1);
        assert_eq!(counts.config.load(Ordering::SeqCst), 0);
        assert_eq!(counts.status.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_change_that_panics_is_ended() {
        let counts = Arc::new(Counts::default());
        let handle = InterruptHandle::new(counts.clone());
        let panicking = || handle.update_config(|| panic!("a bug in the device"));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(panicking)).unwrap_err();
        assert_eq!(counts.config.load(Ordering::SeqCst), 1);
        handle.used_buffers(0);
        assert_eq!(counts.used.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn closures_and_eventfds_are_lines() {
        let event = Arc::new(EventFd::new(0).unwrap());
        event.trigger().unwrap();
        assert_eq!(event.read().unwrap(), 1);
        let line = move || event.write(2);
        InterruptLine::trigger(&line).unwrap();
        assert!(!line.is_level());
        line.clear().unwrap();
    }

    #[test]
    fn a_level_line_goes_up_and_down_through_an_arc() {
        let level = Arc::new(AtomicBool::new(false));
        let wire = level.clone();
        let line = Arc::new(LevelLine(move |level| {
            wire.store(level, Ordering::SeqCst);
            Ok(())
        }));
        assert!(line.is_level());
        line.trigger().unwrap();
        assert!(level.load(Ordering::SeqCst));
        line.clear().unwrap();
        assert!(!level.load(Ordering::SeqCst));
    }
}

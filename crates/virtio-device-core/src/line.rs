// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The wire to the guest's interrupt controller.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

/// The wire from a transport to the guest's interrupt controller: what a VMM passes in.
///
/// An [`EventFd`] registered as irqfd is one; [`edge_line`] and [`level_line`] make one of a closure.
///
/// A line must not wait: a reset waits for an interrupt that is on its way. So an `EventFd` must be
/// non-blocking.
///
/// A line with an event fd is triggered by many threads at once: the workers of several queues do not
/// wait for each other. Any other line is driven by one thread at a time, so that it may take several
/// steps, as raising and lowering a line of KVM's by `KVM_IRQ_LINE` does.
///
/// ```
/// use std::io;
/// use std::sync::atomic::{AtomicU32, Ordering};
/// use virtio_device_core::InterruptLine;
///
/// /// A line that is polled.
/// #[derive(Default)]
/// struct Pending(AtomicU32);
///
/// impl InterruptLine for Pending {
///     fn trigger(&self) -> io::Result<()> {
///         self.0.fetch_add(1, Ordering::SeqCst);
///         Ok(())
///     }
/// }
///
/// let line = Pending::default();
/// line.trigger()?;
/// assert!(!line.is_level());
/// # Ok::<(), io::Error>(())
/// ```
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

    /// The event fd behind the line, if it is edge-triggered and has one: a foreign server (vhost)
    /// can then interrupt the driver by itself.
    fn event_fd(&self) -> Option<&EventFd> {
        None
    }
}

impl InterruptLine for EventFd {
    fn trigger(&self) -> io::Result<()> {
        self.write(1)
    }

    fn event_fd(&self) -> Option<&EventFd> {
        Some(self)
    }
}

macro_rules! pointers_are_lines {
    ($($pointer:ident),*) => {$(
        impl<T: InterruptLine + ?Sized> InterruptLine for $pointer<T> {
            fn trigger(&self) -> io::Result<()> {
                (**self).trigger()
            }

            fn clear(&self) -> io::Result<()> {
                (**self).clear()
            }

            fn is_level(&self) -> bool {
                (**self).is_level()
            }

            fn event_fd(&self) -> Option<&EventFd> {
                (**self).event_fd()
            }
        }
    )*};
}

pointers_are_lines!(Arc, Box);

/// An edge-triggered line: `raise` raises the interrupt once. The calls come one at a time.
///
/// ```
/// use virtio_device_core::{InterruptLine, edge_line};
///
/// let line = edge_line(|| { println!("interrupt"); Ok(()) });
/// assert!(!line.is_level());
/// ```
pub fn edge_line(raise: impl Fn() -> io::Result<()> + Send + Sync) -> impl InterruptLine {
    LineOf {
        drive: move |_| raise(),
        level: false,
    }
}

/// A level-triggered line: `drive` is called with `true` to assert it, when the first cause comes up,
/// and with `false` to take it down, when the driver has acknowledged the last.
///
/// The calls come one at a time, and never twice in a row with the same level unless the first
/// failed.
///
/// ```
/// use virtio_device_core::{InterruptLine, level_line};
///
/// // With KVM: `level_line(move |level| Ok(vm.set_irq_line(gsi, level)?))`
/// let line = level_line(|level| { println!("line is {level}"); Ok(()) });
/// assert!(line.is_level());
/// ```
pub fn level_line(drive: impl Fn(bool) -> io::Result<()> + Send + Sync) -> impl InterruptLine {
    LineOf { drive, level: true }
}

struct LineOf<F> {
    drive: F,
    level: bool,
}

impl<F: Fn(bool) -> io::Result<()> + Send + Sync> InterruptLine for LineOf<F> {
    fn trigger(&self) -> io::Result<()> {
        (self.drive)(true)
    }

    fn clear(&self) -> io::Result<()> {
        if self.level {
            (self.drive)(false)
        } else {
            Ok(())
        }
    }

    fn is_level(&self) -> bool {
        self.level
    }
}

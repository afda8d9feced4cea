// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Things on loan to a device: a queue, or guest memory outside of every queue.
//!
//! A loan has two halves of different types. The transport keeps [`Lent`], which pauses and revokes;
//! the device gets [`Lease`], which only uses. A device touches guest memory
//!
//! * inside [`Lease::with`], under a lock, without waiting for anything; or
//! * while it has an [`InFlight`], for I/O that takes its time: straight from a file into guest
//!   memory, say, by another thread or by the kernel.
//!
//! Taking the loan back therefore takes one critical section of the device and the end of its I/O in
//! flight, and is final: nothing touches the driver's memory afterwards.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use crate::gate::{Gate, PAUSED, REVOKED};
use crate::queue::Virtqueue;
use crate::sync::{Mutex, MutexGuard};

/// The borrower's half of a loan: a device touches guest memory inside [`Lease::with`], or while it
/// has an [`InFlight`]. Clones are the same loan.
///
/// What is lent is a virtqueue, or, as `Lease<()>`, guest memory outside of every queue: a ring of the
/// device's own, a shared buffer, memory that a foreign server has mapped.
///
/// ```
/// use virtio_device_core::{Lease, Unavailable};
///
/// /// How many chains the driver may have in this queue; none while it is paused or reset.
/// fn size(lease: &Lease) -> Result<u16, Unavailable> {
///     lease.with(|queue| queue.size())
/// }
/// ```
#[derive(Debug)]
pub struct Lease<T = Virtqueue> {
    shared: Arc<Shared<T>>,
}

/// The owner's half of a loan: pauses it, resumes it, and takes it back.
#[derive(Debug)]
pub struct Lent<T> {
    shared: Arc<Shared<T>>,
}

/// Permission to touch guest memory outside of [`Lease::with`] for as long as this lives.
///
/// One for each request in flight, as a rule. It can be sent to the thread that completes the
/// request. Pause, queue reset and reset are complete only when every guard is gone, so drop it as
/// soon as the last byte has moved.
///
/// ```
/// use virtio_device_core::{Head, Lease, Unavailable, vm_memory::GuestMemoryMmap};
///
/// /// Completes a request on another thread; a pause and a reset wait for it.
/// fn complete(lease: &Lease, memory: &GuestMemoryMmap, head: Head) -> Result<(), Unavailable> {
///     let in_flight = lease.hold()?;
///     // ... the I/O, straight into guest memory ...
///     in_flight.with(|queue| {
///         let _ = queue.complete(memory, head, 512);
///     })
/// }
/// ```
#[derive(Debug)]
pub struct InFlight<T = Virtqueue> {
    shared: Arc<Shared<T>>,
}

/// Why what was lent cannot be used now.
///
/// ```
/// use virtio_device_core::{Lease, Unavailable};
///
/// fn look(lease: &Lease<()>) -> &'static str {
///     match lease.with(|()| ()) {
///         Ok(()) => "done",
///         Err(Unavailable::Paused) => "later",
///         Err(Unavailable::Revoked) => "never",
///     }
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// The device is paused. Leave the request where it is: every queue is notified on resume.
    Paused,
    /// It has been taken back for good. Drop whatever belongs to it.
    Revoked,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Paused => "device is paused",
            Self::Revoked => "loan has been revoked",
        })
    }
}

impl Error for Unavailable {}

#[derive(Debug)]
struct Shared<T> {
    /// Those inside have an [`InFlight`].
    gate: Gate,
    value: Mutex<Option<T>>,
}

const fn open(flags: usize) -> Result<(), Unavailable> {
    match flags {
        0 => Ok(()),
        PAUSED => Err(Unavailable::Paused),
        _ => Err(Unavailable::Revoked),
    }
}

/// For a request in flight a pause is no obstacle: the pause waits for it.
const fn not_revoked(flags: usize) -> Result<(), Unavailable> {
    open(flags & !PAUSED)
}

impl<T> Shared<T> {
    #[inline]
    fn with<R>(
        &self,
        admits: fn(usize) -> Result<(), Unavailable>,
        look: impl FnOnce(&mut T) -> R,
    ) -> Result<R, Unavailable> {
        // Asked before the lock, so that a busy device does not keep the owner waiting for it.
        admits(self.gate.flags())?;
        let mut value = self.lock();
        admits(self.gate.flags())?;
        value.as_mut().map(look).ok_or(Unavailable::Revoked)
    }

    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        // A device that panicked under the lock leaves no more than a half-served request.
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Lease<T> {
    /// Runs `look` on what was lent, under its lock.
    ///
    /// `look` must not wait for anything but guest memory: pause and reset wait for it.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] while the device is paused, and once the loan has been revoked; `look` has not
    /// run then. This never waits for a pause to end.
    #[inline]
    pub fn with<R>(&self, look: impl FnOnce(&mut T) -> R) -> Result<R, Unavailable> {
        self.shared.with(open, look)
    }

    /// Asks for permission to touch guest memory outside of [`Lease::with`].
    ///
    /// # Errors
    ///
    /// [`Unavailable`], as for [`Lease::with`]; put the request back then.
    pub fn hold(&self) -> Result<InFlight<T>, Unavailable> {
        self.shared.gate.enter().or_else(open)?;
        Ok(InFlight {
            shared: self.shared.clone(),
        })
    }

    /// Whether the loan has been revoked, or is about to be.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.shared.gate.flags() & REVOKED != 0
    }

    /// Whether the device is paused, or about to be.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        open(self.shared.gate.flags()) == Err(Unavailable::Paused)
    }
}

impl<T> Clone for Lease<T> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl<T> InFlight<T> {
    /// Runs `look` on what was lent, under its lock: to complete the request.
    ///
    /// Unlike [`Lease::with`] this works while a pause waits for the requests in flight, so that a
    /// request is complete, memory and used ring, before the pause is acknowledged.
    ///
    /// # Errors
    ///
    /// [`Unavailable::Revoked`] once the loan has been revoked: there is nobody to complete for.
    pub fn with<R>(&self, look: impl FnOnce(&mut T) -> R) -> Result<R, Unavailable> {
        self.shared.with(not_revoked, look)
    }

    /// Whether the loan has been revoked: cancel the request if that is possible.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.shared.gate.flags() & REVOKED != 0
    }
}

impl<T> Drop for InFlight<T> {
    fn drop(&mut self) {
        self.shared.gate.leave();
    }
}

impl<T> Lent<T> {
    /// Lends `value`; `None` makes a loan that is revoked from the start.
    #[must_use]
    pub fn new(value: Option<T>) -> (Self, Lease<T>) {
        let shared = Arc::new(Shared {
            gate: Gate::new(if value.is_some() { 0 } else { REVOKED }),
            value: Mutex::new(value),
        });
        let lease = Lease {
            shared: shared.clone(),
        };
        (Self { shared }, lease)
    }

    /// Keeps the device from what was lent, until [`Lent::resume`].
    ///
    /// Waits for at most one critical section of the device, and not for requests in flight: those
    /// go on until [`Lent::is_idle`].
    pub fn pause(&self) {
        self.shared.gate.set(PAUSED);
        drop(self.shared.lock());
    }

    /// Lets the device go on. It must be notified afterwards.
    pub fn resume(&self) {
        self.shared.gate.clear(PAUSED);
    }

    /// Takes back what was lent, in its final state; `None` if that was done before.
    ///
    /// Waits for at most one critical section of the device, and not for requests in flight: memory
    /// is at rest once [`Lent::is_idle`].
    #[must_use = "the value is lost otherwise; drop it explicitly"]
    pub fn revoke(&self) -> Option<T> {
        self.shared.gate.set(REVOKED);
        self.shared.lock().take()
    }

    /// Whether no request is in flight. Stays true once it is, if the loan is paused or revoked.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.shared.gate.is_idle()
    }

    /// Waits until no request is in flight, but not beyond `deadline`, if there is one; to be called
    /// after [`Lent::pause`] or [`Lent::revoke`]. Returns whether there is none.
    #[must_use]
    pub fn wait_idle(&self, deadline: Option<Instant>) -> bool {
        self.shared.gate.wait_idle(deadline)
    }

    /// Looks at what was lent; `None` if it has been taken back.
    pub fn inspect<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.shared.lock().as_ref().map(look)
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

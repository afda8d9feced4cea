// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the run loop asks of a vCPU.

use std::io;
use std::sync::Arc;

use super::error::RunError;
use crate::exit::Exit;

/// A virtual processor, as the run loop sees it.
///
/// [`KvmVcpu`](crate::KvmVcpu) is one; the feature `test-utils` has a scriptable one.
///
/// ```
/// use std::convert::Infallible;
/// use std::sync::Arc;
/// use vcpu_runner::{Exit, IoAccess, IoFn, Kick, Outcome, RunError, Vcpu, VcpuRunner};
///
/// /// A vCPU that halts as soon as it runs.
/// struct Tired;
///
/// struct Never;
/// impl Kick for Never {
///     fn kick(&self) {}
///     fn clear(&self) {}
/// }
///
/// impl Vcpu for Tired {
///     type Error = Infallible;
///
///     fn run(&mut self) -> Result<Exit<'_>, RunError> {
///         Ok(Exit::Hlt)
///     }
///
///     fn kicker(&self) -> Arc<dyn Kick> {
///         Arc::new(Never)
///     }
/// }
///
/// let outcome = VcpuRunner::new(Tired, IoFn(|_: IoAccess<'_>| ())).run();
/// assert_eq!(outcome.unwrap(), Outcome::Halted);
/// ```
pub trait Vcpu {
    /// What the VMM's own vCPU can fail with besides: [`Infallible`](std::convert::Infallible) if
    /// with nothing.
    type Error;

    /// Enters the guest and returns at its next exit.
    ///
    /// What the previous exit asked for is completed first. While the vCPU is kicked, pending
    /// accesses are still completed, and further exits that belong to them are still returned,
    /// but no guest code runs: after the last one the method returns
    /// [`RunError::Interrupted`].
    ///
    /// # Errors
    ///
    /// [`RunError::Interrupted`] and [`RunError::Again`] are no failures; any other error means
    /// that the vCPU cannot go on. [`RunError::Vmm`] comes out of the loop as
    /// [`Error::Vmm`](crate::Error::Vmm).
    fn run(&mut self) -> Result<Exit<'_>, RunError<Self::Error>>;

    /// What interrupts this vCPU from other threads.
    fn kicker(&self) -> Arc<dyn Kick>;

    /// Prepares the calling thread, which is about to call [`Vcpu::run`], for being kicked.
    ///
    /// # Errors
    ///
    /// The operating system's error; the vCPU is not run then.
    fn bind_thread(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// The calling thread does not run the vCPU any longer.
    fn unbind_thread(&mut self) {}

    /// The vCPU was paused and is about to go on: a paravirtual clock can be told.
    ///
    /// Called after the last change that was made during the pause, so that it also concerns a
    /// vCPU whose state was restored then.
    fn notify_paused(&mut self) {}

    /// Has the guest's last access end in a synchronous external abort (arm64).
    ///
    /// # Errors
    ///
    /// The operating system's error; `Unsupported` where there are no such aborts.
    fn inject_abort(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The guest's program counter, for error messages.
    fn program_counter(&self) -> Option<u64> {
        None
    }
}

/// Interrupts a vCPU from other threads.
///
/// A kick stays in force until it is cleared, so that one that comes just before the guest is
/// entered is not lost.
///
/// ```
/// use std::sync::atomic::{AtomicBool, Ordering};
/// use vcpu_runner::Kick;
///
/// /// The kick of a vCPU that looks at a flag before it enters its guest.
/// #[derive(Default)]
/// struct Flag(AtomicBool);
///
/// impl Kick for Flag {
///     fn kick(&self) {
///         self.0.store(true, Ordering::SeqCst);
///     }
///
///     fn clear(&self) {
///         self.0.store(false, Ordering::SeqCst);
///     }
/// }
/// # Flag::default().kick();
/// ```
pub trait Kick: Send + Sync {
    /// Makes the current or the next [`Vcpu::run`] return [`RunError::Interrupted`], and every
    /// later one until [`Kick::clear`].
    fn kick(&self);

    /// Lets the vCPU enter the guest again. Called by the thread that runs the vCPU.
    fn clear(&self);
}

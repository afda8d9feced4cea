// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a vCPU's run ended, when nothing went wrong in the VMM.

use std::convert::Infallible;
use std::fmt;

use crate::exit::{DebugInfo, SystemEvent};

/// Why a vCPU left its loop.
///
/// Not each of these is a success of the guest: see [`Outcome::is_orderly`]. `T` is what the VMM's
/// own devices end a loop with: nothing, unless it chooses a type.
///
/// ```
/// use vcpu_runner::Outcome;
///
/// fn status<T>(outcome: &Outcome<T>) -> u8 {
///     match outcome {
///         Outcome::Reset => 64, // the caller starts the machine again
///         other if other.is_orderly() => 0,
///         _ => 1,
///     }
/// }
/// assert_eq!(status(&Outcome::<()>::Halted), 0);
/// assert_eq!(status(&Outcome::<()>::TripleFault), 1);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome<T = Infallible> {
    /// A device or the policy of the VMM ended the loop with this.
    Vmm(T),
    /// The VMM asked for it.
    Stopped,
    /// The guest halted, and nothing can wake it.
    Halted,
    /// The guest powered the machine off.
    Shutdown,
    /// The guest wants the machine to start again.
    Reset,
    /// The guest reports that it crashed.
    Crash,
    /// The guest ended itself with a triple fault.
    TripleFault,
    /// A debug event; running on is up to the debugger.
    Debug(DebugInfo),
    /// A system event that is none of the above.
    SystemEvent {
        /// What the guest asks for.
        event: SystemEvent,
        /// The event's first data word.
        flags: u64,
    },
}

impl Outcome {
    /// The same outcome of a loop that could also have ended with a `T`.
    #[must_use]
    pub const fn widen<T>(self) -> Outcome<T> {
        match self {
            Self::Vmm(never) => match never {},
            Self::Stopped => Outcome::Stopped,
            Self::Halted => Outcome::Halted,
            Self::Shutdown => Outcome::Shutdown,
            Self::Reset => Outcome::Reset,
            Self::Crash => Outcome::Crash,
            Self::TripleFault => Outcome::TripleFault,
            Self::Debug(info) => Outcome::Debug(info),
            Self::SystemEvent { event, flags } => Outcome::SystemEvent { event, flags },
        }
    }
}

impl<T> Outcome<T> {
    /// Whether the guest, or the VMM, ended the run in good order.
    ///
    /// A crash and a triple fault are not, and neither are system events without a variant of
    /// their own.
    #[must_use]
    pub const fn is_orderly(&self) -> bool {
        matches!(
            self,
            Self::Vmm(_)
                | Self::Stopped
                | Self::Halted
                | Self::Shutdown
                | Self::Reset
                | Self::Debug(_)
        )
    }

    /// Which of several outcomes speaks for a whole machine: the higher one.
    pub(crate) const fn weight(&self) -> u8 {
        match self {
            Self::Stopped => 0,
            Self::Halted => 1,
            Self::Debug(_) => 2,
            Self::SystemEvent { .. } => 3,
            Self::Shutdown => 4,
            Self::Reset => 5,
            Self::TripleFault => 6,
            Self::Crash => 7,
            Self::Vmm(_) => 8,
        }
    }
}

impl<T: fmt::Debug> fmt::Display for Outcome<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vmm(end) => write!(f, "ended by the VMM: {end:?}"),
            Self::Stopped => f.write_str("stopped by the VMM"),
            Self::Halted => f.write_str("guest halted"),
            Self::Shutdown => f.write_str("guest powered off"),
            Self::Reset => f.write_str("guest asked for a reset"),
            Self::Crash => f.write_str("guest crashed"),
            Self::TripleFault => f.write_str("guest ended with a triple fault"),
            Self::Debug(info) => write!(f, "debug event {info:x?}"),
            Self::SystemEvent { event, flags } => {
                write!(f, "system event {event:?}, flags {flags:#x}")
            }
        }
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the answer to an access means for the loop.

use std::convert::Infallible;
use std::ops::ControlFlow;

/// What the loop does when an access is complete: go on, or end with something of the VMM's.
///
/// Devices that never end the loop answer `()`, which costs nothing. Others answer a
/// [`ControlFlow`], or a type of the VMM's that implements this trait:
///
/// ```
/// use std::ops::ControlFlow;
/// use vcpu_runner::Flow;
///
/// enum Action {
///     Nothing,
///     Reset,
/// }
///
/// #[derive(Debug, PartialEq)]
/// struct Rebooting;
///
/// impl Flow for Action {
///     type End = Rebooting;
///     fn flow(self) -> ControlFlow<Rebooting> {
///         match self {
///             Action::Nothing => ControlFlow::Continue(()),
///             Action::Reset => ControlFlow::Break(Rebooting),
///         }
///     }
/// }
///
/// // With the errors of a bus, the loop ends with one or the other.
/// let answer: Result<Action, std::io::Error> = Ok(Action::Reset);
/// assert!(matches!(answer.flow(), ControlFlow::Break(Ok(Rebooting))));
/// ```
pub trait Flow {
    /// What the loop ends with, in [`Outcome::Vmm`](crate::Outcome::Vmm).
    type End;

    /// Whether the loop continues, or what it ends with.
    fn flow(self) -> ControlFlow<Self::End>;
}

/// What the loop of these devices can end with.
pub type End<I> = <<I as crate::GuestIo>::Answer as Flow>::End;

/// Always continues.
impl Flow for () {
    type End = Infallible;

    #[inline(always)]
    fn flow(self) -> ControlFlow<Infallible> {
        ControlFlow::Continue(())
    }
}

impl<T> Flow for ControlFlow<T> {
    type End = T;

    #[inline(always)]
    fn flow(self) -> Self {
        self
    }
}

/// Continues if there is no answer.
impl<A: Flow> Flow for Option<A> {
    type End = A::End;

    #[inline(always)]
    fn flow(self) -> ControlFlow<A::End> {
        self.map_or(ControlFlow::Continue(()), A::flow)
    }
}

/// Ends with an error, too.
impl<A: Flow, E> Flow for Result<A, E> {
    type End = Result<A::End, E>;

    #[inline(always)]
    fn flow(self) -> ControlFlow<Self::End> {
        match self {
            Ok(answer) => answer.flow().map_break(Ok),
            Err(error) => ControlFlow::Break(Err(error)),
        }
    }
}

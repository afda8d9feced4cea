// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a VMM decides about exits that are not device accesses.

use std::convert::Infallible;

use super::error::Fault;
use super::outcome::Outcome;
use crate::exit::{DebugInfo, Hypercall, SystemEvent};

/// An exit that is the VMM's to decide about.
///
/// ```
/// use vcpu_runner::{Action, Event, Outcome};
///
/// /// A machine that a crash of the guest starts again.
/// fn decide(event: Event) -> Action {
///     match event {
///         Event::System { event: vcpu_runner::SystemEvent::Crash, .. } => Action::Stop(Outcome::Reset),
///         other => other.default_action(),
///     }
/// }
/// assert_eq!(decide(Event::Halt), Action::Stop(Outcome::Halted));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The guest halted. KVM reports this only for machines without its own interrupt controller.
    Halt,
    /// The guest ended itself with a triple fault.
    TripleFault,
    /// Power off, reset, crash and the like.
    System {
        /// What the guest asks for.
        event: SystemEvent,
        /// The event's first data word.
        flags: u64,
    },
    /// A breakpoint, watchpoint or single step.
    Debug(DebugInfo),
    /// The guest ended an interrupt of a split interrupt controller.
    IoapicEoi {
        /// The interrupt's vector.
        vector: u8,
    },
    /// The guest can take an interrupt now.
    IrqWindowOpen,
    /// The guest changed its task priority.
    SetTpr,
    /// The guest took a bus lock.
    BusLock,
    /// A notify window passed without the processor noticing events; the guest can go on.
    Notify,
    /// A guest access needs the VMM to change guest memory first.
    MemoryFault {
        /// `KVM_MEMORY_EXIT_FLAG_*`.
        flags: u64,
        /// First guest physical address.
        gpa: u64,
        /// Bytes.
        size: u64,
    },
    /// The vCPU's ring of dirty pages is full: it must be collected before the guest goes on.
    DirtyRingFull,
    /// An arm64 access to an address without memory that the processor does not describe, as a
    /// load of two registers or with write-back makes it.
    ///
    /// To resume without having changed anything makes the guest try again.
    ArmNisv {
        /// The syndrome.
        esr_iss: u64,
        /// Guest physical address.
        fault_ipa: u64,
    },
    /// An exit that this crate has no type for.
    Other {
        /// The `KVM_EXIT_*` number.
        number: u32,
    },
}

/// What the loop does after an exit.
///
/// ```
/// use vcpu_runner::{Action, Event, Outcome};
///
/// // What the default policy makes of a halt, and of a task priority that has changed.
/// assert_eq!(Event::Halt.default_action(), Action::<()>::Stop(Outcome::Halted));
/// assert_eq!(Event::SetTpr.default_action(), Action::<()>::Resume);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub enum Action<T = Infallible> {
    /// Enter the guest again.
    Resume,
    /// Enter the guest again, in the handler of a synchronous external abort (arm64).
    InjectAbort,
    /// End the loop with this outcome.
    Stop(Outcome<T>),
    /// End the loop with this error.
    Fail(Fault),
}

impl Event {
    /// What suits a small VMM: the guest's end ends the loop, notices are ignored, and what the
    /// VMM would have to act upon is an error.
    pub const fn default_action<T>(self) -> Action<T> {
        match self {
            Self::Halt => Action::Stop(Outcome::Halted),
            Self::TripleFault => Action::Stop(Outcome::TripleFault),
            Self::System { event, flags } => Action::Stop(match event {
                SystemEvent::Shutdown => Outcome::Shutdown,
                SystemEvent::Reset => Outcome::Reset,
                SystemEvent::Crash => Outcome::Crash,
                event => Outcome::SystemEvent { event, flags },
            }),
            Self::Debug(info) => Action::Stop(Outcome::Debug(info)),
            Self::IoapicEoi { .. }
            | Self::IrqWindowOpen
            | Self::SetTpr
            | Self::BusLock
            | Self::Notify => Action::Resume,
            Self::MemoryFault { flags, gpa, size } => {
                Action::Fail(Fault::MemoryFault { flags, gpa, size })
            }
            Self::ArmNisv { .. } => Action::InjectAbort,
            Self::DirtyRingFull => Action::Fail(Fault::DirtyRingFull),
            Self::Other { number } => Action::Fail(Fault::UnhandledExit { number }),
        }
    }
}

/// A VMM's answers to the exits that are not device accesses.
///
/// Every method has a default that suits a small VMM. The methods run on the vCPU's thread and
/// must not block for long: pause and stop wait for them.
///
/// ```
/// use vcpu_runner::{Action, Event, ExitPolicy, Outcome};
///
/// /// Linux restarts the machine by a triple fault when nothing better works.
/// struct TripleFaultResets;
///
/// impl ExitPolicy for TripleFaultResets {
///     fn event(&mut self, event: Event) -> Action {
///         match event {
///             Event::TripleFault => Action::Stop(Outcome::Reset),
///             other => other.default_action(),
///         }
///     }
/// }
/// ```
///
/// A VMM whose devices [end the loop](crate::GuestIo::Answer) with a type of its own has its policy
/// end with the same `T`; a policy for any VMM is an `impl<T> ExitPolicy<T>`.
pub trait ExitPolicy<T = Infallible> {
    /// Decides how an event goes on.
    ///
    /// The default is [`Event::default_action`]. To resume after [`Event::Other`] or after
    /// [`Event::MemoryFault`] without having changed anything makes the guest exit again at
    /// once; the loop stays stoppable, but the vCPU gets nowhere.
    fn event(&mut self, event: Event) -> Action<T> {
        event.default_action()
    }

    /// Answers a hypercall; what it returns is the guest's return value.
    ///
    /// The default refuses with `-KVM_ENOSYS`.
    fn hypercall(&mut self, call: Hypercall) -> u64 {
        let _ = call;
        KVM_ENOSYS.wrapping_neg()
    }

    /// Answers a read of a model specific register; `None` injects a general protection fault.
    ///
    /// The default answers none.
    fn read_msr(&mut self, index: u32, reason: u32) -> Option<u64> {
        let _ = (index, reason);
        None
    }

    /// Takes a write to a model specific register; `false` injects a general protection fault.
    ///
    /// The default takes none.
    fn write_msr(&mut self, index: u32, reason: u32, value: u64) -> bool {
        let _ = (index, reason, value);
        false
    }
}

/// `KVM_ENOSYS` of the kernel's `kvm_para.h`.
const KVM_ENOSYS: u64 = 1000;

/// The policy with all defaults.
///
/// ```
/// use vcpu_runner::{Action, DefaultPolicy, Event, ExitPolicy, Outcome};
///
/// let action: Action = DefaultPolicy.event(Event::TripleFault);
/// assert_eq!(action, Action::Stop(Outcome::TripleFault));
/// // A read of an unknown register is a general protection fault for the guest.
/// assert_eq!(ExitPolicy::<()>::read_msr(&mut DefaultPolicy, 0x1b0, 0), None);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct DefaultPolicy;

impl<T> ExitPolicy<T> for DefaultPolicy {}

impl<T, P: ExitPolicy<T> + ?Sized> ExitPolicy<T> for Box<P> {
    fn event(&mut self, event: Event) -> Action<T> {
        (**self).event(event)
    }

    fn hypercall(&mut self, call: Hypercall) -> u64 {
        (**self).hypercall(call)
    }

    fn read_msr(&mut self, index: u32, reason: u32) -> Option<u64> {
        (**self).read_msr(index, reason)
    }

    fn write_msr(&mut self, index: u32, reason: u32, value: u64) -> bool {
        (**self).write_msr(index, reason, value)
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Exit in, action out.

use std::ops::ControlFlow;

use super::error::Fault;
use super::flow::{End, Flow};
use super::guest_io::GuestIo;
use super::outcome::Outcome;
use super::policy::{Action, Event, ExitPolicy};
use crate::exit::{Exit, number};

/// Carries out one exit and says how the loop goes on.
///
/// This is the whole meaning of an exit: it depends on nothing but its arguments, so that made-up
/// exits test it as well as real ones. Device accesses go to `io`, everything else to `policy`.
///
/// What a device is to fill arrives filled with ones. A string instruction reaches the device as
/// single elements. A length that KVM cannot produce reaches no device.
///
/// ```
/// use vcpu_runner::{Action, DefaultPolicy, Exit, GuestIo, Outcome, dispatch};
///
/// struct Nothing;
/// impl GuestIo for Nothing {
///     type Answer = ();
///     fn mmio_read(&mut self, _: u64, _: &mut [u8]) {}
///     fn mmio_write(&mut self, _: u64, _: &[u8]) {}
///     fn pio_read(&mut self, _: u16, _: &mut [u8]) {}
///     fn pio_write(&mut self, _: u16, _: &[u8]) {}
/// }
///
/// let mut data = [0; 4];
/// let read = Exit::MmioRead { addr: 0x8000_0000, data: &mut data };
/// assert_eq!(dispatch(read, &mut Nothing, &mut DefaultPolicy), Action::Resume);
/// assert_eq!(data, [0xff; 4]);
/// assert_eq!(
///     dispatch(Exit::Hlt, &mut Nothing, &mut DefaultPolicy),
///     Action::Stop(Outcome::Halted),
/// );
/// ```
#[inline]
pub fn dispatch<I, P>(mut exit: Exit<'_>, io: &mut I, policy: &mut P) -> Action<End<I>>
where
    I: GuestIo<Answer: Flow> + ?Sized,
    P: ExitPolicy<End<I>> + ?Sized,
{
    carry_out(&mut exit, io, policy)
}

/// The same, where the exit lies: moving it would cost more than carrying it out.
#[inline(always)]
pub(super) fn carry_out<I, P>(exit: &mut Exit<'_>, io: &mut I, policy: &mut P) -> Action<End<I>>
where
    I: GuestIo<Answer: Flow> + ?Sized,
    P: ExitPolicy<End<I>> + ?Sized,
{
    let mut flow = ControlFlow::Continue(());
    match exit {
        Exit::MmioRead { addr, data } if (1..=8).contains(&data.len()) => {
            prepare(data, io);
            flow = io.mmio_read(*addr, data).flow();
        }
        Exit::MmioWrite { addr, data } if (1..=8).contains(&data.len()) => {
            flow = io.mmio_write(*addr, data).flow();
        }
        Exit::IoIn { port, size, data } if is_port_access(*size, data) => {
            prepare(data, io);
            for element in data.chunks_exact_mut(usize::from(*size)) {
                keep_first(&mut flow, io.pio_read(*port, element));
            }
        }
        Exit::IoOut { port, size, data } if is_port_access(*size, data) => {
            for element in data.chunks_exact(usize::from(*size)) {
                keep_first(&mut flow, io.pio_write(*port, element));
            }
        }
        rare => return decide(rare, policy),
    }
    match flow {
        ControlFlow::Continue(()) => Action::Resume,
        ControlFlow::Break(end) => Action::Stop(Outcome::Vmm(end)),
    }
}

/// Fills what a device is to fill with ones, unless the devices do that.
#[inline(always)]
fn prepare<I: GuestIo + ?Sized>(data: &mut [u8], io: &I) {
    if io.fills_reads() {
        return;
    }
    // A single store for the usual width.
    match <&mut [u8; 4]>::try_from(&mut *data) {
        Ok(word) => *word = [0xff; 4],
        Err(_) => data.fill(0xff),
    }
}

/// Has the first answer count that ends the loop.
#[inline(always)]
pub(super) fn keep_first<A: Flow>(flow: &mut ControlFlow<A::End>, answer: A) {
    let next = answer.flow();
    if flow.is_continue() {
        *flow = next;
    }
}

/// Whether `data` is one or more elements of a width that port I/O has.
#[inline]
fn is_port_access(size: u8, data: &[u8]) -> bool {
    matches!(size, 1 | 2 | 4) && !data.is_empty() && data.len() % usize::from(size) == 0
}

/// Everything that is not a device access.
#[cold]
fn decide<T, P: ExitPolicy<T> + ?Sized>(exit: &mut Exit<'_>, policy: &mut P) -> Action<T> {
    let event = match *exit {
        Exit::Hypercall { call, ref mut ret } => {
            **ret = policy.hypercall(call).to_ne_bytes();
            return Action::Resume;
        }
        Exit::RdMsr {
            index,
            reason,
            ref mut data,
            ref mut error,
        } => {
            let answer = policy.read_msr(index, reason);
            **data = answer.unwrap_or(0).to_ne_bytes();
            **error = u8::from(answer.is_none());
            return Action::Resume;
        }
        Exit::WrMsr {
            index,
            reason,
            data,
            ref mut error,
        } => {
            **error = u8::from(!policy.write_msr(index, reason, data));
            return Action::Resume;
        }

        Exit::Hlt => Event::Halt,
        Exit::Shutdown => Event::TripleFault,
        Exit::SystemEvent { event, flags } => Event::System { event, flags },
        Exit::Debug(info) => Event::Debug(info),
        Exit::IoapicEoi { vector } => Event::IoapicEoi { vector },
        Exit::IrqWindowOpen => Event::IrqWindowOpen,
        Exit::SetTpr => Event::SetTpr,
        Exit::BusLock => Event::BusLock,
        Exit::Notify { flags } if flags & number::KVM_NOTIFY_CONTEXT_INVALID == 0 => Event::Notify,
        Exit::MemoryFault { flags, gpa, size } => Event::MemoryFault { flags, gpa, size },
        Exit::DirtyRingFull => Event::DirtyRingFull,
        Exit::ArmNisv { esr_iss, fault_ipa } => Event::ArmNisv { esr_iss, fault_ipa },
        Exit::Other { number } => Event::Other { number },

        // Nothing that a VMM can decide: the vCPU cannot go on.
        Exit::Notify { .. } => return Action::Fail(Fault::NotifyContextInvalid),
        Exit::FailEntry { reason, cpu } => return Action::Fail(Fault::FailEntry { reason, cpu }),
        Exit::InternalError(internal) => return Action::Fail(Fault::Internal(internal)),
        Exit::Exception { vector, error_code } => {
            return Action::Fail(Fault::Exception { vector, error_code });
        }
        Exit::UnknownHardware { reason } => {
            return Action::Fail(Fault::UnknownHardwareExit { reason });
        }
        Exit::MmioRead { .. } | Exit::MmioWrite { .. } => {
            let number = number::KVM_EXIT_MMIO;
            return Action::Fail(Fault::MalformedExit { number });
        }
        Exit::IoIn { .. } | Exit::IoOut { .. } => {
            let number = number::KVM_EXIT_IO;
            return Action::Fail(Fault::MalformedExit { number });
        }
        Exit::Malformed { number } => return Action::Fail(Fault::MalformedExit { number }),
    };
    policy.event(event)
}

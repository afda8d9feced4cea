// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can go wrong.

use std::convert::Infallible;
use std::io;

use thiserror::Error;

use crate::exit::{Instruction, InternalError};

/// Declares [`RunError`] with the `errno` of each kind.
macro_rules! run_errors {
    ($($(#[$doc:meta])* $kind:ident = $errno:literal, $text:literal;)+) => {
        /// Why [`Vcpu::run`](crate::Vcpu::run) came back without an exit.
        ///
        /// `E` is what the VMM's own vCPU fails with; KVM's has nothing of this kind.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
        #[non_exhaustive]
        pub enum RunError<E = Infallible> {
            $($(#[$doc])* #[error($text)] $kind,)+
            /// Any other `errno` of Linux.
            #[error("{}", io::Error::from_raw_os_error(*.0))]
            Errno(i32),
            /// An error of the VMM's own vCPU.
            #[error(transparent)]
            Vmm(E),
        }

        impl<E> From<i32> for RunError<E> {
            /// The error of an `errno` value of Linux.
            fn from(errno: i32) -> Self {
                match errno {
                    $($errno => Self::$kind,)+
                    other => Self::Errno(other),
                }
            }
        }

        impl<E> RunError<E> {
            /// The error as KVM's, or the VMM's own.
            ///
            /// # Errors
            ///
            /// The VMM's own.
            pub fn kvm(self) -> Result<RunError, E> {
                match self {
                    $(Self::$kind => Ok(RunError::$kind),)+
                    Self::Errno(errno) => Ok(RunError::Errno(errno)),
                    Self::Vmm(error) => Err(error),
                }
            }
        }

        impl RunError {
            /// The `errno` value.
            #[must_use]
            pub const fn errno(self) -> i32 {
                match self {
                    $(Self::$kind => $errno,)+
                    Self::Errno(errno) => errno,
                    Self::Vmm(never) => match never {},
                }
            }
        }
    };
}

run_errors! {
    /// `EINTR`: a signal or a kick. Not an error.
    Interrupted = 4, "interrupted";
    /// `EAGAIN`: the vCPU was started or woken up and is to be entered again. Not an error.
    Again = 11, "to be entered again";
    /// `ENOSYS`: KVM does not know how to handle what the guest did (arm64).
    NotSupported = 38, "access that KVM cannot handle";
    /// `EFAULT`: guest memory is not there, and KVM does not say where.
    BadAddress = 14, "guest memory is not there";
    /// `EHWPOISON`: the guest touched host memory with a hardware error.
    HwPoison = 133, "guest memory has a hardware error";
    /// `ENOEXEC`: the vCPU was never initialised (arm64).
    NotInitialised = 8, "vCPU is not initialised";
    /// `ENOMEM`: the host has no memory left.
    OutOfMemory = 12, "host is out of memory";
    /// `EBADF`: the file descriptor is not open.
    BadFd = 9, "file descriptor is not open";
    /// `EIO`: the virtual machine was ended by KVM, or belongs to another process.
    Dead = 5, "virtual machine is dead or another process's";
}

/// What stopped a vCPU for good.
///
/// ```
/// use vcpu_runner::{Fault, RunError};
///
/// let fault = Fault::Run(RunError::BadAddress);
/// assert_eq!(fault.instruction(), None, "only an emulation failure names one");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Fault {
    /// `KVM_RUN` failed.
    #[error("KVM_RUN failed: {0}")]
    Run(RunError),
    /// The processor refused to enter the guest.
    #[error("entry into the guest failed on CPU {cpu}, reason {reason:#x}")]
    FailEntry {
        /// The processor's own reason.
        reason: u64,
        /// Host processor that refused.
        cpu: u32,
    },
    /// KVM could not go on, most often because it cannot emulate an instruction.
    #[error("{}", describe(.0))]
    Internal(InternalError),
    /// A guest access needs guest memory changed, and the VMM has not done it.
    #[error("memory fault at {gpa:#x}, size {size:#x}, flags {flags:#x}")]
    MemoryFault {
        /// `KVM_MEMORY_EXIT_FLAG_*`.
        flags: u64,
        /// First guest physical address.
        gpa: u64,
        /// Bytes.
        size: u64,
    },
    /// The ring of dirty pages is full, and the VMM has not collected it.
    #[error("dirty ring is full")]
    DirtyRingFull,
    /// A notify window passed, and the guest's state is lost.
    #[error("notify exit lost the guest's state")]
    NotifyContextInvalid,
    /// The guest raised an exception that KVM handed on.
    #[error("guest exception {vector}, error code {error_code:#x}")]
    Exception {
        /// Vector of the exception.
        vector: u32,
        /// Its error code.
        error_code: u32,
    },
    /// The processor left the guest for a reason that KVM does not know.
    #[error("unknown hardware exit reason {reason:#x}")]
    UnknownHardwareExit {
        /// The processor's own reason.
        reason: u64,
    },
    /// An abort was to be injected into the guest, and that failed.
    #[error("cannot inject an abort into the guest")]
    Abort,
    /// An exit that neither the loop nor the policy handles.
    #[error("unhandled exit {number}")]
    UnhandledExit {
        /// The `KVM_EXIT_*` number.
        number: u32,
    },
    /// The record of an exit cannot be true.
    #[error("malformed record of exit {number}")]
    MalformedExit {
        /// The `KVM_EXIT_*` number.
        number: u32,
    },
}

fn describe(internal: &InternalError) -> String {
    if internal.is_emulation_failure() {
        let bytes = internal.instruction;
        return format!("KVM cannot emulate an instruction, bytes {bytes:?}");
    }
    let InternalError { suberror, data, .. } = internal;
    format!("KVM internal error {suberror}, data {data:x?}")
}

impl Fault {
    /// The instruction that KVM could not emulate, if it names one.
    #[must_use]
    pub const fn instruction(&self) -> Option<&Instruction> {
        match self {
            Self::Internal(internal) => Some(&internal.instruction),
            _ => None,
        }
    }
}

/// Why [`VcpuRunner::run`](crate::VcpuRunner::run) failed.
///
/// `E` is what the VMM's own vCPU fails with; KVM's has nothing of this kind.
///
/// ```
/// use vcpu_runner::{Error, Fault};
///
/// /// What to tell the user of a vCPU that failed.
/// fn explain(error: &Error) -> String {
///     match error.fault() {
///         Some(Fault::Internal(what)) if what.is_emulation_failure() => {
///             format!("KVM cannot emulate {:02x?}", what.instruction.bytes())
///         }
///         _ => error.to_string(),
///     }
/// }
/// # let _ = explain;
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error<E = Infallible> {
    /// The vCPU cannot go on.
    #[error("{fault}{}", at(*pc))]
    Vcpu {
        /// What happened.
        fault: Fault,
        /// The guest's program counter then, if it could be read.
        pc: Option<u64>,
    },
    /// The thread could not be prepared for running a vCPU.
    #[error("cannot prepare the thread for running a vCPU")]
    Thread(#[source] io::Error),
    /// An error of the VMM's own vCPU.
    #[error(transparent)]
    Vmm(E),
}

fn at(pc: Option<u64>) -> String {
    pc.map_or_else(String::new, |pc| format!(", at {pc:#x}"))
}

impl<E> Error<E> {
    /// What happened to the vCPU, if it is the vCPU's error.
    #[must_use]
    pub const fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Vcpu { fault, .. } => Some(fault),
            Self::Thread(_) | Self::Vmm(_) => None,
        }
    }
}

/// Why a request to a vCPU was not carried out.
///
/// ```
/// # #[cfg(feature = "test-utils")] {
/// use std::time::Duration;
/// use vcpu_runner::{ControlError, MockVcpu, VcpuRunner};
///
/// # let io = vcpu_runner::IoFn(|_: vcpu_runner::IoAccess<'_>| ());
/// // A guest that does nothing, for ever. With KVM it is a `KvmVcpu`.
/// let runner = VcpuRunner::new(MockVcpu::new([]), io);
/// // Nothing runs yet, so that nothing can be paused.
/// let error = runner.control().pause(Duration::from_secs(1)).unwrap_err();
/// assert_eq!(error, ControlError::NotRunning);
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The loop is not running: it was never started, or has ended.
    #[error("vCPU is not running")]
    NotRunning,
    /// The vCPU did not answer in time. The request stands, and can still take effect.
    #[error("vCPU did not answer in time")]
    Timeout,
    /// Another thread resumed or stopped the vCPU meanwhile.
    #[error("vCPU was resumed or stopped by somebody else")]
    Superseded,
    /// A vCPU's own thread cannot wait for itself.
    #[error("a vCPU's thread cannot wait for itself")]
    OwnThread,
    /// The vCPU is not paused.
    #[error("vCPU is not paused")]
    NotPaused,
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can go wrong.

use std::fmt;
use std::io;

use crate::exit::{Instruction, InternalError};

/// Why `KVM_RUN` itself failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RunError {
    /// `EINTR`: a signal or a kick. Not an error.
    Interrupted,
    /// `EAGAIN`: the vCPU was started or woken up and is to be entered again. Not an error.
    Again,
    /// `ENOSYS`: KVM does not know how to handle what the guest did (arm64).
    NotSupported,
    /// `EFAULT`: guest memory is not there, and KVM does not say where.
    BadAddress,
    /// `EHWPOISON`: the guest touched host memory with a hardware error.
    HwPoison,
    /// `ENOEXEC`: the vCPU was never initialised (arm64).
    NotInitialised,
    /// `ENOMEM`: the host has no memory left.
    OutOfMemory,
    /// `EBADF`: the file descriptor is not open.
    BadFd,
    /// `EIO`: the virtual machine was ended by KVM, or belongs to another process.
    Dead,
    /// Any other `errno`.
    Errno(i32),
}

impl From<i32> for RunError {
    /// The error of an `errno` value.
    fn from(errno: i32) -> Self {
        match errno {
            libc::EINTR => Self::Interrupted,
            libc::EAGAIN => Self::Again,
            libc::ENOSYS => Self::NotSupported,
            libc::EFAULT => Self::BadAddress,
            libc::EHWPOISON => Self::HwPoison,
            libc::ENOEXEC => Self::NotInitialised,
            libc::ENOMEM => Self::OutOfMemory,
            libc::EBADF => Self::BadFd,
            libc::EIO => Self::Dead,
            other => Self::Errno(other),
        }
    }
}

impl RunError {
    /// The `errno` value.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::Interrupted => libc::EINTR,
            Self::Again => libc::EAGAIN,
            Self::NotSupported => libc::ENOSYS,
            Self::BadAddress => libc::EFAULT,
            Self::HwPoison => libc::EHWPOISON,
            Self::NotInitialised => libc::ENOEXEC,
            Self::OutOfMemory => libc::ENOMEM,
            Self::BadFd => libc::EBADF,
            Self::Dead => libc::EIO,
            Self::Errno(errno) => errno,
        }
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from_raw_os_error(self.errno()).fmt(f)
    }
}

impl std::error::Error for RunError {}

/// What stopped a vCPU for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// `KVM_RUN` failed.
    Run(RunError),
    /// The processor refused to enter the guest.
    FailEntry {
        /// The processor's own reason.
        reason: u64,
        /// Host processor that refused.
        cpu: u32,
    },
    /// KVM could not go on, most often because it cannot emulate an instruction.
    Internal(InternalError),
    /// A guest access needs guest memory changed, and nobody did.
    MemoryFault {
        /// `KVM_MEMORY_EXIT_FLAG_*`.
        flags: u64,
        /// First guest physical address.
        gpa: u64,
        /// Bytes.
        size: u64,
    },
    /// The ring of dirty pages is full, and nobody collected it.
    DirtyRingFull,
    /// A notify window passed, and the guest's state is lost.
    NotifyContextInvalid,
    /// The guest raised an exception that KVM handed on.
    Exception {
        /// Vector of the exception.
        vector: u32,
        /// Its error code.
        error_code: u32,
    },
    /// The processor left the guest for a reason that KVM does not know.
    UnknownHardwareExit {
        /// The processor's own reason.
        reason: u64,
    },
    /// An arm64 access to an address without memory that the processor does not describe.
    ArmNisv {
        /// The syndrome.
        esr_iss: u64,
        /// Guest physical address.
        fault_ipa: u64,
    },
    /// An exit that nobody handles.
    UnhandledExit {
        /// The `KVM_EXIT_*` number.
        number: u32,
    },
    /// The record of an exit cannot be true.
    MalformedExit {
        /// The `KVM_EXIT_*` number.
        number: u32,
    },
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

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(error) => write!(f, "KVM_RUN failed: {error}"),
            Self::FailEntry { reason, cpu } => {
                write!(
                    f,
                    "entry into the guest failed on CPU {cpu}, reason {reason:#x}"
                )
            }
            Self::Internal(internal) if internal.is_emulation_failure() => write!(
                f,
                "KVM cannot emulate an instruction, bytes {:?}",
                internal.instruction
            ),
            Self::Internal(internal) => write!(
                f,
                "KVM internal error {}, data {:x?}",
                internal.suberror, internal.data
            ),
            Self::MemoryFault { flags, gpa, size } => {
                write!(
                    f,
                    "memory fault at {gpa:#x}, size {size:#x}, flags {flags:#x}"
                )
            }
            Self::DirtyRingFull => f.write_str("dirty ring is full"),
            Self::NotifyContextInvalid => f.write_str("notify exit lost the guest's state"),
            Self::Exception { vector, error_code } => {
                write!(f, "guest exception {vector}, error code {error_code:#x}")
            }
            Self::UnknownHardwareExit { reason } => {
                write!(f, "unknown hardware exit reason {reason:#x}")
            }
            Self::ArmNisv { esr_iss, fault_ipa } => {
                write!(
                    f,
                    "access to {fault_ipa:#x} without a valid syndrome, ISS {esr_iss:#x}"
                )
            }
            Self::UnhandledExit { number } => write!(f, "unhandled exit {number}"),
            Self::MalformedExit { number } => write!(f, "malformed record of exit {number}"),
        }
    }
}

/// Why [`VcpuRunner::run`](crate::VcpuRunner::run) failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The vCPU cannot go on.
    Vcpu {
        /// What happened.
        fault: Fault,
        /// The guest's program counter then, if it could be read.
        pc: Option<u64>,
    },
    /// The thread could not be prepared for running a vCPU.
    Thread(io::Error),
}

impl Error {
    /// What happened to the vCPU, if it is the vCPU's error.
    #[must_use]
    pub const fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Vcpu { fault, .. } => Some(fault),
            Self::Thread(_) => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcpu {
                fault,
                pc: Some(pc),
            } => write!(f, "{fault}, at {pc:#x}"),
            Self::Vcpu { fault, pc: None } => fault.fmt(f),
            Self::Thread(error) => write!(f, "cannot prepare the thread: {error}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Vcpu {
                fault: Fault::Run(error),
                ..
            } => Some(error),
            Self::Vcpu { .. } => None,
            Self::Thread(error) => Some(error),
        }
    }
}

/// Why a request to a vCPU was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ControlError {
    /// The loop is not running: it was never started, or has ended.
    NotRunning,
    /// The vCPU did not answer in time. The request stands, and can still take effect.
    Timeout,
    /// Somebody else resumed or stopped the vCPU meanwhile.
    Superseded,
    /// A vCPU's own thread cannot wait for itself.
    OwnThread,
    /// The vCPU is not paused.
    NotPaused,
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotRunning => "vCPU is not running",
            Self::Timeout => "vCPU did not answer in time",
            Self::Superseded => "vCPU was resumed or stopped by somebody else",
            Self::OwnThread => "a vCPU's thread cannot wait for itself",
            Self::NotPaused => "vCPU is not paused",
        })
    }
}

impl std::error::Error for ControlError {}

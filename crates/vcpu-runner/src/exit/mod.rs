// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why a vCPU came back from the guest, as types.

mod debug;
mod decode;
mod kind;
pub(crate) mod number;

use std::fmt;

pub use debug::DebugInfo;
pub use decode::{RECORD_LEN, Record, decode};
#[cfg(feature = "kvm")]
pub(crate) use decode::{RECORD_START, forget, reason};
#[cfg(feature = "test-utils")]
pub(crate) use decode::{UNION, data_offset};
pub use kind::ExitKind;

/// One exit of a vCPU, with what it asks for.
///
/// The slices point into the vCPU's own record of the exit: what is written there is what the
/// guest gets when it runs on. The names are those of the `KVM_EXIT_*` constants.
///
/// ```
/// use vcpu_runner::{Exit, ExitKind};
///
/// // What a `Vcpu` returns when the guest reads a register.
/// let mut answer = [0xff; 4];
/// let exit = Exit::MmioRead { addr: 0x8000_1000, data: &mut answer };
/// assert_eq!(exit.kind(), ExitKind::MmioRead);
/// ```
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit<'a> {
    /// The guest reads from an address without memory; `data` wants the answer.
    MmioRead {
        /// Guest physical address.
        addr: u64,
        /// Room for the answer, 1 to 8 bytes.
        data: &'a mut [u8],
    },
    /// The guest writes to an address without memory.
    MmioWrite {
        /// Guest physical address.
        addr: u64,
        /// What it writes, 1 to 8 bytes.
        data: &'a [u8],
    },
    /// The guest reads from an I/O port, one element or many.
    IoIn {
        /// The port, the same for every element.
        port: u16,
        /// Bytes of one element: 1, 2 or 4.
        size: u8,
        /// Room for the answers, a multiple of `size`.
        data: &'a mut [u8],
    },
    /// The guest writes to an I/O port, one element or many.
    IoOut {
        /// The port, the same for every element.
        port: u16,
        /// Bytes of one element: 1, 2 or 4.
        size: u8,
        /// What it writes, a multiple of `size`.
        data: &'a [u8],
    },
    /// The guest halted, and KVM does not model halting for this machine.
    Hlt,
    /// The guest ended itself with a triple fault (x86), or could not be told apart from that.
    Shutdown,
    /// The guest or KVM's firmware model asked for something that concerns the whole machine.
    SystemEvent {
        /// What it asks for.
        event: SystemEvent,
        /// The event's first data word, 0 if it has none.
        flags: u64,
    },
    /// The guest made a hypercall that KVM hands on.
    Hypercall {
        /// Number and arguments.
        call: Hypercall,
        /// Room for the return value, in the host's byte order.
        ret: &'a mut [u8; 8],
    },
    /// The guest reads a model specific register that KVM hands on.
    RdMsr {
        /// Index of the register.
        index: u32,
        /// Why KVM hands it on, `KVM_MSR_EXIT_REASON_*`.
        reason: u32,
        /// Room for the answer, in the host's byte order.
        data: &'a mut [u8; 8],
        /// Anything but 0 injects a general protection fault instead of the answer.
        error: &'a mut u8,
    },
    /// The guest writes a model specific register that KVM hands on.
    WrMsr {
        /// Index of the register.
        index: u32,
        /// Why KVM hands it on, `KVM_MSR_EXIT_REASON_*`.
        reason: u32,
        /// The value written.
        data: u64,
        /// Anything but 0 injects a general protection fault.
        error: &'a mut u8,
    },
    /// A breakpoint, watchpoint or single step asked for with `KVM_SET_GUEST_DEBUG`.
    Debug(DebugInfo),
    /// The guest ended an interrupt of a split interrupt controller.
    IoapicEoi {
        /// The interrupt's vector.
        vector: u8,
    },
    /// The guest can take an interrupt now, as was asked for.
    IrqWindowOpen,
    /// The guest changed its task priority, and the interrupt controller is not KVM's.
    SetTpr,
    /// The guest took a bus lock, and `KVM_CAP_X86_BUS_LOCK_EXIT` is on.
    BusLock,
    /// The guest kept the processor from noticing events for too long.
    Notify {
        /// `KVM_NOTIFY_CONTEXT_INVALID` (bit 0): the guest cannot go on.
        flags: u32,
    },
    /// A guest access needs the VMM to change guest memory first.
    MemoryFault {
        /// `KVM_MEMORY_EXIT_FLAG_*`.
        flags: u64,
        /// First guest physical address of the range.
        gpa: u64,
        /// Bytes of the range.
        size: u64,
    },
    /// The vCPU's ring of dirty pages is full.
    DirtyRingFull,
    /// The processor refused to enter the guest.
    FailEntry {
        /// The processor's own reason.
        reason: u64,
        /// Host processor that refused.
        cpu: u32,
    },
    /// KVM could not go on, most often because it cannot emulate an instruction.
    InternalError(InternalError),
    /// The guest raised an exception that KVM hands on.
    Exception {
        /// Vector of the exception.
        vector: u32,
        /// Its error code.
        error_code: u32,
    },
    /// The processor left the guest for a reason that KVM does not know.
    UnknownHardware {
        /// The processor's own reason.
        reason: u64,
    },
    /// An arm64 access to an address without memory that the processor does not describe, and
    /// `KVM_CAP_ARM_NISV_TO_USER` is on.
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
    /// A record whose lengths or offsets cannot be true.
    Malformed {
        /// The `KVM_EXIT_*` number.
        number: u32,
    },
}

/// What the guest asked for with `KVM_EXIT_SYSTEM_EVENT`.
///
/// ```
/// use vcpu_runner::SystemEvent;
///
/// assert_eq!(SystemEvent::from(1), SystemEvent::Shutdown);
/// assert_eq!(SystemEvent::from(1000), SystemEvent::Other(1000));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SystemEvent {
    /// Power off.
    Shutdown,
    /// Start again.
    Reset,
    /// The guest says that it crashed.
    Crash,
    /// A suspended vCPU has an event to wake up for.
    Wakeup,
    /// The guest suspended itself to memory.
    Suspend,
    /// A confidential guest asks to be ended (AMD SEV).
    SevTerm,
    /// A confidential guest reports a fatal error (Intel TDX).
    TdxFatal,
    /// A number that this crate does not know.
    Other(u32),
}

impl From<u32> for SystemEvent {
    /// The event of a `KVM_SYSTEM_EVENT_*` number.
    fn from(number: u32) -> Self {
        match number {
            1 => Self::Shutdown,
            2 => Self::Reset,
            3 => Self::Crash,
            4 => Self::Wakeup,
            5 => Self::Suspend,
            6 => Self::SevTerm,
            7 => Self::TdxFatal,
            other => Self::Other(other),
        }
    }
}

/// A hypercall as the guest made it.
///
/// ```
/// use vcpu_runner::Hypercall;
///
/// let call = Hypercall::new(5, [1, 0, 0, 0, 0, 0]);
/// assert_eq!((call.nr, call.args[0]), (5, 1));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hypercall {
    /// Its number, `KVM_HC_*` on x86.
    pub nr: u64,
    /// Its arguments.
    pub args: [u64; 6],
    /// Bit 0: the guest was in 64-bit mode.
    pub flags: u64,
}

impl Hypercall {
    /// The call `nr` with these arguments, made in 32-bit mode.
    #[must_use]
    pub const fn new(nr: u64, args: [u64; 6]) -> Self {
        Self { nr, args, flags: 0 }
    }
}

/// What KVM says about an error of its own (`KVM_EXIT_INTERNAL_ERROR`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InternalError {
    /// `KVM_INTERNAL_ERROR_*`: 1 means that an instruction cannot be emulated.
    pub suberror: u32,
    /// How many words of `data` KVM filled.
    pub words: u32,
    /// The first words that come with it; their meaning depends on `suberror`.
    pub data: [u64; 4],
    /// The instruction, if KVM names it.
    pub instruction: Instruction,
}

impl InternalError {
    /// KVM could not emulate an instruction.
    pub const EMULATION: u32 = 1;

    /// Whether the guest executed something that KVM cannot emulate.
    #[must_use]
    pub const fn is_emulation_failure(&self) -> bool {
        self.suberror == Self::EMULATION
    }
}

/// The bytes of one instruction, 0 to 15.
///
/// ```
/// use vcpu_runner::Instruction;
///
/// let mut bytes = [0; 15];
/// bytes[..2].copy_from_slice(&[0x0f, 0x0b]);
/// assert_eq!(Instruction::new(2, bytes).bytes(), [0x0f, 0x0b]); // ud2
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Instruction {
    len: u8,
    bytes: [u8; 15],
}

impl Instruction {
    /// The first `len` of `bytes`; a length beyond 15 counts as 15.
    #[must_use]
    pub const fn new(len: u8, bytes: [u8; 15]) -> Self {
        Self {
            len: if len > 15 { 15 } else { len },
            bytes,
        }
    }

    /// The bytes, empty if KVM named none.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl fmt::Debug for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x?}", self.bytes())
    }
}

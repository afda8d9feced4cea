// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Names for the kinds of exits, to count them by.

use super::Exit;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)+) => {
        /// The kind of an exit, without what it carries.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum ExitKind {
            $($(#[$doc])* $kind,)+
        }

        impl ExitKind {
            /// Every kind, in the order of [`ExitKind::index`].
            pub const ALL: &'static [Self] = &[$(Self::$kind),+];

            /// The kind's name in counters and tables: lower case with underscores.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)+
                }
            }

            /// The kind's position in [`ExitKind::ALL`].
            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

kinds! {
    /// A read from an address without memory.
    MmioRead = "mmio_read",
    /// A write to an address without memory.
    MmioWrite = "mmio_write",
    /// One `in`, or some elements of an `ins`.
    IoIn = "io_in",
    /// One `out`, or some elements of an `outs`.
    IoOut = "io_out",
    /// The guest halted.
    Hlt = "hlt",
    /// Triple fault.
    Shutdown = "shutdown",
    /// Power off, reset, crash and the like.
    SystemEvent = "system_event",
    /// A hypercall.
    Hypercall = "hypercall",
    /// A read of a model specific register.
    RdMsr = "rdmsr",
    /// A write to a model specific register.
    WrMsr = "wrmsr",
    /// A debug event.
    Debug = "debug",
    /// The end of an interrupt.
    IoapicEoi = "ioapic_eoi",
    /// The guest can take an interrupt.
    IrqWindowOpen = "irq_window_open",
    /// The guest changed its task priority.
    SetTpr = "set_tpr",
    /// A bus lock.
    BusLock = "bus_lock",
    /// A notify window passed.
    Notify = "notify",
    /// Guest memory must change first.
    MemoryFault = "memory_fault",
    /// The dirty ring is full.
    DirtyRingFull = "dirty_ring_full",
    /// The processor refused to enter the guest.
    FailEntry = "fail_entry",
    /// An error of KVM itself.
    InternalError = "internal_error",
    /// An exception that KVM hands on.
    Exception = "exception",
    /// A reason that KVM does not know.
    UnknownHardware = "unknown_hardware",
    /// An arm64 access without a syndrome.
    ArmNisv = "arm_nisv",
    /// A number that this crate has no type for.
    Other = "other",
    /// A record that cannot be true.
    Malformed = "malformed",
    /// `KVM_RUN` was interrupted by a signal or a kick; not an exit of the guest.
    Interrupted = "interrupted",
}

impl ExitKind {
    /// Whether a device carries the exit out.
    #[inline]
    #[must_use]
    pub const fn is_access(self) -> bool {
        matches!(
            self,
            Self::MmioRead | Self::MmioWrite | Self::IoIn | Self::IoOut
        )
    }
}

impl Exit<'_> {
    /// The kind of this exit.
    #[inline]
    #[must_use]
    pub const fn kind(&self) -> ExitKind {
        match self {
            Self::MmioRead { .. } => ExitKind::MmioRead,
            Self::MmioWrite { .. } => ExitKind::MmioWrite,
            Self::IoIn { .. } => ExitKind::IoIn,
            Self::IoOut { .. } => ExitKind::IoOut,
            Self::Hlt => ExitKind::Hlt,
            Self::Shutdown => ExitKind::Shutdown,
            Self::SystemEvent { .. } => ExitKind::SystemEvent,
            Self::Hypercall { .. } => ExitKind::Hypercall,
            Self::RdMsr { .. } => ExitKind::RdMsr,
            Self::WrMsr { .. } => ExitKind::WrMsr,
            Self::Debug(_) => ExitKind::Debug,
            Self::IoapicEoi { .. } => ExitKind::IoapicEoi,
            Self::IrqWindowOpen => ExitKind::IrqWindowOpen,
            Self::SetTpr => ExitKind::SetTpr,
            Self::BusLock => ExitKind::BusLock,
            Self::Notify { .. } => ExitKind::Notify,
            Self::MemoryFault { .. } => ExitKind::MemoryFault,
            Self::DirtyRingFull => ExitKind::DirtyRingFull,
            Self::FailEntry { .. } => ExitKind::FailEntry,
            Self::InternalError(_) => ExitKind::InternalError,
            Self::Exception { .. } => ExitKind::Exception,
            Self::UnknownHardware { .. } => ExitKind::UnknownHardware,
            Self::ArmNisv { .. } => ExitKind::ArmNisv,
            Self::Other { .. } => ExitKind::Other,
            Self::Malformed { .. } => ExitKind::Malformed,
        }
    }
}

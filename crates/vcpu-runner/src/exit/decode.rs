// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reads the kernel's record of an exit.
//!
//! The layout is that of `struct kvm_run` in the kernel's user-space API, checked against
//! `kvm-bindings` in the tests. Nothing in a record is trusted: a length or an offset that cannot
//! be true makes the exit [`Exit::Malformed`].

use super::number as kvm;
use super::{DebugInfo, Exit, Hypercall, Instruction, InternalError, SystemEvent};

/// Where the record starts inside of `struct kvm_run`: the bytes before belong to the way in.
pub(crate) const RECORD_START: usize = 8;

/// Bytes of a record: `struct kvm_run` and the page behind it, in which x86 has port I/O data.
pub const RECORD_LEN: usize = 2 * 4096 - RECORD_START;

/// What `KVM_RUN` left behind: `struct kvm_run` from `exit_reason` on.
pub type Record = [u8; RECORD_LEN];

/// `exit_reason` and the union of `struct kvm_run`, counted from the start of the record.
const REASON: usize = 0;
pub(crate) const UNION: usize = 32 - RECORD_START;

/// `N` bytes at `at`, or zeros where the record has ended.
#[inline(always)]
fn bytes<const N: usize>(record: &[u8], at: usize) -> [u8; N] {
    record
        .get(at..)
        .and_then(|rest| rest.first_chunk::<N>())
        .copied()
        .unwrap_or([0; N])
}

#[inline(always)]
fn u8_at(record: &[u8], at: usize) -> u8 {
    u8::from_ne_bytes(bytes(record, at))
}

#[inline(always)]
fn u16_at(record: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(bytes(record, at))
}

#[inline(always)]
pub(super) fn u32_at(record: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes(record, at))
}

#[inline(always)]
pub(super) fn u64_at(record: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes(record, at))
}

/// `len` bytes at `at`, if the record has them.
#[inline(always)]
fn slice(record: &mut [u8], at: u64, len: u64) -> Option<&mut [u8]> {
    let end = usize::try_from(at.checked_add(len)?).ok()?;
    record.get_mut(usize::try_from(at).ok()?..end)
}

/// The typed exit that a record describes: a [`Record`], or as much of one as there is.
///
/// ```
/// use vcpu_runner::{Exit, RECORD_LEN, decode};
///
/// let mut record = [0; RECORD_LEN];
/// record[0] = 5; // KVM_EXIT_HLT
/// assert_eq!(decode(&mut record), Exit::Hlt);
/// ```
#[inline]
pub fn decode(record: &mut [u8]) -> Exit<'_> {
    match u32_at(record, REASON) {
        kvm::KVM_EXIT_MMIO => mmio(record),
        kvm::KVM_EXIT_IO => port_io(record),
        number => rare(number, record),
    }
}

/// The `KVM_EXIT_*` number of a record.
#[cfg(feature = "kvm")]
#[inline(always)]
pub(crate) fn reason(record: &[u8]) -> u32 {
    u32_at(record, REASON)
}

/// Makes the record one of no exit.
#[cfg(feature = "kvm")]
pub(crate) fn forget(record: &mut [u8]) {
    if let Some(reason) = record.first_chunk_mut() {
        *reason = kvm::KVM_EXIT_UNKNOWN.to_ne_bytes();
    }
}

#[inline(always)]
fn mmio(record: &mut [u8]) -> Exit<'_> {
    let addr = u64_at(record, UNION);
    let len = u32_at(record, UNION + 16);
    let is_write = u8_at(record, UNION + 20) != 0;
    match slice(record, UNION as u64 + 8, len.into()) {
        Some(data) if (1..=8).contains(&len) => {
            if is_write {
                Exit::MmioWrite { addr, data }
            } else {
                Exit::MmioRead { addr, data }
            }
        }
        _ => Exit::Malformed {
            number: kvm::KVM_EXIT_MMIO,
        },
    }
}

/// The `data_offset` of port I/O whose elements lie `at` bytes behind the start of a record.
#[cfg(feature = "test-utils")]
pub(crate) const fn data_offset(at: usize) -> u64 {
    (at + RECORD_START) as u64
}

#[inline(always)]
fn port_io(record: &mut [u8]) -> Exit<'_> {
    let direction = u32::from(u8_at(record, UNION));
    let size = u8_at(record, UNION + 1);
    let port = u16_at(record, UNION + 2);
    let count = u32_at(record, UNION + 4);
    let offset = u64_at(record, UNION + 8);
    // The elements lie behind the union, in the page that KVM keeps for them.
    let elements = offset
        .checked_sub(RECORD_START as u64)
        .filter(|&at| at >= UNION as u64 + 256)
        .and_then(|at| slice(record, at, u64::from(size) * u64::from(count)));
    match elements {
        Some(data) if matches!(size, 1 | 2 | 4) && count > 0 => match direction {
            kvm::KVM_EXIT_IO_IN => Exit::IoIn { port, size, data },
            kvm::KVM_EXIT_IO_OUT => Exit::IoOut { port, size, data },
            _ => Exit::Malformed {
                number: kvm::KVM_EXIT_IO,
            },
        },
        _ => Exit::Malformed {
            number: kvm::KVM_EXIT_IO,
        },
    }
}

/// Everything that is not on the path of a device access.
#[cold]
fn rare(number: u32, record: &mut [u8]) -> Exit<'_> {
    match number {
        kvm::KVM_EXIT_HLT => Exit::Hlt,
        kvm::KVM_EXIT_SHUTDOWN => Exit::Shutdown,
        kvm::KVM_EXIT_SYSTEM_EVENT => Exit::SystemEvent {
            event: SystemEvent::from(u32_at(record, UNION)),
            flags: match u32_at(record, UNION + 4) {
                0 => 0,
                _ => u64_at(record, UNION + 8),
            },
        },
        kvm::KVM_EXIT_HYPERCALL => hypercall(record),
        kvm::KVM_EXIT_X86_RDMSR | kvm::KVM_EXIT_X86_WRMSR => msr(number, record),
        kvm::KVM_EXIT_DEBUG => Exit::Debug(DebugInfo::read(record, UNION)),
        kvm::KVM_EXIT_IOAPIC_EOI => Exit::IoapicEoi {
            vector: u8_at(record, UNION),
        },
        kvm::KVM_EXIT_IRQ_WINDOW_OPEN => Exit::IrqWindowOpen,
        kvm::KVM_EXIT_SET_TPR => Exit::SetTpr,
        kvm::KVM_EXIT_X86_BUS_LOCK => Exit::BusLock,
        kvm::KVM_EXIT_NOTIFY => Exit::Notify {
            flags: u32_at(record, UNION),
        },
        kvm::KVM_EXIT_MEMORY_FAULT => Exit::MemoryFault {
            flags: u64_at(record, UNION),
            gpa: u64_at(record, UNION + 8),
            size: u64_at(record, UNION + 16),
        },
        kvm::KVM_EXIT_DIRTY_RING_FULL => Exit::DirtyRingFull,
        kvm::KVM_EXIT_FAIL_ENTRY => Exit::FailEntry {
            reason: u64_at(record, UNION),
            cpu: u32_at(record, UNION + 8),
        },
        kvm::KVM_EXIT_INTERNAL_ERROR => internal_error(record),
        kvm::KVM_EXIT_EXCEPTION => Exit::Exception {
            vector: u32_at(record, UNION),
            error_code: u32_at(record, UNION + 4),
        },
        kvm::KVM_EXIT_UNKNOWN => Exit::UnknownHardware {
            reason: u64_at(record, UNION),
        },
        kvm::KVM_EXIT_ARM_NISV => Exit::ArmNisv {
            esr_iss: u64_at(record, UNION),
            fault_ipa: u64_at(record, UNION + 8),
        },
        number => Exit::Other { number },
    }
}

fn hypercall(record: &mut [u8]) -> Exit<'_> {
    let word = |n: usize| u64_at(record, UNION + 8 * n);
    let call = Hypercall {
        nr: word(0),
        args: [word(1), word(2), word(3), word(4), word(5), word(6)],
        flags: word(8),
    };
    match record
        .get_mut(UNION + 56..)
        .and_then(|rest| rest.first_chunk_mut())
    {
        Some(ret) => Exit::Hypercall { call, ret },
        None => Exit::Malformed {
            number: kvm::KVM_EXIT_HYPERCALL,
        },
    }
}

fn msr(number: u32, record: &mut [u8]) -> Exit<'_> {
    let reason = u32_at(record, UNION + 8);
    let index = u32_at(record, UNION + 12);
    let value = u64_at(record, UNION + 16);
    // `error` is the first byte of the union, `data` lies 16 bytes behind it.
    let parts = record
        .get_mut(UNION..)
        .and_then(|rest| rest.split_first_mut())
        .and_then(|(error, rest)| Some((error, rest.get_mut(15..)?.first_chunk_mut()?)));
    match parts {
        Some((error, data)) if number == kvm::KVM_EXIT_X86_RDMSR => Exit::RdMsr {
            index,
            reason,
            data,
            error,
        },
        Some((error, _)) => Exit::WrMsr {
            index,
            reason,
            data: value,
            error,
        },
        None => Exit::Malformed { number },
    }
}

fn internal_error(record: &[u8]) -> Exit<'_> {
    let suberror = u32_at(record, UNION);
    let words = u32_at(record, UNION + 4);
    let mut data = [0; 4];
    for (n, word) in (0..words.min(4)).zip(data.iter_mut()) {
        *word = u64_at(record, UNION + 8 + 8 * n as usize);
    }
    // An emulation failure with this flag in its first word has the instruction behind it.
    let names_instruction = suberror == kvm::KVM_INTERNAL_ERROR_EMULATION
        && words >= 3
        && data.first().is_some_and(|flags| {
            flags & kvm::KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES != 0
        });
    let instruction = if names_instruction {
        Instruction::new(u8_at(record, UNION + 16), bytes(record, UNION + 17))
    } else {
        Instruction::default()
    };
    Exit::InternalError(InternalError {
        suberror,
        words,
        data,
        instruction,
    })
}

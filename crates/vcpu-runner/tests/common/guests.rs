// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests that keep a vCPU busy.

use kvm_ioctls::Kvm;

use super::Machine;

/// A guest for each way of keeping a vCPU busy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Guest {
    /// Never leaves the guest by itself.
    Spins,
    /// Leaves it all the time: plain, page-crossing and string accesses.
    Floods,
    /// Waits inside of KVM, with interrupts off.
    Halts,
}

#[rustfmt::skip]
const SPIN: &[u8] = &[
    0xff, 0x05, 0x00, 0x50, 0x00, 0x00,           // inc dword [0x5000]
    0xeb, 0xf8,                                   // jmp back
];

#[rustfmt::skip]
const FLOOD: &[u8] = &[
    0xfc,                                         // cld
    0xff, 0x05, 0x00, 0x50, 0x00, 0x00,           // inc dword [0x5000]
    0xa1, 0xfe, 0x0f, 0x00, 0x80,                 // mov eax, [0x80000ffe]
    0xa3, 0x00, 0x00, 0x00, 0x80,                 // mov [0x80000000], eax
    0xff, 0x05, 0x08, 0x00, 0x00, 0x80,           // inc dword [0x80000008]
    0xbe, 0x00, 0x20, 0x00, 0x80,                 // mov esi, 0x80002000
    0xbf, 0x00, 0x60, 0x00, 0x00,                 // mov edi, 0x6000
    0xb9, 0x08, 0x00, 0x00, 0x00,                 // mov ecx, 8
    0xf3, 0xa5,                                   // rep movsd
    0xb9, 0x08, 0x00, 0x00, 0x00,                 // mov ecx, 8
    0xba, 0x78, 0x01, 0x00, 0x00,                 // mov edx, 0x178
    0xf3, 0x6c,                                   // rep insb
    0xeb, 0xca,                                   // jmp back to inc
];

const HALT: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd]; // cli; hlt; jmp back

impl Guest {
    pub fn machine(self, kvm: &Kvm) -> Machine {
        match self {
            Self::Spins => Machine::new(kvm, SPIN),
            Self::Floods => Machine::new(kvm, FLOOD),
            Self::Halts => Machine::with_irqchip(kvm, HALT),
        }
    }
}

/// The guest's own count of its rounds.
pub fn rounds(machine: &Machine) -> u32 {
    u32::from_le_bytes(machine.read(0x5000))
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The loop on real KVM: exits as hardware and kernel produce them.
#![cfg(target_arch = "x86_64")]

mod common;

use common::{Access, Machine, Recorder, SOON};
use std::sync::Arc;
use vcpu_runner::{ExitCounters, ExitKind, JoinError, Outcome, VcpuRunner};

#[test]
fn reads_writes_ports_and_halt() {
    let Some(kvm) = common::kvm() else { return };
    #[rustfmt::skip]
    let machine = Machine::new(&kvm, &[
        0xa1, 0x10, 0x00, 0x00, 0x80,             // mov eax, [0x80000010]
        0xa3, 0x14, 0x00, 0x00, 0x80,             // mov [0x80000014], eax
        0x66, 0xa1, 0x20, 0x00, 0x00, 0x80,       // mov ax, [0x80000020]
        0xa2, 0x31, 0x00, 0x00, 0x80,             // mov [0x80000031], al
        0xe4, 0x40,                               // in al, 0x40
        0x66, 0xe7, 0x42,                         // out 0x42, ax
        0xf4,                                     // hlt
    ]);
    let devices = Recorder::default();
    let counters = Arc::new(ExitCounters::default());
    let mut runner =
        VcpuRunner::new(machine.vcpu(0), devices.clone()).with_observer(Arc::clone(&counters));

    assert_eq!(runner.run().unwrap(), Outcome::Halted);
    assert_eq!(
        devices.log(),
        [
            Access::MmioRead(0x8000_0010, 4),
            Access::MmioWrite(0x8000_0014, vec![1, 2, 3, 4]),
            Access::MmioRead(0x8000_0020, 2),
            Access::MmioWrite(0x8000_0031, vec![5]),
            Access::PioRead(0x40, 1),
            Access::PioWrite(0x42, vec![7, 6]),
        ]
    );
    assert_eq!(counters.get(ExitKind::MmioRead), 2);
    assert_eq!(counters.get(ExitKind::MmioWrite), 2);
    assert_eq!(counters.get(ExitKind::IoIn), 1);
    assert_eq!(counters.get(ExitKind::IoOut), 1);
    assert_eq!(counters.get(ExitKind::Hlt), 1);
    assert_eq!(counters.total(), 7);
    assert_eq!(
        runner.vcpu().fd().get_regs().unwrap().rip,
        common::ENTRY + 27
    );
}

#[test]
fn a_spinning_guest_is_stopped_from_another_thread() {
    let Some(kvm) = common::kvm() else { return };
    let machine = Machine::new(&kvm, &[0xeb, 0xfe]); // jmp $
    let mut handle = VcpuRunner::new(machine.vcpu(0), common::Nothing)
        .spawn("spin")
        .unwrap();
    assert!(matches!(
        handle.join(std::time::Duration::from_millis(20)),
        Err(JoinError::Timeout)
    ));
    handle.stop();
    assert_eq!(handle.join(SOON).unwrap(), Outcome::Stopped);
    assert!(matches!(handle.join(SOON), Err(JoinError::AlreadyJoined)));
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What policies decide about, with made-up exits.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::Nothing;
use common::scripts::{TakesAll, hlt, run};
use kvm_bindings as kvm;
use vcpu_runner::{
    Action, Event, Exit, Hypercall, MockStep, MockVcpu, Outcome, SystemEvent, VcpuRunner, decode,
    dispatch,
};

#[test]
fn notices_do_not_stop_a_small_vmm() {
    let (result, accesses) = run([
        MockStep::exit(kvm::KVM_EXIT_IRQ_WINDOW_OPEN),
        MockStep::exit(kvm::KVM_EXIT_SET_TPR),
        MockStep::exit(kvm::KVM_EXIT_X86_BUS_LOCK),
        MockStep::exit(kvm::KVM_EXIT_NOTIFY),
        MockStep::record(kvm::KVM_EXIT_IOAPIC_EOI, &[(0, &[0x41])]),
        hlt(),
    ]);
    assert_eq!(result.unwrap(), Outcome::Halted);
    assert!(accesses.is_empty());
}

#[test]
fn hypercalls_and_registers_are_refused_by_default() {
    let vcpu = MockVcpu::new([
        MockStep::record(kvm::KVM_EXIT_HYPERCALL, &[(0, &[12])]),
        MockStep::record(kvm::KVM_EXIT_X86_RDMSR, &[(12, &[1]), (16, &[9])]),
        MockStep::record(kvm::KVM_EXIT_X86_WRMSR, &[(12, &[1]), (16, &[9])]),
        hlt(),
    ]);
    let log = vcpu.log();
    assert_eq!(
        VcpuRunner::new(vcpu, Nothing).run().unwrap(),
        Outcome::Halted
    );
    let mut completed = log.completed();
    let Exit::Hypercall { ret, .. } = decode(&mut completed[0][..]) else {
        panic!("no hypercall");
    };
    assert_eq!(i64::from_ne_bytes(*ret), -1000);
    let Exit::RdMsr { error, data, .. } = decode(&mut completed[1][..]) else {
        panic!("no read");
    };
    assert_eq!((*error, *data), (1, [0; 8]));
    let Exit::WrMsr { error, .. } = decode(&mut completed[2][..]) else {
        panic!("no write");
    };
    assert_eq!(*error, 1);
}

#[test]
fn a_policy_decides_about_every_class() {
    let mut policy = TakesAll::default();
    let mut ask = |exit: Exit<'_>| dispatch(exit, &mut Nothing, &mut policy);
    let memory_fault = || Exit::MemoryFault {
        flags: 1,
        gpa: 2,
        size: 3,
    };
    for exit in [
        Exit::Hlt,
        Exit::Shutdown,
        Exit::SystemEvent {
            event: SystemEvent::Reset,
            flags: 4,
        },
        Exit::IoapicEoi { vector: 4 },
        Exit::IoapicEoi { vector: 5 },
        Exit::IrqWindowOpen,
        Exit::SetTpr,
        Exit::BusLock,
        Exit::Notify { flags: 0 },
        memory_fault(),
        Exit::DirtyRingFull,
        Exit::ArmNisv {
            esr_iss: 7,
            fault_ipa: 8,
        },
        Exit::Other { number: 6 },
    ] {
        assert_eq!(ask(exit), Action::Resume);
    }
    let call = Hypercall::new(1, [1, 2, 3, 4, 5, 6]);
    let (mut ret, mut data, mut error) = ([0; 8], [0; 8], 1);
    assert_eq!(
        ask(Exit::Hypercall {
            call,
            ret: &mut ret
        }),
        Action::Resume
    );
    let read = Exit::RdMsr {
        index: 1,
        reason: 2,
        data: &mut data,
        error: &mut error,
    };
    assert_eq!(ask(read), Action::Resume);
    assert_eq!(
        (ret, data, error),
        (77u64.to_ne_bytes(), 88u64.to_ne_bytes(), 0)
    );
    error = 1;
    let write = Exit::WrMsr {
        index: 3,
        reason: 4,
        data: 5,
        error: &mut error,
    };
    assert_eq!(ask(write), Action::Resume);
    assert_eq!(error, 0);

    // These are nobody's to decide.
    let hopeless = [
        Exit::Notify { flags: 1 },
        Exit::FailEntry { reason: 0, cpu: 0 },
        Exit::Exception {
            vector: 0,
            error_code: 0,
        },
        Exit::UnknownHardware { reason: 0 },
        Exit::Malformed { number: 0 },
    ];
    for exit in hopeless {
        assert!(matches!(ask(exit), Action::Fail(_)));
    }
    assert_eq!(policy.events.len(), 13);
    assert_eq!(policy.events[4], Event::IoapicEoi { vector: 5 });
    assert_eq!(policy.events[12], Event::Other { number: 6 });
    assert_eq!(policy.calls, [call]);
    assert_eq!(policy.registers, [(1, 2, None), (3, 4, Some(5))]);
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the VMM's own devices, policy and vCPU end a loop with, and running it again.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::ops::ControlFlow::{self, Break, Continue};
use std::sync::{Arc, Mutex};

use common::Nothing;
use kvm_bindings as kvm;
use vcpu_runner::{
    Action, CoalescedWrite, CoalescedWrites, DefaultPolicy, Error, Event, Exit, ExitPolicy, Fault,
    Flow, GuestIo, Kick, MockStep, MockVcpu, Outcome, RunError, Vcpu, VcpuRunner, dispatch,
};

/// Answers with its own address when a register behind 0x1000 is accessed.
#[derive(Clone, Default)]
struct Ends(Arc<Mutex<Vec<u64>>>);

impl Ends {
    fn answer(&self, addr: u64) -> ControlFlow<u64> {
        self.0.lock().unwrap().push(addr);
        if addr >= 0x1000 {
            Break(addr)
        } else {
            Continue(())
        }
    }

    fn seen(&self) -> Vec<u64> {
        self.0.lock().unwrap().clone()
    }
}

impl GuestIo for Ends {
    type Answer = ControlFlow<u64>;
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) -> Self::Answer {
        data.fill(0x55);
        self.answer(addr)
    }
    fn mmio_write(&mut self, addr: u64, _: &[u8]) -> Self::Answer {
        self.answer(addr)
    }
    fn pio_read(&mut self, port: u16, data: &mut [u8]) -> Self::Answer {
        data.fill(0x55);
        self.answer(port.into())
    }
    fn pio_write(&mut self, port: u16, data: &[u8]) -> Self::Answer {
        self.answer(u64::from(port) + u64::from(data.first().copied().unwrap_or(0)))
    }
}

fn hlt() -> MockStep {
    MockStep::exit(kvm::KVM_EXIT_HLT)
}

#[test]
fn an_answer_ends_the_loop_when_its_access_is_complete() {
    let vcpu = MockVcpu::new([
        MockStep::mmio_write(0x10, &[1]),
        MockStep::mmio_read(0x1ffe, 2),
        MockStep::mmio_read(0x2000, 2).as_fragment(),
        MockStep::mmio_write(0x20, &[1]),
        hlt(),
    ]);
    let log = vcpu.log();
    let devices = Ends::default();
    let mut runner = VcpuRunner::new(vcpu, devices.clone());
    assert_eq!(runner.run().unwrap(), Outcome::Vmm(0x1ffe), "the first one");
    assert_eq!(devices.seen(), [0x10, 0x1ffe, 0x2000]);
    assert_eq!(log.answers(), [[0x55; 2]; 2], "the guest has its data");
    // And on: nothing is left over of the end.
    assert_eq!(runner.run().unwrap(), Outcome::Halted);
    assert_eq!(devices.seen(), [0x10, 0x1ffe, 0x2000, 0x20]);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_rest_of_a_string_is_carried_out_before_the_end() {
    let vcpu = MockVcpu::new([MockStep::io_out(0xfff, 1, &[0, 1, 2]), hlt()]);
    let devices = Ends::default();
    let outcome = VcpuRunner::new(vcpu, devices.clone()).run().unwrap();
    assert_eq!(outcome, Outcome::Vmm(0x1000), "the first one");
    assert_eq!(devices.seen(), [0xfff, 0x1000, 0x1001]);
}

#[test]
fn an_error_that_comes_of_completing_counts_before_the_end() {
    let vcpu = MockVcpu::new([
        MockStep::mmio_read(0x1ffe, 2),
        MockStep::record(kvm::KVM_EXIT_FAIL_ENTRY, &[]).as_fragment(),
    ]);
    let error = VcpuRunner::new(vcpu, Ends::default()).run().unwrap_err();
    assert!(matches!(error.fault(), Some(Fault::FailEntry { .. })));
}

#[test]
fn answers_of_a_bus_with_errors_of_its_own() {
    #[derive(Debug, PartialEq)]
    enum Action {
        Nothing,
        Reset,
    }
    impl Flow for Action {
        type End = Self;
        fn flow(self) -> ControlFlow<Self> {
            match self {
                Self::Nothing => Continue(()),
                end @ Self::Reset => Break(end),
            }
        }
    }
    struct Bus;
    impl GuestIo for Bus {
        type Answer = Result<Action, String>;
        fn mmio_read(&mut self, addr: u64, _: &mut [u8]) -> Self::Answer {
            Err(format!("nothing at {addr:#x}"))
        }
        fn mmio_write(&mut self, _: u64, data: &[u8]) -> Self::Answer {
            Ok(match data {
                [0] => Action::Nothing,
                _ => Action::Reset,
            })
        }
        fn pio_read(&mut self, _: u16, _: &mut [u8]) -> Self::Answer {
            Ok(Action::Nothing)
        }
        fn pio_write(&mut self, _: u16, _: &[u8]) -> Self::Answer {
            Ok(Action::Nothing)
        }
    }
    let mut runner = VcpuRunner::new(
        MockVcpu::new([
            MockStep::mmio_write(0, &[0]),
            MockStep::mmio_write(0, &[1]),
            MockStep::mmio_read(0x77, 1),
            hlt(),
        ]),
        Bus,
    );
    assert_eq!(runner.run().unwrap(), Outcome::Vmm(Ok(Action::Reset)));
    let error = Err("nothing at 0x77".to_owned());
    assert_eq!(runner.run().unwrap(), Outcome::Vmm(error));
    assert_eq!(runner.run().unwrap(), Outcome::Halted);
}

#[test]
fn an_answer_is_acted_upon_before_the_guest_goes_on() {
    let vcpu = MockVcpu::new([
        MockStep::mmio_write(0x1000, &[1]),
        MockStep::mmio_write(0x10, &[1]),
        hlt(),
    ]);
    let log = vcpu.log();
    let mut moved = Vec::new();
    let io = Ends::default().map_answer(|answer| {
        if let Break(addr) = answer {
            moved.push((addr, log.runs()));
        }
    });
    assert_eq!(VcpuRunner::new(vcpu, io).run().unwrap(), Outcome::Halted);
    assert_eq!(moved, [(0x1000, 1)]);
}

#[test]
fn a_policy_ends_the_loop_with_the_vmms_type() {
    struct Policy;
    impl ExitPolicy<u64> for Policy {
        fn event(&mut self, event: Event) -> Action<u64> {
            match event {
                Event::Halt => Action::Stop(Outcome::Vmm(7)),
                other => other.default_action(),
            }
        }
    }
    let mut runner = VcpuRunner::new(MockVcpu::new([hlt()]), Ends::default()).with_policy(Policy);
    assert_eq!(runner.run().unwrap(), Outcome::Vmm(7));
}

/// A vCPU of the VMM, with errors that KVM does not have.
struct OwnVcpu(VecDeque<Option<&'static str>>);

#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
struct OwnError(&'static str);

impl Vcpu for OwnVcpu {
    type Error = OwnError;
    fn run(&mut self) -> Result<Exit<'_>, RunError<OwnError>> {
        match self.0.pop_front() {
            Some(Some(error)) => Err(RunError::Vmm(OwnError(error))),
            Some(None) => Err(RunError::Again),
            None => Ok(Exit::Hlt),
        }
    }
    fn kicker(&self) -> Arc<dyn Kick> {
        struct Never;
        impl Kick for Never {
            fn kick(&self) {}
            fn clear(&self) {}
        }
        Arc::new(Never)
    }
}

#[test]
fn an_error_of_the_vmms_own_vcpu_comes_out_as_it_is() {
    let vcpu = OwnVcpu([None, Some("sealed"), None].into());
    let mut runner = VcpuRunner::new(vcpu, Nothing);
    match runner.run() {
        Err(Error::Vmm(error)) => assert_eq!(error, OwnError("sealed")),
        other => panic!("unexpected {other:?}"),
    }
    assert_eq!(runner.run().unwrap(), Outcome::Halted);
}

/// Collected writes, all made before the first exit.
struct Collected(Mutex<VecDeque<u64>>);

impl CoalescedWrites for Collected {
    fn is_empty(&self) -> bool {
        self.0.lock().unwrap().is_empty()
    }
    fn drain(&self, carry_out: &mut dyn FnMut(CoalescedWrite<'_>)) {
        for addr in self.0.lock().unwrap().drain(..) {
            carry_out(CoalescedWrite::Mmio { addr, data: &[1] });
        }
    }
}

#[test]
fn a_collected_write_ends_the_loop_after_the_exit_that_follows_it() {
    let vcpu = MockVcpu::new([MockStep::mmio_write(0x10, &[1]), hlt()]);
    let devices = Ends::default();
    let ring = Collected(Mutex::new([0x20, 0x3000, 0x4000].into()));
    let mut runner = VcpuRunner::new(vcpu, devices.clone()).with_coalesced_mmio(ring);
    assert_eq!(runner.run().unwrap(), Outcome::Vmm(0x3000));
    assert_eq!(devices.seen(), [0x20, 0x3000, 0x4000, 0x10]);
    assert_eq!(runner.run().unwrap(), Outcome::Halted);
}

#[test]
fn a_stop_ends_one_loop() {
    let script = [hlt(), MockStep::mmio_write(0, &[1]), hlt(), hlt()];
    let mut runner = VcpuRunner::new(MockVcpu::new(script), Nothing);
    let control = runner.control();
    // One that comes between two loops is for the next one, and only for that.
    assert_eq!(runner.run().unwrap(), Outcome::Halted);
    control.stop_with(Outcome::Reset);
    control.stop();
    assert_eq!(runner.run().unwrap(), Outcome::Reset);
    assert_eq!(runner.run().unwrap(), Outcome::Halted);
    assert_eq!(runner.run().unwrap(), Outcome::Halted);
}

#[test]
fn a_stop_that_meets_another_end_is_for_the_next_loop() {
    let vcpu = MockVcpu::new([MockStep::mmio_write(0x1000, &[1]), hlt()]);
    let control = Arc::new(Mutex::new(None::<vcpu_runner::Control>));
    let io = Ends::default().map_answer({
        let control = Arc::clone(&control);
        move |answer| {
            control.lock().unwrap().as_ref().unwrap().stop();
            answer
        }
    });
    let mut runner = VcpuRunner::new(vcpu, io);
    *control.lock().unwrap() = Some(runner.control());
    assert_eq!(runner.run().unwrap(), Outcome::Vmm(0x1000));
    assert_eq!(runner.run().unwrap(), Outcome::Stopped, "not lost");
    assert_eq!(runner.run().unwrap(), Outcome::Halted);
}

fn nisv() -> MockStep {
    let fields: [&[u8]; 2] = [&0x11u64.to_ne_bytes(), &0x900_0000u64.to_ne_bytes()];
    MockStep::record(kvm::KVM_EXIT_ARM_NISV, &[(0, fields[0]), (8, fields[1])])
}

#[test]
fn a_strange_load_is_answered_with_an_abort() {
    let vcpu = MockVcpu::new([nisv(), nisv(), hlt()]);
    let log = vcpu.log();
    assert_eq!(
        VcpuRunner::new(vcpu, Nothing).run().unwrap(),
        Outcome::Halted
    );
    assert_eq!(log.aborts(), 2);
    // The policy sees what there is to see.
    let exit = Exit::ArmNisv {
        esr_iss: 0x11,
        fault_ipa: 0x900_0000,
    };
    let action = dispatch(exit, &mut Nothing, &mut DefaultPolicy);
    assert_eq!(action, Action::InjectAbort);
}

#[test]
fn an_abort_that_cannot_be_injected_is_an_error() {
    struct Arm(Option<()>);
    impl Vcpu for Arm {
        type Error = Infallible;
        fn run(&mut self) -> Result<Exit<'_>, RunError> {
            self.0.take().unwrap();
            Ok(Exit::ArmNisv {
                esr_iss: 0,
                fault_ipa: 0,
            })
        }
        fn kicker(&self) -> Arc<dyn Kick> {
            OwnVcpu(VecDeque::new()).kicker()
        }
    }
    assert_eq!(
        Arm(None).inject_abort().unwrap_err().kind(),
        io::ErrorKind::Unsupported
    );
    let error = VcpuRunner::new(Arm(Some(())), Nothing).run().unwrap_err();
    assert_eq!(error.fault(), Some(&Fault::Abort));
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The small parts that a VMM puts together: observers, boxes, answers, outcomes, errors.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::cell::RefCell;
use std::io;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;

use bus::{MmioBus, PioBus};
use vcpu_runner::{
    Action, BusIo, ControlError, DebugInfo, DefaultPolicy, Error, Event, Exit, ExitCounters,
    ExitKind, ExitLatencies, ExitObserver, ExitPolicy, Fault, GuestIo, Hypercall, IoAccess, IoFn,
    Outcome, RunError, SystemEvent, decode, dispatch,
};

#[derive(Clone, Default)]
struct Log(Rc<RefCell<Vec<(&'static str, ExitKind)>>>);

impl ExitObserver for Log {
    fn exit(&mut self, kind: ExitKind) {
        self.0.borrow_mut().push(("exit", kind));
    }

    fn handled(&mut self, kind: ExitKind) {
        self.0.borrow_mut().push(("handled", kind));
    }
}

#[test]
fn a_pair_and_a_box_of_observers_see_each_exit_and_its_end() {
    let (first, second) = (Log::default(), Log::default());
    let boxed: Box<dyn ExitObserver> = Box::new(first.clone());
    let mut pair = (boxed, second.clone());
    pair.exit(ExitKind::MmioRead);
    pair.handled(ExitKind::MmioRead);
    let seen = [
        ("exit", ExitKind::MmioRead),
        ("handled", ExitKind::MmioRead),
    ];
    assert_eq!(*first.0.borrow(), seen);
    assert_eq!(*second.0.borrow(), seen);
}

#[test]
fn counters_count_by_kind_and_leave_interruptions_out_of_the_total() {
    let counters = Arc::new(ExitCounters::default());
    let mut observer = (Arc::clone(&counters), ());
    for kind in [ExitKind::IoOut, ExitKind::IoOut, ExitKind::Interrupted] {
        observer.exit(kind);
        observer.handled(kind);
    }
    assert_eq!(counters.get(ExitKind::IoOut), 2);
    assert_eq!(counters.get(ExitKind::IoIn), 0);
    assert_eq!(counters.total(), 2);
    let some: Vec<_> = counters.iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(some, [(ExitKind::IoOut, 2), (ExitKind::Interrupted, 1)]);
}

#[test]
fn latencies_are_those_from_an_exit_to_its_end() {
    let latencies = Arc::new(ExitLatencies::default());
    let mut observer = latencies.observer();
    // Of an end without a beginning, there is nothing to measure.
    observer.handled(ExitKind::Hlt);
    assert_eq!(latencies.histogram(ExitKind::Hlt).count(), 0);
    for _ in 0..3 {
        observer.exit(ExitKind::MmioWrite);
        observer.handled(ExitKind::MmioWrite);
        observer.handled(ExitKind::MmioWrite);
    }
    let filled: Vec<_> = latencies.histogram(ExitKind::MmioWrite).collect();
    assert_eq!(filled.iter().map(|(_, count)| count).sum::<u64>(), 3);
    assert!(filled.iter().all(|(below, _)| below.is_power_of_two()));
    assert_eq!(latencies.histogram(ExitKind::Hlt).count(), 0);
}

/// Says what it was called for, and answers reads with 7.
fn say(access: IoAccess<'_>) -> String {
    match access {
        IoAccess::MmioRead { addr, data } => {
            data.fill(7);
            format!("read {addr:#x} {}", data.len())
        }
        IoAccess::MmioWrite { addr, data } => format!("write {addr:#x} {data:?}"),
        IoAccess::PioRead { port, data } => {
            data.fill(7);
            format!("in {port:#x} {}", data.len())
        }
        IoAccess::PioWrite { port, data } => format!("out {port:#x} {data:?}"),
    }
}

fn all_four(mut io: impl GuestIo<Answer = String>) {
    let (mut word, mut byte) = ([0; 4], [0; 1]);
    assert_eq!(io.mmio_read(0x1000, &mut word), "read 0x1000 4");
    assert_eq!(io.mmio_write(0x2000, &[1, 2]), "write 0x2000 [1, 2]");
    assert_eq!(io.pio_read(0x60, &mut byte), "in 0x60 1");
    assert_eq!(io.pio_write(0x70, &[3]), "out 0x70 [3]");
    assert_eq!((word, byte), ([7; 4], [7]));
    assert!(!io.fills_reads());
}

#[test]
fn boxes_references_and_mapped_answers_pass_each_access_on() {
    all_four(IoFn(say));
    all_four(&mut IoFn(say));
    let boxed: Box<dyn GuestIo<Answer = String>> = Box::new(IoFn(say));
    all_four(boxed);
    let lens = IoFn(|access: IoAccess<'_>| Some(say(access)));
    all_four(lens.map_answer(Option::unwrap));
    assert_eq!(format!("{:?}", IoFn(say)), "IoFn { .. }");
}

#[test]
fn an_access_that_no_bus_claims_reads_as_ones_and_is_dropped() {
    let mut io = BusIo::<()>::new(MmioBus::new().view(), PioBus::new().view());
    assert!(io.fills_reads());
    let mut without_ports = BusIo::<()>::without_ports(MmioBus::new().view());
    for io in [&mut io, &mut without_ports] {
        let (mut word, mut byte) = ([0; 4], [0; 1]);
        assert_eq!(io.mmio_read(0x1000, &mut word), None);
        assert_eq!(io.pio_read(0x60, &mut byte), None);
        assert_eq!((word, byte), ([0xff; 4], [0xff]));
        assert_eq!(io.mmio_write(0x1000, &[1]), None);
        assert_eq!(io.pio_write(0x60, &[1]), None);
    }
    assert!(io.map_answer(|answer| answer).fills_reads());
}

/// A policy that answers everything.
struct Answers;

impl ExitPolicy<&'static str> for Answers {
    fn event(&mut self, _: Event) -> Action<&'static str> {
        Action::Stop(Outcome::Vmm("event"))
    }
    fn hypercall(&mut self, call: Hypercall) -> u64 {
        call.nr + 1
    }
    fn read_msr(&mut self, index: u32, _: u32) -> Option<u64> {
        Some(index.into())
    }
    fn write_msr(&mut self, _: u32, _: u32, value: u64) -> bool {
        value == 5
    }
}

#[test]
fn a_boxed_policy_decides_as_the_one_inside() {
    let mut boxed: Box<dyn ExitPolicy<&'static str>> = Box::new(Answers);
    let end = Action::Stop(Outcome::Vmm("event"));
    assert_eq!(boxed.event(Event::Halt), end);
    assert_eq!(boxed.hypercall(Hypercall::new(41, [0; 6])), 42);
    assert_eq!(boxed.read_msr(9, 0), Some(9));
    assert!(boxed.write_msr(9, 0, 5) && !boxed.write_msr(9, 0, 6));
}

#[test]
fn the_default_policy_has_an_action_for_each_event() {
    let action = |event: Event| event.default_action::<()>();
    let system = |event| action(Event::System { event, flags: 3 });
    let stop = |outcome| Action::Stop(outcome);
    assert_eq!(action(Event::TripleFault), stop(Outcome::TripleFault));
    assert_eq!(system(SystemEvent::Shutdown), stop(Outcome::Shutdown));
    assert_eq!(system(SystemEvent::Reset), stop(Outcome::Reset));
    assert_eq!(system(SystemEvent::Crash), stop(Outcome::Crash));
    let (event, flags) = (SystemEvent::Suspend, 3);
    assert_eq!(system(event), stop(Outcome::SystemEvent { event, flags }));
    let (flags, gpa, size) = (1, 2, 3);
    let fault = Fault::MemoryFault { flags, gpa, size };
    let event = Event::MemoryFault { flags, gpa, size };
    assert_eq!(action(event), Action::Fail(fault));
    assert_eq!(
        action(Event::DirtyRingFull),
        Action::Fail(Fault::DirtyRingFull)
    );
    let (esr_iss, fault_ipa) = (1, 2);
    assert_eq!(
        action(Event::ArmNisv { esr_iss, fault_ipa }),
        Action::InjectAbort
    );
}

#[test]
fn every_number_of_a_system_event_has_a_name() {
    let names = (1..=8).map(SystemEvent::from);
    let expected = [
        SystemEvent::Shutdown,
        SystemEvent::Reset,
        SystemEvent::Crash,
        SystemEvent::Wakeup,
        SystemEvent::Suspend,
        SystemEvent::SevTerm,
        SystemEvent::TdxFatal,
        SystemEvent::Other(8),
    ];
    assert!(names.eq(expected));
}

/// Each outcome that carries nothing of the VMM's, with what a log says of it.
fn outcomes() -> Vec<(Outcome, &'static str, bool)> {
    let mut record = [0; vcpu_runner::RECORD_LEN];
    record[0] = 4; // KVM_EXIT_DEBUG
    let Exit::Debug(info) = decode(&mut record) else {
        panic!("no debug event");
    };
    assert_eq!(
        info.pc(),
        matches!(info, DebugInfo::X86 { .. }).then_some(0)
    );
    let event = SystemEvent::Wakeup;
    vec![
        (Outcome::Stopped, "stopped by the VMM", true),
        (Outcome::Halted, "guest halted", true),
        (Outcome::Shutdown, "guest powered off", true),
        (Outcome::Reset, "guest asked for a reset", true),
        (Outcome::Debug(info), "debug event", true),
        (Outcome::Crash, "guest crashed", false),
        (
            Outcome::TripleFault,
            "guest ended with a triple fault",
            false,
        ),
        (
            Outcome::SystemEvent { event, flags: 16 },
            "system event Wakeup, flags 0x10",
            false,
        ),
    ]
}

#[test]
fn outcomes_say_what_happened_and_widen_without_change() {
    for (outcome, text, is_orderly) in outcomes() {
        let wide: Outcome<u8> = outcome.widen();
        assert!(outcome.to_string().starts_with(text), "{outcome}");
        assert_eq!(wide.to_string(), outcome.to_string());
        assert_eq!(wide.is_orderly(), is_orderly, "{outcome}");
    }
    assert_eq!(Outcome::Vmm(7).to_string(), "ended by the VMM: 7");
    assert!(Outcome::Vmm(7).is_orderly());
}

#[test]
fn an_answer_of_the_devices_ends_the_loop_with_itself() {
    let mut data = [0; 4];
    let mut read = |answer: Result<ControlFlow<u8>, &'static str>| {
        let exit = Exit::MmioRead {
            addr: 0,
            data: &mut data,
        };
        let mut io = IoFn(|_: IoAccess<'_>| answer);
        dispatch(exit, &mut io, &mut DefaultPolicy)
    };
    assert_eq!(read(Ok(ControlFlow::Continue(()))), Action::Resume);
    let end = |end| Action::Stop(Outcome::Vmm(end));
    assert_eq!(read(Ok(ControlFlow::Break(3))), end(Ok(3)));
    assert_eq!(read(Err("lost")), end(Err("lost")));
}

#[test]
fn errors_of_a_run_keep_their_numbers_and_what_a_vmm_adds() {
    for errno in [4, 5, 8, 9, 11, 12, 14, 22, 38, 133] {
        let error = RunError::from(errno);
        assert_eq!(error.errno(), errno);
        assert!(!error.to_string().is_empty() && !error.to_string().contains('\n'));
        assert_eq!(RunError::<u8>::from(errno).kvm(), Ok(error));
    }
    assert_eq!(RunError::Vmm(7u8).kvm(), Err(7));
    assert_eq!(
        RunError::<String>::Vmm("mine".to_owned()).to_string(),
        "mine"
    );
}

#[test]
fn a_fault_says_where_and_what_in_one_line() {
    let (flags, gpa, size) = (1, 0x2000, 0x1000);
    let faults = [
        (
            Fault::Run(RunError::BadAddress),
            "guest memory is not there",
        ),
        (
            Fault::FailEntry {
                reason: 0x21,
                cpu: 3,
            },
            "CPU 3, reason 0x21",
        ),
        (Fault::MemoryFault { flags, gpa, size }, "0x2000"),
        (Fault::DirtyRingFull, "full"),
        (Fault::NotifyContextInvalid, "lost the guest's state"),
        (
            Fault::Exception {
                vector: 13,
                error_code: 2,
            },
            "exception 13",
        ),
        (Fault::UnknownHardwareExit { reason: 9 }, "0x9"),
        (Fault::Abort, "abort"),
        (Fault::UnhandledExit { number: 99 }, "exit 99"),
        (Fault::MalformedExit { number: 6 }, "exit 6"),
    ];
    for (fault, text) in faults {
        assert_eq!(fault.instruction(), None);
        let error: Error = Error::Vcpu {
            fault,
            pc: Some(0x7c00),
        };
        let said = error.to_string();
        assert!(
            said.contains(text) && said.ends_with(", at 0x7c00"),
            "{said}"
        );
        assert!(!said.contains('\n'), "{said}");
        assert_eq!(error.fault(), Some(&fault));
    }
    let thread: Error = Error::Thread(io::ErrorKind::OutOfMemory.into());
    assert_eq!((thread.fault(), Error::Vmm("mine").fault()), (None, None));
    assert_eq!(Error::Vmm("mine".to_owned()).to_string(), "mine");
}

fn fault_of(record: &mut [u8]) -> Fault {
    let mut io = IoFn(|_: IoAccess<'_>| ());
    match dispatch(decode(record), &mut io, &mut DefaultPolicy) {
        Action::Fail(fault) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_internal_error_shows_the_instruction_or_the_data() {
    let mut record = [0; vcpu_runner::RECORD_LEN];
    record[0] = 17; // KVM_EXIT_INTERNAL_ERROR
    record[24] = 1; // which means emulation
    record[28] = 3;
    record[32] = 1; // with the instruction's bytes
    record[40..43].copy_from_slice(&[2, 0x0f, 0x0b]);
    let emulation = fault_of(&mut record);
    assert_eq!(emulation.instruction().unwrap().bytes(), [0x0f, 0x0b]);
    assert!(
        emulation.to_string().ends_with("bytes [0f, 0b]"),
        "{emulation}"
    );
    record[24] = 4;
    let other = fault_of(&mut record).to_string();
    assert!(
        other.starts_with("KVM internal error 4, data [1,"),
        "{other}"
    );
}

#[test]
fn what_a_request_fails_with_is_one_line() {
    for error in [
        ControlError::NotRunning,
        ControlError::Timeout,
        ControlError::Superseded,
        ControlError::OwnThread,
        ControlError::NotPaused,
    ] {
        assert!(!error.to_string().is_empty() && !error.to_string().contains('\n'));
    }
}

#[test]
fn shared_interrupts_of_arm64_are_those_from_32_to_1019() {
    let lines = [31, 32, 1019, 1020, u32::MAX].map(vcpu_runner::spi_line);
    let spi = |intid: u32| Some(1 << 24 | intid);
    assert_eq!(lines, [None, spi(32), spi(1019), None, None]);
}

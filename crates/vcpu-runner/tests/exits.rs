// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every arm of the exit function, with made-up exits.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::{Access, Nothing, Recorder};
use kvm_bindings as kvm;
use proptest::prelude::*;
use vcpu_runner::{
    Action, DefaultPolicy, Error, Event, Exit, ExitKind, ExitPolicy, Fault, GuestIo, Hypercall,
    InternalError, MockStep, MockVcpu, Outcome, RECORD_LEN, Record, RunError, SystemEvent,
    VcpuRunner, decode, dispatch,
};

/// Runs a script to its end and says what came of it.
fn run(script: impl IntoIterator<Item = MockStep>) -> (Result<Outcome, Error>, Vec<Access>) {
    let devices = Recorder::default();
    let result = VcpuRunner::new(MockVcpu::new(script), devices.clone()).run();
    (result, devices.log())
}

/// What the default policy makes of a single exit, all others being none.
fn end_of(step: MockStep) -> Result<Outcome, Fault> {
    let (result, accesses) = run([step]);
    assert!(accesses.is_empty());
    result.map_err(|error| match error {
        Error::Vcpu {
            fault,
            pc: Some(0xfff0),
        } => fault,
        other => panic!("unexpected {other}"),
    })
}

fn hlt() -> MockStep {
    MockStep::exit(kvm::KVM_EXIT_HLT)
}

#[test]
fn mmio_of_every_length() {
    for len in 1..=8 {
        let vcpu = MockVcpu::new([
            MockStep::mmio_read(0x8000_0000, len),
            MockStep::mmio_write(0x8000_0010, &[7; 8][..len as usize]),
            hlt(),
        ]);
        let log = vcpu.log();
        let devices = Recorder::default();
        let outcome = VcpuRunner::new(vcpu, devices.clone()).run().unwrap();
        assert_eq!(outcome, Outcome::Halted);
        let len = len as usize;
        assert_eq!(
            devices.log(),
            [
                Access::MmioRead(0x8000_0000, len),
                Access::MmioWrite(0x8000_0010, vec![7; len]),
            ]
        );
        let expected: Vec<u8> = (1..=8).take(len).collect();
        assert_eq!(log.answers(), [expected]);
    }
}

#[test]
fn stale_bytes_never_reach_the_guest() {
    let vcpu = MockVcpu::new([
        MockStep::mmio_read(0x8000_0000, 8),
        MockStep::mmio_read(0x8000_0000, 3),
        #[cfg(target_arch = "x86_64")]
        MockStep::io_in(0x60, 1, 3),
        hlt(),
    ]);
    let log = vcpu.log();
    assert_eq!(
        VcpuRunner::new(vcpu, Nothing).run().unwrap(),
        Outcome::Halted
    );
    let answers = log.answers();
    assert!(answers.len() >= 2);
    assert!(answers.iter().flatten().all(|&byte| byte == 0xff));
}

#[test]
fn an_mmio_record_that_cannot_be_true_reaches_no_device() {
    for len in [0, 9, 16, 255, 0x1_0000, u32::MAX] {
        assert_eq!(
            end_of(MockStep::mmio_read(0x8000_0000, len)),
            Err(Fault::MalformedExit {
                number: kvm::KVM_EXIT_MMIO
            })
        );
    }
    // The same for exits that somebody else made.
    for len in [0, 9, 100] {
        let (mut data, mut devices) = (vec![0; len], Recorder::default());
        let fault = Action::Fail(Fault::MalformedExit {
            number: kvm::KVM_EXIT_MMIO,
        });
        let read = Exit::MmioRead {
            addr: 0,
            data: &mut data,
        };
        assert_eq!(dispatch(read, &mut devices, &mut DefaultPolicy), fault);
        let write = Exit::MmioWrite {
            addr: 0,
            data: &data,
        };
        assert_eq!(dispatch(write, &mut devices, &mut DefaultPolicy), fault);
        assert!(devices.log().is_empty());
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn port_io_is_split_by_element() {
    for size in [1u8, 2, 4] {
        for count in [1u32, 2, 5, 1024 / u32::from(size)] {
            let bytes: Vec<u8> = (0..=255)
                .cycle()
                .take(size as usize * count as usize)
                .collect();
            let (result, accesses) = run([
                MockStep::io_in(0x1f0, size, count.min(16)),
                MockStep::io_out(0x1f0, size, &bytes),
                hlt(),
            ]);
            assert_eq!(result.unwrap(), Outcome::Halted);
            let reads = vec![Access::PioRead(0x1f0, size.into()); count.min(16) as usize];
            let writes = bytes
                .chunks(size.into())
                .map(|element| Access::PioWrite(0x1f0, element.to_vec()));
            assert_eq!(
                accesses,
                reads.into_iter().chain(writes).collect::<Vec<_>>()
            );
        }
    }
}

#[test]
fn a_port_record_that_cannot_be_true_reaches_no_device() {
    let malformed = Err(Fault::MalformedExit {
        number: kvm::KVM_EXIT_IO,
    });
    // Widths that do not exist, no elements, more than there is room for.
    for (size, count) in [
        (0, 1),
        (3, 1),
        (8, 1),
        (255, 1),
        (1, 0),
        (4, u32::MAX),
        (4, 4096),
    ] {
        assert_eq!(end_of(MockStep::io_in(0x60, size, count)), malformed);
    }
    // Data that lies outside of the run area, or on top of the record itself.
    for offset in [
        0,
        7,
        8,
        32,
        287,
        RECORD_LEN as u64 + 8,
        u64::MAX,
        u64::MAX - 3,
    ] {
        let step = MockStep::record(
            kvm::KVM_EXIT_IO,
            &[
                (1, &[1]),
                (4, &1u32.to_ne_bytes()),
                (8, &offset.to_ne_bytes()),
            ],
        );
        assert_eq!(end_of(step), malformed, "{offset:#x}");
    }
    // A direction that is neither.
    let step = MockStep::record(
        kvm::KVM_EXIT_IO,
        &[
            (0, &[2, 1]),
            (4, &1u32.to_ne_bytes()),
            (8, &1024u64.to_ne_bytes()),
        ],
    );
    assert_eq!(end_of(step), malformed);
    for (size, len) in [(0, 4), (1, 0), (2, 3), (3, 3), (8, 8)] {
        let (mut data, mut devices) = (vec![0; len], Recorder::default());
        let action = Action::Fail(Fault::MalformedExit {
            number: kvm::KVM_EXIT_IO,
        });
        let read = Exit::IoIn {
            port: 1,
            size,
            data: &mut data,
        };
        assert_eq!(dispatch(read, &mut devices, &mut DefaultPolicy), action);
        let write = Exit::IoOut {
            port: 1,
            size,
            data: &data,
        };
        assert_eq!(dispatch(write, &mut devices, &mut DefaultPolicy), action);
        assert!(devices.log().is_empty());
    }
}

fn system_event(number: u32, flags: Option<u64>) -> MockStep {
    let words = u32::from(flags.is_some());
    MockStep::record(
        kvm::KVM_EXIT_SYSTEM_EVENT,
        &[
            (0, &number.to_ne_bytes()),
            (4, &words.to_ne_bytes()),
            (8, &flags.unwrap_or(u64::MAX).to_ne_bytes()),
        ],
    )
}

#[test]
fn each_class_has_an_outcome_of_its_own() {
    use Outcome::{Crash, Halted, Reset, Shutdown, TripleFault};

    assert_eq!(end_of(hlt()), Ok(Halted));
    assert_eq!(
        end_of(MockStep::exit(kvm::KVM_EXIT_SHUTDOWN)),
        Ok(TripleFault)
    );
    assert_eq!(end_of(system_event(1, None)), Ok(Shutdown));
    assert_eq!(end_of(system_event(2, Some(1))), Ok(Reset));
    assert_eq!(end_of(system_event(3, None)), Ok(Crash));
    for (number, event) in [
        (4, SystemEvent::Wakeup),
        (5, SystemEvent::Suspend),
        (6, SystemEvent::SevTerm),
        (7, SystemEvent::TdxFatal),
        (99, SystemEvent::Other(99)),
    ] {
        let outcome = end_of(system_event(number, Some(0x55))).unwrap();
        assert_eq!(outcome, Outcome::SystemEvent { event, flags: 0x55 });
        assert!(!outcome.is_orderly());
        let outcome = end_of(system_event(number, None)).unwrap();
        assert_eq!(outcome, Outcome::SystemEvent { event, flags: 0 });
    }
    for outcome in [
        Outcome::<()>::Vmm(()),
        Halted,
        Shutdown,
        Reset,
        Outcome::Stopped,
    ] {
        assert!(outcome.is_orderly());
    }
    for outcome in [Outcome::<()>::TripleFault, Crash] {
        assert!(!outcome.is_orderly());
    }

    let two_words: [&[u8]; 2] = [&0x11u64.to_ne_bytes(), &0x22u32.to_ne_bytes()];
    assert_eq!(
        end_of(MockStep::record(
            kvm::KVM_EXIT_FAIL_ENTRY,
            &[(0, two_words[0]), (8, two_words[1])]
        )),
        Err(Fault::FailEntry {
            reason: 0x11,
            cpu: 0x22
        })
    );
    assert_eq!(
        end_of(MockStep::record(
            kvm::KVM_EXIT_EXCEPTION,
            &[(0, two_words[1])]
        )),
        Err(Fault::Exception {
            vector: 0x22,
            error_code: 0
        })
    );
    assert_eq!(
        end_of(MockStep::record(
            kvm::KVM_EXIT_UNKNOWN,
            &[(0, two_words[0])]
        )),
        Err(Fault::UnknownHardwareExit { reason: 0x11 })
    );
    assert_eq!(
        end_of(MockStep::record(
            kvm::KVM_EXIT_MEMORY_FAULT,
            &[(0, &[8]), (9, &[0x10]), (17, &[0x20])]
        )),
        Err(Fault::MemoryFault {
            flags: 8,
            gpa: 0x1000,
            size: 0x2000
        })
    );
    assert_eq!(
        end_of(MockStep::exit(kvm::KVM_EXIT_DIRTY_RING_FULL)),
        Err(Fault::DirtyRingFull)
    );
    assert_eq!(
        end_of(MockStep::record(kvm::KVM_EXIT_NOTIFY, &[(0, &[1])])),
        Err(Fault::NotifyContextInvalid)
    );
    for number in [12, 18, 27, 32, 34, 40, 0xffff, u32::MAX] {
        assert_eq!(
            end_of(MockStep::exit(number)),
            Err(Fault::UnhandledExit { number })
        );
    }
    #[cfg(target_arch = "x86_64")]
    {
        let step = MockStep::record(
            kvm::KVM_EXIT_DEBUG,
            &[(0, &[3]), (8, &[0x10]), (16, &[0x20]), (24, &[0x30])],
        );
        let Ok(Outcome::Debug(vcpu_runner::DebugInfo::X86 {
            exception,
            pc,
            dr6,
            dr7,
            ..
        })) = end_of(step)
        else {
            panic!("no debug event");
        };
        assert_eq!((exception, pc, dr6, dr7), (3, 0x10, 0x20, 0x30));
    }
}

#[test]
fn an_internal_error_has_its_instruction() {
    let instruction: [u8; 15] = std::array::from_fn(|n| u8::try_from(n).unwrap() + 0x40);
    let error = |suberror: u32, words: u32, flags: u64, len: u8| {
        let step = MockStep::record(
            kvm::KVM_EXIT_INTERNAL_ERROR,
            &[
                (0, &suberror.to_ne_bytes()),
                (4, &words.to_ne_bytes()),
                (8, &flags.to_ne_bytes()),
                (16, &[len]),
                (17, &instruction),
            ],
        );
        match end_of(step) {
            Err(Fault::Internal(internal)) => internal,
            other => panic!("unexpected {other:?}"),
        }
    };
    let named = error(InternalError::EMULATION, 3, 1, 4);
    assert!(named.is_emulation_failure());
    assert_eq!(named.instruction.bytes(), [0x40, 0x41, 0x42, 0x43]);
    let text = Fault::Internal(named).to_string();
    assert!(text.contains("[40, 41, 42, 43]"), "{text}");
    // A length that cannot be true, no flag, too few words, another error: no bytes beyond.
    assert_eq!(error(1, 3, 1, 200).instruction.bytes(), instruction);
    assert!(error(1, 3, 0, 4).instruction.bytes().is_empty());
    assert!(error(1, 2, 1, 4).instruction.bytes().is_empty());
    let other = error(3, u32::MAX, 1, 4);
    assert!(other.instruction.bytes().is_empty());
    assert!(!other.is_emulation_failure());
    assert_eq!((other.suberror, other.data[0]), (3, 1));
}

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

/// Takes everything, and writes down what it was asked.
#[derive(Default)]
struct TakesAll {
    events: Vec<Event>,
    calls: Vec<Hypercall>,
    registers: Vec<(u32, u32, Option<u64>)>,
}

impl ExitPolicy for TakesAll {
    fn event(&mut self, event: Event) -> Action {
        self.events.push(event);
        Action::Resume
    }
    fn hypercall(&mut self, call: Hypercall) -> u64 {
        self.calls.push(call);
        77
    }
    fn read_msr(&mut self, index: u32, reason: u32) -> Option<u64> {
        self.registers.push((index, reason, None));
        Some(88)
    }
    fn write_msr(&mut self, index: u32, reason: u32, value: u64) -> bool {
        self.registers.push((index, reason, Some(value)));
        true
    }
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

#[test]
fn an_interrupted_or_restarted_run_goes_on() {
    let (result, accesses) = run([
        MockStep::Fail(libc::EINTR),
        MockStep::Fail(libc::EAGAIN),
        MockStep::mmio_read(0x8000_0000, 4),
        MockStep::Fail(libc::EAGAIN),
        MockStep::Fail(libc::EINTR),
        MockStep::Fail(libc::EINTR),
        hlt(),
    ]);
    assert_eq!(result.unwrap(), Outcome::Halted);
    assert_eq!(accesses, [Access::MmioRead(0x8000_0000, 4)]);
}

#[test]
fn other_failures_are_typed_and_final() {
    for (errno, error) in [
        (libc::ENOSYS, RunError::NotSupported),
        (libc::EFAULT, RunError::BadAddress),
        (libc::EHWPOISON, RunError::HwPoison),
        (libc::ENOEXEC, RunError::NotInitialised),
        (libc::ENOMEM, RunError::OutOfMemory),
        (libc::EBADF, RunError::BadFd),
        (libc::EIO, RunError::Dead),
        (libc::EPERM, RunError::Errno(libc::EPERM)),
        (4095, RunError::Errno(4095)),
    ] {
        let vcpu = MockVcpu::new([MockStep::Fail(errno), hlt()]);
        let log = vcpu.log();
        let result = VcpuRunner::new(vcpu, Nothing).run().unwrap_err();
        assert_eq!(result.fault(), Some(&Fault::Run(error)));
        assert_eq!(error.errno(), errno);
        assert_eq!(
            (log.runs(), log.bound()),
            (1, 0),
            "once, and the thread is free"
        );
    }
}

#[test]
fn every_kind_has_a_name_and_a_place() {
    let mut names = std::collections::HashSet::new();
    for (index, kind) in ExitKind::ALL.iter().enumerate() {
        assert_eq!(kind.index(), index);
        assert!(names.insert(kind.name()));
    }
}

/// Checks what every device may rely on.
#[derive(Default)]
struct Strict {
    bytes: usize,
}

impl GuestIo for Strict {
    type Answer = ();
    fn mmio_read(&mut self, _: u64, data: &mut [u8]) {
        assert!((1..=8).contains(&data.len()) && data.iter().all(|&byte| byte == 0xff));
        self.bytes += data.len();
    }
    fn mmio_write(&mut self, _: u64, data: &[u8]) {
        assert!((1..=8).contains(&data.len()));
        self.bytes += data.len();
    }
    fn pio_read(&mut self, _: u16, data: &mut [u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4) && data.iter().all(|&byte| byte == 0xff));
        self.bytes += data.len();
    }
    fn pio_write(&mut self, _: u16, data: &[u8]) {
        assert!(matches!(data.len(), 1 | 2 | 4));
        self.bytes += data.len();
    }
}

/// The numbers that mean something, and some that do not.
fn number() -> impl Strategy<Value = u32> {
    prop_oneof![
        3 => Just(kvm::KVM_EXIT_MMIO),
        3 => Just(kvm::KVM_EXIT_IO),
        4 => 0u32..45,
        1 => any::<u32>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Any record at all: no panic, and no device sees what it must not.
    #[test]
    fn fuzzed_records(
        number in number(),
        head in prop::collection::vec(any::<u8>(), 96),
        small in any::<[u8; 24]>(),
        mask in any::<u8>(),
        takes_all in any::<bool>(),
    ) {
        let mut record: Record = [0; RECORD_LEN];
        record[..4].copy_from_slice(&number.to_ne_bytes());
        record[24..120].copy_from_slice(&head);
        // Small numbers in the places of lengths, so that not everything is refused at once.
        if mask & 1 != 0 {
            record[40..44].copy_from_slice(&u32::from(small[0] % 10).to_ne_bytes());
        }
        if mask & 2 != 0 {
            record[24] = small[1] % 3;
            record[25] = [1, 2, 4, small[2]][usize::from(small[3] % 4)];
            record[28..32].copy_from_slice(&u32::from(small[4]).to_ne_bytes());
        }
        if mask & 4 != 0 {
            let offset = u64::from(u16::from_ne_bytes([small[5], small[6]])) % 9000;
            record[32..40].copy_from_slice(&offset.to_ne_bytes());
        }
        let before = record;
        let mut devices = Strict::default();
        let exit = decode(&mut record);
        let kind = exit.kind();
        let action = if takes_all {
            dispatch(exit, &mut devices, &mut TakesAll::default())
        } else {
            dispatch(exit, &mut devices, &mut DefaultPolicy)
        };
        let is_access = matches!(
            kind,
            ExitKind::MmioRead | ExitKind::MmioWrite | ExitKind::IoIn | ExitKind::IoOut
        );
        prop_assert_eq!(is_access, devices.bytes > 0);
        if is_access {
            prop_assert_eq!(action, Action::Resume);
        }
        if kind == ExitKind::Malformed {
            let failed = matches!(action, Action::Fail(Fault::MalformedExit { .. }));
            prop_assert!(failed, "{:?}", action);
            prop_assert_eq!(record, before);
        }
        // What identifies the exit is never written, and neither is what the guest wrote.
        prop_assert_eq!(&record[..4], &before[..4]);
        if matches!(kind, ExitKind::MmioWrite | ExitKind::IoOut) {
            prop_assert_eq!(record, before);
        }
    }

    /// Whole scripts of such exits end, and leave the thread free.
    #[test]
    fn fuzzed_scripts(
        steps in prop::collection::vec((number(), any::<[u8; 24]>(), any::<u8>()), 0..12),
    ) {
        let script = steps.iter().map(|(number, bytes, choice)| match choice % 4 {
            0 => MockStep::mmio_read(0x1000, u32::from(bytes[0]) % 12),
            1 => MockStep::Fail([libc::EINTR, libc::EAGAIN][usize::from(bytes[0] % 2)]),
            2 => MockStep::io_out(0x10, bytes[0] % 5, &bytes[1..]),
            _ => MockStep::record(*number, &[(0, bytes)]),
        });
        let vcpu = MockVcpu::new(script.chain([hlt()]));
        let log = vcpu.log();
        let mut runner = VcpuRunner::new(vcpu, Strict::default());
        let _ = runner.run();
        prop_assert_eq!(log.bound(), 0);
        prop_assert!(log.runs() <= steps.len() + 1);
    }
}

/// The offsets that the decoder uses are those of the kernel's own structures.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_layout_is_the_kernels() {
    use std::mem::offset_of;
    assert_eq!(offset_of!(kvm::kvm_run, immediate_exit), 1);
    assert_eq!(offset_of!(kvm::kvm_run, exit_reason), 8);
    assert_eq!(offset_of!(kvm::kvm_run, __bindgen_anon_1), 32);
    assert!(RECORD_LEN + 8 >= size_of::<kvm::kvm_run>());
    type Mmio = kvm::kvm_run__bindgen_ty_1__bindgen_ty_6;
    assert_eq!(
        [
            offset_of!(Mmio, phys_addr),
            offset_of!(Mmio, data),
            offset_of!(Mmio, len),
            offset_of!(Mmio, is_write)
        ],
        [0, 8, 16, 20]
    );
    type Io = kvm::kvm_run__bindgen_ty_1__bindgen_ty_4;
    assert_eq!(
        [
            offset_of!(Io, direction),
            offset_of!(Io, size),
            offset_of!(Io, port),
            offset_of!(Io, count),
            offset_of!(Io, data_offset)
        ],
        [0, 1, 2, 4, 8]
    );
    type Call = kvm::kvm_run__bindgen_ty_1__bindgen_ty_8;
    assert_eq!([offset_of!(Call, args), offset_of!(Call, ret)], [8, 56]);
    type Msr = kvm::kvm_run__bindgen_ty_1__bindgen_ty_23;
    assert_eq!(
        [
            offset_of!(Msr, error),
            offset_of!(Msr, reason),
            offset_of!(Msr, index),
            offset_of!(Msr, data)
        ],
        [0, 8, 12, 16]
    );
    type Emulation = kvm::kvm_run__bindgen_ty_1__bindgen_ty_14;
    assert_eq!(
        [
            offset_of!(Emulation, flags),
            offset_of!(Emulation, __bindgen_anon_1)
        ],
        [8, 16]
    );
    type System = kvm::kvm_run__bindgen_ty_1__bindgen_ty_19;
    assert_eq!(
        [
            offset_of!(System, ndata),
            offset_of!(System, __bindgen_anon_1)
        ],
        [4, 8]
    );
    type Fail = kvm::kvm_run__bindgen_ty_1__bindgen_ty_2;
    assert_eq!(offset_of!(Fail, cpu), 8);
    type Fault = kvm::kvm_run__bindgen_ty_1__bindgen_ty_27;
    assert_eq!([offset_of!(Fault, gpa), offset_of!(Fault, size)], [8, 16]);
    type Debug = kvm::kvm_debug_exit_arch;
    assert_eq!(
        [
            offset_of!(Debug, pc),
            offset_of!(Debug, dr6),
            offset_of!(Debug, dr7)
        ],
        [8, 16, 24]
    );
    assert_eq!(size_of::<kvm::kvm_coalesced_mmio>(), 24);
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every arm of the exit function, with made-up exits.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::scripts::run;
use common::{Access, Nothing, Recorder};
use kvm_bindings as kvm;
use vcpu_runner::{
    Action, DefaultPolicy, Error, Exit, ExitKind, Fault, InternalError, MockStep, MockVcpu,
    Outcome, RECORD_LEN, RunError, SystemEvent, VcpuRunner, dispatch,
};

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

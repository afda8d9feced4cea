// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How the vCPUs of a group start and end together, with a scripted vCPU.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::scripts::{Does, flooding, group, hlt, power_off, reset, spinning};
use common::{SOON, join, receive, wait_until};
use kvm_bindings as kvm;
use vcpu_runner::{
    ControlError, Error, Fault, GroupError, JoinError, MockStep, MockVcpu, Outcome, RunError,
    State, VcpuGroup, VcpuRunner,
};

const SHORT: Duration = Duration::from_millis(30);

#[test]
fn an_empty_group_is_an_error() {
    let error = group([]).start(SOON).unwrap_err();
    assert!(matches!(error, GroupError::Empty));
}

#[test]
fn groups_of_every_size() {
    for size in [1, 2, 255] {
        let vcpus: Vec<MockVcpu> = (0..size).map(|_| spinning()).collect();
        let logs: Vec<_> = vcpus.iter().map(MockVcpu::log).collect();
        let mut running = group(vcpus).start(SOON).unwrap();
        assert_eq!(running.vcpus().len(), size);
        running.pause(SOON).unwrap();
        for vcpu in running.vcpus() {
            assert_eq!(vcpu.control().state(), State::Paused);
        }
        running.resume().unwrap();
        running.stop();
        assert_eq!(running.join(SOON).unwrap(), Outcome::Stopped);
        assert!(logs.iter().all(|log| log.pauses() == 1));
        assert!(matches!(running.join(SOON), Err(GroupError::AlreadyJoined)));
        assert!(logs.iter().all(|log| log.bound() == 0));
    }
}

#[test]
fn none_enters_the_guest_before_all_are_ready() {
    let vcpus: Vec<MockVcpu> = (0..4).map(|_| spinning()).collect();
    let logs: Vec<_> = vcpus.iter().map(MockVcpu::log).collect();
    let names = Arc::new(Mutex::new(Vec::new()));
    let gate = Arc::new(Barrier::new(2));
    let starter = thread::spawn({
        let (names, gate) = (Arc::clone(&names), Arc::clone(&gate));
        move || {
            group(vcpus)
                .with_hook(move |index| {
                    let name = thread::current().name().unwrap().to_owned();
                    names.lock().unwrap().push((index, name));
                    if index == 3 {
                        gate.wait();
                    }
                    Ok(())
                })
                .start(SOON)
                .unwrap()
        }
    });
    wait_until("four hooks", || names.lock().unwrap().len() == 4);
    thread::sleep(SHORT);
    assert!(logs.iter().all(|log| log.runs() == 0));
    gate.wait();
    let running = join("the group starts", starter);
    wait_until("all run", || logs.iter().all(|log| log.runs() > 0));
    drop(running);
    let mut names = names.lock().unwrap().clone();
    names.sort();
    let expected: Vec<_> = (0..4).map(|n| (n, format!("vcpu{n}"))).collect();
    assert_eq!(names, expected);
}

#[test]
fn one_end_is_the_end_of_all() {
    for (step, outcome) in [
        (reset(), Outcome::Reset),
        (power_off(), Outcome::Shutdown),
        (hlt(), Outcome::Halted),
        (MockStep::exit(kvm::KVM_EXIT_SHUTDOWN), Outcome::TripleFault),
    ] {
        let vcpus = [spinning(), MockVcpu::new([step]), flooding()];
        let logs: Vec<_> = vcpus.iter().map(MockVcpu::log).collect();
        let mut running = group(vcpus).start(SOON).unwrap();
        assert_eq!(running.join(SOON).unwrap(), outcome);
        assert!(logs.iter().all(|log| log.bound() == 0));
    }
}

#[test]
fn an_error_and_a_panic_stop_the_siblings() {
    let failing = MockVcpu::new([MockStep::Fail(libc::EFAULT)]);
    let mut running = group([spinning(), failing]).start(SOON).unwrap();
    match running.join(SOON) {
        Err(GroupError::Vcpu {
            index: 1,
            error: JoinError::Vcpu(Error::Vcpu { fault, .. }),
        }) => assert_eq!(fault, Fault::Run(RunError::BadAddress)),
        other => panic!("unexpected {other:?}"),
    }

    let mut panicking = group([spinning(), spinning()]);
    panicking.add(VcpuRunner::new(
        flooding(),
        Does(|| -> () { panic!("broken") }),
    ));
    let mut running = panicking.start(SOON).unwrap();
    match running.join(SOON) {
        Err(GroupError::Vcpu {
            index: 2,
            error: JoinError::Panicked(message),
        }) => assert_eq!(message, "broken"),
        other => panic!("unexpected {other:?}"),
    }
}

#[test]
fn reset_and_shutdown_together_are_a_reset() {
    // Both are in the middle of an exit when they are let go, so that both report.
    for swap in [false, true] {
        let gate = Arc::new(Barrier::new(2));
        let mut both = VcpuGroup::new();
        let mut steps = [reset(), power_off()];
        if swap {
            steps.reverse();
        }
        for step in steps {
            let gate = Arc::clone(&gate);
            let vcpu = MockVcpu::new([MockStep::mmio_read(0, 4), step.as_fragment()]);
            both.add(VcpuRunner::new(
                vcpu,
                Does(move || {
                    gate.wait();
                }),
            ));
        }
        let mut running = both.start(SOON).unwrap();
        assert_eq!(running.join(SOON).unwrap(), Outcome::Reset);
    }
}

#[test]
fn a_spawn_that_fails_half_way_stops_those_that_started() {
    let vcpus: Vec<MockVcpu> = (0..4).map(|_| spinning()).collect();
    let logs: Vec<_> = vcpus.iter().map(MockVcpu::log).collect();
    let error = group(vcpus)
        .with_names(|index| if index == 2 { "\0" } else { "good" }.to_owned())
        .start(SOON)
        .unwrap_err();
    assert!(
        matches!(error, GroupError::Spawn { index: 2, .. }),
        "{error}"
    );
    for log in logs {
        assert_eq!((log.runs(), log.bound()), (0, 0));
    }
}

#[test]
fn a_hook_that_fails_stops_the_group() {
    let vcpus: Vec<MockVcpu> = (0..4).map(|_| spinning()).collect();
    let logs: Vec<_> = vcpus.iter().map(MockVcpu::log).collect();
    let error = group(vcpus)
        .with_hook(|index| match index {
            2 => Err(io::Error::from(io::ErrorKind::PermissionDenied)),
            _ => Ok(()),
        })
        .start(SOON)
        .unwrap_err();
    match error {
        GroupError::Vcpu {
            index: 2,
            error: JoinError::Hook(error),
        } => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        other => panic!("unexpected {other}"),
    }
    for log in logs {
        assert_eq!((log.runs(), log.bound()), (0, 0));
    }
}

#[test]
fn a_hook_that_fails_is_the_reason_although_another_one_hangs() {
    let (go, may_go) = mpsc::channel::<()>();
    let may_go = Mutex::new(may_go);
    let since = Instant::now();
    let error = group([spinning(), spinning(), spinning()])
        .with_hook(move |index| match index {
            0 => {
                let _ = may_go.lock().unwrap().recv_timeout(SOON);
                Ok(())
            }
            1 => Err(io::ErrorKind::PermissionDenied.into()),
            _ => Ok(()),
        })
        .start(SOON)
        .unwrap_err();
    match error {
        GroupError::Vcpu {
            index: 1,
            error: JoinError::Hook(error),
        } => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        other => panic!("unexpected {other}"),
    }
    assert!(since.elapsed() < SOON, "it waited for the hook that hangs");
    drop(go);
}

#[test]
fn a_start_does_not_wait_for_ever_for_a_callback_that_waits_for_it() {
    let (go, may_go) = mpsc::channel::<()>();
    let may_go = Mutex::new(may_go);
    let starter = thread::spawn(move || {
        let started = group([spinning()])
            .with_hook(|_| Err(io::ErrorKind::PermissionDenied.into()))
            .on_end(move |_, _| {
                let _ = may_go.lock().unwrap().recv();
            })
            .start(SHORT);
        drop(go);
        started.unwrap_err()
    });
    let error = join("the start is given up", starter);
    assert!(matches!(error, GroupError::StartTimeout), "{error}");
}

#[test]
fn a_hook_that_hangs_is_a_timeout() {
    let (go, may_go) = mpsc::channel::<()>();
    let may_go = Mutex::new(may_go);
    let error = group([spinning(), spinning()])
        .with_hook(move |index| {
            if index == 1 {
                let _ = may_go.lock().unwrap().recv();
            }
            Ok(())
        })
        .start(SHORT)
        .unwrap_err();
    assert!(matches!(error, GroupError::StartTimeout), "{error}");
    drop(go);
}

#[test]
fn a_member_that_is_stuck_is_a_timeout_and_can_be_joined_again() {
    let (entered, is_entered) = mpsc::channel();
    let (go, may_go) = mpsc::channel::<()>();
    let mut stuck = group([spinning()]);
    stuck.add(VcpuRunner::new(
        flooding(),
        Does(move || {
            let _ = entered.send(());
            let _ = may_go.recv();
        }),
    ));
    let mut running = stuck.start(SOON).unwrap();
    receive("the device is called", &is_entered);
    // The other one is not late, however busy the machine is.
    running.vcpus()[0].pause(SOON).unwrap();
    match running.pause(SHORT) {
        Err(GroupError::Control {
            index: 1,
            error: ControlError::Timeout,
        }) => {}
        other => panic!("unexpected {other:?}"),
    }
    running.resume().unwrap();
    running.stop();
    wait_until("the other one ends", || running.vcpus()[0].is_finished());
    match running.join(SHORT) {
        Err(GroupError::Vcpu {
            index: 1,
            error: JoinError::Timeout,
        }) => {}
        other => panic!("unexpected {other:?}"),
    }
    drop(go);
    assert_eq!(running.join(SOON).unwrap(), Outcome::Stopped);
}

#[test]
fn dropping_a_group_ends_its_threads() {
    let vcpus: Vec<MockVcpu> = (0..3).map(|_| flooding()).collect();
    let logs: Vec<_> = vcpus.iter().map(MockVcpu::log).collect();
    let running = group(vcpus).start(SOON).unwrap();
    wait_until("all threads are there", || {
        logs.iter().all(|log| log.bound() == 1)
    });
    drop(running);
    assert!(logs.iter().all(|log| log.bound() == 0));
    // A group that never started has no threads.
    drop(group([spinning()]));
}

#[test]
fn a_name_that_panics_leaves_no_thread_behind() {
    let alive = Arc::new(());
    let mut group = VcpuGroup::new();
    for _ in 0..2 {
        let held = Arc::clone(&alive);
        let io = Does(move || assert!(Arc::strong_count(&held) > 0));
        group.add(VcpuRunner::new(spinning(), io));
    }
    let group = group.with_names(|index| match index {
        0 => "first".to_owned(),
        _ => panic!("no name"),
    });
    let started = catch_unwind(AssertUnwindSafe(|| group.start(SOON).map(drop)));
    assert!(started.is_err(), "the panic is the caller's");
    wait_until("the devices are dropped", || Arc::strong_count(&alive) == 1);
}

#[test]
fn a_panic_whose_payload_panics_as_well_is_told_and_stops_the_siblings() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("and again");
        }
    }
    let mut panicking = group([spinning()]);
    let io = Does(|| -> () { panic_any(Bomb) });
    panicking.add(VcpuRunner::new(flooding(), io));
    let mut running = panicking.start(SOON).unwrap();
    match running.join(SOON) {
        Err(GroupError::Vcpu {
            index: 1,
            error: JoinError::Panicked(_),
        }) => {}
        other => panic!("unexpected {other:?}"),
    }
}

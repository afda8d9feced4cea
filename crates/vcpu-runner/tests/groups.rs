// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Groups that grow, say when a vCPU ends, and start again; with a scripted vCPU.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::io;
use std::sync::{Arc, Mutex, mpsc};

use common::scripts::{Does, group, hlt, spinning};
use common::{Nothing, SOON, wait_until};
use kvm_bindings as kvm;
use vcpu_runner::{
    Control, ControlError, GroupError, JoinError, MockStep, MockVcpu, Outcome, RunningGroup, State,
    Vcpu, VcpuGroup, VcpuRunner,
};

/// Asks for a reset, and then spins.
fn resetting() -> MockVcpu {
    let number = kvm::KVM_SYSTEM_EVENT_RESET.to_ne_bytes();
    MockVcpu::new([MockStep::record(
        kvm::KVM_EXIT_SYSTEM_EVENT,
        &[(0, &number)],
    )])
}

#[test]
fn a_vcpu_that_ends_says_so() {
    let (ended, has_ended) = mpsc::channel();
    let vcpu = MockVcpu::new([MockStep::exit(kvm::KVM_EXIT_HLT)]);
    let mut handle = VcpuRunner::new(vcpu, Nothing)
        .spawn_then("says", move |end| ended.send(format!("{end:?}")).unwrap())
        .unwrap();
    let end = has_ended.recv_timeout(SOON).expect("the vCPU to say so");
    assert_eq!(end, "Ok(Halted)");
    assert_eq!(handle.join(SOON).unwrap(), Outcome::Halted);
}

#[test]
fn each_vcpu_of_a_group_says_how_it_ended() {
    let (ended, has_ended) = mpsc::channel();
    let mut running = group([spinning(), resetting(), spinning()])
        .on_end(move |index, end| ended.send((index, format!("{end:?}"))).unwrap())
        .start(SOON)
        .unwrap();
    let mut ends: Vec<_> = (0..3)
        .map(|_| has_ended.recv_timeout(SOON).expect("each to say so"))
        .collect();
    ends.sort();
    let of = |n: usize, end: &str| (n, format!("Ok({end})"));
    assert_eq!(ends, [of(0, "Stopped"), of(1, "Reset"), of(2, "Stopped")]);
    assert_eq!(running.join(SOON).unwrap(), Outcome::Reset);
}

#[test]
fn a_callback_that_panics_is_reported_and_nobody_waits_for_ever() {
    let panics = |_: &_| std::panic::resume_unwind(Box::new("callback"));
    let vcpu = MockVcpu::new([MockStep::exit(kvm::KVM_EXIT_HLT)]);
    let mut handle = VcpuRunner::new(vcpu, Nothing)
        .spawn_then("panics", panics)
        .unwrap();
    match handle.join(SOON) {
        Err(JoinError::Panicked(message)) => assert_eq!(message, "callback"),
        other => panic!("unexpected {other:?}"),
    }
}

#[test]
fn a_vcpu_cannot_join_its_own_group_and_does_no_harm_by_trying() {
    let (running, answer) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(None)));
    let devices = Does({
        let (running, answer) = (Arc::clone(&running), Arc::clone(&answer));
        move || {
            let mut running = running.lock().unwrap();
            let own: &mut RunningGroup<MockVcpu> = running.as_mut().unwrap();
            *answer.lock().unwrap() = Some(own.join(SOON));
        }
    });
    let mut group = VcpuGroup::new();
    let steps = [MockStep::mmio_write(0, &[1]), hlt()];
    group.add(VcpuRunner::new(MockVcpu::new(steps), devices));
    {
        let mut place = running.lock().unwrap();
        *place = Some(group.start(SOON).unwrap());
    }
    wait_until("the answer", || answer.lock().unwrap().is_some());
    match answer.lock().unwrap().take() {
        Some(Err(GroupError::Vcpu { index: 0, error })) => {
            assert!(matches!(error, JoinError::OwnThread), "{error}");
        }
        other => panic!("unexpected {other:?}"),
    }
    let mut running = running.lock().unwrap().take().unwrap();
    assert_eq!(running.join(SOON).unwrap(), Outcome::Halted);
}

#[test]
fn a_group_that_has_ended_starts_again() {
    let vcpus = [spinning(), resetting()];
    let logs: Vec<_> = vcpus.iter().map(MockVcpu::log).collect();
    let names = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&names);
    let mut running = group(vcpus)
        .with_names(|index| format!("again{index}"))
        .with_hook(move |index| {
            let name = std::thread::current().name().unwrap().to_owned();
            noted.lock().unwrap().push((index, name));
            Ok(())
        })
        .start(SOON)
        .unwrap();
    assert_eq!(running.join(SOON).unwrap(), Outcome::Reset);
    let group = running.into_group().unwrap();
    assert_eq!(group.vcpus().count(), 2);
    let before: Vec<_> = logs.iter().map(vcpu_runner::MockLog::runs).collect();

    let mut running = group.start(SOON).unwrap();
    wait_until("each vCPU runs", || {
        logs.iter()
            .zip(&before)
            .all(|(log, before)| log.runs() > *before)
    });
    running.pause(SOON).unwrap();
    running.resume().unwrap();
    running.stop();
    assert_eq!(running.join(SOON).unwrap(), Outcome::Stopped);
    let mut names = names.lock().unwrap().clone();
    names.sort();
    let of = |n: usize| (n, format!("again{n}"));
    assert_eq!(names, [of(0), of(0), of(1), of(1)]);
    assert!(logs.iter().all(|log| log.bound() == 0));
}

#[test]
fn a_group_that_runs_is_not_taken_apart() {
    let running = group([spinning()]).start(SOON).unwrap();
    match running.into_group() {
        Err(GroupError::Vcpu {
            index: 0,
            error: JoinError::Timeout,
        }) => {}
        other => panic!("unexpected {other:?}"),
    }
}

#[test]
fn a_vcpu_that_panicked_does_not_run_again() {
    let mut machine = group([spinning()]);
    let io = vcpu_runner::GuestIo::map_answer(Nothing, |()| -> () {
        std::panic::resume_unwind(Box::new("broken"))
    });
    let vcpu = MockVcpu::new([MockStep::mmio_write(0, &[1])]);
    machine.add(VcpuRunner::new(vcpu, io));
    let mut running = machine.start(SOON).unwrap();
    running.join(SOON).unwrap_err();
    let error = running.into_group().unwrap_err();
    assert!(matches!(error, GroupError::Lost { index: 1 }), "{error}");
}

#[test]
fn nothing_is_left_of_a_vcpu_that_could_not_be_added() {
    let no_cpu = || io::Error::other("no CPU for it");
    let hook = move |index| if index == 0 { Ok(()) } else { Err(no_cpu()) };
    let mut running = group([spinning()]).with_hook(hook).start(SOON).unwrap();
    let added = spinning();
    let kick = Arc::downgrade(&added.kicker());
    let error = running.add(VcpuRunner::new(added, Nothing), SOON);
    assert!(
        matches!(error, Err(GroupError::Vcpu { index: 1, .. })),
        "{error:?}"
    );
    wait_until("it is gone", || kick.strong_count() == 0);
    running.stop();
    assert_eq!(running.join(SOON).unwrap(), Outcome::Stopped);
}

#[test]
fn a_vcpu_added_to_a_running_group_is_one_of_it() {
    let mut running = group([spinning()]).start(SOON).unwrap();
    let added = spinning();
    let log = added.log();
    let index = running.add(VcpuRunner::new(added, Nothing), SOON).unwrap();
    assert_eq!((index, running.vcpus().len()), (1, 2));
    wait_until("each vCPU runs", || log.runs() > 0);
    // Its end is the end of all, and so is the end of another one.
    let index = running
        .add(VcpuRunner::new(resetting(), Nothing), SOON)
        .unwrap();
    assert_eq!(index, 2);
    assert_eq!(running.join(SOON).unwrap(), Outcome::Reset);
    assert_eq!(log.bound(), 0);
    let error = running.add(VcpuRunner::new(spinning(), Nothing), SOON);
    assert!(matches!(error, Err(GroupError::Ended)), "{error:?}");
    // It is started again with the others.
    assert_eq!(running.into_group().unwrap().vcpus().count(), 3);
}

#[test]
fn a_group_that_ends_while_a_vcpu_is_added_has_ended_as_a_whole() {
    let (ended, has_ended) = mpsc::channel();
    let has_ended = Mutex::new(has_ended);
    let first = spinning();
    let runner = VcpuRunner::new(first, Nothing);
    let control = runner.control();
    let mut group = VcpuGroup::new();
    group.add(runner);
    let mut running = group
        .with_names(move |index| {
            if index == 1 {
                control.stop();
                let ended = has_ended.lock().unwrap().recv_timeout(SOON);
                ended.expect("the first vCPU to end");
            }
            index.to_string()
        })
        .on_end(move |index, _| ended.send(index).unwrap())
        .start(SOON)
        .unwrap();
    let runner = VcpuRunner::new(spinning(), Nothing);
    let control = runner.control();
    let error = running.add(runner, SOON);
    assert!(matches!(error, Err(GroupError::Ended)), "{error:?}");
    assert_eq!(control.state(), State::Idle);
    assert_eq!(running.join(SOON).unwrap(), Outcome::Stopped);
}

#[test]
fn a_vcpu_whose_thread_cannot_be_created_is_not_running() {
    let mut running = group([spinning()])
        .with_names(|index| if index == 1 { "\0" } else { "good" }.to_owned())
        .start(SOON)
        .unwrap();
    let runner = VcpuRunner::new(spinning(), Nothing);
    let control = runner.control();
    let error = running.add(runner, SOON).unwrap_err();
    assert!(matches!(error, GroupError::Spawn { index: 1, .. }));
    assert_eq!(control.state(), State::Idle);
    running.stop();
    assert_eq!(running.join(SOON).unwrap(), Outcome::Stopped);
}

#[test]
fn a_vcpu_added_to_a_paused_group_begins_with_a_pause() {
    let mut running = group([spinning()]).start(SOON).unwrap();
    running.pause(SOON).unwrap();
    let added = spinning();
    let log = added.log();
    running.add(VcpuRunner::new(added, Nothing), SOON).unwrap();
    running.pause(SOON).unwrap();
    assert_eq!(log.runs(), 0);
    running.resume().unwrap();
    wait_until("each vCPU runs", || log.runs() > 0);
}

#[test]
fn a_vcpu_that_cannot_be_added_does_not_concern_the_others() {
    let mut running = group([spinning()])
        .with_hook(|index| match index {
            0 => Ok(()),
            _ => Err(io::ErrorKind::PermissionDenied.into()),
        })
        .start(SOON)
        .unwrap();
    let error = running
        .add(VcpuRunner::new(spinning(), Nothing), SOON)
        .unwrap_err();
    match error {
        GroupError::Vcpu {
            index: 1,
            error: JoinError::Hook(error),
        } => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        other => panic!("unexpected {other}"),
    }
    assert_eq!(running.vcpus().len(), 1);
    running.pause(SOON).unwrap();
    let control: Control = running.vcpus()[0].control().clone();
    assert_eq!(control.state(), State::Paused);
    running.resume().unwrap();
    running.stop();
    assert_eq!(running.join(SOON).unwrap(), Outcome::Stopped);
    assert_eq!(control.pause(SOON), Err(ControlError::NotRunning));
}

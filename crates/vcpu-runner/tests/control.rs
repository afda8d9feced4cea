// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kick, pause, resume, stop and join, with a scripted vCPU.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::scripts::{Does, flooding, hlt, reset, spinning};
use common::{Nothing, SOON, join, receive, wait_until};
use vcpu_runner::{
    Control, ControlError, Fault, GuestIo, JoinError, MockStep, MockVcpu, Outcome, RunError, State,
    VcpuHandle, VcpuRunner,
};

const SHORT: Duration = Duration::from_millis(30);

fn spawn(vcpu: MockVcpu) -> VcpuHandle<MockVcpu> {
    VcpuRunner::new(vcpu, Nothing).spawn("mock").unwrap()
}

#[test]
fn pause_and_resume_are_idempotent() {
    for vcpu in [spinning(), flooding()] {
        let log = vcpu.log();
        let mut handle = spawn(vcpu);
        for round in 1..=3 {
            handle.pause(SOON).unwrap();
            let (runs, pauses) = (log.runs(), log.pauses());
            assert_eq!(pauses, round - 1, "the clock is told when a pause ends");
            handle.pause(SOON).unwrap();
            handle.pause(Duration::ZERO).unwrap();
            assert_eq!(handle.control().state(), State::Paused);
            thread::sleep(Duration::from_millis(2));
            assert_eq!(
                (log.runs(), log.pauses()),
                (runs, pauses),
                "it stays outside"
            );
            handle.resume().unwrap();
            handle.resume().unwrap();
            wait_until("the vCPU runs again", || log.runs() > runs);
            assert_eq!(log.pauses(), round, "once, and before the guest runs on");
        }
        handle.stop();
        handle.stop();
        assert_eq!(handle.join(SOON).unwrap(), Outcome::Stopped);
        assert_eq!(log.bound(), 0);
    }
}

#[test]
fn endless_exits_do_not_delay_a_request() {
    let mut handle = spawn(flooding());
    for _ in 0..100 {
        handle.pause(SOON).unwrap();
        handle.resume().unwrap();
    }
    handle.stop();
    handle.join(SOON).unwrap();
}

#[test]
fn a_pause_completes_every_part_of_an_access() {
    // The pause comes while the first of three parts is being carried out.
    let vcpu = MockVcpu::new([
        MockStep::mmio_read(0x8000_0ffe, 2),
        MockStep::mmio_read(0x8000_1000, 2).as_fragment(),
        MockStep::mmio_read(0x8000_1002, 1).as_fragment(),
        MockStep::mmio_write(0x8000_0000, &[1]),
    ]);
    let log = vcpu.log();
    let (entered, is_entered) = mpsc::channel();
    let (go, may_go) = mpsc::channel::<()>();
    let mut first = true;
    let devices = Does(move || {
        entered.send(()).unwrap();
        if first {
            may_go.recv().unwrap();
            first = false;
        }
    });
    let mut handle = VcpuRunner::new(vcpu, devices).spawn("parts").unwrap();
    receive("the first part", &is_entered);
    assert_eq!(handle.pause(SHORT), Err(ControlError::Timeout));
    assert_eq!(handle.control().state(), State::Running);
    go.send(()).unwrap();
    handle.pause(SOON).unwrap();
    assert_eq!(log.completed().len(), 3, "three parts, and not the write");
    handle.resume().unwrap();
    wait_until("the write", || log.completed().len() == 4);
    handle.stop();
    handle.join(SOON).unwrap();
}

#[test]
fn no_lock_is_held_while_a_request_waits() {
    let lock = Arc::new(Mutex::new(()));
    let (entered, is_entered) = mpsc::channel();
    let devices = Does({
        let lock = Arc::clone(&lock);
        move || {
            let _ = entered.send(());
            drop(lock.lock().unwrap());
        }
    });
    // The embedder's mistake: it waits with a lock that the device needs. The result is an error.
    let held = lock.lock().unwrap();
    let mut handle = VcpuRunner::new(flooding(), devices).spawn("lock").unwrap();
    let control = handle.control().clone();
    receive("the device is called", &is_entered);
    assert_eq!(handle.pause(SHORT), Err(ControlError::Timeout));

    // Meanwhile others get through: there is no lock of ours in their way.
    let waiting = thread::spawn({
        let control = control.clone();
        move || control.pause(SOON)
    });
    thread::sleep(SHORT);
    let since = Instant::now();
    assert_eq!(control.state(), State::Running);
    control.kick();
    // More than once, for the other thread may be late to ask.
    wait_until("the pause is taken back", || {
        control.resume().unwrap();
        waiting.is_finished()
    });
    assert_eq!(waiting.join().unwrap(), Err(ControlError::Superseded));
    control.stop();
    assert!(since.elapsed() < SOON / 2);
    assert!(matches!(handle.join(SHORT), Err(JoinError::Timeout)));
    drop(held);
    assert_eq!(handle.join(SOON).unwrap(), Outcome::Stopped);
}

#[test]
fn requests_before_the_start_and_after_the_end() {
    let mut runner = VcpuRunner::new(spinning(), Nothing);
    let control = runner.control();
    assert_eq!(control.state(), State::Idle);
    assert_eq!(control.pause(SOON), Err(ControlError::NotRunning));
    assert_eq!(control.resume(), Err(ControlError::NotRunning));
    control.kick();
    // A stop before the start is not lost, and no guest code runs.
    control.stop_with(Outcome::Reset);
    control.stop();
    let log = runner.vcpu().log();
    assert_eq!(runner.run().unwrap(), Outcome::Reset);
    assert_eq!(log.runs(), 0);
    assert_eq!(control.pause(SOON), Err(ControlError::NotRunning));
    assert_eq!(control.state(), State::Idle);
}

#[test]
fn a_loop_that_ended_by_itself_runs_again() {
    let mut runner = VcpuRunner::new(MockVcpu::new([hlt(), reset(), hlt()]), Nothing);
    assert_eq!(runner.run().unwrap(), Outcome::Halted);
    assert_eq!(runner.run().unwrap(), Outcome::Reset);
    runner.control().stop();
    assert_eq!(runner.run().unwrap(), Outcome::Stopped);
}

#[test]
fn a_request_right_after_the_spawn_is_for_the_new_thread() {
    for _ in 0..200 {
        let mut handle = spawn(spinning());
        handle.pause(SOON).unwrap();
        handle.resume().unwrap();
        handle.stop();
        assert_eq!(handle.join(SOON).unwrap(), Outcome::Stopped);
    }
}

#[test]
fn a_loop_can_begin_with_a_pause() {
    let vcpu = spinning();
    let log = vcpu.log();
    let mut handle = VcpuRunner::new(vcpu, Nothing)
        .paused()
        .spawn("paused")
        .unwrap();
    handle.pause(SOON).unwrap();
    assert_eq!(log.runs(), 0);
    handle.resume().unwrap();
    wait_until("the vCPU runs", || log.runs() == 1);
    handle.stop();
    handle.join(SOON).unwrap();
}

/// The handle's own way to stop, and that of a control.
const STOPS: [fn(&VcpuHandle<MockVcpu>); 2] = [VcpuHandle::stop, |handle| handle.control().stop()];

#[test]
fn a_stop_ends_a_pause() {
    for stop in STOPS {
        let mut handle = spawn(spinning());
        handle.pause(SOON).unwrap();
        stop(&handle);
        assert_eq!(handle.join(SOON).unwrap(), Outcome::Stopped);
        assert_eq!(handle.pause(SOON), Err(ControlError::NotRunning));
        // The same for somebody who is still waiting for the pause.
        let (go, may_go) = mpsc::channel::<()>();
        let (enter, entered) = mpsc::channel();
        let devices = Does(move || {
            let _ = enter.send(());
            let _ = may_go.recv();
        });
        let handle = VcpuRunner::new(flooding(), devices).spawn("stuck").unwrap();
        // Not sooner: a vCPU that has not made an access yet can pause at once.
        receive("the device is called", &entered);
        let control = handle.control().clone();
        let waiting = thread::spawn(move || control.pause(SOON));
        thread::sleep(SHORT);
        stop(&handle);
        let error = join("the pause fails", waiting).unwrap_err();
        assert!(
            matches!(error, ControlError::Superseded | ControlError::NotRunning),
            "{error}"
        );
        drop(go);
    }
}

#[test]
fn the_vcpus_own_thread_cannot_wait_for_itself() {
    let errors = Arc::new(Mutex::new(Vec::new()));
    let control = Arc::new(Mutex::new(None::<Control>));
    let devices = Does({
        let (errors, control) = (Arc::clone(&errors), Arc::clone(&control));
        move || {
            let control = control.lock().unwrap().clone().unwrap();
            errors.lock().unwrap().push(control.pause(SOON));
        }
    });
    let vcpu = MockVcpu::new([MockStep::mmio_write(0, &[1]), hlt()]);
    let mut runner = VcpuRunner::new(vcpu, devices);
    *control.lock().unwrap() = Some(runner.control());
    assert_eq!(runner.run().unwrap(), Outcome::Halted);
    assert_eq!(*errors.lock().unwrap(), [Err(ControlError::OwnThread)]);
}

#[test]
fn a_device_stops_its_own_vcpu_before_the_next_exit() {
    let control = Arc::new(Mutex::new(None::<Control>));
    let calls = Arc::new(AtomicUsize::new(0));
    let devices = Does({
        let (control, calls) = (Arc::clone(&control), Arc::clone(&calls));
        move || {
            calls.fetch_add(1, Ordering::Relaxed);
            let control = control.lock().unwrap().clone().unwrap();
            control.stop_with(Outcome::Shutdown);
        }
    });
    let vcpu = MockVcpu::new([
        MockStep::mmio_read(0xffe, 2),
        MockStep::mmio_read(0x1000, 2).as_fragment(),
        MockStep::mmio_write(0, &[1]),
    ]);
    let log = vcpu.log();
    let mut runner = VcpuRunner::new(vcpu, devices);
    *control.lock().unwrap() = Some(runner.control());
    assert_eq!(runner.run().unwrap(), Outcome::Shutdown);
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    assert_eq!(log.completed().len(), 2);
}

#[test]
fn calls_are_made_on_the_paused_vcpus_thread() {
    let mut handle = spawn(flooding());
    let name = |_: &MockVcpu| thread::current().name().map(str::to_owned);
    assert_eq!(handle.with_vcpu(SOON, name), Err(ControlError::NotPaused));
    for _ in 0..50 {
        handle.pause(SOON).unwrap();
        assert_eq!(handle.with_vcpu(SOON, name).unwrap().unwrap(), "mock");
        assert_eq!(handle.with_vcpu(SOON, |_| 7), Ok(7));
        assert_eq!(handle.control().state(), State::Paused);
        handle.resume().unwrap();
    }
    // A call that takes too long is an error, and is not forgotten.
    handle.pause(SOON).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let (go, may_go) = mpsc::channel::<()>();
    let slow = {
        let done = Arc::clone(&done);
        move |_: &MockVcpu| {
            may_go.recv().unwrap();
            done.store(true, Ordering::SeqCst);
        }
    };
    assert_eq!(handle.with_vcpu(SHORT, slow), Err(ControlError::Timeout));
    handle.stop();
    go.send(()).unwrap();
    assert_eq!(handle.join(SOON).unwrap(), Outcome::Stopped);
    assert!(done.load(Ordering::SeqCst));
    assert_eq!(handle.with_vcpu(SOON, |_| 7), Err(ControlError::NotRunning));
}

#[test]
fn every_call_that_was_accepted_is_made_although_others_wait() {
    let mut handle = spawn(flooding());
    handle.pause(SOON).unwrap();
    let (go, may_go) = mpsc::channel::<()>();
    let slow = move |_: &MockVcpu| may_go.recv().unwrap();
    assert_eq!(handle.with_vcpu(SHORT, slow), Err(ControlError::Timeout));
    let made = Arc::new(AtomicUsize::new(0));
    for _ in 0..3 {
        let made = Arc::clone(&made);
        let count = move |_: &MockVcpu| made.fetch_add(1, Ordering::SeqCst);
        // Accepted, and not waited for.
        let accepted = handle.with_vcpu(Duration::ZERO, count);
        assert_eq!(accepted, Err(ControlError::Timeout));
    }
    go.send(()).unwrap();
    wait_until("the calls", || made.load(Ordering::SeqCst) == 3);
    handle.stop();
    assert_eq!(handle.join(SOON).unwrap(), Outcome::Stopped);
}

#[test]
fn a_thread_cannot_join_itself() {
    let (handle, answer) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(None)));
    let devices = Does({
        let (handle, answer) = (Arc::clone(&handle), Arc::clone(&answer));
        move || {
            let mut handle = handle.lock().unwrap();
            let own: &mut VcpuHandle<MockVcpu> = handle.as_mut().unwrap();
            *answer.lock().unwrap() = Some(own.join(SHORT));
        }
    });
    let vcpu = MockVcpu::new([MockStep::mmio_write(0, &[1]), hlt()]);
    {
        let mut place = handle.lock().unwrap();
        let runner = VcpuRunner::new(vcpu, devices);
        *place = Some(runner.spawn("own").unwrap());
    }
    wait_until("the answer", || answer.lock().unwrap().is_some());
    let answer = answer.lock().unwrap().take();
    assert!(
        matches!(answer, Some(Err(JoinError::OwnThread))),
        "{answer:?}"
    );
    let mut handle = handle.lock().unwrap().take().unwrap();
    assert_eq!(handle.join(SOON).unwrap(), Outcome::Halted);
}

#[test]
fn a_stuck_device_does_not_make_anybody_hang() {
    let (entered, is_entered) = mpsc::channel();
    let (go, may_go) = mpsc::channel::<()>();
    let devices = Does(move || {
        let _ = entered.send(());
        let _ = may_go.recv();
    });
    let mut handle = VcpuRunner::new(flooding(), devices).spawn("stuck").unwrap();
    receive("the device is called", &is_entered);
    handle.stop();
    let since = Instant::now();
    assert!(matches!(handle.join(SHORT), Err(JoinError::Timeout)));
    assert!(matches!(handle.join(SHORT), Err(JoinError::Timeout)));
    assert!(!handle.is_finished());
    // Dropping gives it up after a second.
    drop(handle);
    assert!(since.elapsed() < SOON);
    drop(go);
}

#[test]
fn a_panic_is_reported_once_with_its_message() {
    let panics: [(fn(), &str); 3] = [
        (|| panic!("literal"), "literal"),
        (|| panic!("number {}", 5), "number 5"),
        (|| std::panic::panic_any(5u8), "no message"),
    ];
    for (panics, expected) in panics {
        let devices = Does(panics);
        let vcpu = flooding();
        let log = vcpu.log();
        let mut handle = VcpuRunner::new(vcpu, devices).spawn("panics").unwrap();
        match handle.join(SOON) {
            Err(JoinError::Panicked(message)) => assert_eq!(message, expected),
            other => panic!("unexpected {other:?}"),
        }
        assert!(matches!(handle.join(SOON), Err(JoinError::AlreadyJoined)));
        assert_eq!(handle.pause(SOON), Err(ControlError::NotRunning));
        assert_eq!(log.bound(), 0, "the thread is free");
    }
}

#[test]
fn dropping_the_handle_ends_the_thread() {
    struct Flag(Arc<AtomicBool>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    impl GuestIo for Flag {
        type Answer = ();
        fn mmio_read(&mut self, _: u64, _: &mut [u8]) {}
        fn mmio_write(&mut self, _: u64, _: &[u8]) {}
        fn pio_read(&mut self, _: u16, _: &mut [u8]) {}
        fn pio_write(&mut self, _: u16, _: &[u8]) {}
    }
    for pause in [false, true] {
        for vcpu in [spinning(), flooding()] {
            let ended = Arc::new(AtomicBool::new(false));
            let handle = VcpuRunner::new(vcpu, Flag(Arc::clone(&ended)))
                .spawn("dropped")
                .unwrap();
            if pause {
                handle.pause(SOON).unwrap();
            }
            drop(handle);
            assert!(ended.load(Ordering::SeqCst), "the devices are free");
        }
    }
}

#[test]
fn a_name_that_cannot_be_is_an_error() {
    let runner = VcpuRunner::new(spinning(), Nothing);
    let control = runner.control();
    let error = runner.spawn("a\0b").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert_eq!(control.state(), State::Idle);
}

#[test]
fn errors_of_the_loop_come_out_of_join() {
    let mut handle = spawn(MockVcpu::new([MockStep::Fail(libc::ENOSYS)]));
    let Err(JoinError::Vcpu(error)) = handle.join(SOON) else {
        panic!("an error was expected");
    };
    assert_eq!(error.fault(), Some(&Fault::Run(RunError::NotSupported)));
    assert!(error.to_string().ends_with("at 0xfff0"), "{error}");
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The protocol between controllers and the loop, in every order that the model checker finds.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --manifest-path loom/Cargo.toml`
//!
//! A request that is lost leaves a thread waiting for ever, which the checker reports. Timeouts
//! never pass here.
#![cfg(loom)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Condvar, Mutex};
use loom::thread;
use vcpu_runner::{
    Control, ControlError, Exit, GroupError, GuestIo, JoinError, Kick, Outcome, RunError, State,
    Vcpu, VcpuGroup, VcpuRunner,
};

/// Which halves of a kick work.
#[derive(Clone, Copy, PartialEq)]
enum Kicks {
    Both,
    SignalOnly,
    FlagOnly,
}

/// A vCPU's kernel side: the flag in the run area, and what the signal does.
struct Kernel {
    immediate_exit: AtomicBool,
    thread: Mutex<Thread>,
    signalled: Condvar,
    kicks: Kicks,
}

/// What a signal finds. One that comes outside of `KVM_RUN` runs its handler and leaves no trace.
#[derive(Default)]
struct Thread {
    in_kvm_run: bool,
    pending: bool,
}

impl Kick for Kernel {
    fn kick(&self) {
        if self.kicks != Kicks::SignalOnly {
            self.immediate_exit.store(true, Ordering::SeqCst);
        }
        let mut thread = self.thread.lock().unwrap();
        if thread.in_kvm_run && self.kicks != Kicks::FlagOnly {
            thread.pending = true;
            self.signalled.notify_one();
        }
    }

    fn clear(&self) {
        self.immediate_exit.store(false, Ordering::SeqCst);
    }
}

/// A guest that makes some accesses of two parts each and then spins or ends.
struct Guest {
    kernel: Arc<Kernel>,
    accesses: usize,
    second_part: bool,
    end: Option<fn() -> Exit<'static>>,
    data: [u8; 4],
}

impl Guest {
    fn new(kicks: Kicks, accesses: usize) -> Self {
        Self {
            kernel: Arc::new(Kernel {
                immediate_exit: AtomicBool::new(false),
                thread: Mutex::new(Thread::default()),
                signalled: Condvar::new(),
                kicks,
            }),
            accesses,
            second_part: false,
            end: None,
            data: [0; 4],
        }
    }

    fn ending(accesses: usize, end: fn() -> Exit<'static>) -> Self {
        Self {
            end: Some(end),
            ..Self::new(Kicks::Both, accesses)
        }
    }
}

impl Vcpu for Guest {
    type Error = std::convert::Infallible;

    fn run(&mut self) -> Result<Exit<'_>, RunError> {
        // The second part of an access comes before the look at the flag.
        if std::mem::take(&mut self.second_part) {
            return Ok(Exit::MmioRead {
                addr: 1,
                data: &mut self.data,
            });
        }
        *self.kernel.thread.lock().unwrap() = Thread {
            in_kvm_run: true,
            pending: false,
        };
        let immediate = self.kernel.immediate_exit.load(Ordering::SeqCst);
        let mut thread = self.kernel.thread.lock().unwrap();
        let runs = !immediate && !thread.pending;
        if runs && self.accesses > 0 {
            self.accesses -= 1;
            self.second_part = true;
            thread.in_kvm_run = false;
            return Ok(Exit::MmioRead {
                addr: 0,
                data: &mut self.data,
            });
        }
        if runs {
            if let Some(end) = self.end {
                thread.in_kvm_run = false;
                return Ok(end());
            }
            while !thread.pending {
                thread = self.kernel.signalled.wait(thread).unwrap();
            }
        }
        thread.in_kvm_run = false;
        Err(RunError::Interrupted)
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.kernel) as Arc<dyn Kick>
    }
}

/// Counts the parts of accesses.
#[derive(Clone)]
struct Parts(Arc<AtomicUsize>);

impl Parts {
    fn new() -> Self {
        Self(Arc::new(AtomicUsize::new(0)))
    }
}

impl GuestIo for Parts {
    type Answer = ();
    fn mmio_read(&mut self, _: u64, _: &mut [u8]) {
        // Relaxed on purpose: the acknowledgement must make it visible.
        self.0
            .store(self.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
    fn mmio_write(&mut self, _: u64, _: &[u8]) {}
    fn pio_read(&mut self, _: u16, _: &mut [u8]) {}
    fn pio_write(&mut self, _: u16, _: &[u8]) {}
}

const NEVER: Duration = Duration::MAX;

fn check(body: impl Fn() + Send + Sync + 'static) {
    check_bounded(3, body);
}

/// `LOOM_MAX_PREEMPTIONS` overrides the bound.
fn check_bounded(preemptions: usize, body: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound.get_or_insert(preemptions);
    model.check(body);
}

/// Runs `guest` while `controls` acts on it from another thread.
fn controlled(
    guest: Guest,
    io: impl GuestIo<Answer = ()>,
    controls: impl FnOnce(Control) + 'static,
) -> Outcome {
    let mut runner = VcpuRunner::new(guest, io);
    let control = runner.control();
    let controller = thread::spawn(move || controls(control));
    let outcome = runner.run().unwrap();
    controller.join().unwrap();
    outcome
}

#[test]
fn a_stop_is_never_lost() {
    for accesses in [0, 2] {
        check(move || {
            let outcome = controlled(Guest::new(Kicks::Both, accesses), Parts::new(), |control| {
                control.stop();
            });
            assert_eq!(outcome, Outcome::Stopped);
        });
    }
}

/// Runs an ignored test of this file in a process of its own, because a deadlock ends it.
fn deadlocks(name: &str) {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", name])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "no deadlock found");
    assert!(errors.contains("deadlock; threads"), "{errors}");
}

#[test]
fn the_model_finds_half_a_kick() {
    deadlocks("kick_without_flag");
    deadlocks("kick_without_signal");
}

#[test]
#[ignore = "deadlocks, as it should"]
fn kick_without_flag() {
    check(|| {
        controlled(Guest::new(Kicks::SignalOnly, 0), Parts::new(), |control| {
            control.stop();
        });
    });
}

#[test]
#[ignore = "deadlocks, as it should"]
fn kick_without_signal() {
    check(|| {
        controlled(Guest::new(Kicks::FlagOnly, 0), Parts::new(), |control| {
            control.stop();
        });
    });
}

#[test]
fn pauses_are_acknowledged_with_every_access_complete() {
    use std::sync::atomic::AtomicUsize as Count;
    static PAUSED: Count = Count::new(0);
    for accesses in [0, 1] {
        check(move || {
            let parts = Parts::new();
            let seen = parts.0.clone();
            controlled(Guest::new(Kicks::Both, accesses), parts, move |control| {
                for _ in 0..2 {
                    match control.pause(NEVER) {
                        Ok(()) => {
                            assert_eq!(control.state(), State::Paused);
                            assert_eq!(seen.load(Ordering::Relaxed) % 2, 0);
                            PAUSED.fetch_add(1, Ordering::Relaxed);
                            control.resume().unwrap();
                        }
                        // The loop has not begun.
                        Err(error) => assert_eq!(error, ControlError::NotRunning),
                    }
                }
                control.stop();
            });
        });
    }
    assert!(PAUSED.load(Ordering::Relaxed) > 100, "the model got there");
}

#[test]
fn a_resume_right_after_a_pause_is_not_lost() {
    check(|| {
        let outcome = controlled(Guest::new(Kicks::Both, 0), Parts::new(), |control| {
            // The second pause may find the vCPU still parked, or on its way in again.
            while control.pause(NEVER) == Err(ControlError::NotRunning) {
                thread::yield_now();
            }
            control.resume().unwrap();
            control.pause(NEVER).unwrap();
            control.resume().unwrap();
            control.stop();
        });
        assert_eq!(outcome, Outcome::Stopped);
    });
}

#[test]
fn a_resumed_guest_goes_on_to_its_end() {
    check(|| {
        let guest = Guest::ending(1, || Exit::Hlt);
        let outcome = controlled(guest, Parts::new(), |control| {
            // Nothing but the resume lets the guest go on.
            if control.pause(NEVER).is_ok() {
                control.resume().unwrap();
            }
        });
        assert_eq!(outcome, Outcome::Halted);
    });
}

#[test]
fn two_controllers() {
    check(|| {
        let mut runner = VcpuRunner::new(Guest::new(Kicks::Both, 0), Parts::new());
        let (first, second) = (runner.control(), runner.control());
        let pauses = thread::spawn(move || match first.pause(NEVER) {
            Ok(()) => drop(first.resume()),
            Err(error) => assert!(matches!(
                error,
                ControlError::NotRunning | ControlError::Superseded
            )),
        });
        let stops = thread::spawn(move || second.stop());
        assert_eq!(runner.run().unwrap(), Outcome::Stopped);
        pauses.join().unwrap();
        stops.join().unwrap();
    });
}

#[test]
fn a_device_may_use_its_own_control() {
    struct Stops(Control);
    impl GuestIo for Stops {
        type Answer = ();
        fn mmio_read(&mut self, addr: u64, _: &mut [u8]) {
            if addr == 0 {
                assert_eq!(self.0.pause(NEVER), Err(ControlError::OwnThread));
                self.0.stop_with(Outcome::Reset);
            }
        }
        fn mmio_write(&mut self, _: u64, _: &[u8]) {}
        fn pio_read(&mut self, _: u16, _: &mut [u8]) {}
        fn pio_write(&mut self, _: u16, _: &[u8]) {}
    }
    struct Later(Arc<std::sync::Mutex<Option<Stops>>>);
    impl GuestIo for Later {
        type Answer = ();
        fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
            let mut device = self.0.lock().unwrap();
            device.as_mut().unwrap().mmio_read(addr, data);
        }
        fn mmio_write(&mut self, _: u64, _: &[u8]) {}
        fn pio_read(&mut self, _: u16, _: &mut [u8]) {}
        fn pio_write(&mut self, _: u16, _: &[u8]) {}
    }
    check(|| {
        let device = Arc::new(std::sync::Mutex::new(None));
        let mut runner = VcpuRunner::new(Guest::new(Kicks::Both, 2), Later(device.clone()));
        *device.lock().unwrap() = Some(Stops(runner.control()));
        let control = runner.control();
        let kicker = thread::spawn(move || control.kick());
        assert_eq!(runner.run().unwrap(), Outcome::Reset);
        kicker.join().unwrap();
    });
}

#[test]
fn no_lock_is_held_that_a_device_could_wait_for() {
    // A device takes a lock of the embedder's, who makes requests while holding it.
    struct Locks(Arc<Mutex<()>>);
    impl GuestIo for Locks {
        type Answer = ();
        fn mmio_read(&mut self, _: u64, _: &mut [u8]) {
            drop(self.0.lock().unwrap());
        }
        fn mmio_write(&mut self, _: u64, _: &[u8]) {}
        fn pio_read(&mut self, _: u16, _: &mut [u8]) {}
        fn pio_write(&mut self, _: u16, _: &[u8]) {}
    }
    check(|| {
        let lock = Arc::new(Mutex::new(()));
        let outcome = controlled(
            Guest::new(Kicks::Both, 1),
            Locks(lock.clone()),
            move |control| {
                let held = lock.lock().unwrap();
                let _ = control.state();
                control.kick();
                let _ = control.resume();
                control.stop();
                drop(held);
            },
        );
        assert_eq!(outcome, Outcome::Stopped);
    });
}

#[test]
fn a_group_has_one_outcome() {
    check_bounded(2, || {
        let mut group = VcpuGroup::new();
        group.add(VcpuRunner::new(
            Guest::ending(0, || Exit::Shutdown),
            Parts::new(),
        ));
        group.add(VcpuRunner::new(Guest::new(Kicks::Both, 0), Parts::new()));
        let mut running = group.start(NEVER).unwrap();
        assert_eq!(running.join(NEVER).unwrap(), Outcome::TripleFault);
    });
}

#[test]
fn two_ends_at_once_are_one_of_the_two() {
    check_bounded(2, || {
        let mut group = VcpuGroup::new();
        group.add(VcpuRunner::new(
            Guest::ending(0, || Exit::Hlt),
            Parts::new(),
        ));
        group.add(VcpuRunner::new(
            Guest::ending(0, || Exit::DirtyRingFull),
            Parts::new(),
        ));
        let mut running = group.start(NEVER).unwrap();
        // The first to end stops the other one, unless that has ended as well; then the error
        // counts, whichever came first.
        match running.join(NEVER) {
            Ok(outcome) => assert_eq!(outcome, Outcome::Halted),
            Err(GroupError::Vcpu {
                index: 1,
                error: JoinError::Vcpu(_),
            }) => {}
            Err(error) => panic!("unexpected {error}"),
        }
    });
}

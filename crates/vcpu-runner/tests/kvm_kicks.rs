// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kicks that come when the vCPU does not run any more, on real KVM.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::thread;

use common::{ENTRY, Guest, Nothing, SOON, rounds, signal, wait_until};
use vcpu_runner::{KickSignal, KvmVcpu, Outcome, VcpuRunner};

/// A thread that has run a vCPU has its signals to itself again, however late a kick is.
#[test]
fn a_kick_after_the_end_reaches_nobody() {
    let Some(kvm) = common::kvm() else { return };
    let machine = Guest::Spins.machine(&kvm);
    let kick = KickSignal::realtime(4).unwrap();
    // What arrives outside of the loop stays pending, and is seen.
    signal::block(kick.number());
    let vcpu = KvmVcpu::with_kick_signal(machine.fd_at(0, ENTRY), kick).unwrap();
    let mut runner = VcpuRunner::new(vcpu, Nothing);
    let control = runner.control();
    for _ in 0..3 {
        control.stop();
        assert_eq!(runner.run().unwrap(), Outcome::Stopped);
        thread::scope(|scope| scope.spawn(|| control.kick()).join().unwrap());
        assert!(!signal::is_pending(kick.number()), "kicked afterwards");
    }
}

/// Whoever starts a program may have it ignore signals, without a use for them in it.
#[test]
fn a_signal_that_is_ignored_is_in_nobodys_use() {
    let Some(kvm) = common::kvm() else { return };
    let machine = Guest::Spins.machine(&kvm);
    let kick = KickSignal::realtime(6).unwrap();
    signal::ignore(kick.number());
    let vcpu = KvmVcpu::with_kick_signal(machine.fd_at(0, ENTRY), kick).unwrap();
    let mut handle = VcpuRunner::new(vcpu, Nothing).spawn("ignored").unwrap();
    wait_until("the guest runs", || {
        handle.is_finished() || rounds(&machine) > 0
    });
    handle.stop();
    assert_eq!(handle.join(SOON).unwrap(), Outcome::Stopped);
}

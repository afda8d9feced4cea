// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vCPU's thread from its hook to its end, under a filter that allows the system calls in the
//! landing page and kills the process at any other.
//!
//! The tests run this program again, as children that may be killed.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use common::{Guest, Machine, Nothing, SOON, rounds, wait_until};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use vcpu_runner::{ExitCounters, GroupError, JoinError, Outcome, VcpuGroup, VcpuRunner};

const KVM_RUN: u64 = 0xae80;
const KVM_GET_REGS: u64 = 0x8090_ae81;
const KVM_KVMCLOCK_CTRL: u64 = 0xaead;

/// The table "System calls" of the landing page, for a vCPU's thread after its hook.
const CALLS: &[i64] = &[
    #[cfg(debug_assertions)]
    libc::SYS_fcntl,
    libc::SYS_gettid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
];
const IOCTLS: &[u64] = &[KVM_RUN, KVM_GET_REGS, KVM_KVMCLOCK_CTRL];

const CHILD: &str = "RUNNER_SECCOMP_CHILD";

/// Puts the calling thread under the filter.
fn install(calls: &[i64], ioctls: &[u64]) {
    let mut rules: Vec<(i64, Vec<SeccompRule>)> =
        calls.iter().map(|&call| (call, Vec::new())).collect();
    let requests = ioctls.iter().map(|&request| {
        let is = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, request);
        SeccompRule::new(vec![is.unwrap()]).unwrap()
    });
    rules.push((libc::SYS_ioctl, requests.collect()));
    let filter = SeccompFilter::new(
        rules.into_iter().collect(),
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

/// Two vCPUs that run, pause, are kicked and end, in each way that a vCPU ends.
fn child(kvm: &kvm_ioctls::Kvm, calls: &'static [i64], ioctls: &'static [u64]) {
    let start = |machine: &Machine| {
        let mut group = VcpuGroup::new();
        for index in 0..2 {
            group.add(
                VcpuRunner::new(machine.vcpu(index), Nothing)
                    .with_observer(Arc::<ExitCounters>::default()),
            );
        }
        group.with_hook(move |_| {
            install(calls, ioctls);
            Ok(())
        })
    };
    for guest in [Guest::Spins, Guest::Floods] {
        let machine = guest.machine(kvm);
        let mut running = start(&machine).start(SOON).unwrap();
        for _ in 0..20 {
            let before = rounds(&machine);
            wait_until("the guest runs", || rounds(&machine) != before);
            for vcpu in running.vcpus() {
                vcpu.control().kick();
            }
            running.pause(SOON).unwrap();
            for vcpu in running.vcpus() {
                let regs = vcpu.with_vcpu(SOON, |vcpu| vcpu.fd().get_regs());
                regs.unwrap().unwrap();
            }
            running.resume().unwrap();
        }
        running.stop();
        assert_eq!(running.join(SOON).unwrap(), Outcome::Stopped);
    }
    // The guest's own end, and an error with its program counter.
    let halts = Machine::new(kvm, &[0xf4]);
    let mut running = start(&halts).start(SOON).unwrap();
    assert_eq!(running.join(SOON).unwrap(), Outcome::Halted);
    let faults = Machine::new(kvm, &[0xd9, 0x05, 0x00, 0x00, 0x00, 0x80]); // fld [0x80000000]
    let mut running = start(&faults).start(SOON).unwrap();
    match running.join(SOON) {
        Err(GroupError::Vcpu {
            error: JoinError::Vcpu(_),
            ..
        }) => {}
        other => panic!("unexpected {other:?}"),
    }
    // The thread's very end comes after its result.
    std::thread::sleep(Duration::from_millis(20));
}

/// Runs the test `name` again, as a child.
fn run(name: &str) -> ExitStatus {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(program);
    command
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1");
    command.output().unwrap().status
}

#[test]
fn a_vcpu_thread_needs_the_documented_calls_and_no_other() {
    let Some(kvm) = common::kvm() else { return };
    if std::env::var_os(CHILD).is_some() {
        return child(&kvm, CALLS, IOCTLS);
    }
    let status = run("a_vcpu_thread_needs_the_documented_calls_and_no_other");
    assert!(status.success(), "{status}");
}

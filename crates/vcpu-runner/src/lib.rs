// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![cfg_attr(
    all(feature = "bus", feature = "kvm-ioctls", target_arch = "x86_64"),
    doc = include_str!("../README.md")
)]
#![cfg_attr(
    not(all(feature = "bus", feature = "kvm-ioctls", target_arch = "x86_64")),
    doc = "The vCPU run loop of a KVM virtual machine monitor."
)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(unsafe_code)]

mod exit;
#[cfg(feature = "kvm")]
#[expect(
    unsafe_code,
    reason = "KVM_RUN, the memory that is shared with the kernel, and signals have no safe interface"
)]
mod kvm;
#[cfg(feature = "test-utils")]
mod mock;
mod run;
mod sync;
mod threads;

pub use exit::{
    DebugInfo, Exit, ExitKind, Hypercall, Instruction, InternalError, RECORD_LEN, Record,
    SystemEvent, decode,
};
#[cfg(feature = "kvm")]
pub use kvm::{CoalescedMmio, KickSignal, KvmVcpu};
#[cfg(feature = "kvm-ioctls")]
pub use kvm::{Doorbell, EventFd, IoEvent, IrqFd, VcpuFd, VmFd, enable_nisv_exits, spi_line};
#[cfg(feature = "test-utils")]
pub use mock::{MockLog, MockStep, MockVcpu};
#[cfg(feature = "bus")]
pub use run::BusIo;
pub use run::{
    Action, CoalescedWrite, CoalescedWrites, Control, ControlError, DefaultPolicy, End, Error,
    Event, ExitCounters, ExitLatencies, ExitObserver, ExitPolicy, Fault, Flow, GuestIo, IoAccess,
    IoFn, Kick, LatencyObserver, MapAnswer, Outcome, RunError, State, Vcpu, VcpuRunner, dispatch,
};
pub use threads::{Ended, GroupError, JoinError, RunningGroup, VcpuGroup, VcpuHandle};

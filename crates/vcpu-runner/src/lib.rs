// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![cfg_attr(feature = "bus", doc = include_str!("../README.md"))]
#![cfg_attr(
    not(feature = "bus"),
    doc = "The vCPU run loop of a KVM virtual machine monitor."
)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(unsafe_code)]

mod arch;
#[cfg(feature = "bus")]
mod bus_io;
mod coalesced;
mod control;
mod decode;
mod dispatch;
mod error;
mod eventfd;
mod exit;
mod group;
mod group_error;
mod guest_io;
mod handle;
mod kind;
mod kvm;
#[cfg(feature = "test-utils")]
mod mock;
mod observer;
mod outcome;
mod policy;
mod runner;
mod start;
mod sync;
#[expect(
    unsafe_code,
    reason = "the run area is memory shared with the kernel, and signals have no safe interface"
)]
mod sys;
mod vcpu;

#[cfg(feature = "bus")]
pub use bus_io::BusIo;
pub use coalesced::CoalescedMmio;
pub use control::{Control, State};
pub use decode::{RECORD_LEN, Record, decode};
pub use dispatch::dispatch;
pub use error::{ControlError, Error, Fault, RunError};
pub use eventfd::{Doorbell, IoEvent, IrqFd};
pub use exit::{DebugInfo, Exit, Hypercall, Instruction, InternalError, SystemEvent};
pub use group::{RunningGroup, VcpuGroup};
pub use group_error::GroupError;
pub use guest_io::GuestIo;
pub use handle::{JoinError, VcpuHandle};
pub use kind::ExitKind;
pub use kvm::{KickSignal, KvmVcpu};
#[cfg(feature = "test-utils")]
pub use mock::{MockLog, MockStep, MockVcpu};
pub use observer::{ExitCounters, ExitLatencies, ExitObserver, LatencyObserver};
pub use outcome::Outcome;
pub use policy::{Action, DefaultPolicy, Event, ExitPolicy};
pub use runner::VcpuRunner;
pub use vcpu::{Kick, Vcpu};

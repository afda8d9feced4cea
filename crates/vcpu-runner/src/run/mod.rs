// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The loop on the calling thread: enter the guest, carry out its exit, enter it again.

#[cfg(feature = "bus")]
mod bus_io;
mod coalesced;
mod control;
mod dispatch;
mod error;
mod flow;
mod guest_io;
mod io_fn;
mod observer;
mod outcome;
mod policy;
mod runner;
mod vcpu;

#[cfg(feature = "bus")]
pub use bus_io::BusIo;
pub use coalesced::{CoalescedWrite, CoalescedWrites};
pub use control::{Control, State};
#[cfg(all(test, not(loom)))]
pub(crate) use control::{Next, Shared};
pub use dispatch::dispatch;
pub use error::{ControlError, Error, Fault, RunError};
pub use flow::{End, Flow};
pub use guest_io::{GuestIo, MapAnswer};
pub use io_fn::{IoAccess, IoFn};
pub use observer::{ExitCounters, ExitLatencies, ExitObserver, LatencyObserver};
pub use outcome::Outcome;
pub use policy::{Action, DefaultPolicy, Event, ExitPolicy};
pub(crate) use runner::Call;
pub use runner::VcpuRunner;
pub use vcpu::{Kick, Vcpu};

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Loops on threads of their own: one vCPU's, and all of a machine's together.

mod error;
mod group;
mod handle;
mod member;
mod roster;
mod running;
mod start;

pub use error::{GroupError, JoinError};
pub use group::VcpuGroup;
pub use handle::VcpuHandle;
pub use member::Ended;
pub use running::RunningGroup;

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can go wrong with threads.

use std::convert::Infallible;
use std::io;

use thiserror::Error;

use crate::run::{ControlError, Error};

/// How a vCPU's thread failed, or why it could not be joined.
///
/// `E` is what the VMM's own vCPU fails with; KVM's has nothing of this kind.
///
/// ```
/// # #[cfg(feature = "test-utils")] {
/// use std::time::Duration;
/// use vcpu_runner::{JoinError, MockVcpu, VcpuRunner};
///
/// # let io = vcpu_runner::IoFn(|_: vcpu_runner::IoAccess<'_>| ());
/// // A guest that does nothing, for ever. With KVM it is a `KvmVcpu`.
/// let runner = VcpuRunner::new(MockVcpu::new([]), io);
/// let mut handle = runner.spawn("vcpu0").unwrap();
/// // The guest goes on, and nobody waits for it any longer than this.
/// let error = handle.join(Duration::from_millis(1)).unwrap_err();
/// assert!(matches!(error, JoinError::Timeout));
/// # }
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JoinError<E = Infallible> {
    /// The thread has not ended in time. It can be joined again.
    #[error("vCPU thread has not ended in time")]
    Timeout,
    /// The loop ended with an error.
    #[error(transparent)]
    Vcpu(Error<E>),
    /// A device, the policy, the observer or a callback panicked, with this message.
    #[error("vCPU thread panicked: {0}")]
    Panicked(String),
    /// The thread's start-up hook failed, and the vCPU never ran.
    #[error("vCPU thread's start-up hook failed")]
    Hook(#[source] io::Error),
    /// The thread's result has been taken already.
    #[error("vCPU thread was joined already")]
    AlreadyJoined,
    /// A vCPU's own thread cannot wait for itself.
    #[error("a vCPU's thread cannot wait for itself")]
    OwnThread,
}

/// Why a group could not be started, paused or joined, or how it failed.
///
/// `E` is what the VMM's own vCPU fails with; KVM's has nothing of this kind.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GroupError<E = Infallible> {
    /// A group without vCPUs cannot be started.
    #[error("no vCPUs to start")]
    Empty,
    /// The thread of a vCPU could not be created. The others have been stopped.
    #[error("cannot create the thread of vCPU {index}")]
    Spawn {
        /// The vCPU's position in the group.
        index: usize,
        /// The operating system's error.
        #[source]
        error: io::Error,
    },
    /// A vCPU failed, and the others have been stopped; or it has not ended in time.
    #[error("vCPU {index} failed")]
    Vcpu {
        /// The vCPU's position in the group.
        index: usize,
        /// How it failed.
        #[source]
        error: JoinError<E>,
    },
    /// A request was not carried out by this vCPU. The others have been asked all the same.
    #[error("vCPU {index} cannot be controlled")]
    Control {
        /// The vCPU's position in the group.
        index: usize,
        /// Why.
        #[source]
        error: ControlError,
    },
    /// Not every thread came to the start in time. All have been stopped.
    #[error("vCPU threads did not start in time")]
    StartTimeout,
    /// How the group ended has been taken already.
    #[error("vCPUs were joined already")]
    AlreadyJoined,
    /// The group has ended, or is about to: no vCPU can be added.
    #[error("vCPUs have ended")]
    Ended,
    /// A vCPU was lost in a panic and cannot run again.
    #[error("vCPU {index} was lost in a panic")]
    Lost {
        /// The vCPU's position in the group.
        index: usize,
    },
}

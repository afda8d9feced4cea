// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can go wrong with a group.

use std::fmt;
use std::io;

use crate::error::ControlError;
use crate::handle::JoinError;

/// Why a group could not be started, paused or joined, or how it failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum GroupError {
    /// A group without vCPUs cannot be started.
    Empty,
    /// The thread of a vCPU could not be created. The others have been stopped.
    Spawn {
        /// The vCPU's position in the group.
        index: usize,
        /// The operating system's error.
        error: io::Error,
    },
    /// A vCPU failed, and the others have been stopped; or it has not ended in time.
    Vcpu {
        /// The vCPU's position in the group.
        index: usize,
        /// How it failed.
        error: JoinError,
    },
    /// A request was not carried out by this vCPU. The others have been asked all the same.
    Control {
        /// The vCPU's position in the group.
        index: usize,
        /// Why.
        error: ControlError,
    },
    /// Not every thread came to the start in time. All have been stopped.
    StartTimeout,
    /// How the group ended has been taken already.
    AlreadyJoined,
}

impl fmt::Display for GroupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("no vCPUs to start"),
            Self::Spawn { index, error } => {
                write!(f, "cannot create the thread of vCPU {index}: {error}")
            }
            Self::Vcpu { index, error } => write!(f, "vCPU {index}: {error}"),
            Self::Control { index, error } => write!(f, "vCPU {index}: {error}"),
            Self::StartTimeout => f.write_str("vCPU threads did not start in time"),
            Self::AlreadyJoined => f.write_str("vCPUs were joined already"),
        }
    }
}

impl std::error::Error for GroupError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Spawn { error, .. } => Some(error),
            Self::Vcpu { error, .. } => Some(error),
            Self::Control { error, .. } => Some(error),
            Self::Empty | Self::StartTimeout | Self::AlreadyJoined => None,
        }
    }
}

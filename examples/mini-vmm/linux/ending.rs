// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the end of a machine means for the program.

use vcpu_runner::{GroupError, Outcome};

use super::bell::End;
use super::signals;
use crate::with_causes;

/// Whether the guest wants to start again: by a reset, or by a triple fault, on which a processor
/// resets itself.
pub(crate) const fn is_reboot(end: &End, vcpus: &Result<Outcome, GroupError>) -> bool {
    matches!(
        (end, vcpus),
        (End::Reset, Ok(_)) | (End::Vcpu, Ok(Outcome::Reset | Outcome::TripleFault))
    )
}

/// How the program ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    /// What happened, for programs.
    pub(crate) name: &'static str,
    /// Exit status.
    pub(crate) status: u8,
    /// What happened, for people, unless it is what they wanted.
    pub(crate) message: Option<String>,
}

impl Ending {
    /// Judges by why the machine was ended, and by how its vCPUs ended.
    pub(crate) fn new(end: &End, vcpus: &Result<Outcome, GroupError>) -> Self {
        let (name, status, message) = match (end, vcpus) {
            (End::PowerOff, _) | (End::Vcpu, Ok(Outcome::Shutdown)) => ("power-off", 0, None),
            (End::Quit, _) => ("quit", 0, None),
            (End::Reset, _) | (End::Vcpu, Ok(Outcome::Reset)) => {
                ("reset", 3, Some("the guest asked for a reset".to_owned()))
            }
            (End::Vcpu, Ok(Outcome::TripleFault)) => (
                "triple-fault",
                4,
                Some("the guest crashed: triple fault".to_owned()),
            ),
            (End::Signal(signal), _) => ("signal", signals::status(*signal), None),
            (End::Console(message), _) => return Self::failed(message.clone()),
            (End::Vcpu, Ok(outcome)) => return Self::failed(format!("unexpected: {outcome}")),
            (End::Vcpu, Err(error)) => return Self::failed(with_causes(error)),
        };
        Self {
            name,
            status,
            message,
        }
    }

    /// The run failed for a reason of the program's own.
    pub(crate) fn failed(message: String) -> Self {
        Self {
            name: "error",
            status: 1,
            message: Some(message),
        }
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why the program has not done its work, in one line and an exit status.

use std::error::Error;

/// Why the program ends without having done its work.
pub(crate) struct Failure {
    pub(crate) status: u8,
    pub(crate) message: String,
}

impl Failure {
    /// What the command line says makes no sense.
    pub(crate) const fn usage(message: String) -> Self {
        Self { status: 2, message }
    }

    /// The run failed.
    pub(crate) fn run(error: impl Into<Box<dyn Error>>) -> Self {
        Self {
            status: 1,
            message: with_causes(&*error.into()),
        }
    }
}

/// An error with what caused it, and what caused that.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        // Some errors say themselves what caused them.
        if !message.ends_with(&text) {
            message = format!("{message}: {text}");
        }
        next = cause.source();
    }
    message
}

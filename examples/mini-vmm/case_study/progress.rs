// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How far a run is that takes long, on standard error if that is a terminal.

use rustix::stdio::stderr;
use rustix::termios::isatty;
use vcpu_runner::{ExitCounters, ExitKind};

use super::guest::MAX_REQUEST;
use crate::stdio::write_all;

/// Returns to the left margin, and clears the line.
const CLEAR: &str = "\r\x1b[K";

/// One run's line; it is gone when this is dropped.
pub(crate) struct Progress {
    bytes: u64,
    terminal: bool,
    shown: bool,
}

impl Progress {
    /// Of a run that fetches `bytes` bytes from each device.
    pub(crate) fn new(bytes: u64) -> Self {
        Self {
            bytes,
            terminal: isatty(stderr()),
            shown: false,
        }
    }

    /// Shows how far the guest is that has exited so often.
    pub(crate) fn show(&mut self, exits: &ExitCounters) {
        if !self.terminal {
            return;
        }
        self.shown = true;
        let register = self.bytes / 4;
        let read = exits.get(ExitKind::MmioRead);
        let (device, done, all) = if read < register {
            ("register", read, register)
        } else {
            let requests = self.bytes.div_ceil(MAX_REQUEST.into());
            // One read of a register in the interrupt handler of each, and some for the start.
            let served = read.saturating_sub(register).min(requests);
            ("queue", served, requests)
        };
        let percent = 100 * done / all.max(1);
        Self::write(&format!(
            "{CLEAR}{} bytes from the {device}: {percent} %",
            self.bytes
        ));
    }

    fn write(text: &str) {
        // Whoever cannot see this does without.
        let _ = write_all(stderr(), text.as_bytes());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            Self::write(CLEAR);
        }
    }
}

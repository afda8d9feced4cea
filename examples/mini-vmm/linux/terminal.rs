// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The user's terminal: every key goes to the guest, and in the end all is as it was.

use std::io;

use rustix::stdio::stdin;
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, isatty, tcgetattr,
    tcsetattr,
};

/// A terminal that hands on every key as it is typed, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Terminal {
    before: Termios,
}

impl Terminal {
    /// Takes over standard input, if that is a terminal.
    pub(crate) fn take() -> io::Result<Option<Self>> {
        if !isatty(stdin()) {
            return Ok(None);
        }
        let terminal = Self {
            before: tcgetattr(stdin())?,
        };
        terminal.set_raw()?;
        Ok(Some(terminal))
    }

    /// Hands on every key. What is printed is still made fit for a terminal, because the guest's
    /// output is not the only one.
    pub(crate) fn set_raw(&self) -> io::Result<()> {
        let mut raw = self.before.clone();
        raw.input_modes -= InputModes::BRKINT
            | InputModes::ICRNL
            | InputModes::IGNCR
            | InputModes::INLCR
            | InputModes::ISTRIP
            | InputModes::IXON;
        raw.local_modes -=
            LocalModes::ECHO | LocalModes::ICANON | LocalModes::IEXTEN | LocalModes::ISIG;
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        Ok(tcsetattr(stdin(), OptionalActions::Now, &raw)?)
    }

    /// Makes the terminal what it was.
    pub(crate) fn restore(&self) {
        // There is nothing to be done for a terminal that has gone away.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.restore();
    }
}

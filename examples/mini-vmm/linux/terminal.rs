// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The user's terminal: every key goes to the guest, and in the end all is as it was.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::stdio::stdin;
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, isatty, tcgetattr,
    tcsetattr,
};

/// A terminal that hands on every key as it is typed, until this is dropped.
#[derive(Debug)]
pub(crate) struct Terminal(Modes);

impl Terminal {
    /// Takes over standard input, if that is a terminal.
    pub(crate) fn take() -> io::Result<Option<Self>> {
        if !isatty(stdin()) {
            return Ok(None);
        }
        let before = tcgetattr(stdin())?;
        let terminal = Self(Modes(Arc::new(Mutex::new(Some(before)))));
        terminal.0.resume()?;
        Ok(Some(terminal))
    }

    /// What changes the terminal's modes for as long as this lives.
    pub(crate) fn modes(&self) -> Modes {
        self.0.clone()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.0.suspend();
        // From now on nobody changes it any more.
        *self.0.before() = None;
    }
}

/// Switches between the modes that the guest needs and those that the terminal had.
#[derive(Clone, Debug)]
pub(crate) struct Modes(Arc<Mutex<Option<Termios>>>);

impl Modes {
    fn before(&self) -> MutexGuard<'_, Option<Termios>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the terminal what it was before.
    pub(crate) fn suspend(&self) {
        if let Some(before) = self.before().as_ref() {
            // There is nothing to be done for a terminal that has gone away.
            let _ = tcsetattr(stdin(), OptionalActions::Now, before);
        }
    }

    /// Has the terminal hand on every key. What is printed is still made fit for a terminal, because
    /// the guest's output is not the only one.
    pub(crate) fn resume(&self) -> io::Result<()> {
        let guard = self.before();
        let Some(mut raw) = guard.clone() else {
            return Ok(());
        };
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
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The user's terminal: every key goes to the guest, and in the end its modes are restored.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::stdio::stdin;
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, isatty, tcgetattr,
    tcsetattr,
};

/// The terminal on standard input, which is as it was before when this is dropped.
#[derive(Debug)]
pub(crate) struct Terminal(Modes);

impl Terminal {
    /// Looks for a terminal, and changes nothing yet: whatever can end the program has to know of it
    /// first.
    pub(crate) fn find() -> io::Result<Option<Self>> {
        if !isatty(stdin()) {
            return Ok(None);
        }
        let state = State {
            before: tcgetattr(stdin())?,
            phase: Phase::Found,
        };
        Ok(Some(Self(Modes(Arc::new(Mutex::new(state))))))
    }

    /// What changes the terminal's modes for as long as this lives.
    pub(crate) fn modes(&self) -> Modes {
        self.0.clone()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.0.state().change(Phase::Over);
    }
}

/// Switches between the modes that the guest needs and those that the terminal had.
#[derive(Clone, Debug)]
pub(crate) struct Modes(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    before: Termios,
    phase: Phase,
}

/// Which modes the terminal has, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It has its own modes still.
    Found,
    /// It hands on every key.
    Taken,
    /// It has its own modes while the program is stopped.
    Suspended,
    /// It has its own modes, and keeps them.
    Over,
}

impl State {
    /// Goes over to a phase in which the terminal has its own modes.
    fn change(&mut self, phase: Phase) {
        if self.phase == Phase::Taken {
            // There is nothing to be done for a terminal that has gone away.
            let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
        }
        if self.phase == Phase::Taken || phase == Phase::Over {
            self.phase = phase;
        }
    }

    /// The modes of a terminal that hands on every key. What is printed is still made fit for a
    /// terminal, because the guest's output is not the only one.
    fn raw(&self) -> Termios {
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
        raw
    }
}

impl Modes {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the terminal hand on every key.
    pub(crate) fn take(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.phase == Phase::Found {
            // Before the change: it may be made in part when it fails.
            state.phase = Phase::Taken;
            tcsetattr(stdin(), OptionalActions::Now, &state.raw())?;
        }
        Ok(())
    }

    /// Gives the terminal back for a while.
    pub(crate) fn suspend(&self) {
        self.state().change(Phase::Suspended);
    }

    /// Takes the terminal again that was given back for a while.
    pub(crate) fn resume(&self) {
        let mut state = self.state();
        if state.phase == Phase::Suspended {
            state.phase = Phase::Taken;
            // There is nothing to be done for a terminal that has gone away.
            let _ = tcsetattr(stdin(), OptionalActions::Now, &state.raw());
        }
    }
}

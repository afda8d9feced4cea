// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a machine comes to its end: whoever has a reason rings, and the main thread hears it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Why a machine comes to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The guest switched the machine off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// A vCPU ended by itself; its thread knows why.
    Vcpu,
    /// The user typed the escape sequence.
    Quit,
    /// The program got this signal.
    Signal(i32),
    /// What the guest writes cannot be shown any more.
    Console(String),
}

impl End {
    /// Whether somebody outside wants the program to end, whatever it is doing.
    const fn is_urgent(&self) -> bool {
        matches!(self, Self::Quit | Self::Signal(_))
    }
}

/// Wakes the main thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bell(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    rung: Condvar,
}

#[derive(Debug, Default)]
struct State {
    rung: bool,
    first: Option<End>,
    urgent: Option<End>,
    console: Option<End>,
}

impl Bell {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the main thread to look at everything again.
    pub(crate) fn ring(&self) {
        self.state().rung = true;
        self.0.rung.notify_one();
    }

    /// Ends the machine.
    pub(crate) fn end(&self, end: End) {
        let mut state = self.state();
        if end.is_urgent() {
            state.urgent.get_or_insert_with(|| end.clone());
        }
        if matches!(end, End::Console(_)) {
            state.console.get_or_insert_with(|| end.clone());
        }
        state.first.get_or_insert(end);
        state.rung = true;
        self.0.rung.notify_one();
    }

    /// Forgets why the machine came to its end, so that it can begin again; says whether it can:
    /// not if somebody outside wants it to end.
    pub(crate) fn begin_again(&self) -> bool {
        let mut state = self.state();
        let wanted = state.urgent.is_none() && state.console.is_none();
        if wanted {
            state.first = None;
        }
        wanted
    }

    /// Waits until the bell rings, or until the time is up; says whether it rang.
    pub(crate) fn wait(&self, time: Option<Duration>) -> bool {
        let mut state = self.state();
        let quiet = |state: &mut State| !state.rung;
        match time {
            None => {
                let woken = self.0.rung.wait_while(state, quiet);
                state = woken.unwrap_or_else(PoisonError::into_inner);
            }
            Some(time) => {
                let woken = self.0.rung.wait_timeout_while(state, time, quiet);
                (state, _) = woken.unwrap_or_else(PoisonError::into_inner);
            }
        }
        std::mem::take(&mut state.rung)
    }

    /// Whether the machine is to end.
    pub(crate) fn is_end(&self) -> bool {
        self.state().first.is_some()
    }

    /// Whether the program is not to wait for anything any more.
    pub(crate) fn is_urgent(&self) -> bool {
        self.state().urgent.is_some()
    }

    /// What the machine has come to, of all that has happened to it.
    pub(crate) fn verdict(&self) -> Option<End> {
        let state = self.state();
        let signal = state.urgent.as_ref();
        let signal = signal.filter(|end| matches!(end, End::Signal(_)));
        let others = [&state.console, &state.urgent, &state.first];
        let mut ends = others.into_iter().filter_map(Option::as_ref);
        signal.or_else(|| ends.next()).cloned()
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Signals that end the program, or stop it for a while.

use std::io;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::bell::{Bell, End};
use super::terminal::Modes;

/// Has a thread end the machine on signals, and give the terminal back while the program is
/// stopped.
pub(crate) fn watch(bell: Bell, terminal: Option<Modes>) -> io::Result<()> {
    let wanted = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP];
    // Whoever started the program may want it to ignore some: nohup, for one.
    let ignored = ignored();
    let wanted = wanted
        .iter()
        .filter(|&&signal| ignored >> (signal - 1) & 1 == 0);
    let mut signals = Signals::new(wanted)?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                if signal != SIGTSTP {
                    bell.end(End::Signal(signal));
                    continue;
                }
                if let Some(terminal) = &terminal {
                    terminal.suspend();
                }
                // Comes back when the program is continued.
                let _ = emulate_default_handler(signal);
                if let Some(terminal) = &terminal {
                    let _ = terminal.resume();
                }
            }
        })?;
    Ok(())
}

/// The set of signals that are ignored, as the kernel tells it.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tests that cannot run on this machine say so, and how many they were.
//!
//! Everything is written to standard error itself: the test runner keeps what the print macros of a
//! passing test write.

#![expect(unsafe_code, reason = "the standard library has no `atexit`")]

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, thread};

static SKIPPED: AtomicUsize = AtomicUsize::new(0);

/// Says that the calling test does nothing, and why; the count follows at the program's end.
pub(crate) fn skip(reason: impl Display) {
    let thread = thread::current();
    say(&format!(
        "skipped {}: {reason}\n",
        thread.name().unwrap_or("a test")
    ));
    if SKIPPED.fetch_add(1, Ordering::Relaxed) == 0 {
        // SAFETY: the handler is a function, which lives as long as the program, and does not unwind.
        unsafe { libc::atexit(count) };
    }
}

extern "C" fn count() {
    let program = env::current_exe().unwrap_or_default();
    let name = program.file_stem().unwrap_or_default().to_string_lossy();
    // Cargo has appended a hash.
    let name = name.rsplit_once('-').map_or(&*name, |(name, _)| name);
    say(&format!(
        "{name}: tests skipped: {}\n",
        SKIPPED.load(Ordering::Relaxed)
    ));
}

/// One line in one call, so that nothing comes in between.
fn say(line: &str) {
    let _ = io::stderr().write_all(line.as_bytes());
}

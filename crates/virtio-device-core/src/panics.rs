// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the panics of devices, and of a VMM's hooks, end.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Calls code of a device's or the VMM's; `None` if it panics. What it may have left half-done is not to be
/// used.
#[inline(always)]
pub fn caught<T>(code: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(code)) {
        Ok(value) => Some(value),
        Err(payload) => {
            discard(payload);
            None
        }
    }
}

/// Drops what is a device's or the VMM's, such as an error or what a panic has left; a panic of its `drop`
/// ends here.
pub fn discard<T>(value: T) {
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(value)));
    // Not dropped as well: that could panic again, and so on without end.
    mem::forget(dropped.err());
}

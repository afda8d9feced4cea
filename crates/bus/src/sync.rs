// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Synchronisation: the real thing, or loom's when models are checked.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::sync::atomic::compiler_fence;

#[cfg(loom)]
use loom as real_or_model;
#[cfg(not(loom))]
use std as real_or_model;

pub(crate) use real_or_model::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicUsize, Ordering, fence},
};
pub(crate) use real_or_model::thread::yield_now;

/// Locks; nothing in this crate panics while it holds a lock of its own.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Drops a value of the crate's user; a panic of its `drop` ends here.
pub(crate) fn discard<T>(value: T) {
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(value)));
    // Dropping the panic's payload could panic again.
    std::mem::forget(dropped.err());
}

/// Tells objects apart.
#[inline]
pub(crate) fn address<T: ?Sized>(object: &T) -> usize {
    std::ptr::from_ref(object).cast::<()>().addr()
}

/// A fence, or else the half of an asymmetric barrier that costs nothing; the other half is a fence
/// and then [`barrier_in_all_threads`].
#[inline(always)]
pub(crate) fn light_barrier(is_fenced: bool) {
    // Loom and Miri know no such system call, so the fence itself is here.
    if is_fenced || cfg!(any(loom, miri)) {
        fence(Ordering::SeqCst);
    } else {
        compiler_fence(Ordering::SeqCst);
    }
}

/// Makes every running thread of the process execute a memory barrier; `false` if that failed.
///
/// Registers the process on the first call, and again in a child process.
pub(crate) fn barrier_in_all_threads() -> bool {
    #[cfg(all(target_os = "linux", not(any(loom, miri))))]
    return {
        use rustix::thread::{MembarrierCommand, membarrier};
        let barrier = || membarrier(MembarrierCommand::PrivateExpedited).is_ok();
        barrier() || (membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok() && barrier())
    };
    #[cfg(not(all(target_os = "linux", not(any(loom, miri)))))]
    cfg!(any(loom, miri))
}

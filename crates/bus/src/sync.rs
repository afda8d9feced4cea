// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Synchronisation: the real thing, or loom's when models are checked.

#[cfg(loom)]
pub(crate) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, AtomicUsize, Ordering, fence},
};
use std::cell::Cell;
use std::sync::PoisonError;
#[cfg(not(loom))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, AtomicUsize, Ordering, fence},
};

/// Keeps a value on cache lines of its own (two, because they are fetched in pairs).
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

/// Locks; nothing in this crate panics while it holds a lock of its own.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(not(loom))]
std::thread_local! {
    // A cell, so that every thread must have its own.
    static TOKEN: Cell<u8> = const { Cell::new(0) };
}
#[cfg(loom)]
loom::thread_local! {
    static TOKEN: Cell<u8> = Cell::new(0);
}

/// A number that no other thread has as long as this one lives.
#[inline]
pub(crate) fn thread_token() -> usize {
    TOKEN.with(|token| std::ptr::from_ref(token).addr())
}

/// Waits a moment, longer each time.
pub(crate) fn back_off(round: &mut u32) {
    *round = round.saturating_add(1);
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    match *round {
        0..64 => std::hint::spin_loop(),
        64..256 => std::thread::yield_now(),
        _ => std::thread::sleep(std::time::Duration::from_micros(50)),
    }
}

/// Orders "a view says where it goes, then looks at the generation" against "a remover changes the
/// generation, then looks where views are": at least one of the two must see the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Barrier {
    /// The remover makes every running thread of the process execute a barrier: views need none.
    #[cfg(all(target_os = "linux", not(any(loom, miri))))]
    Membarrier,
    /// Both sides execute one.
    Fence,
    /// For tests: the remover's side fails.
    #[cfg(test)]
    Broken,
}

impl Barrier {
    /// The view's side.
    #[inline(always)]
    pub(crate) fn light(self) {
        match self {
            #[cfg(all(target_os = "linux", not(any(loom, miri))))]
            Self::Membarrier => std::sync::atomic::compiler_fence(Ordering::SeqCst),
            Self::Fence => fence(Ordering::SeqCst),
            #[cfg(test)]
            Self::Broken => fence(Ordering::SeqCst),
        }
    }

    /// The remover's side; `false` if it failed.
    pub(crate) fn heavy(self) -> bool {
        match self {
            #[cfg(all(target_os = "linux", not(any(loom, miri))))]
            Self::Membarrier => linux::barrier_in_all_threads(),
            Self::Fence => {
                fence(Ordering::SeqCst);
                true
            }
            #[cfg(test)]
            Self::Broken => false,
        }
    }

    /// The best this process can do.
    pub(crate) fn best() -> Self {
        #[cfg(all(target_os = "linux", not(any(loom, miri))))]
        if linux::is_available() {
            return Self::Membarrier;
        }
        Self::Fence
    }
}

#[cfg(all(target_os = "linux", not(any(loom, miri))))]
mod linux {
    use std::sync::OnceLock;

    use rustix::thread::{MembarrierCommand, membarrier};

    /// Registers on the first call, and again in a child process.
    pub(super) fn barrier_in_all_threads() -> bool {
        let barrier = || membarrier(MembarrierCommand::PrivateExpedited).is_ok();
        barrier() || (membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok() && barrier())
    }

    pub(super) fn is_available() -> bool {
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(barrier_in_all_threads)
    }
}

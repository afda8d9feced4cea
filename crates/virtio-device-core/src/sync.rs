// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The synchronisation types, in one place so that a model checker can replace them.

#[cfg(loom)]
pub(crate) use loom::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence},
};
#[cfg(not(loom))]
pub(crate) use std::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence},
};

use vmm_sys_util::eventfd::EventFd;

/// For models: what the kernel's lock in every event fd means for the order of memory accesses.
/// To be called before each write to one, and after each read.
#[cfg(loom)]
#[doc(hidden)]
pub fn eventfd_edge() {
    loom::lazy_static! {
        static ref KERNEL: AtomicUsize = Default::default();
    }
    KERNEL.fetch_add(1, Ordering::AcqRel);
}

/// Makes `kick` readable.
pub(crate) fn write_kick(kick: &EventFd) {
    #[cfg(loom)]
    eventfd_edge();
    // An error means that the counter is full, and then the fd is readable already.
    let _ = kick.write(1);
}

/// Makes `kick` unreadable.
pub(crate) fn clear_kick(kick: &EventFd) {
    // The count does not matter, and an error means that it was 0 already.
    let _ = kick.read();
    #[cfg(loom)]
    eventfd_edge();
}

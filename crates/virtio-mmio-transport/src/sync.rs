// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The synchronisation types, in one place so that a model checker can replace them.

#[cfg(loom)]
pub(crate) use loom::{
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering, fence},
    },
    thread::{self, ThreadId},
};
#[cfg(not(loom))]
pub(crate) use std::{
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering, fence},
    },
    thread::{self, ThreadId},
};

use vmm_sys_util::eventfd::EventFd;

/// Wakes the worker that waits for `kick`.
pub(crate) fn wake(kick: &EventFd) {
    #[cfg(loom)]
    virtio_device_core::eventfd_edge();
    // An error means that the counter is full, and then the fd is readable already.
    let _ = kick.write(1);
}

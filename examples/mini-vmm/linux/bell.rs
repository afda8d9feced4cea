// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a machine comes to its end: whoever has a reason rings, and the main thread hears it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

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

/// Wakes the main thread. The first reason to end counts.
#[derive(Clone, Debug)]
pub(crate) struct Bell(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    event: OwnedFd,
    end: Mutex<Option<End>>,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Inner {
            event: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            end: Mutex::new(None),
        })))
    }

    /// Wakes the main thread to look at everything again.
    pub(crate) fn ring(&self) {
        // It fails if it has been rung so often that it is awake anyway.
        let _ = rustix::io::write(&self.0.event, &1u64.to_ne_bytes());
    }

    /// Ends the machine.
    pub(crate) fn end(&self, end: End) {
        let mut first = self.0.end.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(end);
        drop(first);
        self.ring();
    }

    /// Stills the bell, and says why the machine is to end, if it is.
    pub(crate) fn listen(&self) -> Option<End> {
        let _ = rustix::io::read(&self.0.event, &mut [0; 8]);
        self.reason()
    }

    /// Why the machine is to end, if it is.
    pub(crate) fn reason(&self) -> Option<End> {
        let end = self.0.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.clone()
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the transport shares with its device's worker: the causes of the interrupt.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_device_core::{Interrupt, InterruptLine};

use crate::register::{INT_CONFIG, INT_VRING};

/// `InterruptStatus` and `ConfigGeneration`, and the line to the guest. No locks: vCPUs read these
/// registers while a worker raises interrupts.
pub(crate) struct MmioInterrupt {
    status: AtomicU32,
    generation: AtomicU32,
    line: Box<dyn InterruptLine>,
}

impl MmioInterrupt {
    pub(crate) fn new(line: Box<dyn InterruptLine>) -> Self {
        Self {
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            line,
        }
    }

    pub(crate) fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// Clears exactly the causes in `causes`; one that comes up again meanwhile stays.
    pub(crate) fn acknowledge(&self, causes: u32) {
        self.status.fetch_and(!causes, Ordering::AcqRel);
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    fn raise(&self, cause: u32) {
        // The cause first: a driver that is interrupted finds it.
        self.status.fetch_or(cause, Ordering::AcqRel);
        // A line that fails leaves the cause visible to a driver that looks, and is tried again
        // with the next one.
        let _ = self.line.trigger();
    }
}

impl Interrupt for MmioInterrupt {
    fn used_buffers(&self, _queue: u16) {
        self.raise(INT_VRING);
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(INT_CONFIG);
    }

    fn status_changed(&self) {
        self.raise(INT_CONFIG);
    }
}

impl fmt::Debug for MmioInterrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioInterrupt")
            .field("status", &self.status())
            .field("generation", &self.generation())
            .finish_non_exhaustive()
    }
}

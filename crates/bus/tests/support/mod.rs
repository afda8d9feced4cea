// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that tests put on a bus.

#![allow(
    dead_code,
    unused_imports,
    clippy::allow_attributes,
    clippy::panic,
    clippy::unwrap_used,
    reason = "each test binary uses its own part of this"
)]

mod limit;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bus::{AccessError, BusDeviceSync, MmioBus};

pub(crate) use limit::Limit;

/// Answers every read with its tag in each byte, and counts how often it was called.
#[derive(Debug)]
pub(crate) struct Tag {
    pub(crate) tag: u8,
    pub(crate) calls: AtomicUsize,
}

impl Tag {
    pub(crate) fn new(tag: u8) -> Arc<Self> {
        Arc::new(Self {
            tag,
            calls: AtomicUsize::new(0),
        })
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl BusDeviceSync for Tag {
    fn read(&self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        data.fill(self.tag);
        Ok(())
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), AccessError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// A device made of one function, which gets the offset and, for a read, the buffer.
pub(crate) struct Handler<F>(pub(crate) F);

impl<F> BusDeviceSync for Handler<F>
where
    F: Fn(u64, Option<&mut [u8]>) -> Result<(), AccessError> + Send + Sync,
{
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        (self.0)(offset, Some(data))
    }

    fn write(&self, offset: u64, _data: &[u8]) -> Result<(), AccessError> {
        (self.0)(offset, None)
    }
}

/// An `Arc` of a [`Handler`], so that the closure's types are inferred.
pub(crate) fn handler<F>(f: F) -> Arc<Handler<F>>
where
    F: Fn(u64, Option<&mut [u8]>) -> Result<(), AccessError> + Send + Sync,
{
    Arc::new(Handler(f))
}

/// Fails the test instead of hanging it when something never returns.
pub(crate) fn finishes<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(test);
    for _ in 0..6000 {
        if thread.is_finished() {
            return match thread.join() {
                Ok(value) => value,
                Err(payload) => std::panic::resume_unwind(payload),
            };
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("deadlock: not over within a minute");
}

/// Removes every region: a device that holds its own bus is never dropped otherwise.
pub(crate) fn empty(bus: &MmioBus) {
    for region in bus.regions() {
        bus.remove(region.id).unwrap();
    }
}

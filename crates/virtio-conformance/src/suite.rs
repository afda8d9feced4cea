// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A suite that any device passes behind any transport, whatever its driver does.
//!
//! A transport is driven through a [`Port`]; a [`Machine`] is one device behind one transport in a
//! memory of its own, and [`Suite::check`] puts it through every scenario. All of these hold:
//!
//! * nothing panics, also in the worker, which would show as a failed device;
//! * guest memory is as it was, but for the written bytes of accepted requests and the used ring;
//! * the device's memory in the host does not grow ([`Suite::with_heap`]);
//! * one wake-up does a bounded amount of work, and each descriptor is read once;
//! * every accepted request comes back once, with a length that its buffers have;
//! * no interrupt is raised without a used buffer or a change to tell of;
//! * each fault is counted as what it is, and told to the driver by exactly one interrupt;
//! * what the host keeps to itself reaches neither guest memory nor debug output
//!   ([`Suite::with_secret`]);
//! * after each scenario a reset and a new start are enough for a valid request to be served;
//! * a second device goes on working all the while.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use virtio_conformance::ramdisk::RamDisk;
//! use virtio_conformance::{Memory, Parts, Port, Request, Suite};
//! # use virtio_device_core::VirtioDevice;
//!
//! // For a device; `transport` stands for any transport that has a `Port`.
//! fn the_disk_conforms<P: Port>(transport: impl Fn(Box<dyn VirtioDevice<Memory>>, Parts) -> P) {
//!     let suite = Suite::new(Request {
//!         readable: &[0; 16], // read sector 0
//!         writable: 513,
//!         most: 4096 + 1,
//!         is_answer: |bytes| bytes == [0; 513],
//!     });
//!     suite.check(|parts| {
//!         let disk = Arc::new(Mutex::new(vec![0; 4096]));
//!         let device = Box::new(RamDisk::new(disk, parts.executor.clone()));
//!         transport(device, parts)
//!     });
//! }
//! ```

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_device_core::{
    EventCounters, Features, InterruptLine, LoopHandle, VIRTIO_F_INDIRECT_DESC,
};

use crate::machine::{Machine, Memory};
use crate::port::Port;
use crate::scenarios;

/// A request that the device under test serves from its first queue, alone.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// What the device reads.
    pub readable: &'static [u8],
    /// How many bytes it may write.
    pub writable: u32,
    /// The most bytes that the device writes for one request, whatever it is asked for.
    pub most: u32,
    /// Whether the bytes it has written are an answer.
    pub is_answer: fn(&[u8]) -> bool,
}

/// How much host memory a piece of work has taken, as a test's global allocator saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapGrowth {
    /// The most bytes that were allocated at one time, above what there was at the start.
    pub peak: u64,
    /// How many bytes are allocated at the end that were not at the start.
    pub left: i64,
}

/// Measures the work that it is given.
pub type MeasureHeap = fn(&mut dyn FnMut()) -> HeapGrowth;

/// What a machine is put together from.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Guest memory.
    pub memory: Memory,
    /// The line to the guest's interrupt controller; it counts.
    pub line: CountingLine,
    /// An observer for the transport.
    pub events: Arc<EventCounters>,
    /// Runs workers on the thread of the test. A device may as well have a thread of its own; then
    /// how much it does in one wake-up is not checked.
    pub executor: LoopHandle,
}

/// A line that counts how often it is raised.
#[derive(Clone, Debug, Default)]
pub struct CountingLine(Arc<AtomicU32>);

impl CountingLine {
    /// How often the line was raised.
    #[must_use]
    pub fn raised(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

impl InterruptLine for CountingLine {
    fn trigger(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// The suite, for one kind of device.
#[derive(Clone, Copy)]
pub struct Suite {
    pub(crate) request: Request,
    pub(crate) secret: &'static [u8],
    pub(crate) heap: Option<MeasureHeap>,
}

impl Suite {
    /// The suite for devices that serve `request`.
    #[must_use]
    pub const fn new(request: Request) -> Self {
        Self {
            request,
            secret: &[],
            heap: None,
        }
    }

    /// Has the suite look for `secret`: bytes that the test has put where the device has them in
    /// reach and must keep them from its driver, such as the rest of a buffer that a backend has
    /// filled in part. They should be printable, so that they are found in text as well.
    #[must_use]
    pub const fn with_secret(mut self, secret: &'static [u8]) -> Self {
        self.secret = secret;
        self
    }

    /// Has the suite check by `measure` that the device takes no more host memory than at its
    /// start. It sees one thread, or all, as the test's allocator does.
    #[must_use]
    pub const fn with_heap(mut self, measure: MeasureHeap) -> Self {
        self.heap = Some(measure);
        self
    }

    /// Puts devices made by `make` through every scenario. It puts a fresh device of one kind
    /// behind a transport, from the given parts.
    ///
    /// # Panics
    ///
    /// If the device or the transport does not conform.
    pub fn check<P: Port>(&self, make: impl Fn(Parts) -> P) {
        let mut sibling = Machine::new(self, &make);
        let mut sibling_queue = sibling.start(Features::of(&[VIRTIO_F_INDIRECT_DESC]));
        let mut machine = Machine::new(self, &make);
        for &(name, scenario) in &scenarios::all() {
            let passed = catch_unwind(AssertUnwindSafe(|| {
                scenario(&mut machine);
                // Whatever state the other one is in now.
                sibling.serve(&mut sibling_queue);
                machine.keeps_its_secret();
                let mut queue = machine.start(Features::of(&[VIRTIO_F_INDIRECT_DESC]));
                machine.serve(&mut queue);
            }));
            assert!(passed.is_ok(), "scenario failed: {name}");
        }
    }
}

impl fmt::Debug for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suite")
            .field("request", &self.request)
            .finish_non_exhaustive()
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The suite: every scenario, on a device under test and on a second device beside it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use virtio_device_core::{Features, VIRTIO_F_INDIRECT_DESC};

use crate::machine::Machine;
use crate::parts::Parts;
use crate::port::Port;
use crate::scenarios;
use crate::subject::{MeasureHeap, Request, Subject};

/// The suite, for one kind of device.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use bus::BusDevice;
/// use virtio_conformance::ramdisk::RamDisk;
/// use virtio_conformance::{MmioPort, Parts, Request, Suite};
/// use virtio_mmio_transport::MmioTransport;
///
/// /// Makes the device under test, and another one that works beside it.
/// fn disk(parts: Parts) -> MmioPort<MmioTransport<virtio_conformance::Memory, RamDisk<impl virtio_device_core::Executor>>> {
///     let device = RamDisk::new(Arc::new(Mutex::new(vec![0; 4096])), parts.executor.clone());
///     let transport = MmioTransport::new(device, parts.memory, parts.line).unwrap();
///     MmioPort::new(
///         transport.with_observer(parts.events),
///         |it, offset, data| it.read(offset, data).unwrap(),
///         |it, offset, data| it.write(offset, data).unwrap(),
///     )
/// }
///
/// let request = Request::new(|bytes| bytes == [0; 513]).readable(&[0; 16]).writable(513);
/// Suite::new(request.at_most(4096 + 1)).check(disk);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Suite {
    subject: Subject,
}

impl Suite {
    /// The suite for devices that serve `request`.
    #[must_use]
    pub const fn new(request: Request) -> Self {
        Self {
            subject: Subject {
                request,
                secret: &[],
                heap: None,
            },
        }
    }

    /// Has the suite check that `secret` never reaches guest memory or debug output: bytes that the
    /// test has put into host memory that the device can reach, such as the rest of a buffer that a
    /// back end has filled in part. They should be printable, so that they are found in text as
    /// well.
    #[must_use]
    pub const fn with_secret(mut self, secret: &'static [u8]) -> Self {
        self.subject.secret = secret;
        self
    }

    /// Has the suite check that the device's use of host memory does not grow, as `measure` sees
    /// it: on one thread or on all, as the test's global allocator counts.
    #[must_use]
    pub const fn with_heap(mut self, measure: MeasureHeap) -> Self {
        self.subject.heap = Some(measure);
        self
    }

    /// Runs every scenario, one after the other on the same device, which is reset in between. `make` is
    /// called twice, for that device and for a second one beside it, and puts a fresh device behind a
    /// transport, both made of the [`Parts`] that it is given.
    ///
    /// # Panics
    ///
    /// If the device or the transport does not conform.
    pub fn check<P: Port>(&self, make: impl Fn(Parts) -> P) {
        let mut sibling = Machine::new(self.subject, &make);
        let mut sibling_queue = sibling.start(Features::of(&[VIRTIO_F_INDIRECT_DESC]));
        let mut machine = Machine::new(self.subject, &make);
        for &(name, scenario) in &scenarios::all() {
            let passed = catch_unwind(AssertUnwindSafe(|| {
                scenario(&mut machine);
                // The sibling still works, whatever the scenario has done to the device.
                sibling.serve(&mut sibling_queue);
                machine.keeps_its_secret();
                let mut queue = machine.start(Features::of(&[VIRTIO_F_INDIRECT_DESC]));
                machine.serve(&mut queue);
            }));
            assert!(passed.is_ok(), "scenario failed: {name}");
        }
    }
}

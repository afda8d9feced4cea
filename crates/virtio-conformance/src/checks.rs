// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What must hold of a device, as its driver and its VMM see it.

use std::ops::Range;
use std::thread;
use std::time::Duration;

use virtio_device_core::transport::DEVICE_NEEDS_RESET;

use crate::counters::EventCounts;
use crate::machine::{Machine, OFTEN, Queue, canary, wishes};
use crate::port::Port;

/// In steps of this size, memory that is as at first is left out of a search.
const PAGE: usize = 4096;
/// How long a device on a thread of its own is given to do what it must not do.
const A_WHILE: Duration = Duration::from_millis(3);

#[expect(
    clippy::unwrap_used,
    reason = "a device that does not conform fails the test"
)]
impl<P: Port> Machine<P> {
    /// Checks that memory is `expected` everywhere but in the used ring, which is the device's.
    pub(crate) fn same_but_used_ring(&self, expected: &[u8], queue: &Queue) {
        self.same_but(expected, &[queue.used_ring()]);
    }

    /// Checks that memory is `expected` everywhere but in some places.
    pub(crate) fn same_but(&self, expected: &[u8], places: &[Range<u64>]) {
        let mut image = self.image();
        for place in places.iter().chain(&self.wishes()) {
            let [from, to] = [place.start, place.end].map(|at| usize::try_from(at).unwrap());
            let theirs = expected.get(from..to).unwrap();
            image.get_mut(from..to).unwrap().copy_from_slice(theirs);
        }
        if image != expected {
            let mut bytes = (0..).zip(image.iter().zip(expected));
            let (at, (byte, _)): (u64, _) = bytes.find(|(_, (a, b))| a != b).unwrap();
            unreachable!("the device has written {byte:#x} at {at:#x}");
        }
    }

    /// Checks that the secret is nowhere within reach of the driver or in what the VMM prints.
    pub(crate) fn keeps_its_secret(&self) {
        let secret = self.secret;
        if secret.is_empty() {
            return;
        }
        let text = self.port.visible();
        // A list of bytes is how binary data is printed.
        let list = format!("{secret:?}");
        let list = list.trim_matches(['[', ']']);
        let told = text.contains(&*String::from_utf8_lossy(secret)) || text.contains(list);
        assert!(!told, "the secret is told: {text}");
        let (image, canary) = (self.image(), canary());
        for at in (0..image.len()).step_by(PAGE) {
            let [page, old] = [&image, &canary].map(|bytes| bytes.get(at..at + PAGE));
            if page != old {
                let end = image.len().min(at + PAGE + secret.len());
                let mut windows = image.get(at..end).unwrap().windows(secret.len());
                assert!(!windows.any(|it| it == secret), "the secret is in memory");
            }
        }
    }

    /// Lets the device do what it wants to.
    pub(crate) fn settle(&mut self) {
        let _ = (0..OFTEN).all(|_| self.step());
        if !self.runs_here() {
            thread::sleep(A_WHILE);
        }
    }

    /// Checks that the device does nothing: no byte, no interrupt.
    pub(crate) fn nothing_happens(&mut self) {
        let (image, raised) = (self.image(), self.line.raised());
        self.settle();
        self.same_but(&image, &[]);
        assert_eq!(self.line.raised(), raised);
    }

    /// Checks that the device uses nothing of a queue that it works on: no byte, no interrupt, but
    /// for what the used ring says of the notifications that the device wants.
    pub(crate) fn nothing_is_used(&mut self, queue: &mut Queue) {
        let (image, raised) = (self.image(), self.line.raised());
        self.settle();
        self.same_but(&image, &wishes(&queue.used_ring()));
        assert_eq!(queue.take_used(), []);
        assert_eq!(self.line.raised(), raised);
    }

    /// Checks that the device has failed as it should: it asks for a reset, has interrupted once
    /// for that, has counted the broken ring and nothing else, and is quiet from then on.
    pub(crate) fn ring_has_faulted(&mut self, before: &EventCounts, raised_before: u32) {
        let broken = u32::from(DEVICE_NEEDS_RESET);
        self.wait("DEVICE_NEEDS_RESET", |machine| {
            machine.port.status() & broken != 0 && machine.port.interrupt_status() & 2 != 0
        });
        // The interrupt follows the bit that says why.
        self.wait("the interrupt", |machine| {
            machine.line.raised() > raised_before
        });
        for _ in 0..10 {
            self.port.notify(self.index());
        }
        self.nothing_happens();
        let mut expected = *before;
        expected.ring_fault += 1;
        assert_eq!(self.events.counts(), expected);
        assert_eq!(self.line.raised(), raised_before + 1);
        assert_eq!(self.port.interrupt_status(), 2);
    }
}

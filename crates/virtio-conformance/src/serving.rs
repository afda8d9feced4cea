// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The valid request: made, served, and looked at.

use vm_memory::{Bytes, GuestAddress};

use crate::driver::{VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use crate::machine::{BUFFERS, Machine, Queue};
use crate::port::Port;
use crate::subject::Request;

#[expect(
    clippy::unwrap_used,
    reason = "a device that does not conform fails the test"
)]
impl<P: Port> Machine<P> {
    /// Notifies the device of requests.
    pub(crate) fn notify(&mut self) {
        self.port.notify(self.index());
    }

    /// Has the host deliver what one request takes, makes the chain at `head` available and notifies
    /// the device. In this order: a device that looks in between finds nothing to begin with and give
    /// up again.
    pub(crate) fn ask(&mut self, queue: &mut Queue, head: u16) {
        self.host.deliver();
        queue.offer(head);
        self.notify();
    }

    /// Makes the valid request, as the chain 0 and 1.
    pub(crate) fn ask_validly(&mut self, queue: &mut Queue) {
        self.prepare(queue);
        self.ask(queue, 0);
    }

    /// Writes the valid request's buffers and descriptors, from descriptor 0 on.
    pub(crate) fn prepare(&self, queue: &Queue) {
        let Request {
            readable, writable, ..
        } = self.request;
        let answer = BUFFERS + 0x1000;
        if readable.is_empty() {
            queue.descriptor(0, answer, writable, VIRTQ_DESC_F_WRITE, 0);
            return;
        }
        let plain = self.memory.plain();
        plain.write_slice(readable, GuestAddress(BUFFERS)).unwrap();
        let len = u32::try_from(readable.len()).unwrap();
        let more = if writable == 0 { 0 } else { VIRTQ_DESC_F_NEXT };
        queue.descriptor(0, BUFFERS, len, more, 1);
        queue.descriptor(1, answer, writable, VIRTQ_DESC_F_WRITE, 0);
    }

    /// Has the valid request served, and checks what that has changed.
    pub(crate) fn serve(&mut self, queue: &mut Queue) {
        self.prepare(queue);
        self.serve_prepared(queue);
    }

    /// Has the valid request served that was prepared as chain 0 with its answer in one piece from
    /// `BUFFERS + 0x1000` on, and checks what that has changed.
    pub(crate) fn serve_prepared(&mut self, queue: &mut Queue) {
        // The image of memory is taken before the request is visible: the device may answer at once.
        queue.stage(0);
        let mut expected = self.image();
        let interrupts = self.interrupts();
        let index = queue.avail_index().wrapping_add(1);
        let at = usize::try_from(queue.setup().avail_ring + 2).unwrap();
        let place = expected.get_mut(at..at + 2).unwrap();
        place.copy_from_slice(&index.to_le_bytes());
        self.host.deliver();
        queue.set_avail_index(index);
        self.notify();

        let used = self.used(queue, 1);
        let &[(0, len)] = used.as_slice() else {
            unreachable!("{used:?} came back instead of chain 0");
        };
        let most = self.request.writable.min(self.request.most);
        assert!(len <= most, "{len} bytes are too many");
        self.interrupted_after(interrupts);

        let image = self.image();
        let answer = usize::try_from(BUFFERS + 0x1000).unwrap();
        let end = answer + usize::try_from(len).unwrap();
        let written = image.get(answer..end).unwrap();
        assert!(
            (self.request.is_answer)(written),
            "{written:?} is no answer"
        );
        expected
            .get_mut(answer..end)
            .unwrap()
            .copy_from_slice(written);
        self.same_but_used_ring(&expected, queue);
    }

    /// Acknowledges what the device has interrupted for, and says how often that was by now: to be
    /// asked before a request is made available.
    pub(crate) fn interrupts(&mut self) -> u32 {
        self.port.acknowledge(1);
        self.line.raised()
    }

    /// Waits for an interrupt about used buffers that is none of the first `before`, and acknowledges
    /// it. The line follows the bit that says why.
    pub(crate) fn interrupted_after(&mut self, before: u32) {
        self.wait("an interrupt", |machine| {
            machine.port.interrupt_status() & 1 != 0 && machine.line.raised() > before
        });
        self.port.acknowledge(1);
    }

    /// Waits for `count` used elements.
    pub(crate) fn used(&mut self, queue: &mut Queue, count: usize) -> Vec<(u32, u32)> {
        let mut used = Vec::new();
        self.wait("used buffers", |_| {
            used.extend(queue.take_used());
            used.len() >= count
        });
        assert_eq!(used.len(), count, "a request came back twice");
        used
    }
}

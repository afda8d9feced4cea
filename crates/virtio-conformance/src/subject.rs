// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the suite knows of a kind of device.

/// A request that the device under test serves, alone in its queue.
///
/// ```
/// use virtio_conformance::Request;
///
/// // A console's receive queue: up to 64 bytes of input.
/// let request = Request::new(|bytes| !bytes.is_empty()).queue(0).writable(64).at_most(64);
/// // Its transmit queue: nothing is written.
/// let request = Request::new(|bytes| bytes.is_empty()).queue(1).readable(b"output");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub(crate) queue: u16,
    pub(crate) readable: &'static [u8],
    pub(crate) writable: u32,
    pub(crate) most: u32,
    pub(crate) is_answer: fn(&[u8]) -> bool,
}

impl Request {
    /// A request in queue 0 without any buffer; `is_answer` says whether the bytes that the device
    /// has written are an answer.
    #[must_use]
    pub const fn new(is_answer: fn(&[u8]) -> bool) -> Self {
        Self {
            queue: 0,
            readable: &[],
            writable: 0,
            most: 0,
            is_answer,
        }
    }

    /// Sets the queue that the request is made in. All others are enabled, and stay empty.
    #[must_use]
    pub const fn queue(mut self, index: u16) -> Self {
        self.queue = index;
        self
    }

    /// Sets what the device reads; at most 4096 bytes.
    #[must_use]
    pub const fn readable(mut self, bytes: &'static [u8]) -> Self {
        self.readable = bytes;
        self
    }

    /// Sets how many bytes the device may write for this request; at most 4096.
    #[must_use]
    pub const fn writable(mut self, len: u32) -> Self {
        self.writable = len;
        if self.most < len {
            self.most = len;
        }
        self
    }

    /// Sets the most bytes that the device writes for one request, whatever it is asked for; without
    /// this, as many as for this request.
    #[must_use]
    pub const fn at_most(mut self, len: u32) -> Self {
        self.most = len;
        self
    }
}

/// How much host memory a piece of work has allocated, as a test's global allocator counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapGrowth {
    /// The most bytes that were allocated at any time, beyond those at the start.
    pub peak: u64,
    /// The bytes allocated at the end minus those at the start.
    pub left: i64,
}

/// Runs the work that it is given, and measures it.
pub type MeasureHeap = fn(&mut dyn FnMut()) -> HeapGrowth;

/// Everything that the suite knows of a kind of device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    pub(crate) request: Request,
    pub(crate) secret: &'static [u8],
    pub(crate) heap: Option<MeasureHeap>,
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest memory of drivers of the crate virtio-drivers.
#![cfg(feature = "virtio-drivers")]

use virtio_conformance::virtio_drivers::GuestHal;
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE};

#[test]
#[should_panic = "guest memory is used up"]
fn pages_that_are_not_all_in_guest_memory_are_not_given_out() {
    // All but the first page, which is never given out, and the last one.
    GuestHal::allocate((256 << 20) - 2 * PAGE_SIZE);
    GuestHal::dma_alloc(2, BufferDirection::Both);
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The driver's way to any transport.

use virtio_device_core::transport::QueueSetup;

/// What a driver does to a transport, in the transport's own way.
pub trait Port {
    /// Reads the status.
    fn status(&mut self) -> u32;
    /// Writes the status; 0 resets.
    fn set_status(&mut self, status: u32);
    /// A word of the offered features.
    fn offered(&mut self, word: u32) -> u32;
    /// Accepts a word of features.
    fn accept(&mut self, word: u32, features: u32);
    /// The largest size of a queue; 0 if there is none.
    fn max_size(&mut self, queue: u32) -> u32;
    /// Sets a queue up and enables it; returns whether it is enabled afterwards.
    fn enable(&mut self, queue: u32, setup: &QueueSetup) -> bool;
    /// Whether a queue is enabled.
    fn is_enabled(&mut self, queue: u32) -> bool;
    /// Resets one queue (`VIRTIO_F_RING_RESET`), and waits until that is done.
    fn reset_queue(&mut self, queue: u32);
    /// Notifies the device of new buffers.
    fn notify(&mut self, queue: u32);
    /// The causes of the interrupt: 1 for used buffers, 2 for a change.
    fn interrupt_status(&mut self) -> u32;
    /// Acknowledges causes.
    fn acknowledge(&mut self, causes: u32);
    /// Reads the configuration space.
    fn read_config(&mut self, offset: u32, data: &mut [u8]);
    /// The configuration generation.
    fn generation(&mut self) -> u32;

    /// Everything that the transport and its device say of themselves to their VMM, as text: debug
    /// output, saved state.
    fn visible(&self) -> String {
        String::new()
    }
}

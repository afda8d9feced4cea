// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The driver's way to any transport.

use virtio_device_core::transport::QueueSetup;

/// A driver's access to a transport. Implement it to run the [suite](crate::Suite) on a transport
/// of your own; [`MmioPort`](crate::MmioPort) is the one for virtio-mmio.
pub trait Port {
    /// Reads the device status (VIRTIO 1.3, section 2.1).
    fn status(&mut self) -> u32;
    /// Writes the device status; 0 resets the device.
    fn set_status(&mut self, status: u32);
    /// Bits `32 * word` and up of the features that the device offers.
    fn offered(&mut self, word: u32) -> u32;
    /// Accepts bits `32 * word` and up of the features.
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
    /// The interrupt status: bit 0 for used buffers, bit 1 for a change of the configuration or the
    /// status.
    fn interrupt_status(&mut self) -> u32;
    /// Acknowledges these bits of the interrupt status.
    fn acknowledge(&mut self, causes: u32);
    /// Reads the configuration space.
    fn read_config(&mut self, offset: u32, data: &mut [u8]);
    /// The configuration generation (section 2.5).
    fn generation(&mut self) -> u32;

    /// Everything that the transport and its device show their VMM, as text: debug output, saved
    /// state. The suite looks for [secrets](crate::Suite::with_secret) in it.
    fn visible(&self) -> String {
        String::new()
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where a guest has its descriptors and buffers.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

use std::sync::Arc;

use bus::BusDevice;
use virtio_conformance::{Buf, Guest, MmioPort};
use virtio_device_core::{Activation, DeviceFault, VirtioDevice, edge_line};
use virtio_mmio_transport::MmioTransport;
use vm_memory::GuestMemoryMmap;

type Memory = Arc<GuestMemoryMmap<()>>;

/// Never answers.
struct Idle(Vec<u16>);

impl VirtioDevice<Memory> for Idle {
    fn device_type(&self) -> u32 {
        63
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.0
    }

    fn activate(&mut self, _activation: Activation<Memory>) -> Result<(), DeviceFault> {
        Ok(())
    }
}

/// A guest of a device that has queues of these sizes.
fn started(sizes: &[u16]) -> Guest<MmioTransport<Memory, Idle>> {
    let (memory, device) = (Guest::<()>::memory(), Idle(sizes.to_vec()));
    let transport = MmioTransport::new(device, memory.clone(), edge_line(|| Ok(()))).unwrap();
    let port = MmioPort::new(
        transport,
        |it, offset, data| it.read(offset, data).unwrap(),
        |it, offset, data| it.write(offset, data).unwrap(),
    );
    let mut guest = Guest::new(memory, port);
    guest.start(0);
    guest
}

#[test]
fn chains_of_one_queue_take_no_descriptors_of_another() {
    let mut guest = started(&[4, 8]);
    let request = [Buf::W(1), Buf::W(1)];
    let heads = [1, 1, 0, 1, 0, 1].map(|queue| (queue, guest.put(queue, &request).head));
    assert_eq!(heads, [(1, 0), (1, 2), (0, 0), (1, 4), (0, 2), (1, 6)]);
}

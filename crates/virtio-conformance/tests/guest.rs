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

#[test]
fn the_rings_of_many_queues_are_clear_of_the_buffers() {
    // As many as those of a network device with 32 pairs.
    let guest = started(&[256; 65]);
    let end = guest.queues.iter().map(|queue| queue.used_ring().end).max();
    assert!(end.unwrap() <= Guest::<()>::BUFFERS, "{end:x?}");
}

#[test]
#[should_panic = "more queues than fit before the buffers"]
fn queues_whose_rings_would_be_among_the_buffers_are_refused() {
    started(&[256; 128]);
}

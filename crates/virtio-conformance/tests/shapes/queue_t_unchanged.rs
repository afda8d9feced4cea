// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Shape 16: a device written against virtio-queue's `QueueT`, unchanged.

use virtio_device_core::{
    Activation, Context, DeviceFault, Progress, QueueHandler, RingFault, VirtioDevice,
};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestMemoryMmap};

use crate::support::{Guest, Memory, Plain, QUEUE_SIZE, Shape, ordeal, thread};

/// The device of another crate.
fn serve<Q: QueueT>(
    queue: &mut Q,
    memory: &GuestMemoryMmap<()>,
) -> Result<bool, virtio_queue::Error> {
    while let Some(chain) = queue.pop_descriptor_chain(memory) {
        let head = chain.head_index();
        let mut len = 0;
        for buffer in chain.writable() {
            if memory.write_slice(b"q", buffer.addr()).is_ok() {
                len += 1;
            }
        }
        queue.add_used(memory, head, len)?;
    }
    queue.needs_notification(memory)
}

/// What it takes to put it here.
struct Adapter(Memory);

impl QueueHandler for Adapter {
    fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let memory = &*self.0;
        let Some(active) = cx.queue(queue) else {
            return Ok(Progress::Idle);
        };
        let looked = active.lease.with(|ring| {
            ring.enable_notification(memory)?;
            if let Ok(true) = ring.as_queue(memory, |queue| serve(queue, memory))? {
                active.signal_used();
            }
            Ok::<_, RingFault>(())
        });
        looked.unwrap_or(Ok(()))?;
        Ok(Progress::Idle)
    }
}

struct QueueTUnchanged;

impl Shape for QueueTUnchanged {
    type Device = Box<dyn VirtioDevice<Memory>>;

    fn device(&mut self) -> Self::Device {
        let mut executor = thread();
        let activate =
            move |activation: Activation<Memory>| activation.serve(&mut executor, Adapter);
        Box::new(Plain {
            queues: &[QUEUE_SIZE],
            activate,
        })
    }

    fn begin(&mut self, guest: &mut Guest<Self::Device>) {
        (0..3).for_each(|head| guest.offer_writable(0, head, 1));
    }

    fn finish(&mut self, guest: &mut Guest<Self::Device>) {
        assert_eq!(guest.used(0, 3), [(0, 1), (1, 1), (2, 1)]);
        assert_eq!(guest.bytes(0, 2, 1), b"q");
    }

    fn looks_at(&self, _index: usize) -> bool {
        false // virtio-queue's iterator takes a broken ring for an empty one
    }
}

#[test]
fn queue_t_unchanged() {
    ordeal(QueueTUnchanged);
}

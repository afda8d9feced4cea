// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Shape 11: used elements published as a group.

use virtio_device_core::{
    Activation, Chain, Context, DeviceFault, Progress, QueueHandler, RingFault, VirtioDevice,
};

use crate::support::{Guest, Memory, Plain, QUEUE_SIZE, SOON, Shape, ordeal, thread};

/// One packet for four buffers: the driver sees all of them, or none.
struct Merge {
    memory: Memory,
    chain: Chain,
}

impl QueueHandler for Merge {
    fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let memory = &*self.memory;
        let Some(active) = cx.queue(queue) else {
            return Ok(Progress::Idle);
        };
        let looked = active.lease.with(|ring| {
            let mut heads = Vec::new();
            while heads.len() < 4 {
                match ring.take(memory, &mut self.chain)? {
                    Some(head) => heads.push((head, 1)),
                    None => break,
                }
            }
            if heads.len() < 4 {
                heads
                    .into_iter()
                    .rev()
                    .for_each(|(head, _)| ring.put_back(head));
                return Ok(Progress::Idle);
            }
            ring.complete_all(memory, heads)?;
            if ring.needs_interrupt(memory)? {
                active.signal_used();
            }
            Ok::<_, RingFault>(Progress::More)
        });
        Ok(looked.unwrap_or(Ok(Progress::Idle))?)
    }
}

struct UsedElementsAsAGroup;

impl Shape for UsedElementsAsAGroup {
    type Device = Box<dyn VirtioDevice<Memory>>;

    fn device(&mut self) -> Self::Device {
        let mut executor = thread();
        let activate = move |activation: Activation<Memory>| {
            activation.serve(&mut executor, |memory| Merge {
                memory,
                chain: Chain::with_capacity(QUEUE_SIZE),
            })
        };
        Box::new(Plain {
            queues: &[QUEUE_SIZE],
            activate,
        })
    }

    fn begin(&mut self, guest: &mut Guest<Self::Device>) {
        (0..4).for_each(|head| guest.offer_writable(0, head, 1));
    }

    fn finish(&mut self, guest: &mut Guest<Self::Device>) {
        assert_eq!(guest.used(0, 4), [(0, 1), (1, 1), (2, 1), (3, 1)]);
    }
}

#[test]
fn used_elements_as_a_group() {
    ordeal(UsedElementsAsAGroup);
}

#[test]
fn a_driver_never_sees_a_part_of_a_group() {
    let mut shape = UsedElementsAsAGroup;
    let mut guest = Guest::new(shape.device());
    guest.start();
    let mut last = 0;
    for _ in 0..200 {
        shape.begin(&mut guest);
        let deadline = std::time::Instant::now() + SOON;
        loop {
            let index = guest.queues[0].used_index();
            assert_eq!(index % 4, 0, "a part of a group");
            if index != last {
                last = index;
                break;
            }
            assert!(std::time::Instant::now() < deadline, "a group: not in time");
        }
        shape.finish(&mut guest);
    }
}

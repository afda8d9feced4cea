// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Shape 12: two queues looked at together, without deadlock under a pause.

use virtio_device_core::{
    Activation, Chain, Context, DeviceFault, Progress, QueueHandler, RingFault, VirtioDevice,
};

use crate::support::{Guest, Memory, Plain, QUEUE_SIZE, Shape, exchange, ordeal, thread};

const RX: u16 = 0;
const TX: u16 = 1;

/// What the driver sends comes back to it: taken from one queue and put into the other in one look.
struct Loopback {
    memory: Memory,
    input: Chain,
    output: Chain,
}

impl QueueHandler for Loopback {
    fn process(&mut self, _queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let memory = &*self.memory;
        let (Some(rx), Some(tx)) = (cx.queue(RX), cx.queue(TX)) else {
            return Ok(Progress::Idle);
        };
        // If one is paused or reset, the other is left as it was.
        let both = rx.lease.with(|to| {
            tx.lease.with(|from| {
                let Some(sent) = from.take(memory, &mut self.output)? else {
                    return Ok(Progress::Idle);
                };
                let Some(room) = to.take(memory, &mut self.input)? else {
                    from.put_back(sent);
                    return Ok(Progress::Idle);
                };
                let byte = self.output.reader(memory).read_array::<1>();
                let byte = byte.unwrap_or_default();
                let len = self.input.write(memory, &byte).unwrap_or(0);
                to.complete(memory, room, len)?;
                from.complete(memory, sent, 0)?;
                if to.needs_interrupt(memory)? {
                    rx.signal_used();
                }
                if from.needs_interrupt(memory)? {
                    tx.signal_used();
                }
                Ok::<_, RingFault>(Progress::More)
            })
        });
        match both {
            Ok(Ok(progress)) => Ok(progress?),
            _ => Ok(Progress::Idle),
        }
    }
}

#[derive(Default)]
struct TwoQueuesTogether {
    next: u8,
}

impl Shape for TwoQueuesTogether {
    type Device = Box<dyn VirtioDevice<Memory>>;

    fn device(&mut self) -> Self::Device {
        let mut executor = thread();
        let activate = move |activation: Activation<Memory>| {
            activation.serve(&mut executor, |memory| Loopback {
                memory,
                input: Chain::with_capacity(QUEUE_SIZE),
                output: Chain::with_capacity(QUEUE_SIZE),
            })
        };
        Box::new(Plain {
            queues: &[QUEUE_SIZE; 2],
            activate,
        })
    }

    fn begin(&mut self, guest: &mut Guest<Self::Device>) {
        self.next = self.next.wrapping_add(1);
        guest.offer_writable(RX.into(), 2, 1);
        guest.offer_readable(TX.into(), 5, &[self.next]);
    }

    fn finish(&mut self, guest: &mut Guest<Self::Device>) {
        assert_eq!(guest.used(RX.into(), 1), [(2, 1)]);
        assert_eq!(guest.used(TX.into(), 1), [(5, 0)]);
        assert_eq!(guest.bytes(RX.into(), 2, 1), [self.next]);
    }

    fn looks_at(&self, index: usize) -> bool {
        index == usize::from(TX) // without anything sent, room does not matter
    }
}

#[test]
fn two_queues_together() {
    ordeal(TwoQueuesTogether::default());
}

#[test]
fn pauses_at_any_moment_neither_hang_nor_lose() {
    let mut shape = TwoQueuesTogether::default();
    let mut guest = Guest::new(shape.device());
    guest.start();
    for _ in 0..200 {
        shape.begin(&mut guest);
        guest.transport.pause().unwrap();
        guest.transport.resume();
        shape.finish(&mut guest);
        exchange(&mut shape, &mut guest);
    }
}

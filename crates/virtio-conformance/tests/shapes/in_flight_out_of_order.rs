// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Shape 4: many requests in flight, completed out of order, by another thread.

use std::sync::mpsc::{Receiver, Sender, channel};

use virtio_device_core::{
    Activation, ActiveQueue, Chain, Context, DeviceFault, Head, InFlight, Progress, QueueHandler,
    RingFault, VirtioDevice,
};
use vm_memory::{Bytes, GuestAddress};

use crate::support::{Guest, Memory, Plain, QUEUE_SIZE, Shape, ordeal, thread};

/// One request, on its way through the backend.
struct Request {
    head: Head,
    buffer: GuestAddress,
    queue: ActiveQueue,
    in_flight: InFlight,
}

struct Submit {
    memory: Memory,
    chain: Chain,
    backend: Sender<Request>,
}

impl QueueHandler for Submit {
    fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let memory = &*self.memory;
        let Some(active) = cx.queue(queue) else {
            return Ok(Progress::Idle);
        };
        let looked = active.lease.with(|ring| {
            while let Some(head) = ring.take(memory, &mut self.chain)? {
                let Ok(in_flight) = active.lease.hold() else {
                    ring.put_back(head); // a pause has begun
                    break;
                };
                let (buffer, _) = self.chain.writable().next().unwrap();
                let queue = active.clone();
                let _ = self.backend.send(Request {
                    head,
                    buffer,
                    queue,
                    in_flight,
                });
            }
            Ok::<_, RingFault>(())
        });
        looked.unwrap_or(Ok(()))?;
        Ok(Progress::Idle)
    }
}

/// Collects what is there, and completes it last come, first served.
fn backend(memory: &Memory, requests: &Receiver<Request>) {
    while let Ok(first) = requests.recv() {
        let mut batch = vec![first];
        std::thread::sleep(std::time::Duration::from_millis(1));
        batch.extend(requests.try_iter());
        for request in batch.into_iter().rev() {
            let Request {
                head,
                buffer,
                queue,
                in_flight,
            } = request;
            // For a request that nobody wants any more, nothing is written.
            let _ = in_flight.with(|ring| {
                let tag = [head.index() as u8; 2];
                let len = memory.write_slice(&tag, buffer).map_or(0, |()| 2);
                let completed = ring.complete(&**memory, head, len);
                if completed.is_ok() && ring.needs_interrupt(&**memory) == Ok(true) {
                    queue.signal_used();
                }
            });
        }
    }
}

struct InFlightOutOfOrder;

impl Shape for InFlightOutOfOrder {
    type Device = Box<dyn VirtioDevice<Memory>>;

    fn device(&mut self) -> Self::Device {
        let mut executor = thread();
        let activate = move |activation: Activation<Memory>| {
            let (submit, requests) = channel();
            let memory = activation.memory.clone();
            std::thread::spawn(move || backend(&memory, &requests));
            activation.serve(&mut executor, |memory| Submit {
                memory,
                chain: Chain::with_capacity(QUEUE_SIZE),
                backend: submit,
            })
        };
        Box::new(Plain {
            queues: &[QUEUE_SIZE],
            activate,
        })
    }

    fn begin(&mut self, guest: &mut Guest<Self::Device>) {
        (0..4).for_each(|head| guest.offer_writable(0, head, 2));
    }

    fn finish(&mut self, guest: &mut Guest<Self::Device>) {
        let mut used = guest.used(0, 4);
        used.sort_unstable();
        assert_eq!(used, [(0, 2), (1, 2), (2, 2), (3, 2)]);
        (0..4).for_each(|head| assert_eq!(guest.bytes(0, head, 2), [head as u8; 2]));
    }
}

#[test]
fn in_flight_out_of_order() {
    ordeal(InFlightOutOfOrder);
}

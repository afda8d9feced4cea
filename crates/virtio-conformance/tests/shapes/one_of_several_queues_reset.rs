// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Shape 10: one of several queues is reset and restarted under one worker; requests of the others
//! stay intact.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use virtio_device_core::{
    Activation, ActiveQueue, Chain, Context, DeviceFault, Head, InFlight, Progress, QueueHandler,
    RingFault, VirtioDevice,
};

use crate::support::{Guest, Memory, Plain, QUEUE_SIZE, Shape, exchange, ordeal, thread};

/// Keeps requests in flight for as long as the host is busy.
struct Slow {
    memory: Memory,
    busy: Arc<AtomicBool>,
    chain: Chain,
    /// Of all queues: whose queue was reset meanwhile find their guard revoked.
    requests: Vec<(Head, ActiveQueue, InFlight)>,
}

impl Slow {
    fn take(&mut self, active: &ActiveQueue) -> Result<(), RingFault> {
        let looked = active.lease.with(|ring| {
            while let Some(head) = ring.take(&*self.memory, &mut self.chain)? {
                match active.lease.hold() {
                    Ok(in_flight) => self.requests.push((head, active.clone(), in_flight)),
                    Err(_) => {
                        ring.put_back(head);
                        break;
                    }
                }
            }
            Ok(())
        });
        looked.unwrap_or(Ok(()))
    }
}

impl QueueHandler for Slow {
    fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        if let Some(active) = cx.queue(queue).cloned() {
            self.take(&active)?;
        }
        // Nobody holds a reset up with requests that are lost anyway.
        self.requests
            .retain(|(_, _, in_flight)| !in_flight.is_revoked());
        if !self.busy.load(Ordering::SeqCst) {
            for (head, active, in_flight) in self.requests.drain(..) {
                let _ = in_flight.with(|ring| {
                    ring.complete(&*self.memory, head, 0)?;
                    if ring.needs_interrupt(&*self.memory)? {
                        active.signal_used();
                    }
                    Ok::<_, RingFault>(())
                });
            }
        }
        Ok(match self.requests.is_empty() {
            true => Progress::Idle,
            false => Progress::After(Duration::from_millis(1)),
        })
    }
}

#[derive(Default)]
struct OneOfSeveralQueuesReset {
    busy: Arc<AtomicBool>,
}

impl Shape for OneOfSeveralQueuesReset {
    type Device = Box<dyn VirtioDevice<Memory>>;

    fn device(&mut self) -> Self::Device {
        let mut executor = thread();
        let busy = self.busy.clone();
        let activate = move |activation: Activation<Memory>| {
            activation.serve(&mut executor, |memory| Slow {
                memory,
                busy: busy.clone(),
                chain: Chain::with_capacity(QUEUE_SIZE),
                requests: Vec::new(),
            })
        };
        Box::new(Plain {
            queues: &[QUEUE_SIZE; 2],
            activate,
        })
    }

    fn begin(&mut self, guest: &mut Guest<Self::Device>) {
        (0..2).for_each(|queue| guest.offer_writable(queue, 3, 1));
    }

    fn finish(&mut self, guest: &mut Guest<Self::Device>) {
        (0..2).for_each(|queue| assert_eq!(guest.used(queue, 1), [(3, 0)]));
    }
}

#[test]
fn one_of_several_queues_reset() {
    ordeal(OneOfSeveralQueuesReset::default());
}

#[test]
fn the_requests_of_the_other_queue_come_back_and_those_of_the_reset_one_do_not() {
    let mut shape = OneOfSeveralQueuesReset::default();
    let mut guest = Guest::new(shape.device());
    guest.start();
    for _ in 0..5 {
        shape.busy.store(true, Ordering::SeqCst);
        shape.begin(&mut guest);
        std::thread::sleep(Duration::from_millis(5));
        guest.restart_queue(0);
        shape.busy.store(false, Ordering::SeqCst);
        assert_eq!(guest.used(1, 1), [(3, 0)]);
        assert!(guest.queues[0].take_used().is_empty());
        exchange(&mut shape, &mut guest);
    }
}

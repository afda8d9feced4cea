// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Shape 3: several workers from one executor; one that fails stops the others, and the driver is
//! told once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_device_core::{
    Activation, Chain, Context, DeviceFault, Executor, Progress, QueueHandler, RingFault,
    VirtioDevice, Worker,
};

use crate::support::{Guest, Memory, Plain, QUEUE_SIZE, Shape, ordeal, thread, wait};

/// Fills every buffer with a letter. Used by other shapes, too, whose point is elsewhere.
pub(crate) struct Letters {
    pub(crate) memory: Memory,
    pub(crate) chain: Chain,
    pub(crate) letter: u8,
}

impl Letters {
    pub(crate) fn new(memory: Memory, letter: u8) -> Self {
        let chain = Chain::with_capacity(QUEUE_SIZE);
        Self {
            memory,
            chain,
            letter,
        }
    }
}

impl QueueHandler for Letters {
    fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let memory = &*self.memory;
        let Some(active) = cx.queue(queue) else {
            return Ok(Progress::Idle);
        };
        let looked = active.lease.with(|ring| {
            let mut progress = Progress::Idle;
            if let Some(head) = ring.take(memory, &mut self.chain)? {
                let letters = vec![self.letter; self.chain.writable_len().min(64) as usize];
                let len = self.chain.write(memory, &letters).unwrap_or(0);
                ring.complete(memory, head, len)?;
                progress = Progress::More;
            }
            if ring.needs_interrupt(memory)? {
                active.signal_used();
            }
            Ok::<_, RingFault>(progress)
        });
        Ok(looked.unwrap_or(Ok(Progress::Idle))?)
    }
}

struct Counted(Letters, Arc<AtomicU32>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

impl QueueHandler for Counted {
    fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        self.0.process(queue, cx)
    }
}

#[derive(Default)]
struct SeveralWorkers {
    alive: Arc<AtomicU32>,
}

impl Shape for SeveralWorkers {
    type Device = Box<dyn VirtioDevice<Memory>>;

    fn device(&mut self) -> Self::Device {
        let mut executor = vec![thread(), thread()];
        let alive = self.alive.clone();
        let activate = move |activation: Activation<Memory>| {
            for queue in activation.queues {
                alive.fetch_add(1, Ordering::SeqCst);
                let letters = Letters::new(activation.memory.clone(), b'a' + queue.index as u8);
                let handler = Counted(letters, alive.clone());
                let interrupt = activation.interrupt.clone();
                executor.start(Worker::new(handler, vec![queue], interrupt))?;
            }
            Ok(())
        };
        Box::new(Plain {
            queues: &[QUEUE_SIZE; 3],
            activate,
        })
    }

    fn begin(&mut self, guest: &mut Guest<Self::Device>) {
        for queue in 0..3 {
            guest.offer_writable(queue, 1, 4);
        }
    }

    fn finish(&mut self, guest: &mut Guest<Self::Device>) {
        for (queue, letter) in (0..3).zip(b'a'..) {
            assert_eq!(guest.used(queue, 1), [(1, 4)]);
            assert_eq!(guest.bytes(queue, 1, 4), [letter; 4]);
        }
    }
}

#[test]
fn several_workers() {
    ordeal(SeveralWorkers::default());
}

#[test]
fn a_worker_that_fails_stops_the_others_and_tells_the_driver_once() {
    let mut shape = SeveralWorkers::default();
    let mut guest = Guest::new(shape.device());
    guest.start();
    shape.begin(&mut guest);
    shape.finish(&mut guest);
    let before = guest.interrupts.load(Ordering::SeqCst);
    guest.queues[1].set_avail_index(0x8000);
    guest.notify(1);
    wait("DEVICE_NEEDS_RESET", || guest.status() & 64 != 0);
    wait("the end of all", || shape.alive.load(Ordering::SeqCst) == 0);
    for queue in 0..3 {
        guest.notify(queue);
    }
    guest.settled();
    assert_eq!(guest.interrupts.load(Ordering::SeqCst), before + 1);
}

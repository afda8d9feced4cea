// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Shape 13: a state of its own, saved and restored with the transport's, versioned.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_device_core::{
    Activation, Chain, Context, DeviceFault, DeviceState, Progress, QueueHandler, RingFault,
    VirtioDevice, WorkerThread,
};
use virtio_mmio_transport::RestoreError;

use crate::support::{Guest, Memory, QUEUE_SIZE, Shape, exchange, ordeal, thread};

const VERSION: u32 = 1;

/// Numbers the requests that it serves, beyond resets.
struct Numbers {
    next: Arc<AtomicU32>,
    executor: WorkerThread,
}

struct Handler {
    memory: Memory,
    chain: Chain,
    next: Arc<AtomicU32>,
}

impl QueueHandler for Handler {
    fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let memory = &*self.memory;
        let Some(active) = cx.queue(queue) else {
            return Ok(Progress::Idle);
        };
        let looked = active.lease.with(|ring| {
            let Some(head) = ring.take(memory, &mut self.chain)? else {
                return Ok(Progress::Idle);
            };
            let number = self.next.fetch_add(1, Ordering::SeqCst);
            let len = self.chain.write(memory, &number.to_le_bytes()).unwrap_or(0);
            ring.complete(memory, head, len)?;
            if ring.needs_interrupt(memory)? {
                active.signal_used();
            }
            Ok::<_, RingFault>(Progress::More)
        });
        Ok(looked.unwrap_or(Ok(Progress::Idle))?)
    }
}

impl VirtioDevice<Memory> for Numbers {
    fn device_type(&self) -> u32 {
        42
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn activate(&mut self, activation: Activation<Memory>) -> Result<(), DeviceFault> {
        activation.serve(&mut self.executor, |memory| Handler {
            memory,
            chain: Chain::with_capacity(QUEUE_SIZE),
            next: self.next.clone(),
        })
    }

    fn save(&self) -> DeviceState {
        let next = self.next.load(Ordering::SeqCst);
        DeviceState::new(VERSION, next.to_le_bytes().to_vec()).unwrap_or_default()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceFault> {
        let bytes = <[u8; 4]>::try_from(state.data(VERSION)?);
        let bytes = bytes.map_err(|_| DeviceFault::State("the number has four bytes"))?;
        self.next.store(u32::from_le_bytes(bytes), Ordering::SeqCst);
        Ok(())
    }
}

#[derive(Default)]
struct StateOfItsOwn {
    expected: u32,
    /// That of the device made last.
    next: Arc<AtomicU32>,
}

impl Shape for StateOfItsOwn {
    type Device = Numbers;

    fn device(&mut self) -> Numbers {
        self.next = Arc::default();
        Numbers {
            next: self.next.clone(),
            executor: thread(),
        }
    }

    fn begin(&mut self, guest: &mut Guest<Numbers>) {
        guest.offer_writable(0, 0, 4);
    }

    fn finish(&mut self, guest: &mut Guest<Numbers>) {
        assert_eq!(guest.used(0, 1), [(0, 4)]);
        assert_eq!(guest.bytes(0, 0, 4), self.expected.to_le_bytes());
        self.expected += 1;
    }

    fn abandon(&mut self) {
        self.expected = self.next.load(Ordering::SeqCst);
    }
}

#[test]
fn state_of_its_own() {
    ordeal(StateOfItsOwn::default());
}

#[test]
fn a_state_that_the_device_has_not_saved_is_refused() {
    let mut shape = StateOfItsOwn::default();
    let mut guest = Guest::new(shape.device());
    guest.start();
    exchange(&mut shape, &mut guest);
    guest.transport.pause().unwrap();
    let good = guest.transport.save().unwrap();
    for (version, data) in [(0, vec![]), (2, vec![0; 4]), (VERSION, vec![0; 3])] {
        let mut state = good.clone();
        state.device = DeviceState::new(version, data).unwrap();
        let mut other = Guest::new(shape.device());
        let error = other.transport.restore(&state);
        assert!(matches!(error, Err(RestoreError::Device(_))), "{error:?}");
        assert_eq!(other.status(), 0);
        other.start();
    }
    let huge = DeviceState::new(VERSION, vec![0; (1 << 20) + 1]);
    assert!(matches!(huge, Err(DeviceFault::StateSize(_))));
}

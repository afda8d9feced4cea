// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Shape 6: memory touched outside of every queue, leased for the device as the queues are.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use virtio_device_core::{Activation, Unavailable, VirtioDevice};
use vm_memory::{Bytes, GuestAddress};

use crate::several_workers::Letters;
use crate::support::{Guest, Memory, Plain, QUEUE_SIZE, Shape, ordeal, thread, wait};

/// Where the driver expects a clock.
const CLOCK: GuestAddress = GuestAddress(0x3_f000);

#[derive(Default)]
struct MemoryOutsideOfQueues {
    seen: u64,
}

impl Shape for MemoryOutsideOfQueues {
    type Device = Box<dyn VirtioDevice<Memory>>;

    fn device(&mut self) -> Self::Device {
        let mut executor = thread();
        let activate = move |activation: Activation<Memory>| {
            let (memory, lease) = (activation.memory.clone(), activation.lease.clone());
            // It ticks on a thread of its own, for as long as the device is live.
            std::thread::spawn(move || {
                loop {
                    let tick = lease.with(|()| {
                        let now: u64 = memory.load(CLOCK, Relaxed).unwrap_or(0);
                        let _ = memory.store(now + 1, CLOCK, Relaxed);
                    });
                    if tick == Err(Unavailable::Revoked) {
                        break;
                    }
                    std::thread::sleep(Duration::from_micros(100));
                }
            });
            activation.serve(&mut executor, |memory| Letters::new(memory, b'm'))
        };
        Box::new(Plain {
            queues: &[QUEUE_SIZE],
            activate,
        })
    }

    fn begin(&mut self, guest: &mut Guest<Self::Device>) {
        self.seen = guest.memory.load(CLOCK, Relaxed).unwrap();
        guest.offer_writable(0, 0, 1);
    }

    fn finish(&mut self, guest: &mut Guest<Self::Device>) {
        assert_eq!(guest.used(0, 1), [(0, 1)]);
        wait("the clock", || {
            guest.memory.load::<u64>(CLOCK, Relaxed).unwrap() > self.seen
        });
    }
}

#[test]
fn memory_outside_of_queues() {
    ordeal(MemoryOutsideOfQueues::default());
}

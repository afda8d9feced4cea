// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Shape 14: a worker in the VMM's own loop, which leaves it at reset and comes back. This loop is an
//! event-manager's; one of bare epoll waits for the same descriptor.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use virtio_device_core::{Activation, LoopHandle, VirtioDevice, WorkerLoop};
use vmm_sys_util::epoll::EventSet;

use crate::several_workers::Letters;
use crate::support::{Guest, Memory, Plain, QUEUE_SIZE, Shape, ordeal};

/// The workers' place among everything else that the VMM's loop waits for.
struct Workers(WorkerLoop);

/// So that event-manager takes it.
struct Fd(i32);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> i32 {
        self.0
    }
}

impl MutEventSubscriber for Workers {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        ops.add(Events::new(&Fd(self.0.as_raw_fd()), EventSet::IN))
            .unwrap();
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        self.0.dispatch().unwrap();
    }
}

/// A VMM's main loop, on a thread because the test needs its own.
fn vmm_loop(stop: Arc<AtomicBool>) -> LoopHandle {
    let (sender, handle) = channel();
    std::thread::spawn(move || {
        let workers = WorkerLoop::new().unwrap();
        sender.send(workers.handle()).unwrap();
        let mut manager = EventManager::<Box<dyn MutEventSubscriber>>::new().unwrap();
        manager.add_subscriber(Box::new(Workers(workers)));
        while !stop.load(Ordering::SeqCst) {
            manager.run_with_timeout(20).unwrap();
        }
    });
    handle.recv().unwrap()
}

#[derive(Default)]
struct WorkerInTheVmmsLoop {
    stop: Arc<AtomicBool>,
    executor: Option<LoopHandle>,
}

impl Drop for WorkerInTheVmmsLoop {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Shape for WorkerInTheVmmsLoop {
    type Device = Box<dyn VirtioDevice<Memory>>;

    /// All devices share the one loop.
    fn device(&mut self) -> Self::Device {
        let stop = self.stop.clone();
        let mut executor = self.executor.get_or_insert_with(|| vmm_loop(stop)).clone();
        let activate = move |activation: Activation<Memory>| {
            activation.serve(&mut executor, |memory| Letters::new(memory, b'l'))
        };
        Box::new(Plain {
            queues: &[QUEUE_SIZE],
            activate,
        })
    }

    fn begin(&mut self, guest: &mut Guest<Self::Device>) {
        guest.offer_writable(0, 0, 1);
    }

    fn finish(&mut self, guest: &mut Guest<Self::Device>) {
        assert_eq!(guest.used(0, 1), [(0, 1)]);
    }
}

#[test]
fn worker_in_the_vmms_loop() {
    ordeal(WorkerInTheVmmsLoop::default());
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Shape 15: a handler that is not `Send`, built on its worker's thread.

use std::rc::Rc;

use virtio_device_core::{
    Activation, Context, DeviceFault, Executor, Progress, QueueHandler, VirtioDevice, Worker,
};

use crate::several_workers::Letters;
use crate::support::{Guest, Memory, Plain, QUEUE_SIZE, Shape, ordeal, thread};

struct NotSend {
    letters: Letters,
    /// Stands for an `io_uring`, a connection to a display server, an interpreter.
    thread: Rc<std::thread::ThreadId>,
}

impl QueueHandler for NotSend {
    fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        assert_eq!(*self.thread, std::thread::current().id());
        self.letters.process(queue, cx)
    }
}

struct HandlerThatIsNotSend;

impl Shape for HandlerThatIsNotSend {
    type Device = Box<dyn VirtioDevice<Memory>>;

    fn device(&mut self) -> Self::Device {
        let mut executor = thread();
        let activate = move |activation: Activation<Memory>| {
            let memory = activation.memory;
            let build = move || {
                Ok(Box::new(NotSend {
                    letters: Letters::new(memory, b'r'),
                    thread: Rc::new(std::thread::current().id()),
                }) as Box<dyn QueueHandler>)
            };
            let worker = Worker::build(activation.queues, activation.interrupt, build);
            executor.start(worker)
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
        assert_eq!(guest.bytes(0, 0, 1), b"r");
    }
}

#[test]
fn handler_that_is_not_send() {
    ordeal(HandlerThatIsNotSend);
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Shape 9: activation fails for a reason of the device's own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use virtio_device_core::{Activation, DeviceFault, Event, Observer, VirtioDevice};

use crate::several_workers::Letters;
use crate::support::{Guest, Memory, Plain, QUEUE_SIZE, Shape, exchange, ordeal, thread};

#[derive(Default)]
struct ActivationThatFails {
    fails: Arc<AtomicBool>,
}

impl Shape for ActivationThatFails {
    type Device = Box<dyn VirtioDevice<Memory>>;

    fn device(&mut self) -> Self::Device {
        let mut executor = thread();
        let fails = self.fails.clone();
        let activate = move |activation: Activation<Memory>| {
            if fails.load(Ordering::SeqCst) {
                return Err(DeviceFault::device("tap0 is gone"));
            }
            activation.serve(&mut executor, |memory| Letters::new(memory, b'f'))
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
fn activation_that_fails() {
    ordeal(ActivationThatFails::default());
}

/// Keeps the reasons, as a VMM would log them: with their causes.
#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl Observer for Log {
    fn event(&self, event: &Event<'_>) {
        if let Event::DeviceFailed(fault) = event {
            let mut text = fault.to_string();
            let mut cause = std::error::Error::source(fault);
            while let Some(error) = cause {
                text += &format!(": {error}");
                cause = error.source();
            }
            self.0.lock().unwrap().push(text);
        }
    }
}

#[test]
fn the_reason_is_told_and_the_driver_may_try_again() {
    let mut shape = ActivationThatFails::default();
    let log = Arc::new(Log::default());
    let mut guest = Guest::new(shape.device()).observed(log.clone());
    shape.fails.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(guest.try_start(), 15 | 64);
        guest.reset();
    }
    shape.fails.store(false, Ordering::SeqCst);
    guest.start();
    exchange(&mut shape, &mut guest);
    let reason = "device cannot work: tap0 is gone";
    assert_eq!(*log.0.lock().unwrap(), [reason; 3]);
}

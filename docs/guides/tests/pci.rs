// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The transport of `docs/a-transport-of-your-own.md` under the suite.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::sync::{Arc, Mutex};

use virtio_conformance::ramdisk::RamDisk;
use virtio_conformance::{CountingLine, EventLog, Memory, Parts, Port, Request, Suite};
use virtio_device_core::transport::QueueSetup;
use virtio_device_core::{Executor, VirtioDevice};
use vmm_devices_guides::pci::Pci;

struct PciPort<D>(Pci<Memory, D, CountingLine, Arc<EventLog>>);

impl<D: VirtioDevice<Memory>> Port for PciPort<D> {
    fn status(&mut self) -> u32 {
        self.0.status().into()
    }

    fn set_status(&mut self, status: u32) {
        self.0.set_status(status);
        while status == 0 && self.0.status() != 0 {
            std::thread::yield_now();
        }
    }

    fn offered(&mut self, word: u32) -> u32 {
        self.0.offered(word)
    }

    fn accept(&mut self, word: u32, features: u32) {
        self.0.accept(word, features);
    }

    fn max_size(&mut self, queue: u32) -> u32 {
        self.0.max_size(queue).into()
    }

    fn enable(&mut self, queue: u32, setup: &QueueSetup) -> bool {
        self.0.enable(queue, setup);
        self.0.is_enabled(queue)
    }

    fn is_enabled(&mut self, queue: u32) -> bool {
        self.0.is_enabled(queue)
    }

    fn reset_queue(&mut self, queue: u32) {
        self.0.reset_queue(queue);
        while self.0.is_resetting(queue) {
            std::thread::yield_now();
        }
    }

    fn notify(&mut self, queue: u32) {
        self.0.notify(queue);
    }

    fn interrupt_status(&mut self) -> u32 {
        self.0.isr()
    }

    fn acknowledge(&mut self, causes: u32) {
        self.0.clear_isr(causes);
    }

    fn read_config(&mut self, offset: u32, data: &mut [u8]) {
        self.0.read_config(offset, data);
    }

    fn generation(&mut self) -> u32 {
        self.0.generation()
    }
}

fn disk(parts: Parts) -> PciPort<RamDisk<impl Executor>> {
    let disk = Arc::new(Mutex::new(vec![0; 4096]));
    let device = RamDisk::new(disk, parts.executor.clone());
    let line = parts.line;
    let pci = Pci::new(device, parts.memory, |_| line.clone(), parts.events);
    PciPort(pci.unwrap())
}

#[test]
fn a_device_conforms_behind_it() {
    let request = Request::new(|bytes| bytes == [0; 513]).readable(&[0; 16]);
    Suite::new(request.writable(513).at_most(4096 + 1)).check(disk);
}

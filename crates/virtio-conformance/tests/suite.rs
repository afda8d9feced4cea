// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the suite finds.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bus::BusDevice;
use virtio_conformance::ramdisk::RamDisk;
use virtio_conformance::{Memory, MmioPort, Parts, Port, Request, Suite};
use virtio_device_core::{
    Activation, Chain, Context, DeviceFault, InterruptLine, LoopHandle, Progress, QueueHandler,
    VirtioDevice, WorkerThread, edge_line,
};
use virtio_mmio_transport::MmioTransport;
use vm_memory::GuestAddressSpace as _;

const REQUEST: Request = Request::new(|bytes| bytes.len() == 513)
    .readable(&[0; 16])
    .writable(513)
    .at_most(4096 + 1);

fn disk(parts: &Parts) -> RamDisk<LoopHandle> {
    RamDisk::new(Arc::new(Mutex::new(vec![0; 4096])), parts.executor.clone())
}

/// A device behind the registers of virtio-mmio, which interrupts by `line`.
fn port<D>(device: D, parts: Parts, line: impl InterruptLine + 'static) -> impl Port
where
    D: VirtioDevice<Memory> + 'static,
{
    let transport = MmioTransport::new(device, parts.memory, line).unwrap();
    MmioPort::new(
        transport.with_observer(parts.events),
        |it, offset, data| it.read(offset, data).unwrap(),
        |it, offset, data| it.write(offset, data).unwrap(),
    )
}

/// Gives every request back, and waits for the next one without asking to be notified of it.
struct Silent(LoopHandle);

impl VirtioDevice<Memory> for Silent {
    fn device_type(&self) -> u32 {
        63
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[8]
    }

    fn activate(&mut self, activation: Activation<Memory>) -> Result<(), DeviceFault> {
        activation.queue(0)?;
        let chain = Chain::with_capacity(8);
        activation.serve(&mut self.0, |memory| Requests(memory, chain))
    }
}

struct Requests(Memory, Chain);

impl QueueHandler for Requests {
    fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let memory = self.0.memory();
        let Some(active) = cx.queue(queue) else {
            return Ok(Progress::Idle);
        };
        let looked = active.lease.with(|ring| {
            let Some(head) = ring.take(&*memory, &mut self.1)? else {
                return Ok(Progress::Idle);
            };
            ring.complete(&*memory, head, 0)?;
            if ring.needs_interrupt(&*memory)? {
                active.signal_used();
            }
            Ok(Progress::More)
        });
        looked.unwrap_or(Ok(Progress::Idle))
    }
}

/// The scenario that fails.
fn fails<P: Port>(request: Request, make: impl Fn(Parts) -> P) -> String {
    let check = AssertUnwindSafe(|| Suite::new(request).check(make));
    let failed = catch_unwind(check).unwrap_err();
    *failed.downcast::<String>().unwrap()
}

/// Gives every request back, and takes its time until it asks to be notified again.
struct Slow(WorkerThread);

impl VirtioDevice<Memory> for Slow {
    fn device_type(&self) -> u32 {
        63
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[8]
    }

    fn activate(&mut self, activation: Activation<Memory>) -> Result<(), DeviceFault> {
        activation.queue(0)?;
        let chain = Chain::with_capacity(8);
        activation.serve(&mut self.0, |memory| SlowRequests(memory, chain))
    }
}

struct SlowRequests(Memory, Chain);

impl QueueHandler for SlowRequests {
    fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let memory = self.0.memory();
        let Some(active) = cx.queue(queue) else {
            return Ok(Progress::Idle);
        };
        let looked = active.lease.with(|ring| {
            ring.disable_notification(&*memory)?;
            if let Some(head) = ring.take(&*memory, &mut self.1)? {
                ring.complete(&*memory, head, 0)?;
                if ring.needs_interrupt(&*memory)? {
                    active.signal_used();
                }
                thread::sleep(Duration::from_millis(5));
            }
            match ring.enable_notification(&*memory)? {
                true => Ok(Progress::More),
                false => Ok(Progress::Idle),
            }
        });
        looked.unwrap_or(Ok(Progress::Idle))
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no level-triggered epoll")]
fn a_device_may_take_its_time_after_an_answer() {
    let request = Request::new(|bytes| bytes.is_empty()).readable(b"request");
    Suite::new(request).check(|parts| {
        let (thread, line) = (WorkerThread::named("slow").unwrap(), parts.line.clone());
        port(Slow(thread), parts, line)
    });
}

#[test]
#[cfg_attr(miri, ignore = "it takes too long")]
fn two_devices_are_made_one_under_test_and_one_beside_it() {
    let made = Cell::new(0);
    Suite::new(REQUEST).check(|parts| {
        made.set(made.get() + 1);
        let line = parts.line.clone();
        port(disk(&parts), parts, line)
    });
    assert_eq!(made.get(), 2);
}

#[test]
fn a_device_asks_to_be_notified_before_it_waits() {
    let request = Request::new(|bytes| bytes.is_empty()).readable(b"request");
    let silent = |parts: Parts| {
        let (device, line) = (Silent(parts.executor.clone()), parts.line.clone());
        port(device, parts, line)
    };
    let scenario = "scenario failed: notifications that the device asks for";
    assert_eq!(fails(request, silent), scenario);
}

#[test]
fn each_request_has_an_interrupt_of_its_own() {
    let once = |parts: Parts| {
        let line = parts.line.clone();
        let line = edge_line(move || match line.raised() {
            0 => line.trigger(),
            _ => Ok(()),
        });
        port(disk(&parts), parts, line)
    };
    assert_eq!(fails(REQUEST, once), "scenario failed: valid requests");
}

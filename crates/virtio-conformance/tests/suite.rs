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
use virtio_conformance::{Memory, MmioPort, Parts, Port, Request, Suite, WatchedMemory};
use virtio_device_core::{
    Activation, ActiveQueue, Chain, Context, DeviceFault, Executor, InterruptLine, LoopHandle,
    Progress, QueueHandler, RingFault, VirtioDevice, Virtqueue, WorkerThread, edge_line,
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

/// How a device looks at its queue, once.
type Look =
    fn(&mut Virtqueue, &WatchedMemory, &mut Chain, &ActiveQueue) -> Result<Progress, RingFault>;

/// A device of one queue that looks at it like this.
struct Device<E>(E, Look);

impl<E: Executor> VirtioDevice<Memory> for Device<E> {
    fn device_type(&self) -> u32 {
        63
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[8]
    }

    fn activate(&mut self, activation: Activation<Memory>) -> Result<(), DeviceFault> {
        activation.queue(0)?;
        let (chain, look) = (Chain::with_capacity(8), self.1);
        activation.serve(&mut self.0, move |memory| Requests(memory, chain, look))
    }
}

struct Requests(Memory, Chain, Look);

impl QueueHandler for Requests {
    fn process(&mut self, queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let memory = self.0.memory();
        let Some(active) = cx.queue(queue) else {
            return Ok(Progress::Idle);
        };
        let looked = (active.lease).with(|ring| (self.2)(ring, &memory, &mut self.1, active));
        Ok(looked.unwrap_or(Ok(Progress::Idle))?)
    }
}

/// Gives a request back, if there is one.
fn give_back(
    ring: &mut Virtqueue,
    memory: &WatchedMemory,
    chain: &mut Chain,
    active: &ActiveQueue,
) -> Result<bool, RingFault> {
    let Some(head) = ring.take(memory, chain)? else {
        return Ok(false);
    };
    ring.complete(memory, head, 0)?;
    if ring.needs_interrupt(memory)? {
        active.signal_used();
    }
    Ok(true)
}

const fn more_if(more: bool) -> Progress {
    if more { Progress::More } else { Progress::Idle }
}

/// Waits for the next request without asking to be notified of it.
const SILENT: Look =
    |ring, memory, chain, active| Ok(more_if(give_back(ring, memory, chain, active)?));

/// Takes its time until it asks to be notified again.
const SLOW: Look = |ring, memory, chain, active| {
    ring.disable_notification(memory)?;
    if give_back(ring, memory, chain, active)? {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(more_if(ring.enable_notification(memory)?))
};

/// The scenario that fails.
fn fails<P: Port>(request: Request, make: impl Fn(Parts) -> P) -> String {
    let check = AssertUnwindSafe(|| Suite::new(request).check(make));
    let failed = catch_unwind(check).unwrap_err();
    *failed.downcast::<String>().unwrap()
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no level-triggered epoll")]
fn a_device_may_take_its_time_after_an_answer() {
    let request = Request::new(|bytes| bytes.is_empty()).readable(b"request");
    Suite::new(request).check(|parts| {
        let (thread, line) = (WorkerThread::named("slow").unwrap(), parts.line.clone());
        port(Device(thread, SLOW), parts, line)
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
        let (device, line) = (Device(parts.executor.clone(), SILENT), parts.line.clone());
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

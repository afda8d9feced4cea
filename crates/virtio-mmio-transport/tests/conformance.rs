// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The conformance suite, with the example's block device behind the registers: on a thread of its own,
//! and step by step on the test's.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::catch_unwind;
use std::sync::{Arc, Mutex};

use bus::BusDevice;
use virtio_conformance::ramdisk::RamDisk;
use virtio_conformance::{HeapGrowth, Memory, MmioPort, Parts, Request, Suite};
use virtio_device_core::{
    Activation, ActiveQueue, Chain, Context, DeviceFault, Executor, Progress, QueueHandler,
    RingFault, VirtioDevice, Virtqueue, WorkerThread, vmm_sys_util::epoll::EventSet,
};
use virtio_mmio_transport::MmioTransport;

const SECRET: &[u8] = b"what only the host may know";

type Port<D> = MmioPort<MmioTransport<Memory, D>>;

fn port<D: VirtioDevice<Memory> + fmt::Debug>(device: D, parts: Parts) -> Port<D> {
    let transport = MmioTransport::new(device, parts.memory, parts.line).unwrap();
    MmioPort::new(
        transport.with_observer(parts.events),
        |it, offset, data| it.read(offset, data).unwrap(),
        |it, offset, data| it.write(offset, data).unwrap(),
    )
    .showing(|transport| {
        let state = transport.save();
        format!("{transport:?} {transport:#?} {state:?}")
    })
}

/// Sees the thread that it is called on.
fn heap(work: &mut dyn FnMut()) -> HeapGrowth {
    let measured = allocation_counter::measure(work);
    HeapGrowth {
        peak: measured.bytes_max,
        left: measured.bytes_current,
    }
}

fn disk_suite() -> Suite {
    let request = Request::new(|bytes| {
        let (answer, data) = bytes.split_last().unwrap();
        *answer == 0 && data == [7; 512]
    });
    // Read sector 1.
    let request = request.readable(&[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    Suite::new(request.writable(513).at_most(4096 + 1)).with_secret(SECRET)
}

fn disk<E: Executor>(executor: E) -> RamDisk<E> {
    let mut disk: Vec<u8> = SECRET.iter().copied().cycle().take(4096).collect();
    disk.get_mut(512..1024).unwrap().fill(7);
    RamDisk::new(Arc::new(Mutex::new(disk)), executor)
}

/// Gives what the host types to a driver that has room for it, in the second of two queues.
#[derive(Debug)]
struct Keys {
    thread: WorkerThread,
    keys: UnixStream,
    reason: Option<&'static str>,
}

impl VirtioDevice<Memory> for Keys {
    fn device_type(&self) -> u32 {
        42
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[4, 16]
    }

    fn activate(&mut self, activation: Activation<Memory>) -> Result<(), DeviceFault> {
        if let Some(reason) = self.reason {
            return Err(DeviceFault::device(reason));
        }
        let keys = self.keys.try_clone().map_err(DeviceFault::Backend)?;
        activation.serve(&mut self.thread, |memory| Typing {
            memory,
            keys,
            chain: Chain::with_capacity(16),
        })
    }
}

struct Typing {
    memory: Memory,
    keys: UnixStream,
    chain: Chain,
}

impl QueueHandler for Typing {
    fn start(&mut self, cx: &mut Context<'_>) -> Result<(), DeviceFault> {
        let watched = cx.watch(0, &self.keys, EventSet::empty());
        watched.map_err(DeviceFault::Backend)
    }

    fn process(&mut self, _queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let Some(active) = cx.queue(1) else {
            return Ok(Progress::Idle);
        };
        let Ok(has_room) = active.lease.with(|queue| self.batch(queue, active)) else {
            return Ok(Progress::Idle);
        };
        let interest = if has_room? {
            EventSet::IN
        } else {
            EventSet::empty()
        };
        let changed = cx.set_interest(0, interest);
        changed.map_err(DeviceFault::Backend)?;
        Ok(Progress::Idle)
    }

    fn ready(
        &mut self,
        _source: u32,
        _readiness: EventSet,
        cx: &mut Context<'_>,
    ) -> Result<Progress, DeviceFault> {
        self.process(1, cx)
    }
}

impl Typing {
    /// Returns whether there is room for more.
    fn batch(&mut self, queue: &mut Virtqueue, active: &ActiveQueue) -> Result<bool, RingFault> {
        let memory = &*self.memory;
        let mut has_room = false;
        while let Some(head) = queue.take(memory, &mut self.chain)? {
            let room = self.chain.writable_len().min(64);
            if room == 0 || self.chain.check(memory).is_err() {
                queue.complete(memory, head, 0)?;
                continue;
            }
            let mut keys = vec![0; usize::try_from(room).unwrap()];
            let Ok(count) = self.keys.read(&mut keys) else {
                queue.put_back(head);
                has_room = true;
                break;
            };
            let keys = keys.get(..count).unwrap();
            let len = self.chain.write(memory, keys).unwrap();
            queue.complete(memory, head, len)?;
        }
        if queue.needs_interrupt(memory)? {
            active.signal_used();
        }
        Ok(queue.enable_notification(memory)? || has_room)
    }
}

fn keys(parts: Parts, reason: Option<&'static str>) -> Port<Keys> {
    let (mut host, device) = UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    device.set_nonblocking(true).unwrap();
    parts.host.deliver_by(move || drop(host.write(b"key")));
    let device = Keys {
        thread: WorkerThread::named("keys").unwrap(),
        keys: device,
        reason,
    };
    port(device, parts)
}

fn keys_suite() -> Suite {
    let request =
        Request::new(|bytes| !bytes.is_empty() && bytes.iter().all(|byte| b"key".contains(byte)));
    Suite::new(request.queue(1).writable(64))
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no level-triggered epoll")]
fn a_device_that_waits_for_the_host_conforms() {
    keys_suite().check(|parts| keys(parts, None));
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no level-triggered epoll")]
fn the_suite_says_why_a_device_does_not_start() {
    let check = || keys_suite().check(|parts| keys(parts, Some("tap0 is gone")));
    let refused = catch_unwind(check).unwrap_err();
    let message = refused.downcast::<String>().unwrap();
    assert!(
        message.ends_with("device cannot work: tap0 is gone\n  left: 79\n right: 15"),
        "{message}"
    );
}

#[test]
#[cfg_attr(miri, ignore = "it takes too long")]
fn the_example_block_device_conforms() {
    let suite = disk_suite().with_heap(heap);
    suite.check(|parts| port(disk(parts.executor.clone()), parts));
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no level-triggered epoll")]
fn the_example_block_device_conforms_on_a_thread_of_its_own() {
    disk_suite().check(|parts| port(disk(WorkerThread::named("disk").unwrap()), parts));
}

/// A device of which nothing else is known.
trait Any: VirtioDevice<Memory> + fmt::Debug {}

impl<E: Executor> Any for RamDisk<E> {}

#[test]
#[cfg_attr(miri, ignore = "Miri has no level-triggered epoll")]
fn a_boxed_device_with_a_boxed_executor_conforms() {
    disk_suite().check(|parts| {
        let thread: Box<dyn Executor> = Box::new(WorkerThread::named("disk").unwrap());
        let disk: Box<dyn Any> = Box::new(disk(thread));
        port(disk, parts)
    });
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Shape 1: a host fd wakes the worker; nothing is lost while the driver has no buffers, and nobody
//! spins meanwhile.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_device_core::{
    Activation, Chain, Context, DeviceFault, Progress, QueueHandler, VirtioDevice,
    vmm_sys_util::epoll::EventSet,
};

use crate::support::{Guest, Memory, Plain, QUEUE_SIZE, Shape, ordeal, thread};

const HOST: u32 = 0;

struct Input {
    memory: Memory,
    host: Arc<UnixStream>,
    chain: Chain,
    calls: Arc<AtomicU32>,
}

impl QueueHandler for Input {
    fn start(&mut self, cx: &mut Context<'_>) -> Result<(), DeviceFault> {
        // Not before the driver has offered a buffer.
        cx.watch(HOST, &self.host, EventSet::empty())
            .map_err(DeviceFault::Backend)
    }

    /// There may be room now.
    fn process(&mut self, _queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        cx.set_interest(HOST, EventSet::IN)
            .map_err(DeviceFault::Backend)?;
        Ok(Progress::Idle)
    }

    fn ready(
        &mut self,
        _source: u32,
        _readiness: EventSet,
        cx: &mut Context<'_>,
    ) -> Result<Progress, DeviceFault> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let memory = &*self.memory;
        let Some(queue) = cx.queue(0) else {
            return Ok(Progress::Idle);
        };
        // Reading and giving back are one: a pause never comes between.
        let looked = queue.lease.with(|ring| {
            let Some(head) = ring.take(memory, &mut self.chain)? else {
                ring.enable_notification(memory)?;
                return Ok(false);
            };
            let mut byte = [0; 64];
            let room = self.chain.writable_len().min(64) as usize;
            match (&*self.host).read(&mut byte[..room]) {
                Ok(count) => {
                    let len = self.chain.write(memory, &byte[..count]).unwrap_or(0);
                    ring.complete(memory, head, len)?;
                }
                Err(_) => ring.put_back(head),
            }
            if ring.needs_interrupt(memory)? {
                queue.signal_used();
            }
            Ok(true)
        });
        let room: bool = looked.unwrap_or(Ok(true)).map_err(DeviceFault::Ring)?;
        if !room {
            // Back-pressure: nobody is woken for what there is no room for.
            let idle = cx.set_interest(HOST, EventSet::empty());
            idle.map_err(DeviceFault::Backend)?;
        }
        Ok(Progress::Idle)
    }
}

struct HostInput {
    far: UnixStream,
    near: Arc<UnixStream>,
    calls: Arc<AtomicU32>,
    next: u8,
}

impl HostInput {
    fn new() -> Self {
        let (far, near) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        Self {
            far,
            near: Arc::new(near),
            calls: Arc::default(),
            next: 0,
        }
    }
}

impl Shape for HostInput {
    type Device = Box<dyn VirtioDevice<Memory>>;

    fn device(&mut self) -> Self::Device {
        let (host, calls) = (self.near.clone(), self.calls.clone());
        let mut executor = thread();
        let activate = move |activation: Activation<Memory>| {
            activation.serve(&mut executor, |memory| Input {
                memory,
                host: host.clone(),
                chain: Chain::with_capacity(QUEUE_SIZE),
                calls: calls.clone(),
            })
        };
        Box::new(Plain {
            queues: &[QUEUE_SIZE],
            activate,
        })
    }

    fn begin(&mut self, guest: &mut Guest<Self::Device>) {
        self.next = self.next.wrapping_add(1);
        // The input is there before the room for it.
        self.far.write_all(&[self.next; 3]).unwrap();
        guest.offer_writable(0, 0, 3);
    }

    fn finish(&mut self, guest: &mut Guest<Self::Device>) {
        assert_eq!(guest.used(0, 1), [(0, 3)]);
        assert_eq!(guest.bytes(0, 0, 3), [self.next; 3]);
    }

    fn abandon(&mut self) {
        // What nobody took is still there.
        while (&*self.near)
            .read(&mut [0; 64])
            .is_ok_and(|count| count != 0)
        {}
    }

    fn looks_at(&self, _index: usize) -> bool {
        false // not before there is input
    }
}

#[test]
fn host_input() {
    ordeal(HostInput::new());
}

#[test]
fn host_input_is_kept_while_there_is_no_room_and_nobody_spins() {
    let mut shape = HostInput::new();
    let mut guest = Guest::new(shape.device());
    guest.start();
    shape.far.write_all(b"abcdef").unwrap();
    guest.notify(0);
    std::thread::sleep(std::time::Duration::from_millis(20));
    let calls = shape.calls.load(Ordering::SeqCst);
    assert!(calls < 5, "{calls} calls for nothing");
    for (head, expected) in [(0, b"abc"), (1, b"def")] {
        guest.offer_writable(0, head, 3);
        assert_eq!(guest.used(0, 1), [(head.into(), 3)]);
        assert_eq!(guest.bytes(0, head, 3), expected);
    }
}

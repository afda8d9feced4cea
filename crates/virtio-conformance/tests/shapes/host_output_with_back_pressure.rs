// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Shape 2: the worker waits until a host fd takes more; the vCPU does not.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use virtio_device_core::{
    Activation, Chain, Context, DeviceFault, Progress, QueueHandler, RingFault, VirtioDevice,
    vmm_sys_util::epoll::EventSet,
};

use crate::support::{Guest, Memory, Plain, QUEUE_SIZE, SOON, Shape, ordeal, thread};

const HOST: u32 = 0;

struct Output {
    memory: Memory,
    host: Arc<UnixStream>,
    chain: Chain,
}

impl Output {
    /// Writes chain after chain; returns whether the host takes no more for now.
    fn flush(&mut self, cx: &Context<'_>) -> Result<bool, DeviceFault> {
        let memory = &*self.memory;
        let Some(queue) = cx.queue(0) else {
            return Ok(false);
        };
        // Writing and giving back are one: a pause never comes between, and nothing is sent twice.
        let looked = queue.lease.with(|ring| {
            let mut full = false;
            while let Some(head) = ring.take(memory, &mut self.chain)? {
                let mut bytes = [0; 64];
                let count = self.chain.reader(memory).read(&mut bytes).unwrap_or(0);
                match (&*self.host).write(&bytes[..count]) {
                    Ok(_) => ring.complete(memory, head, 0)?,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        ring.put_back(head);
                        full = true;
                        break;
                    }
                    // A host that has gone away swallows what it is sent.
                    Err(_) => ring.complete(memory, head, 0)?,
                }
            }
            if ring.needs_interrupt(memory)? {
                queue.signal_used();
            }
            Ok::<bool, RingFault>(full)
        });
        looked.unwrap_or(Ok(false)).map_err(DeviceFault::Ring)
    }

    fn serve(&mut self, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let interest = match self.flush(cx)? {
            true => EventSet::OUT,
            false => EventSet::empty(),
        };
        cx.set_interest(HOST, interest)
            .map_err(DeviceFault::Backend)?;
        Ok(Progress::Idle)
    }
}

impl QueueHandler for Output {
    fn start(&mut self, cx: &mut Context<'_>) -> Result<(), DeviceFault> {
        cx.watch(HOST, &self.host, EventSet::empty())
            .map_err(DeviceFault::Backend)
    }

    fn process(&mut self, _queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        self.serve(cx)
    }

    fn ready(
        &mut self,
        _source: u32,
        _readiness: EventSet,
        cx: &mut Context<'_>,
    ) -> Result<Progress, DeviceFault> {
        self.serve(cx)
    }
}

struct HostOutput {
    far: UnixStream,
    near: Arc<UnixStream>,
    next: u8,
}

impl HostOutput {
    fn new() -> Self {
        let (far, near) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_read_timeout(Some(SOON)).unwrap();
        Self {
            far,
            near: Arc::new(near),
            next: 0,
        }
    }
}

impl Shape for HostOutput {
    type Device = Box<dyn VirtioDevice<Memory>>;

    fn device(&mut self) -> Self::Device {
        let host = self.near.clone();
        let mut executor = thread();
        let activate = move |activation: Activation<Memory>| {
            activation.serve(&mut executor, |memory| Output {
                memory,
                host: host.clone(),
                chain: Chain::with_capacity(QUEUE_SIZE),
            })
        };
        Box::new(Plain {
            queues: &[QUEUE_SIZE],
            activate,
        })
    }

    fn begin(&mut self, guest: &mut Guest<Self::Device>) {
        self.next = self.next.wrapping_add(1);
        guest.offer_readable(0, 0, &[self.next; 5]);
    }

    fn finish(&mut self, guest: &mut Guest<Self::Device>) {
        assert_eq!(guest.used(0, 1), [(0, 0)]);
        let mut bytes = [0; 5];
        self.far.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, [self.next; 5]);
    }

    fn abandon(&mut self) {
        // It may have been sent before the reset.
        self.far.set_nonblocking(true).unwrap();
        while self.far.read(&mut [0; 64]).is_ok_and(|count| count != 0) {}
        self.far.set_nonblocking(false).unwrap();
    }
}

#[test]
fn host_output_with_back_pressure() {
    ordeal(HostOutput::new());
}

#[test]
fn a_host_that_does_not_read_holds_nobody_up_and_gets_every_byte_once() {
    let mut shape = HostOutput::new();
    let mut guest = Guest::new(shape.device());
    guest.start();
    // More than the socket takes; each write of a register returns at once all the same.
    let (mut sent, mut begun) = (Vec::new(), 0_u32);
    while begun < 4000 {
        let byte = begun as u8;
        guest.offer_readable(0, (begun % 8) as u16, &[byte; 64]);
        sent.extend([byte; 64]);
        begun += 1;
        let before = std::time::Instant::now();
        while guest.queues[0].take_used().is_empty() {
            if before.elapsed() > std::time::Duration::from_millis(50) {
                // Nobody reads: now somebody does.
                let mut received = vec![0; sent.len()];
                shape.far.read_exact(&mut received).unwrap();
                assert_eq!(received, sent);
                guest.used(0, 1);
                return;
            }
        }
    }
    unreachable!("the socket has taken everything");
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device with two queues and input from the host: what `docs/a-device-in-an-hour.md` makes.

use std::io::{self, ErrorKind, Read};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use virtio_device_core::vmm_sys_util::epoll::EventSet;
use virtio_device_core::{
    Activation, Chain, Context, DeviceFault, Executor, Progress, QueueHandler, RingFault,
    VirtioDevice,
};
use vm_memory::GuestAddressSpace;

/// The queue whose buffers the device fills with what comes from the host.
const RECEIVE: u16 = 0;
/// The queue whose buffers the device sends to the host.
const TRANSMIT: u16 = 1;
const QUEUE_SIZE: u16 = 64;
/// The host's descriptor among those that wake the worker.
const HOST: u32 = 0;
/// The longest message; of a longer one the rest is dropped.
const MAX_MESSAGE: usize = 4096;

/// A console-like device: what the driver sends goes to a datagram socket, and what arrives there goes
/// to the driver.
#[derive(Debug)]
pub struct Pipe<E> {
    host: Arc<UnixDatagram>,
    executor: E,
}

impl<E: Executor> Pipe<E> {
    /// Connects a device to `host`. Its worker runs where `executor` says.
    ///
    /// # Errors
    ///
    /// If the socket cannot be made one that does not wait.
    pub fn new(host: UnixDatagram, executor: E) -> io::Result<Self> {
        host.set_nonblocking(true)?;
        let host = Arc::new(host);
        Ok(Self { host, executor })
    }
}

impl<M, E> VirtioDevice<M> for Pipe<E>
where
    M: GuestAddressSpace + Send + 'static,
    E: Executor,
{
    fn device_type(&self) -> u32 {
        3
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn activate(&mut self, activation: Activation<M>) -> Result<(), DeviceFault> {
        activation.queue(RECEIVE)?; // the driver must have enabled both
        activation.queue(TRANSMIT)?;
        let host = self.host.clone();
        activation.serve(&mut self.executor, |memory| Ends {
            memory,
            host,
            input: Chain::with_capacity(QUEUE_SIZE),
            output: Chain::with_capacity(QUEUE_SIZE),
            buffer: vec![0; MAX_MESSAGE],
        })
    }
}

/// The half of the device that serves the queues.
struct Ends<M> {
    memory: M,
    host: Arc<UnixDatagram>,
    input: Chain,
    output: Chain,
    buffer: Vec<u8>,
}

/// What a look at one queue has come to.
#[derive(PartialEq)]
enum Look {
    /// A request was served, and there may be another.
    Served,
    /// The driver has nothing for us: its notification will wake us.
    AwaitsDriver,
    /// The host has nothing for us, or takes nothing: its descriptor will wake us.
    AwaitsHost,
}

impl<M: GuestAddressSpace> QueueHandler for Ends<M> {
    fn start(&mut self, cx: &mut Context<'_>) -> Result<(), DeviceFault> {
        // Not before a queue says so: see `turn`.
        cx.watch(HOST, &*self.host, EventSet::empty())
            .map_err(DeviceFault::Backend)
    }

    fn process(&mut self, _queue: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        self.turn(cx)
    }

    fn ready(
        &mut self,
        _source: u32,
        _readiness: EventSet,
        cx: &mut Context<'_>,
    ) -> Result<Progress, DeviceFault> {
        self.turn(cx)
    }
}

impl<M: GuestAddressSpace> Ends<M> {
    /// Looks at both queues once. Whoever has more to do lets others go first.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        let received = self.receive(cx)?;
        let sent = self.send(cx)?;
        // Back-pressure: nobody is woken for what there is no room for.
        let mut interest = EventSet::empty();
        interest.set(EventSet::IN, received == Look::AwaitsHost);
        interest.set(EventSet::OUT, sent == Look::AwaitsHost);
        cx.set_interest(HOST, interest)
            .map_err(DeviceFault::Backend)?;
        let more = received == Look::Served || sent == Look::Served;
        Ok(if more { Progress::More } else { Progress::Idle })
    }

    fn receive(&mut self, cx: &Context<'_>) -> Result<Look, DeviceFault> {
        let memory = self.memory.memory();
        let Some(queue) = cx.queue(RECEIVE) else {
            return Ok(Look::AwaitsDriver);
        };
        let looked = queue.lease.with(|ring| -> Result<Look, RingFault> {
            let Some(head) = ring.take(&*memory, &mut self.input)? else {
                let more = ring.enable_notification(&*memory)?;
                return Ok(if more {
                    Look::Served
                } else {
                    Look::AwaitsDriver
                });
            };
            // A buffer outside of memory spoils the request, not the ring.
            let len = if self.input.check(&*memory).is_err() || self.input.writable_len() == 0 {
                0
            } else {
                match self.host.recv(&mut self.buffer) {
                    // The buffer is the device's own: what is written was checked, and is read once.
                    Ok(count) => {
                        let message = self.buffer.get(..count).unwrap_or_default();
                        self.input.write(&*memory, message).unwrap_or(0)
                    }
                    Err(_) => {
                        ring.put_back(head); // input that is not there yet: the buffer waits
                        return Ok(Look::AwaitsHost);
                    }
                }
            };
            ring.complete(&*memory, head, len)?;
            if ring.needs_interrupt(&*memory)? {
                queue.signal_used();
            }
            Ok(Look::Served)
        });
        // Paused, or reset: who resumes it calls again.
        Ok(looked.unwrap_or(Ok(Look::AwaitsDriver))?)
    }

    fn send(&mut self, cx: &Context<'_>) -> Result<Look, DeviceFault> {
        let memory = self.memory.memory();
        let Some(queue) = cx.queue(TRANSMIT) else {
            return Ok(Look::AwaitsDriver);
        };
        let looked = queue.lease.with(|ring| -> Result<Look, RingFault> {
            let Some(head) = ring.take(&*memory, &mut self.output)? else {
                let more = ring.enable_notification(&*memory)?;
                return Ok(if more {
                    Look::Served
                } else {
                    Look::AwaitsDriver
                });
            };
            if self.output.check(&*memory).is_ok() {
                let count = self.output.reader(&*memory).read(&mut self.buffer);
                let message = self.buffer.get(..count.unwrap_or(0)).unwrap_or_default();
                let sent = self.host.send(message);
                if sent.is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
                    ring.put_back(head); // output that the host does not take: the driver waits
                    return Ok(Look::AwaitsHost);
                }
                // A host that has gone takes everything: the driver is not its hostage.
            }
            ring.complete(&*memory, head, 0)?;
            if ring.needs_interrupt(&*memory)? {
                queue.signal_used();
            }
            Ok(Look::Served)
        });
        Ok(looked.unwrap_or(Ok(Look::AwaitsDriver))?)
    }
}

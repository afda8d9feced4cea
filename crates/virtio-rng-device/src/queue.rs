// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The entropy device as its worker sees it: requests in, random bytes out.

use std::io::{self, ErrorKind, Read};
use std::sync::{Arc, Mutex};

use virtio_device_core::{
    ActiveQueue, Chain, DeviceFault, Head, InterruptHandle, Progress, QueueHandler, QueueLease,
    RingFault, Virtqueue,
};
use vm_memory::{GuestAddressSpace, GuestMemory};

use crate::device::QUEUE_SIZE;

/// Most that one request is given, whatever its buffers add up to: with descriptors that overlap, a
/// driver can ask for far more memory than it has. Less than the whole buffer is legal (section
/// 5.4.6.2).
pub const MAX_REQUEST: usize = 64 * 1024;

/// How often one request goes back to a source that was interrupted.
const MAX_INTERRUPTIONS: u32 = 64;

/// Serves the only queue. Everything it needs is allocated here, once.
pub(crate) struct RequestQueue<M, S> {
    memory: M,
    queue: QueueLease,
    interrupt: InterruptHandle,
    source: Arc<Mutex<S>>,
    chain: Chain,
    /// Holds random bytes only between their draw and their hand-over.
    scratch: Box<[u8]>,
}

/// The work of one wake-up.
struct Batch {
    /// Looks that may still be taken at the available ring.
    budget: u16,
    /// A request whose bytes lie in the scratch buffer, and their number.
    filled: Option<(Head, usize)>,
    /// Whether a request has been given back.
    used: bool,
}

/// What is to be done next, outside of the queue's lock.
enum Next {
    /// Draw this many bytes for a request.
    Draw(Head, usize),
    /// End the batch.
    End(Progress),
}

impl<M, S> RequestQueue<M, S> {
    pub(crate) fn new(
        memory: M,
        requestq: &ActiveQueue,
        interrupt: InterruptHandle,
        source: Arc<Mutex<S>>,
    ) -> Self {
        Self {
            memory,
            queue: requestq.queue.clone(),
            interrupt,
            source,
            chain: Chain::with_capacity(QUEUE_SIZE),
            scratch: vec![0; MAX_REQUEST].into_boxed_slice(),
        }
    }
}

impl<M, S> QueueHandler for RequestQueue<M, S>
where
    M: GuestAddressSpace + Send,
    S: Read + Send,
{
    /// The source is asked between two looks at the queue, never during one, so it may take its
    /// time without keeping anybody from taking the queue back.
    fn process(&mut self, index: u16) -> Result<Progress, DeviceFault> {
        let memory = self.memory.memory();
        let mut batch = Batch {
            budget: QUEUE_SIZE,
            filled: None,
            used: false,
        };
        loop {
            let next = self.queue.with(|queue| {
                batch.hand_over(queue, &*memory, &self.chain, &mut self.scratch)?;
                let next = batch.next(queue, &*memory, &mut self.chain)?;
                // One interrupt for the whole batch.
                if matches!(next, Next::End(_)) && batch.used && queue.needs_interrupt(&*memory)? {
                    self.interrupt.used_buffers(index);
                }
                Ok::<_, RingFault>(next)
            });
            match next.transpose()? {
                Some(Next::Draw(head, len)) => batch.filled = Some((head, self.draw(len)?)),
                Some(Next::End(progress)) => return Ok(progress),
                // The queue has been taken back.
                None => return Ok(Progress::Idle),
            }
        }
    }
}

impl<M, S: Read> RequestQueue<M, S> {
    /// Draws up to `len` bytes into the scratch buffer, at least one.
    fn draw(&mut self, len: usize) -> Result<usize, DeviceFault> {
        let failed = |why: &str| Err(DeviceFault::Backend(io::Error::other(why)));
        let Ok(mut source) = self.source.lock() else {
            return failed("the source panicked");
        };
        let room = self.scratch.get_mut(..len).unwrap_or_default();
        for _ in 0..MAX_INTERRUPTIONS {
            match source.read(room) {
                Ok(0) => return failed("the source has ended"),
                Ok(count) if count > room.len() => return failed("the source claims too much"),
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(DeviceFault::Backend(error)),
            }
        }
        failed("the source is interrupted for ever")
    }
}

impl Batch {
    /// Gives the filled request back, if there is one, and wipes its bytes from the scratch buffer.
    fn hand_over<M: GuestMemory>(
        &mut self,
        queue: &mut Virtqueue,
        memory: &M,
        chain: &Chain,
        scratch: &mut [u8],
    ) -> Result<(), RingFault> {
        let Some((head, len)) = self.filled.take() else {
            return Ok(());
        };
        let bytes = scratch.get_mut(..len).unwrap_or_default();
        // The chain was checked; if memory was taken away meanwhile, nothing may be claimed.
        let written = chain.write(memory, bytes).unwrap_or(0);
        bytes.fill(0);
        self.used = true;
        queue.complete(memory, head, written)
    }

    /// Takes the next request that can be served. Those that cannot, because they have no writable
    /// byte or one outside of memory, go back with length 0.
    ///
    /// Every look at the ring costs budget, whatever it finds, so a driver that keeps changing it
    /// cannot hold the worker.
    fn next<M: GuestMemory>(
        &mut self,
        queue: &mut Virtqueue,
        memory: &M,
        chain: &mut Chain,
    ) -> Result<Next, RingFault> {
        queue.disable_notification(memory)?;
        while self.budget != 0 {
            self.budget -= 1;
            let Some(head) = queue.take(memory, chain)? else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                return Ok(Next::End(Progress::Idle));
            };
            let wanted = chain.check(memory).map_or(0, |()| chain.writable_len());
            let len = usize::try_from(wanted).map_or(MAX_REQUEST, |wanted| wanted.min(MAX_REQUEST));
            if len != 0 {
                return Ok(Next::Draw(head, len));
            }
            queue.complete(memory, head, 0)?;
            self.used = true;
        }
        Ok(Next::End(Progress::More))
    }
}

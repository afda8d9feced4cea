// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The entropy device as its driver's vCPU sees it: started and stopped.

use std::fmt;
use std::io::Read;
use std::sync::{Arc, Mutex};

use virtio_device_core::{ActivateError, Activation, Executor, RateLimits, VirtioDevice, Worker};
use vm_memory::GuestAddressSpace;

use crate::draw::{Manner, Place, Retry};
use crate::observer::RngObserver;
use crate::queue::{Parts, RequestQueue};

/// The device type of VIRTIO 1.3, section 5.4.
pub const DEVICE_TYPE: u32 = 4;
/// Size of the only queue, `requestq`.
pub const QUEUE_SIZE: u16 = 256;

/// A virtio entropy device (VIRTIO 1.3, section 5.4).
///
/// `S` is where its randomness comes from, and `E` decides where its work is done: with
/// [`WorkerThread`](virtio_device_core::WorkerThread), on a thread of its own.
///
/// ```
/// use std::sync::Arc;
/// use virtio_device_core::{VirtioDevice, WorkerThread};
/// use virtio_rng_device::{KernelEntropy, Rng};
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let rng = Rng::new(KernelEntropy, WorkerThread::named("virtio-rng")?);
/// let device: Box<dyn VirtioDevice<Arc<GuestMemoryMmap<()>>>> = Box::new(rng);
/// assert_eq!(device.device_type(), 4);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Rng<S, E, O = ()> {
    /// Shared with the worker, and kept from one activation to the next.
    parts: Arc<Parts<S, O>>,
    manner: Manner,
    executor: E,
}

impl<S: Read + Send + 'static, E: Executor> Rng<S, E> {
    /// Makes a device that takes its randomness from `source` and works where `executor` says,
    /// without limits.
    ///
    /// The source is only ever read by the device's worker, with one call for each request. It may
    /// block, and it may give less than it was asked for; the driver then gets less. While it fails
    /// or has nothing, the request waits and the source is asked again, as [`Retry`] says. When it
    /// ends, panics, claims more than it could have given, or fails for too long, the device asks
    /// its driver for a reset, because a request must not be answered with nothing.
    pub fn new(source: S, executor: E) -> Self {
        Self::with_observer(source, executor, ())
    }
}

impl<S, E, O> Rng<S, E, O>
where
    S: Read + Send + 'static,
    E: Executor,
    O: RngObserver + 'static,
{
    /// Makes a device as [`Rng::new`] does, and has `observer` hear what it does.
    pub fn with_observer(source: S, executor: E, observer: O) -> Self {
        Self {
            parts: Arc::new(Parts {
                source: Mutex::new(Place::Here(source)),
                limits: RateLimits::none(),
                observer,
            }),
            manner: Manner::default(),
            executor,
        }
    }

    /// Sets how a request waits for a source that fails, from the next activation on.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.manner.retry = retry;
        self
    }

    /// Promises that the source never waits for anything, from the next activation on.
    ///
    /// Up to 4 KiB are then drawn while the worker holds its queue, which saves taking the queue's
    /// lock twice for each request: worth it for a generator in this process, such as
    /// `FastEntropy`. Whoever takes the queue back waits for a queue-length of such draws at most.
    /// Not for a file, a socket, or [`KernelEntropy`](crate::KernelEntropy), which waits while the
    /// kernel's generator is not seeded.
    #[must_use]
    pub fn with_prompt_source(mut self) -> Self {
        self.manner.prompt = true;
        self
    }

    /// The device's rate limits, to be set, saved and restored at any time.
    #[must_use]
    pub fn limits(&self) -> RateLimits {
        self.parts.limits.clone()
    }
}

impl<M, S, E, O> VirtioDevice<M> for Rng<S, E, O>
where
    M: GuestAddressSpace + Send + 'static,
    S: Read + Send + 'static,
    E: Executor,
    O: RngObserver + 'static,
{
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn activate(&mut self, activation: Activation<M>) -> Result<(), ActivateError> {
        let requestq = activation.queue(0)?;
        self.parts.limits.set_wakers(vec![requestq.kick.clone()]);
        let handler = RequestQueue::new(activation.memory, self.parts.clone(), self.manner);
        let worker = Worker::new(handler, activation.queues, activation.interrupt);
        Ok(self.executor.start(worker)?)
    }

    fn reset(&mut self) {
        self.parts.limits.set_wakers(Vec::new());
    }
}

/// Says nothing of the source, whose state may be worth guarding.
impl<S, E, O> fmt::Debug for Rng<S, E, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rng")
            .field("limits", &self.parts.limits)
            .field("manner", &self.manner)
            .finish_non_exhaustive()
    }
}

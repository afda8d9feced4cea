// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The entropy device as its driver's vCPU sees it: started and stopped.

use std::fmt;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use virtio_device_core::{Activation, DeviceFault, Executor, RateLimits, VirtioDevice};
use vm_memory::GuestAddressSpace;

use crate::observer::RngObserver;
use crate::queue::{Parts, RequestQueue, SourceOptions};
use crate::reader::{SourcePolicy, SourceSlot};

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
/// use virtio_rng_device::{EntropyDevice, KernelEntropy};
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let rng = EntropyDevice::new(KernelEntropy, WorkerThread::named("virtio-rng")?);
/// let device: Box<dyn VirtioDevice<Arc<GuestMemoryMmap<()>>>> = Box::new(rng);
/// assert_eq!(device.device_type(), 4);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct EntropyDevice<S, E, O = ()> {
    /// Shared with the worker, and kept from one activation to the next.
    parts: Arc<Parts<S, O>>,
    options: SourceOptions,
    executor: E,
}

impl<S: Read + Send + 'static, E: Executor> EntropyDevice<S, E> {
    /// Makes a device that takes its randomness from `source` and works where `executor` says,
    /// without limits.
    ///
    /// The source is only ever read by the device's worker, with one call for each request. It may
    /// block, and it may give less than it was asked for; the driver then gets less. While it fails
    /// or has nothing, the request waits and the source is asked again, as [`SourcePolicy`] says. When
    /// it ends, panics, or claims more than it could have given, the device asks its driver for a
    /// reset, because a request must not be answered with nothing.
    pub fn new(source: S, executor: E) -> Self {
        Self::with_observer(source, executor, ())
    }
}

impl<S, E, O> EntropyDevice<S, E, O>
where
    S: Read + Send + 'static,
    E: Executor,
    O: RngObserver + 'static,
{
    /// Makes a device as [`EntropyDevice::new`] does, and has `observer` hear what it does.
    pub fn with_observer(source: S, executor: E, observer: O) -> Self {
        Self {
            parts: Arc::new(Parts {
                source: Mutex::new(SourceSlot::Here(source)),
                limits: RateLimits::none(),
                observer,
            }),
            options: SourceOptions::default(),
            executor,
        }
    }

    /// Sets how a request waits for a source that fails, from the next activation on.
    #[must_use]
    pub fn with_source_policy(mut self, policy: SourcePolicy) -> Self {
        self.options.policy = policy;
        self
    }

    /// Names a descriptor that becomes readable when the source has something again, such as that of
    /// the socket or pipe which it reads, from the next activation on.
    ///
    /// A source that is empty, with [`WouldBlock`](io::ErrorKind::WouldBlock), then wakes the worker by
    /// itself instead of being asked again and again. A descriptor that cannot be waited for, such as
    /// a regular file's, changes nothing. A duplicate is kept.
    ///
    /// # Errors
    ///
    /// If `fd` cannot be duplicated.
    pub fn with_readiness(mut self, fd: impl AsFd) -> io::Result<Self> {
        let fd = fd.as_fd().try_clone_to_owned()?;
        self.options.readiness = Some(Arc::new(fd));
        Ok(self)
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
        self.options.prompt = true;
        self
    }

    /// The device's rate limits, to be set, saved and restored at any time.
    #[must_use]
    pub fn limits(&self) -> RateLimits {
        self.parts.limits.clone()
    }
}

impl<M, S, E, O> VirtioDevice<M> for EntropyDevice<S, E, O>
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

    fn activate(&mut self, activation: Activation<M>) -> Result<(), DeviceFault> {
        let requestq = activation.queue(0)?;
        self.parts.limits.set_wakers(vec![requestq.kick.clone()]);
        let (parts, options) = (&self.parts, &self.options);
        let started = activation.serve(&mut self.executor, |memory| {
            RequestQueue::new(memory, parts.clone(), options)
        });
        if started.is_err() {
            parts.limits.set_wakers(Vec::new());
        }
        started
    }

    fn reset(&mut self) {
        self.parts.limits.set_wakers(Vec::new());
    }
}

/// Says nothing of the source, whose state may be worth guarding.
impl<S, E, O> fmt::Debug for EntropyDevice<S, E, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntropyDevice")
            .field("limits", &self.parts.limits)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

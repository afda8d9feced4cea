// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device as vCPUs and the VMM see it.

use std::fmt;
use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_device_core::{
    ActivateError, Activation, ConfigNotifier, DeviceState, DeviceStateError, Executor, Features,
    RateLimits, VirtioDevice, Worker,
};
use vm_memory::GuestAddressSpace;

use crate::backend::Backend;
use crate::config::{self, Config, QUEUE_SIZE};
use crate::observer::BlockObserver;
use crate::shared::{Shared, Stability};
use crate::worker::Handler;

/// Most queues that a device may have.
pub const MAX_QUEUES: u16 = 64;

/// A block device (VIRTIO 1.3, section 5.2).
///
/// It serves its queues where `E` says, each by a worker of its own, and has its sectors in `B`. Nothing
/// that the host fails at ends the device: the request fails, and the guest decides.
pub struct Block<B, E> {
    shared: Arc<Shared<B>>,
    queue_sizes: Vec<u16>,
    executor: E,
}

impl<B: Backend, E: Executor> Block<B, E> {
    /// Makes a device with one queue.
    ///
    /// # Errors
    ///
    /// If the back end does not know its capacity.
    pub fn new(backend: B, executor: E) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared::new(backend)?),
            queue_sizes: vec![QUEUE_SIZE],
            executor,
        })
    }

    /// Sets the number of queues, from 1 to [`MAX_QUEUES`]; a number beyond is taken for the nearest. As
    /// many requests are served at a time as the executor has threads for them: give it a
    /// [`WorkerPool`](virtio_device_core::WorkerPool).
    #[must_use]
    pub fn with_queues(mut self, count: u16) -> Self {
        self.queue_sizes = vec![QUEUE_SIZE; count.clamp(1, MAX_QUEUES).into()];
        self
    }

    /// Sets how the device calls itself: up to 20 characters of printable ASCII, which Linux shows in
    /// `/sys/block/vda/serial`.
    ///
    /// # Errors
    ///
    /// If it is something else, or the device has been put behind its transport.
    pub fn with_id(mut self, id: &str) -> io::Result<Self> {
        let invalid = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
        let shared = Arc::get_mut(&mut self.shared);
        let shared = shared.ok_or_else(|| invalid("the device is in use"))?;
        let place = shared.id.split_at_mut_checked(id.len());
        let (place, rest) = place.ok_or_else(|| invalid("an id has 20 characters at most"))?;
        if !id.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(invalid("an id is printable ASCII"));
        }
        place.copy_from_slice(id.as_bytes());
        rest.fill(0);
        Ok(self)
    }

    /// Sets who is told what the host fails at. Once: whoever comes later is told nothing.
    #[must_use]
    pub fn with_observer(self, observer: impl BlockObserver + 'static) -> Self {
        let _ = self.shared.observer.set(Box::new(observer));
        self
    }

    /// A handle to tell the device of another capacity with.
    #[must_use]
    pub fn handle(&self) -> BlockHandle {
        BlockHandle(self.shared.clone())
    }

    /// The device's rate limits, to be set, saved and restored at any time. A request is charged with
    /// the bytes that it reads or writes.
    #[must_use]
    pub fn limits(&self) -> RateLimits {
        self.shared.limits.clone()
    }
}

impl<M, B, E> VirtioDevice<M> for Block<B, E>
where
    M: GuestAddressSpace + Clone + Send + 'static,
    B: Backend,
    E: Executor,
{
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> Features {
        let mut features = Features::of(&[
            VIRTIO_BLK_F_SIZE_MAX,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_CONFIG_WCE,
        ]);
        if self.queue_sizes.len() > 1 {
            features = features | Features::of(&[VIRTIO_BLK_F_MQ]);
        }
        if self.shared.backend.is_read_only() {
            return features | Features::of(&[VIRTIO_BLK_F_RO]);
        }
        features | Features::of(&[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES])
    }

    fn config_size(&self) -> u32 {
        // It is small.
        u32::try_from(config::LEN).unwrap_or(0)
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let disk = self.shared.disk();
        let config = Config {
            capacity: disk.capacity,
            geometry: self.shared.backend.geometry(),
            writeback: self.shared.writeback(),
            queues: u16::try_from(self.queue_sizes.len()).unwrap_or(1),
            discard: !disk.read_only,
        };
        let fields = config.bytes().into_iter().skip(offset as usize);
        data.iter_mut()
            .zip(fields)
            .for_each(|(to, from)| *to = from);
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        let before = config::WRITEBACK.checked_sub(offset as usize);
        match before.and_then(|before| data.get(before)) {
            Some(0) => self.shared.set_writeback(false),
            Some(1) => self.shared.set_writeback(true),
            _ => {}
        }
    }

    fn connect(&mut self, config: ConfigNotifier) {
        let _ = self.shared.config.set(config);
    }

    fn activate(&mut self, activation: Activation<M>) -> Result<(), ActivateError> {
        let features = activation.features;
        let stability = Stability::of(features);
        if features.has(VIRTIO_BLK_F_CONFIG_WCE) && !features.has(VIRTIO_BLK_F_FLUSH) {
            // Such a driver has no means to make a write stable (section 5.2.5.2).
            self.shared.set_writeback(false);
        }
        let queues = activation.queues;
        let kicks = queues.iter().map(|queue| queue.kick.clone()).collect();
        self.shared.limits.set_wakers(kicks);
        for queue in queues {
            let handler = Handler::new(activation.memory.clone(), self.shared.clone(), stability);
            let worker = Worker::new(handler, vec![queue], activation.interrupt.clone());
            self.executor.start(worker)?;
        }
        Ok(())
    }

    fn save(&self) -> DeviceState {
        self.shared.save()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        self.shared.restore(state)
    }

    fn reset(&mut self) {
        self.shared.limits.set_wakers(Vec::new());
        self.shared.set_writeback(true);
    }
}

/// Says nothing of what is on the disk.
impl<B, E> fmt::Debug for Block<B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("queues", &self.queue_sizes.len())
            .field("limits", &self.shared.limits)
            .finish_non_exhaustive()
    }
}

/// What of a device outlives being handed over to a transport.
trait Refresh: Send + Sync {
    fn refresh(&self) -> io::Result<u64>;
}

impl<B: Backend> Refresh for Shared<B> {
    fn refresh(&self) -> io::Result<u64> {
        Shared::refresh(self)
    }
}

/// Tells a device, wherever it is in its life, that its back end has another capacity; clones are the
/// same.
#[derive(Clone)]
pub struct BlockHandle(Arc<dyn Refresh>);

impl BlockHandle {
    /// Takes over the present capacity of the back end and tells the driver, if it is another one;
    /// returns it in bytes. A driver may be told of a disk that has grown, or has shrunk, while
    /// requests are on their way: what is beyond the end fails.
    ///
    /// Restoring the device puts back the capacity that its driver knows: call this afterwards.
    ///
    /// # Errors
    ///
    /// If the back end does not know its capacity; the device goes on with the one before.
    pub fn refresh(&self) -> io::Result<u64> {
        self.0.refresh()
    }
}

impl fmt::Debug for BlockHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockHandle").finish_non_exhaustive()
    }
}

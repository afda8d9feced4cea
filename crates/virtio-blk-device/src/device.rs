// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device as vCPUs and the VMM see it.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_device_core::{
    Activation, ConfigNotifier, DeviceFault, DeviceState, Executor, Features, QueueHandler,
    RateLimits, VirtioDevice, Worker,
};
use vm_memory::GuestAddressSpace;

use crate::backend::Backend;
use crate::config::{self, QUEUE_SIZE};
use crate::observer::BlockObserver;
use crate::request::ID_LEN;
use crate::shared::Shared;
#[cfg(feature = "io-uring")]
use crate::uring::{Home, RingHandler, take};
use crate::worker::Handler;

/// Most queues that a device may have.
pub const MAX_QUEUES: u16 = 64;

/// A block device (VIRTIO 1.3, section 5.2).
///
/// Its sectors are in a [`Backend`]. Each queue has a worker of its own, which the [`Executor`] `E`
/// runs. No failure of the host ends the device: the request fails, and the guest decides how to go
/// on.
pub struct Block<E> {
    pub(crate) shared: Arc<Shared>,
    pub(crate) queue_sizes: Vec<u16>,
    executor: E,
    /// Whether the driver cannot switch the cache.
    cache_is_fixed: bool,
    /// The ring of each queue, if it has one.
    #[cfg(feature = "io-uring")]
    pub(crate) rings: Vec<Home>,
}

impl<E> fmt::Debug for Block<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

impl<E: Executor> Block<E> {
    /// Makes a device with one queue.
    ///
    /// # Errors
    ///
    /// If the back end cannot determine its capacity.
    pub fn new(backend: Arc<dyn Backend>, executor: E) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared::new(backend)?),
            queue_sizes: vec![QUEUE_SIZE],
            executor,
            cache_is_fixed: false,
            #[cfg(feature = "io-uring")]
            rings: Vec::new(),
        })
    }

    /// Sets the number of queues (`VIRTIO_BLK_F_MQ`), at most [`MAX_QUEUES`]; a number out of range
    /// is replaced by the nearest one in it. Queues are served at the same time only if the
    /// executor has a thread for each, as a `Vec` of
    /// [`WorkerThread`](virtio_device_core::WorkerThread)s has.
    #[must_use]
    pub fn with_queues(mut self, count: u16) -> Self {
        self.queue_sizes = vec![QUEUE_SIZE; count.clamp(1, MAX_QUEUES).into()];
        self
    }

    /// Sets the device ID (`VIRTIO_BLK_T_GET_ID`): up to 20 characters of printable ASCII, which
    /// Linux shows in `/sys/block/vda/serial`.
    ///
    /// # Errors
    ///
    /// If `id` is anything else, or a [handle](Self::handle) was taken before.
    pub fn with_id(mut self, id: &str) -> io::Result<Self> {
        let valid = id.len() <= ID_LEN && id.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        let why = match Arc::get_mut(&mut self.shared) {
            Some(shared) if valid => {
                shared.id = std::array::from_fn(|at| id.as_bytes().get(at).copied().unwrap_or(0));
                return Ok(self);
            }
            Some(_) => "an id is up to 20 characters of printable ASCII",
            None => "an id is set before a handle is taken",
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, why))
    }

    /// Sets the observer of the host's failures. Only the first one that is set is called.
    #[must_use]
    pub fn with_observer(self, observer: impl BlockObserver + 'static) -> Self {
        let _ = self.shared.observer.set(Box::new(observer));
        self
    }

    /// A handle that tells the device when its back end's capacity has changed.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use virtio_blk_device::{Block, FileBackend, FileOptions};
    /// use virtio_device_core::WorkerThread;
    ///
    /// # fn grow(path: &std::path::Path) -> std::io::Result<()> {
    /// let file = FileBackend::open(path, FileOptions::default())?;
    /// let device = Block::new(Arc::new(file), WorkerThread::named("disk")?)?;
    /// let handle = device.handle();
    /// // The device goes behind a transport. Later, when the image has grown:
    /// let bytes = handle.refresh()?;
    /// # Ok(())
    /// # }
    /// ```
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

impl<M, E> VirtioDevice<M> for Block<E>
where
    M: GuestAddressSpace + Clone + Send + 'static,
    E: Executor,
{
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> Features {
        let mut bits = vec![
            blk::VIRTIO_BLK_F_SIZE_MAX,
            blk::VIRTIO_BLK_F_SEG_MAX,
            blk::VIRTIO_BLK_F_BLK_SIZE,
            blk::VIRTIO_BLK_F_FLUSH,
            blk::VIRTIO_BLK_F_TOPOLOGY,
            blk::VIRTIO_BLK_F_CONFIG_WCE,
        ];
        if self.queue_sizes.len() > 1 {
            bits.push(blk::VIRTIO_BLK_F_MQ);
        }
        bits.extend_from_slice(match self.shared.disk().read_only {
            true => &[blk::VIRTIO_BLK_F_RO],
            false => &[blk::VIRTIO_BLK_F_DISCARD, blk::VIRTIO_BLK_F_WRITE_ZEROES],
        });
        Features::of(&bits)
    }

    fn config_size(&self) -> u32 {
        u32::try_from(config::LEN).unwrap_or(0)
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let queues = u16::try_from(self.queue_sizes.len()).unwrap_or(MAX_QUEUES);
        let space = config::space(&self.shared, queues);
        for (to, from) in data.iter_mut().zip(space.iter().skip(offset as usize)) {
            *to = *from;
        }
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        let before = config::WRITEBACK.checked_sub(offset as usize);
        let byte = before.and_then(|before| data.get(before));
        if let (Some(&on @ (0 | 1)), false) = (byte, self.cache_is_fixed) {
            self.shared.writeback.store(on == 1, Ordering::Release);
        }
    }

    fn connect(&mut self, config: ConfigNotifier) {
        let _ = self.shared.config.set(config);
    }

    fn negotiated(&mut self, features: Features) {
        // A driver that cannot flush has no cache, and one that can has it (section 5.2.5), until it says
        // otherwise.
        let can_flush = features.has(blk::VIRTIO_BLK_F_FLUSH);
        self.shared.writeback.store(can_flush, Ordering::Release);
        self.cache_is_fixed = !features.has(blk::VIRTIO_BLK_F_CONFIG_WCE);
    }

    fn activate(&mut self, activation: Activation<M>) -> Result<(), DeviceFault> {
        let kicks = activation.queues.iter().map(|queue| queue.kick.clone());
        self.shared.limits.set_wakers(kicks.collect());
        for queue in activation.queues {
            let (memory, shared) = (activation.memory.clone(), self.shared.clone());
            #[cfg(feature = "io-uring")]
            let (index, rings) = (queue.index, self.rings.clone());
            let build = move || -> Result<Box<dyn QueueHandler>, DeviceFault> {
                #[cfg(feature = "io-uring")]
                if let Some(ring) = rings.get(usize::from(index)).and_then(take) {
                    return Ok(Box::new(RingHandler::new(memory, shared, index, ring)));
                }
                Ok(Box::new(Handler::new(memory, shared)))
            };
            let worker = Worker::build(vec![queue], activation.interrupt.clone(), build);
            self.executor.start(worker)?;
        }
        Ok(())
    }

    fn save(&self) -> DeviceState {
        self.shared.save()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceFault> {
        self.shared.restore(state, self.cache_is_fixed)
    }

    fn reset(&mut self) {
        self.shared.limits.set_wakers(Vec::new());
        self.shared.writeback.store(true, Ordering::Release);
        self.cache_is_fixed = false;
    }
}

/// Tells a device, at any point of its life cycle, that its back end's capacity has changed. Clones
/// refer to the same device.
#[derive(Clone, Debug)]
pub struct BlockHandle(Arc<Shared>);

impl BlockHandle {
    /// Reads the back end's capacity; if it has changed, updates the configuration space and
    /// interrupts the driver. Returns the capacity in bytes. A disk may grow or shrink while
    /// requests are in flight: those beyond its end fail.
    ///
    /// Restoring a saved state puts back the capacity that the driver knows: call this afterwards.
    ///
    /// # Errors
    ///
    /// If the back end cannot determine its capacity; the device keeps the one it had.
    pub fn refresh(&self) -> io::Result<u64> {
        self.0.refresh()
    }
}

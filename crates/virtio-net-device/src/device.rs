// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device as vCPUs and the VMM see it.

use std::fmt;
use std::io::{self, ErrorKind};
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net as net;
use virtio_device_core::{
    Activation, ConfigNotifier, DeviceFault, DeviceState, Executor, Features, RateLimits,
    VirtioDevice, Worker,
};
use vm_memory::GuestAddressSpace;

use crate::backend::Backend;
use crate::config::{FEATURES, QUEUE_SIZE, guest_offloads, host_offloads};
use crate::observer::{NetDrops, NetObserver};
use crate::settings::{GROUP, Mac, Settings};
use crate::shared::Shared;
use crate::worker::Handler;

/// The most queue pairs (`max_virtqueue_pairs`) that a device may have.
pub const MAX_PAIRS: usize = 32;

/// Smallest MTU that a device may advise (VIRTIO 1.3, section 5.1.4.1).
pub const MIN_MTU: u16 = 68;

/// Bytes of the configuration space (section 5.1.4): the address, and three words in this order.
#[expect(clippy::cast_possible_truncation, reason = "it is small")]
const CONFIG_LEN: u32 = offset_of!(net::virtio_net_config, speed) as u32;
const _: () = assert!(
    offset_of!(net::virtio_net_config, status) == 6
        && offset_of!(net::virtio_net_config, max_virtqueue_pairs) == 8
        && offset_of!(net::virtio_net_config, mtu) == 10
);

/// A network device (VIRTIO 1.3, section 5.1).
///
/// Each queue pair has a [`Backend`] and a worker of its own, which the [`Executor`] `E` runs. No
/// failure of the host ends the device: the link is down until the back end works again.
pub struct Net<E> {
    shared: Arc<Shared>,
    features: Features,
    mtu: u16,
    queue_sizes: Vec<u16>,
    executor: E,
}

impl<E> fmt::Debug for Net<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

impl<E: Executor> Net<E> {
    /// Makes a device with one queue pair for each back end, of which there are 1 to [`MAX_PAIRS`].
    /// Pairs are served at the same time only if the executor has a thread for each, as a `Vec` of
    /// [`WorkerThread`](virtio_device_core::WorkerThread)s has.
    ///
    /// # Errors
    ///
    /// If there are no or too many back ends, or `mac` is a multicast address or all zeroes.
    pub fn new<B: Backend>(backends: Vec<B>, mac: Mac, executor: E) -> io::Result<Self> {
        let pairs = backends.len();
        let Some(first) = backends.first().filter(|_| pairs <= MAX_PAIRS) else {
            return invalid("a network device has 1 to 32 pairs of queues");
        };
        if mac[0] & GROUP != 0 || mac == [0; 6] {
            return invalid("a MAC address is that of one station");
        }
        let offloads = first.offloads() & (guest_offloads() | host_offloads());
        let several = match pairs {
            1 => Features::NONE,
            _ => Features::of(&[net::VIRTIO_NET_F_MQ]),
        };
        let boxed = backends
            .into_iter()
            .map(|it| Box::new(it) as Box<dyn Backend>);
        Ok(Self {
            features: FEATURES | offloads | several,
            mtu: 0,
            shared: Arc::new(Shared::new(boxed.collect(), mac)),
            // The last one is for control.
            queue_sizes: vec![QUEUE_SIZE; 2 * pairs + 1],
            executor,
        })
    }

    /// Sets the MTU that the driver is advised to use (`VIRTIO_NET_F_MTU`): [`MIN_MTU`] or more.
    ///
    /// # Errors
    ///
    /// If `mtu` is less than that.
    pub fn with_mtu(mut self, mtu: u16) -> io::Result<Self> {
        if mtu < MIN_MTU {
            return invalid("an MTU is 68 at least");
        }
        self.mtu = mtu;
        self.features = self.features | Features::of(&[net::VIRTIO_NET_F_MTU]);
        Ok(self)
    }

    /// Sets the observer of the link. Only the first one that is set is called.
    #[must_use]
    pub fn with_observer(self, observer: impl NetObserver + 'static) -> Self {
        let _ = self.shared.observer.set(Box::new(observer));
        self
    }

    /// A handle that controls the device's link.
    #[must_use]
    pub fn handle(&self) -> NetHandle {
        NetHandle(self.shared.clone())
    }

    /// Limits of packets to the driver, to be set, saved and restored at any time. A packet is charged
    /// with its bytes, the header of 12 bytes included.
    #[must_use]
    pub fn receive_limits(&self) -> RateLimits {
        self.shared.receive_limits.clone()
    }

    /// Limits of packets from the driver, as [`receive_limits`](Self::receive_limits).
    #[must_use]
    pub fn send_limits(&self) -> RateLimits {
        self.shared.send_limits.clone()
    }
}

impl<M, E> VirtioDevice<M> for Net<E>
where
    M: GuestAddressSpace + Clone + Send + 'static,
    E: Executor,
{
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> Features {
        self.features
    }

    fn config_size(&self) -> u32 {
        CONFIG_LEN
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let words = [self.shared.status(), self.shared.most_pairs(), self.mtu];
        let space = (self.shared.settings().mac.into_iter())
            .chain(words.into_iter().flat_map(u16::to_le_bytes))
            .skip(offset as usize);
        data.iter_mut().zip(space).for_each(|(to, from)| *to = from);
    }

    fn connect(&mut self, config: ConfigNotifier) {
        let _ = self.shared.config.set(config);
    }

    fn activate(&mut self, activation: Activation<M>) -> Result<(), DeviceFault> {
        let features = activation.features;
        let settings = self.shared.settings();
        (self.shared).set_settings((*settings).clone().within(features).into());
        // Where there are several pairs, the queue for control comes after all of them, and else
        // after the first (section 5.1.2). The first pair's worker serves it.
        let pairs = match features.has(net::VIRTIO_NET_F_MQ) {
            true => self.shared.most_pairs(),
            false => 1,
        };
        let served = 2 * pairs + u16::from(features.has(net::VIRTIO_NET_F_CTRL_VQ));
        let announces = features.has(net::VIRTIO_NET_F_GUEST_ANNOUNCE);
        self.shared.announces.store(announces, Ordering::Release);
        let kicks = activation.queues.iter().map(|queue| queue.kick.clone());
        self.shared.set_wakers(kicks.collect());
        for pair in self.shared.pairs.iter().take(pairs.into()) {
            let queues = activation.queues.iter().filter(|it| it.index < served);
            let mine = queues.filter(|it| it.index / 2 % pairs == pair.index);
            let queues: Vec<_> = mine.cloned().collect();
            if queues.is_empty() {
                continue;
            }
            let (memory, shared) = (activation.memory.clone(), self.shared.clone());
            let handler = Handler::new(memory, shared, pair.clone(), features);
            let worker = Worker::new(handler, queues, activation.interrupt.clone());
            self.executor.start(worker)?;
        }
        Ok(())
    }

    fn save(&self) -> DeviceState {
        self.shared.settings().save()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceFault> {
        let settings = Settings::restore(state, self.shared.most_pairs())?;
        self.shared.set_settings(settings.into());
        // The network has to learn where the driver is now.
        self.shared.moved.store(true, Ordering::Release);
        Ok(())
    }

    fn reset(&mut self) {
        self.shared.reset();
    }
}

/// Controls a device's link, at any point of its life cycle. Clones refer to the same device.
#[derive(Clone, Debug)]
pub struct NetHandle(Arc<Shared>);

impl NetHandle {
    /// Pulls the cable out or plugs it in, and tells the driver (`VIRTIO_NET_S_LINK_UP`). While it
    /// is out, packets are dropped in both directions.
    ///
    /// ```
    /// # use std::os::unix::net::UnixStream;
    /// use virtio_device_core::WorkerThread;
    /// use virtio_net_device::{Net, Stream};
    ///
    /// # let (_peer, socket) = UnixStream::pair()?;
    /// let mac = [0x52, 0x54, 0, 0, 0, 1];
    /// let device = Net::new(vec![Stream::new(socket)], mac, WorkerThread::named("net")?)?;
    /// let handle = device.handle();
    /// handle.set_cable(false);
    /// assert!(!handle.is_up());
    /// assert_eq!(handle.drops().sent, 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn set_cable(&self, plugged: bool) {
        self.0.set_cable(plugged);
    }

    /// Whether the cable is plugged in and every back end in use works: what the driver sees as
    /// `VIRTIO_NET_S_LINK_UP`.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.0.is_up()
    }

    /// Asks the driver to announce itself to the network, as it is asked after a restore without this
    /// call. One that has not agreed on `VIRTIO_NET_F_GUEST_ANNOUNCE` (section 5.1.4) is not asked.
    pub fn announce(&self) {
        self.0.announce();
    }

    /// The packets that were dropped so far.
    #[must_use]
    pub fn drops(&self) -> NetDrops {
        NetDrops {
            received: self.0.drops.received.load(Ordering::Relaxed),
            sent: self.0.drops.sent.load(Ordering::Relaxed),
        }
    }
}

fn invalid<T>(why: &str) -> io::Result<T> {
    Err(io::Error::new(ErrorKind::InvalidInput, why))
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the halves of the device share: vCPUs configure it, workers serve it, the VMM pulls its cable.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use virtio_bindings::virtio_net as net;
use virtio_device_core::vmm_sys_util::eventfd::EventFd;
use virtio_device_core::{ConfigNotifier, RateLimits};

use crate::backend::Backend;
use crate::observer::{Drops, NetEvent, NetObserver};
use crate::settings::{Mac, Settings};

pub(crate) struct Shared {
    pub(crate) pairs: Vec<Arc<Pair>>,
    /// The address that the device has until its driver sets another one.
    pub(crate) mac: Mac,
    settings: Mutex<Arc<Settings>>,
    cable: AtomicBool,
    /// The driver can be asked to tell the network where it is.
    pub(crate) announces: AtomicBool,
    /// It is to do so.
    announce: AtomicBool,
    /// The settings are those of a driver that was somewhere else before.
    pub(crate) moved: AtomicBool,
    pub(crate) receive_limits: RateLimits,
    pub(crate) send_limits: RateLimits,
    /// The event fds of all queues, to have them looked at again.
    wakers: Mutex<Vec<Arc<EventFd>>>,
    pub(crate) drops: Drops,
    pub(crate) config: OnceLock<ConfigNotifier>,
    pub(crate) observer: OnceLock<Box<dyn NetObserver>>,
}

/// The host's side of a pair of queues.
pub(crate) struct Pair {
    pub(crate) index: u16,
    port: Mutex<Port>,
    failed: AtomicBool,
}

/// What a worker takes for a turn.
pub(crate) struct Port {
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) settings: Arc<Settings>,
}

/// Says nothing of who the driver talks to.
impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net")
            .field("queues", &(2 * self.pairs.len() + 1))
            .field("receive_limits", &self.receive_limits)
            .field("send_limits", &self.send_limits)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pair {
    pub(crate) fn port(&self) -> MutexGuard<'_, Port> {
        lock(&self.port)
    }

    /// Has the back end get packets from the host, or none, as the settings say.
    pub(crate) fn take_part(&self, port: &mut Port) -> io::Result<()> {
        port.backend.set_active(self.index < port.settings.pairs)
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}

impl Shared {
    pub(crate) fn new(backends: Vec<Box<dyn Backend>>, mac: Mac) -> Self {
        let settings = Arc::new(Settings::new(mac));
        let pair = |(index, backend)| {
            let settings = settings.clone();
            Arc::new(Pair {
                index,
                port: Mutex::new(Port { backend, settings }),
                failed: AtomicBool::new(false),
            })
        };
        Self {
            pairs: (0..).zip(backends).map(pair).collect(),
            mac,
            settings: Mutex::new(settings),
            cable: AtomicBool::new(true),
            announces: AtomicBool::new(false),
            announce: AtomicBool::new(false),
            moved: AtomicBool::new(false),
            receive_limits: RateLimits::none(),
            send_limits: RateLimits::none(),
            wakers: Mutex::default(),
            drops: Drops::default(),
            config: OnceLock::new(),
            observer: OnceLock::new(),
        }
    }

    /// Number of pairs.
    pub(crate) fn most_pairs(&self) -> u16 {
        // There are few.
        u16::try_from(self.pairs.len()).unwrap_or(1)
    }

    pub(crate) fn settings(&self) -> Arc<Settings> {
        lock(&self.settings).clone()
    }

    pub(crate) fn set_settings(&self, settings: Arc<Settings>) {
        let mut present = lock(&self.settings);
        *present = settings;
        for pair in &self.pairs {
            pair.port().settings = present.clone();
        }
    }

    /// Has the first back end, and all others by that, send no more than the driver wants. If it has
    /// failed, it is told when it is back.
    pub(crate) fn set_offloads(&self, settings: &Settings) -> io::Result<()> {
        let first = self.pairs.first().filter(|pair| !pair.has_failed());
        first.map_or(Ok(()), |pair| {
            pair.port().backend.set_offloads(settings.offloads)
        })
    }

    /// Has the back ends of the first pairs take part, and no others: a host spreads what it sends over
    /// all that do. One that has failed is asked when it is back.
    pub(crate) fn use_pairs(&self, settings: &Arc<Settings>) -> io::Result<()> {
        let used = self.pairs.iter().map(|pair| {
            // Under one lock, so that a worker that starts meanwhile does not ask for the opposite.
            let port = &mut *pair.port();
            port.settings = settings.clone();
            match pair.has_failed() {
                true => Ok(()),
                false => pair.take_part(port),
            }
        });
        used.fold(Ok(()), io::Result::and)
    }

    pub(crate) fn event(&self, event: &NetEvent<'_>) {
        if let Some(observer) = self.observer.get() {
            observer.event(event);
        }
    }

    /// The field `status` of the configuration space.
    pub(crate) fn status(&self) -> u16 {
        let up = u32::from(self.is_up()) * net::VIRTIO_NET_S_LINK_UP;
        let announce = self.announce.load(Ordering::Acquire);
        let announce = u32::from(announce) * net::VIRTIO_NET_S_ANNOUNCE;
        u16::try_from(up | announce).unwrap_or(0)
    }

    pub(crate) fn is_up(&self) -> bool {
        let used = self.pairs.iter().take(self.settings().pairs.into());
        self.has_cable() && !used.into_iter().any(|pair| pair.has_failed())
    }

    pub(crate) fn has_cable(&self) -> bool {
        self.cable.load(Ordering::Acquire)
    }

    pub(crate) fn set_cable(&self, plugged: bool) {
        self.change(&self.cable, plugged);
    }

    pub(crate) fn set_failed(&self, pair: &Pair, failed: bool) {
        self.change(&pair.failed, failed);
    }

    /// Has the driver announce itself, if it can.
    pub(crate) fn announce(&self) {
        if self.announces.load(Ordering::Acquire) {
            self.change(&self.announce, true);
        }
    }

    /// It has done so, which is no news to it.
    pub(crate) fn announced(&self) {
        self.announce.store(false, Ordering::Release);
    }

    /// Changes one of the flags that the status is made of.
    fn change(&self, what: &AtomicBool, value: bool) {
        if what.load(Ordering::Acquire) != value {
            self.update(|| what.store(value, Ordering::Release));
        }
    }

    /// Changes something that the status is made of, tells the driver, and wakes all workers.
    pub(crate) fn update(&self, change: impl FnOnce()) {
        match self.config.get() {
            Some(config) => config.update(change),
            None => change(),
        }
        self.wake();
    }

    pub(crate) fn set_wakers(&self, wakers: Vec<Arc<EventFd>>) {
        self.receive_limits.set_wakers(wakers.clone());
        self.send_limits.set_wakers(wakers.clone());
        *lock(&self.wakers) = wakers;
    }

    pub(crate) fn wake(&self) {
        for waker in &*lock(&self.wakers) {
            // A full counter wakes the worker just as well.
            let _ = waker.write(1);
        }
    }

    /// Forgets the driver.
    pub(crate) fn reset(&self) {
        self.set_wakers(Vec::new());
        self.set_settings(Settings::new(self.mac).into());
        self.announces.store(false, Ordering::Release);
        self.announced();
        self.moved.store(false, Ordering::Release);
    }
}

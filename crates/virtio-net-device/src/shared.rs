// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the halves of the device share: vCPUs configure it, workers serve it, the VMM pulls its cable.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use virtio_bindings::virtio_net as net;
use virtio_device_core::vmm_sys_util::eventfd::EventFd;
use virtio_device_core::{ConfigNotifier, Features, RateLimits};

use crate::backend::Backend;
use crate::config::GUEST_OFFLOADS;
use crate::observer::{Drops, NetEvent, NetObserver};
use crate::settings::{Mac, Settings};

pub(crate) struct Shared<B> {
    pub(crate) pairs: Vec<Pair<B>>,
    /// The address that the device has until its driver sets another one.
    pub(crate) mac: Mac,
    pub(crate) mtu: OnceLock<u16>,
    settings: Mutex<Arc<Settings>>,
    /// What packets to the driver may need at present.
    offloads: AtomicU64,
    cable: AtomicBool,
    /// The driver is to tell the network where it is.
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
pub(crate) struct Pair<B> {
    backend: Mutex<B>,
    failed: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B> Pair<B> {
    pub(crate) const fn new(backend: B) -> Self {
        Self {
            backend: Mutex::new(backend),
            failed: AtomicBool::new(false),
        }
    }

    pub(crate) fn backend(&self) -> MutexGuard<'_, B> {
        lock(&self.backend)
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}

impl<B: Backend> Shared<B> {
    pub(crate) fn new(backends: Vec<B>, mac: Mac) -> Self {
        Self {
            pairs: backends.into_iter().map(Pair::new).collect(),
            mac,
            mtu: OnceLock::new(),
            settings: Mutex::new(Arc::new(Settings::new(mac))),
            offloads: AtomicU64::new(0),
            cable: AtomicBool::new(true),
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

    pub(crate) fn settings(&self) -> Arc<Settings> {
        lock(&self.settings).clone()
    }

    pub(crate) fn set_settings(&self, settings: Settings) {
        *lock(&self.settings) = Arc::new(settings);
    }

    pub(crate) fn offloads(&self) -> Features {
        Features::from(self.offloads.load(Ordering::Acquire))
    }

    /// Has the back ends send no more than `offloads`, and takes no more from them.
    pub(crate) fn set_offloads(&self, offloads: Features) -> io::Result<()> {
        let first = self.pairs.first().filter(|pair| !pair.has_failed());
        let result = first.map_or(Ok(()), |pair| pair.backend().set_offloads(offloads));
        if result.is_ok() {
            self.offloads.store(offloads.low(), Ordering::Release);
        }
        result
    }

    /// Has the back ends of the first `pairs` pairs take part, and no others: a host spreads what it
    /// sends over all that do. One that has failed is asked when it is back.
    pub(crate) fn use_pairs(&self, pairs: u16) -> io::Result<()> {
        let all = (0..).zip(&self.pairs).filter(|(_, it)| !it.has_failed());
        for (index, pair) in all {
            pair.backend().set_active(index < pairs)?;
        }
        Ok(())
    }

    /// What packets to a driver that has agreed on `features` may need.
    pub(crate) fn wanted_offloads(&self, features: Features) -> Features {
        let agreed = features & GUEST_OFFLOADS;
        let wanted = self.settings().offloads.map(Features::from);
        wanted.map_or(agreed, |wanted| agreed & wanted)
    }

    pub(crate) fn event(&self, event: &NetEvent<'_>) {
        if let Some(observer) = self.observer.get() {
            observer.event(event);
        }
    }

    /// The field `status` of the configuration space.
    pub(crate) fn status(&self) -> u16 {
        let up = if self.is_up() {
            net::VIRTIO_NET_S_LINK_UP
        } else {
            0
        };
        let announce = match self.announce.load(Ordering::Acquire) {
            true => net::VIRTIO_NET_S_ANNOUNCE,
            false => 0,
        };
        u16::try_from(up | announce).unwrap_or(0)
    }

    pub(crate) fn is_up(&self) -> bool {
        let used = self.pairs.iter().take(self.settings().pairs.into());
        self.has_cable() && !used.into_iter().any(Pair::has_failed)
    }

    pub(crate) fn has_cable(&self) -> bool {
        self.cable.load(Ordering::Acquire)
    }

    pub(crate) fn set_cable(&self, plugged: bool) {
        self.change(&self.cable, plugged);
    }

    pub(crate) fn set_failed(&self, pair: &Pair<B>, failed: bool) {
        self.change(&pair.failed, failed);
    }

    /// The driver is to announce itself, or has done so.
    pub(crate) fn set_announce(&self, wanted: bool) {
        match wanted {
            true => self.change(&self.announce, true),
            // That is no news to the driver.
            false => self.announce.store(false, Ordering::Release),
        }
    }

    /// Changes something that the status is made of, tells the driver, and wakes all workers.
    fn change(&self, what: &AtomicBool, value: bool) {
        let change = || what.store(value, Ordering::Release);
        if what.load(Ordering::Acquire) == value {
            return;
        }
        match self.config.get() {
            Some(config) => config.update(change),
            None => change(),
        }
        self.wake();
    }

    pub(crate) fn set_wakers(&self, wakers: Vec<Arc<EventFd>>) {
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
        self.receive_limits.set_wakers(Vec::new());
        self.send_limits.set_wakers(Vec::new());
        self.set_settings(Settings::new(self.mac));
        self.set_announce(false);
        self.moved.store(false, Ordering::Release);
    }
}

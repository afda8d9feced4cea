// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the halves of the device share: vCPUs configure it, workers serve it, the VMM pulls its cable.

use std::fmt;
use std::io;
use std::mem;
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
    backend: Mutex<Box<dyn Backend>>,
    failed: AtomicBool,
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
    /// The back end, which a worker takes for a turn.
    pub(crate) fn backend(&self) -> MutexGuard<'_, Box<dyn Backend>> {
        lock(&self.backend)
    }

    /// Asks something of a back end that works. One that has failed is asked when it is back.
    fn ask(&self, what: impl FnOnce(&mut dyn Backend) -> io::Result<()>) -> io::Result<()> {
        match self.has_failed() {
            true => Ok(()),
            false => what(&mut **self.backend()),
        }
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}

impl Shared {
    pub(crate) fn new(backends: Vec<Box<dyn Backend>>, mac: Mac) -> Self {
        let pair = |(index, backend)| {
            Arc::new(Pair {
                index,
                backend: Mutex::new(backend),
                failed: AtomicBool::new(false),
            })
        };
        Self {
            pairs: (0..).zip(backends).map(pair).collect(),
            mac,
            settings: Mutex::new(Settings::new(mac).into()),
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

    /// Sets what the driver wants; returns what it wanted until now.
    pub(crate) fn set_settings(&self, settings: Arc<Settings>) -> Arc<Settings> {
        mem::replace(&mut *lock(&self.settings), settings)
    }

    /// Changes what holds for workers that are at work. If a back end refuses, nothing has changed.
    pub(crate) fn change_settings(&self, settings: Arc<Settings>) -> io::Result<()> {
        let before = self.set_settings(settings.clone());
        let applied = self.apply(&before).inspect_err(|_| {
            self.set_settings(before.clone());
            // Some have done what others refused. Nothing can be done about one that now refuses the
            // opposite as well.
            let _ = self.apply(&settings);
        });
        // Whoever is in a turn by what held before comes to its end.
        self.pairs.iter().for_each(|pair| drop(pair.backend()));
        if settings.pairs != before.pairs {
            // The link is that of the pairs in use. This is told after a refusal as well: until then a driver
            // may have read another link, and a worker may have taken its pair for unused and gone to sleep.
            self.update(|| ());
        }
        applied
    }

    /// Has the back ends do what is not as it was `before`.
    fn apply(&self, before: &Settings) -> io::Result<()> {
        let now = self.settings();
        if now.offloads != before.offloads {
            self.set_offloads()?;
        }
        if now.pairs == before.pairs {
            return Ok(());
        }
        let used = self.pairs.iter().map(|pair| self.take_part(pair));
        used.fold(Ok(()), io::Result::and)
    }

    /// Has the first back end, and all others by that, send no more than the driver wants.
    pub(crate) fn set_offloads(&self) -> io::Result<()> {
        let set = |it: &mut dyn Backend| it.set_offloads(self.settings().offloads);
        self.pairs.first().map_or(Ok(()), |pair| pair.ask(set))
    }

    /// Has a back end get packets from the host, if the driver uses its pair: a host spreads what it
    /// sends over all that do.
    pub(crate) fn take_part(&self, pair: &Pair) -> io::Result<()> {
        // The settings are looked up under the back end's lock: whoever asks last asks for the last ones.
        pair.ask(|it| it.set_active(pair.index < self.settings().pairs))
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
        let _ = self.set_settings(Settings::new(self.mac).into());
        self.announces.store(false, Ordering::Release);
        self.announced();
        self.moved.store(false, Ordering::Release);
    }
}

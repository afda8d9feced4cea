// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the device's halves share: vCPUs configure it, a worker serves it, the VMM resizes it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use virtio_device_core::{ConfigNotifier, Lease};

use crate::control::{Facts, News, PortState};
use crate::observer::{ConsoleEvent, ConsoleObserver};
use crate::port::{Port, Size};

pub(crate) struct Shared {
    pub(crate) ports: Vec<Port>,
    sizes: Vec<AtomicU32>,
    progress: Mutex<Progress>,
    /// Wakes the worker: there is news for the driver.
    pub(crate) wake: OwnedFd,
    pub(crate) config: OnceLock<ConfigNotifier>,
    pub(crate) observer: OnceLock<Box<dyn ConsoleObserver>>,
}

/// What an activation leaves behind when it is saved, port by port.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) ports: Vec<PortState>,
    sent: Vec<Sent>,
}

/// How much of the first chain of a port's output the host has taken.
#[derive(Clone, Debug, Default)]
struct Sent {
    bytes: u64,
    /// The queue that the chain is in. Once that was reset, its chains are gone.
    lease: Option<Lease>,
}

impl Shared {
    pub(crate) fn new(ports: Vec<Port>) -> io::Result<Self> {
        let sizes = ports.iter().map(|port| AtomicU32::new(port.size.to_bits()));
        Ok(Self {
            sizes: sizes.collect(),
            progress: Mutex::new(Progress::new(ports.len())),
            ports,
            wake: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
            config: OnceLock::new(),
            observer: OnceLock::new(),
        })
    }

    fn wake(&self) {
        // An error means that the counter is full, and then the fd is readable already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    pub(crate) fn clear_wake(&self) {
        // An error means that the counter is 0 already.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }

    pub(crate) fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn event(&self, event: &ConsoleEvent<'_>) {
        if let Some(observer) = self.observer.get() {
            observer.event(event);
        }
    }

    pub(crate) fn size(&self, port: usize) -> Size {
        let bits = self.sizes.get(port);
        Size::from_bits(bits.map_or(0, |bits| bits.load(Ordering::Acquire)))
    }

    /// Returns whether that is a change.
    pub(crate) fn store_size(&self, port: usize, size: Size) -> bool {
        let bits = self.sizes.get(port);
        bits.is_some_and(|bits| bits.swap(size.to_bits(), Ordering::AcqRel) != size.to_bits())
    }

    /// Changes the size of a port and tells the driver.
    pub(crate) fn resize(&self, port: usize, size: Size) {
        if self.size(port) == size {
            return;
        }
        let change = || self.store_and_tell(port, size);
        // The first port's size is in the configuration space as well.
        let news = match self.config.get().filter(|_| port == 0) {
            Some(config) => config.update(change),
            None => change(),
        };
        if news {
            self.wake();
        }
    }

    /// Stores the size of a port, and takes note that it is news: both or neither is saved. Returns
    /// whether it is.
    fn store_and_tell(&self, port: usize, size: Size) -> bool {
        let mut progress = self.progress();
        let is_console = self.ports.get(port).is_some_and(|port| port.console);
        if !self.store_size(port, size) || !is_console {
            return false;
        }
        let state = progress.ports.get_mut(port).filter(|state| state.ready);
        state.map(|state| state.news.add(News::SIZE)).is_some()
    }

    /// Takes a port away from the guest, or puts it back.
    pub(crate) fn plug(&self, port: usize, plugged: bool) {
        if let Some(state) = self.progress().ports.get_mut(port) {
            state.plug(plugged);
            self.wake();
        }
    }

    pub(crate) fn facts(&self, port: usize) -> Option<Facts<'_>> {
        let size = self.size(port);
        let Port { console, name, .. } = self.ports.get(port)?;
        Some(Facts {
            console: *console,
            name: name.as_deref(),
            size,
        })
    }
}

impl Progress {
    pub(crate) fn new(ports: usize) -> Self {
        Self {
            ports: vec![PortState::default(); ports],
            sent: vec![Sent::default(); ports],
        }
    }

    /// Forgets what the driver has said and was told, and what is left of its output.
    pub(crate) fn reset(&mut self) {
        let Self { ports, sent } = self;
        for port in &mut *ports {
            let plugged = port.plugged;
            *port = PortState {
                plugged,
                ..PortState::default()
            };
        }
        sent.fill(Sent::default());
    }

    /// How many bytes of the first chain of `port` were sent.
    pub(crate) fn sent(&self, port: usize) -> u64 {
        match self.sent.get(port) {
            Some(Sent {
                lease: Some(lease), ..
            }) if lease.is_revoked() => 0,
            Some(sent) => sent.bytes,
            None => 0,
        }
    }

    pub(crate) fn set_sent(&mut self, port: usize, bytes: u64, lease: Option<&Lease>) {
        if let Some(sent) = self.sent.get_mut(port) {
            let lease = lease.filter(|_| bytes != 0).cloned();
            *sent = Sent { bytes, lease };
        }
    }

    /// Makes what was restored a part of the activation that begins: of `lease`, if the driver has
    /// the queue enabled.
    pub(crate) fn bind(&mut self, port: usize, lease: Option<&Lease>) {
        let bytes = if lease.is_some() { self.sent(port) } else { 0 };
        self.set_sent(port, bytes, lease);
    }
}

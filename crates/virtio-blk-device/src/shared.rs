// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the halves of the device share, and what of it is saved.

use std::io::{self, ErrorKind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH};
use virtio_device_core::{ConfigNotifier, DeviceState, DeviceStateError, Features, RateLimits};

use crate::backend::{Backend, Buffers};
use crate::observer::BlockObserver;
use crate::request::{Action, Disk, ID_LEN, Outcome, SECTOR};

/// Version and length of the saved state: the capacity in bytes (64 bits), and whether there is a
/// write-back cache (8 bits).
const VERSION: u32 = 1;
const STATE_LEN: usize = 9;

/// When a write has to be stable (section 5.2.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stability {
    /// When it is complete: there is no cache as far as the driver knows.
    AtOnce,
    /// When it has been flushed.
    Flushed,
    /// As the configuration space says at the time.
    Configured,
}

impl Stability {
    pub(crate) fn of(features: Features) -> Self {
        if features.has(VIRTIO_BLK_F_CONFIG_WCE) {
            Self::Configured
        } else if features.has(VIRTIO_BLK_F_FLUSH) {
            Self::Flushed
        } else {
            Self::AtOnce
        }
    }
}

pub(crate) struct Shared<B> {
    pub(crate) backend: B,
    /// Bytes, whole sectors.
    capacity: AtomicU64,
    writeback: AtomicBool,
    pub(crate) id: [u8; ID_LEN],
    pub(crate) limits: RateLimits,
    pub(crate) config: OnceLock<ConfigNotifier>,
    pub(crate) observer: OnceLock<Box<dyn BlockObserver>>,
}

impl<B: Backend> Shared<B> {
    pub(crate) fn new(backend: B) -> io::Result<Self> {
        let capacity = AtomicU64::new(whole_sectors(backend.capacity()?));
        Ok(Self {
            backend,
            capacity,
            writeback: AtomicBool::new(true),
            id: [0; ID_LEN],
            limits: RateLimits::none(),
            config: OnceLock::new(),
            observer: OnceLock::new(),
        })
    }

    pub(crate) fn disk(&self) -> Disk {
        Disk {
            capacity: self.capacity.load(Ordering::Acquire),
            read_only: self.backend.is_read_only(),
        }
    }

    pub(crate) fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Acquire)
    }

    pub(crate) fn set_writeback(&self, on: bool) {
        self.writeback.store(on, Ordering::Release);
    }

    /// Whether a write that is complete has to be stable.
    pub(crate) fn writes_through(&self, stability: Stability) -> bool {
        match stability {
            Stability::AtOnce => true,
            Stability::Flushed => false,
            Stability::Configured => !self.writeback(),
        }
    }

    /// Takes over the back end's capacity, and tells the driver if it is another one.
    pub(crate) fn refresh(&self) -> io::Result<u64> {
        let capacity = whole_sectors(self.backend.capacity()?);
        if capacity != self.disk().capacity {
            let change = || self.capacity.store(capacity, Ordering::Release);
            match self.config.get() {
                Some(config) => config.update(change),
                None => change(),
            }
        }
        Ok(capacity)
    }

    /// Does what is asked for, and waits for it.
    pub(crate) fn run(
        &self,
        action: &Action,
        buffers: &Buffers<'_>,
        stability: Stability,
    ) -> Outcome {
        let backend = &self.backend;
        let result = match action {
            // Neither is any business of the back end's.
            Action::Id => Ok(()),
            Action::Flush if backend.is_read_only() => Ok(()),
            // There is nothing to do, which some system calls take for an error.
            Action::Discard(range) | Action::WriteZeroes(range, _) if range.is_empty() => Ok(()),
            Action::Read(range) => backend.read(range.start, buffers),
            Action::Write(range) => backend.write(range.start, buffers),
            Action::Flush => backend.flush(),
            Action::Discard(range) => backend.discard(range.clone()),
            Action::WriteZeroes(range, unmap) => backend.write_zeroes(range.clone(), *unmap),
        };
        let result = result.and_then(|()| match action {
            Action::Write(_) | Action::WriteZeroes(..) if self.writes_through(stability) => {
                backend.flush()
            }
            _ => Ok(()),
        });
        self.outcome(action, result)
    }

    /// How a request ends that the host has answered like this.
    pub(crate) fn outcome(&self, action: &Action, result: io::Result<()>) -> Outcome {
        let Err(error) = result else {
            return Outcome::Done(action.data());
        };
        if let (Some(observer), Some((operation, range))) =
            (self.observer.get(), action.operation())
        {
            observer.failed(operation, &range, &error);
        }
        match action {
            Action::Discard(_) | Action::WriteZeroes(..)
                if error.kind() == ErrorKind::Unsupported =>
            {
                Outcome::Unsupported
            }
            _ => Outcome::Failed,
        }
    }

    pub(crate) fn save(&self) -> DeviceState {
        let capacity = self.disk().capacity.to_le_bytes();
        let data = [&capacity[..], &[u8::from(self.writeback())]].concat();
        DeviceState::new(VERSION, data).unwrap_or_default()
    }

    /// Goes on from a saved state, with the capacity that the driver knows.
    pub(crate) fn restore(&self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let data = <[u8; STATE_LEN]>::try_from(state.data(VERSION)?);
        let data = data.map_err(|_| DeviceStateError::Invalid("its length"))?;
        let [capacity @ .., writeback] = data;
        let capacity = u64::from_le_bytes(capacity);
        if capacity % SECTOR != 0 {
            return Err(DeviceStateError::Invalid("its capacity"));
        }
        if writeback > 1 {
            return Err(DeviceStateError::Invalid("its cache mode"));
        }
        self.capacity.store(capacity, Ordering::Release);
        self.set_writeback(writeback == 1);
        Ok(())
    }
}

const fn whole_sectors(bytes: u64) -> u64 {
    bytes / SECTOR * SECTOR
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the halves of the device share, and what of it is saved.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use virtio_device_core::{ConfigNotifier, DeviceFault, DeviceState, RateLimits};

use crate::backend::{Backend, Buffers, is_unsupported};
use crate::observer::{BlockEvent, BlockObserver, Operation};
use crate::request::{Disk, ID_LEN, Refusal, Request, SECTOR};

/// Version of the saved state: the capacity in bytes (64 bits), and whether there is a write-back
/// cache (8 bits).
const VERSION: u32 = 1;

pub(crate) struct Shared {
    pub(crate) backend: Arc<dyn Backend>,
    /// Bytes, whole sectors.
    capacity: AtomicU64,
    /// What the back end last told, in bytes: not what a saved state says.
    behind: AtomicU64,
    /// Held by whoever asks the back end, until that is taken over.
    refreshing: Mutex<()>,
    /// Whether a write need not be stable before it is flushed.
    pub(crate) writeback: AtomicBool,
    pub(crate) id: [u8; ID_LEN],
    pub(crate) limits: RateLimits,
    pub(crate) config: OnceLock<ConfigNotifier>,
    pub(crate) observer: OnceLock<Box<dyn BlockObserver>>,
}

/// Says nothing of what is on the disk.
impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.disk(), self.limits)
    }
}

impl Shared {
    pub(crate) fn new(backend: Arc<dyn Backend>) -> io::Result<Self> {
        let capacity = whole_sectors(backend.capacity()?);
        Ok(Self {
            capacity: AtomicU64::new(capacity),
            behind: AtomicU64::new(capacity),
            refreshing: Mutex::default(),
            backend,
            writeback: AtomicBool::new(true),
            id: [0; ID_LEN],
            limits: RateLimits::none(),
            config: OnceLock::new(),
            observer: OnceLock::new(),
        })
    }

    /// What requests are measured against: what the driver knows of is not there for them before the
    /// back end has told of it.
    pub(crate) fn disk(&self) -> Disk {
        Disk {
            capacity: self.capacity().min(self.behind.load(Ordering::Acquire)),
            read_only: self.backend.is_read_only(),
        }
    }

    /// The capacity that the driver knows, in bytes.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Acquire)
    }

    pub(crate) fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Acquire)
    }

    /// Takes over the back end's capacity, and tells the driver if it is another one.
    pub(crate) fn refresh(&self) -> io::Result<u64> {
        // What was asked for first must not be taken over last.
        let turn = self.refreshing.lock();
        let capacity = whole_sectors(self.backend.capacity()?);
        self.behind.store(capacity, Ordering::Release);
        if capacity != self.capacity() {
            let change = || {
                self.capacity.store(capacity, Ordering::Release);
                // Before the interrupt, whose line may ask for the next one.
                drop(turn);
            };
            match self.config.get() {
                Some(config) => config.update(change),
                None => change(),
            }
        }
        Ok(capacity)
    }

    /// Does what is asked for, and waits for it.
    pub(crate) fn run(&self, request: &Request, buffers: &Buffers<'_>) -> Result<u64, Refusal> {
        let mut done = self.run_unsynced(request, buffers);
        if done.is_ok() && self.wants_sync(request) {
            done = self.backend.flush();
        }
        self.outcome(request, done)
    }

    /// Does what is asked for, but for a sync, and waits for it.
    pub(crate) fn run_unsynced(&self, request: &Request, buffers: &Buffers<'_>) -> io::Result<()> {
        let (backend, range) = (&self.backend, request.range.clone());
        match request.operation {
            // Neither is any business of the back end's, but for the sync.
            Operation::GetId | Operation::Flush => Ok(()),
            // There is nothing to do, which some system calls take for an error.
            Operation::Discard | Operation::WriteZeroes if range.is_empty() => Ok(()),
            Operation::Read => backend.read(range.start, buffers),
            Operation::Write => backend.write(range.start, buffers),
            Operation::Discard => backend.discard(range),
            Operation::WriteZeroes => backend.write_zeroes(range, request.unmap),
        }
    }

    /// Whether a request has succeeded only when the file is synced.
    pub(crate) fn wants_sync(&self, request: &Request) -> bool {
        match request.operation {
            Operation::Flush => !self.backend.is_read_only(),
            Operation::Write | Operation::WriteZeroes if !self.writeback() => {
                !request.range.is_empty()
            }
            _ => false,
        }
    }

    /// How a request ends that the host has answered like this.
    pub(crate) fn outcome(&self, request: &Request, done: io::Result<()>) -> Result<u64, Refusal> {
        let Err(error) = &done else {
            return Ok(request.written());
        };
        if let Some(observer) = self.observer.get() {
            let event = BlockEvent::Failed(request.operation, &request.range, error);
            observer.event(&event);
        }
        match (request.operation, is_unsupported(error)) {
            (Operation::Discard | Operation::WriteZeroes, true) => Err(Refusal::Unsupported),
            _ => Err(Refusal::Failed),
        }
    }

    pub(crate) fn save(&self) -> DeviceState {
        let mut data = self.capacity().to_le_bytes().to_vec();
        data.push(self.writeback().into());
        DeviceState::new(VERSION, data).unwrap_or_default()
    }

    /// Goes on from a saved state, with the capacity that the driver knows, and its choice of a cache if
    /// it has one.
    pub(crate) fn restore(&self, state: &DeviceState, fixed: bool) -> Result<(), DeviceFault> {
        let Ok([capacity @ .., writeback]) = <[u8; 9]>::try_from(state.data(VERSION)?) else {
            return Err(DeviceFault::State("its length"));
        };
        let capacity = u64::from_le_bytes(capacity);
        if capacity % SECTOR != 0 || writeback > 1 {
            return Err(DeviceFault::State("its capacity or its cache"));
        }
        self.capacity.store(capacity, Ordering::Release);
        if !fixed {
            self.writeback.store(writeback == 1, Ordering::Release);
        }
        Ok(())
    }
}

const fn whole_sectors(bytes: u64) -> u64 {
    bytes / SECTOR * SECTOR
}

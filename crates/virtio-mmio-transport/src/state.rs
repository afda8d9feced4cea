// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The transport as plain data: saved, and put back into a transport that is at the start.

use std::collections::BTreeMap;
use std::fmt;

use virtio_device_core::{
    ActivateError, DeviceStatus, FeatureError, InterruptHandle, ProgressError, QueueLayout,
    QueueLease, QueueProgress, QueueSetup, QueueSetupError, VIRTIO_F_RING_RESET, VirtioDevice,
    Virtqueue,
};
use vm_memory::GuestAddressSpace;

use crate::lifecycle::Live;
use crate::register::{INT_CONFIG, INT_VRING};
use crate::registers::{QueueRegisters, Registers};
use crate::transport::MmioTransport;

/// The version of [`TransportState`] that this crate writes, and the only one that it reads.
pub const STATE_VERSION: u32 = 1;

/// What a transport and its queues know: plain data, to be stored in any format.
///
/// It holds nothing of the device behind them, which has its own state if it has one, and nothing
/// random. With the feature `serde` it can be serialised.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TransportState {
    /// [`STATE_VERSION`].
    pub version: u32,
    /// The device type.
    pub device_type: u32,
    /// The status as the driver reads it, but for `DEVICE_NEEDS_RESET`.
    pub status: u8,
    /// Whether the device asks for a reset.
    pub needs_reset: bool,
    /// The words of `DriverFeatures` that are not 0, by `DriverFeaturesSel`.
    pub driver_features: BTreeMap<u32, u32>,
    /// `DeviceFeaturesSel`.
    pub device_features_sel: u32,
    /// `DriverFeaturesSel`.
    pub driver_features_sel: u32,
    /// `QueueSel`.
    pub queue_sel: u32,
    /// `SHMSel`.
    pub shm_sel: u32,
    /// `InterruptStatus`.
    pub interrupt_status: u32,
    /// `ConfigGeneration`.
    pub config_generation: u32,
    /// The queues, by index.
    pub queues: Vec<QueueState>,
}

/// One queue of a [`TransportState`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct QueueState {
    /// What the driver has written about the queue.
    pub setup: QueueSetup,
    /// `QueueReady`.
    pub ready: bool,
    /// Whether the driver has reset the queue by itself and not enabled it again.
    pub reset: bool,
    /// How far the device has come; for the enabled queues of a device that is live and works.
    pub progress: Option<QueueProgress>,
}

/// Why a transport cannot be saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SaveError {
    /// The device is live and not paused: its queues move.
    NotPaused,
}

impl fmt::Display for SaveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPaused => f.write_str("the device is live and not paused"),
        }
    }
}

impl std::error::Error for SaveError {}

/// Why a transport cannot go on from a saved state. It is left at the start.
#[derive(Debug)]
#[non_exhaustive]
pub enum RestoreError {
    /// The transport is not at the start: a driver uses it already.
    InUse,
    /// The state is of another version.
    Version(u32),
    /// The state is of a device of this type.
    DeviceType(u32),
    /// No driver can come to this status.
    Status(u8),
    /// The device asks for a reset without ever having been live.
    NeedsReset,
    /// The features were agreed on, and cannot have been with this device.
    Features(FeatureError),
    /// There are causes of an interrupt that do not exist, or too early.
    InterruptStatus(u32),
    /// The state has this number of queues, and the device another.
    QueueCount(usize),
    /// The enabled queue of this index is not well-formed in this memory.
    QueueSetup(usize, QueueSetupError),
    /// The queue of this index is enabled, reset or in progress in a state in which it cannot be.
    QueueState(usize),
    /// The progress of the queue of this index contradicts itself.
    Progress(usize, ProgressError),
    /// The device could not be activated.
    Activate(ActivateError),
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse => f.write_str("the transport is in use"),
            Self::Version(version) => write!(f, "version {version} is not {STATE_VERSION}"),
            Self::DeviceType(device_type) => write!(f, "device type {device_type} is another"),
            Self::Status(status) => write!(f, "status {status:#x} cannot be"),
            Self::NeedsReset => f.write_str("needs_reset without DRIVER_OK"),
            Self::Features(error) => write!(f, "driver_features: {error}"),
            Self::InterruptStatus(status) => write!(f, "interrupt_status {status:#x} cannot be"),
            Self::QueueCount(count) => write!(f, "{count} queues are not what the device has"),
            Self::QueueSetup(index, error) => write!(f, "queue {index}: {error}"),
            Self::QueueState(index) => {
                write!(f, "queue {index}: ready, reset or progress cannot be")
            }
            Self::Progress(index, error) => write!(f, "queue {index}: {error}"),
            Self::Activate(error) => write!(f, "device cannot go on: {error}"),
        }
    }
}

impl std::error::Error for RestoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Features(error) => Some(error),
            Self::QueueSetup(_, error) => Some(error),
            Self::Progress(_, error) => Some(error),
            Self::Activate(error) => Some(error),
            _ => None,
        }
    }
}

/// A state that was checked as a whole, ready to be put in place.
struct Checked {
    registers: Registers,
    /// By index; none for a queue that the device does not work on.
    queues: Vec<Option<Virtqueue>>,
}

impl<M: GuestAddressSpace, D: VirtioDevice<M>> MmioTransport<M, D> {
    /// Saves what the transport and its queues know.
    ///
    /// Guest memory must be saved while the device is paused, too. A request that the device has
    /// taken and not given back is served again after the state is restored, and only then: do not
    /// [`resume`](MmioTransport::resume) this device if the copy is to go on.
    ///
    /// # Errors
    ///
    /// [`SaveError::NotPaused`] if the device is live and was not [paused](MmioTransport::pause).
    pub fn save(&self) -> Result<TransportState, SaveError> {
        if self.live.is_some() && !self.is_paused() {
            return Err(SaveError::NotPaused);
        }
        let registers = &self.registers;
        let leases = self.live.iter().flat_map(|live| &live.leases);
        // A fault that the worker has not told yet is one all the same.
        let faulted = leases.flatten().any(|lease| {
            let fault = lease.inspect(|queue| queue.fault().is_some());
            fault.unwrap_or(false)
        });
        let needs_reset = self.broken() || faulted && registers.status.live();
        let queue = |(index, queue): (usize, &QueueRegisters)| QueueState {
            setup: queue.setup,
            ready: queue.ready.is_some(),
            reset: queue.reset,
            progress: (self.lease(index))
                .filter(|_| !needs_reset)
                .and_then(|lease| lease.inspect(Virtqueue::progress)),
        };
        let (interrupt_status, config_generation) = self.interrupt.saved();
        Ok(TransportState {
            version: STATE_VERSION,
            device_type: self.device.device_type(),
            status: registers.status.bits(),
            needs_reset,
            driver_features: registers.features.accepted_words().collect(),
            device_features_sel: registers.device_features_sel,
            driver_features_sel: registers.driver_features_sel,
            queue_sel: registers.queue_sel,
            shm_sel: registers.shm_sel,
            interrupt_status,
            config_generation,
            queues: registers.queues.iter().enumerate().map(queue).collect(),
        })
    }

    /// Goes on from a saved state, in the memory that was saved with it.
    ///
    /// If the device was live it is activated, paused or not as this transport is. It looks at all
    /// of its queues, and the driver is interrupted, because either may have missed a notification.
    ///
    /// # Errors
    ///
    /// What in `state` cannot be, or not with this device and memory. Nothing has changed then.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), RestoreError> {
        if self.live.is_some() || self.registers.status != DeviceStatus::RESET {
            return Err(RestoreError::InUse);
        }
        let Checked { registers, queues } = self.check(state)?;
        self.registers = registers;
        let mut causes = state.interrupt_status;
        if state.needs_reset {
            self.live = Some(Live {
                interrupt: InterruptHandle::broken(self.interrupt.clone()),
                leases: Vec::new(),
            });
        } else if self.registers.status.live() {
            let lend = |queue: Option<Virtqueue>| queue.map(QueueLease::new);
            if let Err(error) = self.activate(queues.into_iter().map(lend).collect()) {
                self.reset();
                return Err(RestoreError::Activate(error));
            }
            self.kick_all();
            causes |= INT_VRING;
        }
        self.interrupt.restore(causes, state.config_generation);
        Ok(())
    }

    fn lease(&self, index: usize) -> Option<&QueueLease> {
        self.live.as_ref()?.leases.get(index)?.as_ref()
    }

    fn check(&self, state: &TransportState) -> Result<Checked, RestoreError> {
        if state.version != STATE_VERSION {
            return Err(RestoreError::Version(state.version));
        }
        if state.device_type != self.device.device_type() {
            return Err(RestoreError::DeviceType(state.device_type));
        }
        let status = DeviceStatus::from_bits(state.status);
        let status = status.ok_or(RestoreError::Status(state.status))?;
        if state.needs_reset && !status.driver_ok() {
            return Err(RestoreError::NeedsReset);
        }
        let causes = state.interrupt_status;
        if causes & !(INT_VRING | INT_CONFIG) != 0 || causes != 0 && !status.driver_ok() {
            return Err(RestoreError::InterruptStatus(causes));
        }
        let mut registers = Registers::new(&self.device);
        let features = &mut registers.features;
        for (&select, &word) in &state.driver_features {
            features.accept_word(select, word);
        }
        if status.features_ok() {
            features.check().map_err(RestoreError::Features)?;
        }
        if state.queues.len() != registers.queues.len() {
            return Err(RestoreError::QueueCount(state.queues.len()));
        }
        registers.status = status;
        registers.device_features_sel = state.device_features_sel;
        registers.driver_features_sel = state.driver_features_sel;
        registers.queue_sel = state.queue_sel;
        registers.shm_sel = state.shm_sel;
        let works = status.live() && !state.needs_reset;
        let mut queues = Vec::with_capacity(state.queues.len());
        for (index, saved) in state.queues.iter().enumerate() {
            queues.push(self.check_queue(&mut registers, works, index, saved)?);
        }
        Ok(Checked { registers, queues })
    }

    /// Checks one queue and puts it into `registers`; `works` says whether the device works on the
    /// queues that are enabled.
    fn check_queue(
        &self,
        registers: &mut Registers,
        works: bool,
        index: usize,
        saved: &QueueState,
    ) -> Result<Option<Virtqueue>, RestoreError> {
        let wrong = RestoreError::QueueState(index);
        let features_ok = registers.status.features_ok();
        let can_be_reset = registers.agreed(VIRTIO_F_RING_RESET);
        let touched = saved.ready || saved.setup != QueueSetup::default();
        if touched && !features_ok || saved.reset && (saved.ready || !can_be_reset) {
            return Err(wrong);
        }
        if saved.progress.is_some() != (saved.ready && works) {
            return Err(wrong);
        }
        let features = registers.features.accepted();
        let Some(queue) = registers.queues.get_mut(index) else {
            return Err(wrong);
        };
        queue.setup = saved.setup;
        queue.reset = saved.reset;
        if saved.ready {
            let memory = self.memory.memory();
            let layout = QueueLayout::check(&saved.setup, queue.max_size, &*memory)
                .map_err(|error| RestoreError::QueueSetup(index, error))?;
            queue.ready = Some(layout);
            if let Some(progress) = &saved.progress {
                return Virtqueue::resume(layout, features, progress)
                    .map(Some)
                    .map_err(|error| RestoreError::Progress(index, error));
            }
        }
        Ok(None)
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The transport as plain data: saved, and put back into a transport that is at the start.

use std::collections::BTreeMap;

use thiserror::Error;
use virtio_device_core::{
    DeviceFault, DeviceState, VIRTIO_F_RING_RESET, VirtioDevice, Virtqueue,
    transport::{DeviceStatus, QueueLayout, QueueProgress, QueueSetup, Session, SetupError},
};
use vm_memory::GuestAddressSpace;

use crate::register::{INT_CONFIG, INT_VRING};
use crate::registers::{QueueRegisters, Registers};
use crate::transport::MmioTransport;

/// The version of [`TransportState`] that this crate writes, and the only one that it reads.
pub const STATE_VERSION: u32 = 2;

/// What a transport, its queues and its device know: plain data, to be stored in any format.
///
/// With the feature `serde` it can be serialised.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use virtio_conformance::ramdisk::RamDisk;
/// use virtio_device_core::{WorkerThread, edge_line};
/// use virtio_mmio_transport::{MmioTransport, STATE_VERSION};
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)])?);
/// let new = || {
///     let disk = RamDisk::new(Arc::new(Mutex::new(vec![0; 512])), WorkerThread::named("disk")?);
///     MmioTransport::new(disk, memory.clone(), edge_line(|| Ok(())))
/// };
/// let mut here = new()?;
/// here.pause()?;
/// let state = here.save()?;
/// assert_eq!((state.version, state.device_type), (STATE_VERSION, 2));
/// // On another machine, whose guest memory is this one's:
/// let mut there = new()?;
/// there.restore(&state)?;
/// there.resume();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
    /// Whether the configuration space has changed since the driver began: it is told when it has set
    /// `DRIVER_OK`.
    #[cfg_attr(feature = "serde", serde(default))]
    pub config_changed: bool,
    /// The queues, by index.
    pub queues: Vec<QueueState>,
    /// The device's own state.
    pub device: DeviceState,
}

/// One queue of a [`TransportState`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct QueueState {
    /// What the driver has written about the queue.
    pub setup: QueueSetup,
    /// `QueueReady`.
    pub ready: bool,
    /// Whether the driver has reset the queue by itself and not enabled it again.
    pub reset: bool,
    /// Whether the device was given the queue when it was activated, and is live.
    pub active: bool,
    /// How far the device has come; for the enabled queues of a device that is live and works.
    pub progress: Option<QueueProgress>,
}

/// Why a transport cannot be saved.
///
/// ```
/// use std::error::Error;
/// use virtio_mmio_transport::{MmioTransport, SaveError, TransportState, VirtioDevice};
/// use vm_memory::GuestAddressSpace;
///
/// /// Saves a device, and pauses it first if it is live.
/// fn save<M, D>(transport: &mut MmioTransport<M, D>) -> Result<TransportState, Box<dyn Error>>
/// where
///     M: GuestAddressSpace,
///     D: VirtioDevice<M>,
/// {
///     if let Err(SaveError::NotPaused) = transport.save() {
///         transport.pause()?;
///     }
///     Ok(transport.save()?)
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SaveError {
    /// The device is live and not paused, or has I/O in flight: its queues move.
    #[error("the device is not paused")]
    NotPaused,
}

/// Why a transport cannot go on from a saved state. It is left at the start.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use virtio_conformance::ramdisk::RamDisk;
/// use virtio_device_core::{WorkerThread, edge_line};
/// use virtio_mmio_transport::{MmioTransport, RestoreError};
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)])?);
/// let new = || {
///     let disk = RamDisk::new(Arc::new(Mutex::new(vec![0; 512])), WorkerThread::named("disk")?);
///     MmioTransport::new(disk, memory.clone(), edge_line(|| Ok(())))
/// };
/// let mut here = new()?;
/// here.pause()?;
/// let mut state = here.save()?;
/// state.version += 1;
/// // Refused, by name, and nothing of it was used.
/// assert!(matches!(new()?.restore(&state), Err(RestoreError::Version(_))));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The transport is not at the start: a driver uses it already.
    #[error("the transport is in use")]
    InUse,
    /// The state is of another version.
    #[error("state of version {0} is not supported, only version {STATE_VERSION}")]
    Version(u32),
    /// The state is of a device of another type.
    #[error("saved device type {0} does not match this device")]
    DeviceType(u32),
    /// No driver can reach this status.
    #[error("status {0:#x} is not reachable")]
    Status(u8),
    /// The device asks for a reset without ever having been live.
    #[error("needs_reset without DRIVER_OK")]
    NeedsReset,
    /// The features were agreed on, and cannot have been with this device.
    #[error("driver_features do not fit this device")]
    Features(#[source] SetupError),
    /// There are causes of an interrupt that do not exist, or too early.
    #[error("interrupt_status {0:#x} is not reachable")]
    InterruptStatus(u32),
    /// The configuration space has changed for a driver, and none is on its way up.
    #[error("config_changed without a driver that is still to be told")]
    ConfigChanged,
    /// The state has this number of queues, and the device another.
    #[error("saved number of queues, {0}, does not match this device")]
    QueueCount(usize),
    /// The enabled queue of this index is not well-formed in this memory.
    #[error("queue {0} is not well-formed")]
    QueueSetup(usize, #[source] SetupError),
    /// The queue of this index is enabled, reset or in progress in a state in which it cannot be.
    #[error("queue {0}: ready, reset, active and progress contradict each other or the status")]
    QueueState(usize),
    /// The progress of the queue of this index contradicts itself.
    #[error("queue {0} cannot go on from its progress")]
    Progress(usize, #[source] SetupError),
    /// The device refuses its own state.
    #[error("device refuses its state")]
    Device(#[source] DeviceFault),
    /// The device could not be activated.
    #[error("device could not be activated")]
    Activate(#[source] DeviceFault),
}

/// A state that was checked as a whole, ready to be put in place.
struct Checked {
    registers: Registers,
    /// The queues that the device is to be given, with their index; `None` inside for one that was
    /// taken back.
    queues: Vec<(u16, Option<Virtqueue>)>,
}

/// Whether there is a driver that has yet to set `DRIVER_OK`, and may.
fn on_its_way_up(status: DeviceStatus) -> bool {
    status != DeviceStatus::RESET && !status.driver_ok() && !status.failed()
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
        let live = self.registers.status.live();
        let busy = |session: &Session| !session.is_idle();
        let moving = |session: &Session| live && !self.is_paused() || busy(session);
        if self.session.as_ref().is_some_and(moving) || self.resetting.as_ref().is_some_and(busy) {
            return Err(SaveError::NotPaused);
        }
        let registers = &self.registers;
        // A ring fault counts even if the worker has not reported it yet.
        let untold = self.session.as_ref().is_some_and(Session::has_ring_fault)
            && registers.status.live()
            && !self.broken();
        let needs_reset = self.broken() || untold;
        let session = self
            .session
            .as_ref()
            .filter(|_| registers.status.live() && !needs_reset);
        let queue = |(index, queue): (u16, &QueueRegisters)| QueueState {
            setup: queue.setup,
            ready: queue.ready.is_some(),
            reset: queue.reset,
            active: session.is_some_and(|session| session.has_queue(index)),
            progress: session.and_then(|session| session.inspect(index, Virtqueue::progress)),
        };
        // The device first, so that what changes meanwhile is told rather than lost.
        let device = self.device.save();
        let news = self.config.has_news();
        let (mut interrupt_status, config_generation, changing) = self.interrupt.saved();
        let news = news || changing || self.config.has_news();
        if untold || news && registers.status.live() {
            // The driver is told after restore, by the interrupt that announces it (section 2.1.2).
            interrupt_status |= INT_CONFIG;
        }
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
            config_changed: on_its_way_up(registers.status) && (changing || self.config.has_news()),
            queues: (0..=u16::MAX).zip(&registers.queues).map(queue).collect(),
            device,
        })
    }

    /// Goes on from a saved state, in the memory that was saved with it.
    ///
    /// If the device was live it is activated, paused or not as this transport is. It looks at all
    /// of its queues, and the driver is interrupted, because either may have missed a notification.
    ///
    /// # Errors
    ///
    /// What in `state` cannot be, or not with this device and memory; nothing has changed then. Only with
    /// [`RestoreError::Activate`] the device has taken its own state and was reset, like the transport.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), RestoreError> {
        if self.session.is_some()
            || self.reset_is_pending()
            || self.registers.status != DeviceStatus::RESET
        {
            return Err(RestoreError::InUse);
        }
        let Checked { registers, queues } = self.check(state)?;
        let generation = self.interrupt.generation();
        self.config.begin();
        if state.config_changed {
            self.config.update(|| ());
        }
        // From here on a change is one to the driver that was saved.
        self.interrupt.restore_generation(state.config_generation);
        if registers.status.features_ok() {
            self.device.negotiated(registers.features.accepted());
        }
        if let Err(error) = self.device.restore(&state.device) {
            self.device.reset();
            self.interrupt.restore_generation(generation);
            return Err(RestoreError::Device(error));
        }
        self.registers = registers;
        let mut causes = state.interrupt_status;
        if state.needs_reset {
            let session = Session::broken(&self.config);
            if self.registers.status.failed() {
                // The driver has set FAILED since, so it is not interrupted.
                session.revoke();
            } else {
                // It may not have been interrupted before the save: once more does no harm (section 2.1.2).
                causes |= INT_CONFIG;
            }
            self.session = Some(session);
        } else if self.registers.status.live() {
            if let Err(error) = self.activate(queues) {
                self.reset();
                return Err(RestoreError::Activate(error));
            }
            causes |= INT_VRING;
        }
        if causes != 0 {
            self.interrupt.raise(causes);
        }
        Ok(())
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
        if state.config_changed && !on_its_way_up(status) {
            return Err(RestoreError::ConfigChanged);
        }
        let mut registers = self.fresh_registers();
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
        for (index, saved) in (0..=u16::MAX).zip(&state.queues) {
            let queue = self.check_queue(&mut registers, works, index.into(), saved)?;
            if saved.active {
                queues.push((index, queue));
            }
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
        if saved.progress.is_some() != (saved.ready && works)
            || saved.active && !works
            || saved.progress.is_some() && !saved.active
        {
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

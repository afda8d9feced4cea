// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device as vCPUs and the VMM see it.

use std::fmt;
use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use virtio_device_core::{
    Activation, ActiveQueue, ConfigNotifier, DeviceFault, DeviceState, Executor, Features,
    VirtioDevice,
};
use vm_memory::GuestAddressSpace;

use crate::observer::{ConsoleEvent, ConsoleObserver};
use crate::port::{Port, Size};
use crate::shared::Shared;
use crate::state;
use crate::worker::{Handler, transmit_queue};

/// The console's size is in its configuration space.
pub const VIRTIO_CONSOLE_F_SIZE: u32 = 0;
/// The device has several ports, and two queues of control messages.
pub const VIRTIO_CONSOLE_F_MULTIPORT: u32 = 1;
/// Characters can be written through the configuration space, without any queue.
pub const VIRTIO_CONSOLE_F_EMERG_WRITE: u32 = 2;

/// Most ports that a device may have.
pub const MAX_PORTS: usize = 511;

/// Sizes of the queues for data, and for control messages.
const QUEUE_SIZE: u16 = 128;
const CONTROL_QUEUE_SIZE: u16 = 32;

/// The configuration space: columns, rows, number of ports, emergency write.
const CONFIG_SIZE: u32 = 12;
const EMERGENCY: u32 = 8;

/// A console device (VIRTIO 1.3, section 5.3).
///
/// It serves its queues where `E` says. What the host's side does reaches the guest, and nothing
/// that it does or fails to do ends the device or holds a vCPU: a host that takes no output holds the
/// guest's writers back, and one that has gone has its output discarded.
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use virtio_console_device::{Console, Port};
/// use virtio_device_core::WorkerThread;
///
/// let (ours, _theirs) = UnixStream::pair()?;
/// let port = Port::new(ours.try_clone()?, ours)?;
/// let console = Console::new(port, WorkerThread::named("console")?)?;
/// // Now put it behind a transport.
/// # let _ = console;
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Console<E> {
    shared: Arc<Shared>,
    multiport: bool,
    queue_sizes: Vec<u16>,
    executor: E,
}

impl<E: Executor> Console<E> {
    /// Makes a device with one console.
    ///
    /// # Errors
    ///
    /// If an event fd cannot be made.
    pub fn new(port: Port, executor: E) -> io::Result<Self> {
        Self::make(vec![port], false, executor)
    }

    /// Makes a device with several ports (`VIRTIO_CONSOLE_F_MULTIPORT`). A driver without the feature
    /// has the first one.
    ///
    /// # Errors
    ///
    /// If there is no port, or more than [`MAX_PORTS`], or an event fd cannot be made.
    pub fn with_ports(ports: Vec<Port>, executor: E) -> io::Result<Self> {
        if ports.is_empty() || ports.len() > MAX_PORTS {
            let reason = "a console device has 1 to 511 ports";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        Self::make(ports, true, executor)
    }

    fn make(ports: Vec<Port>, multiport: bool, executor: E) -> io::Result<Self> {
        let mut queue_sizes = vec![QUEUE_SIZE; 2];
        if multiport {
            queue_sizes.extend([CONTROL_QUEUE_SIZE; 2]);
            queue_sizes.resize(2 * (ports.len() + 1), QUEUE_SIZE);
        }
        Ok(Self {
            shared: Arc::new(Shared::new(ports)?),
            multiport,
            queue_sizes,
            executor,
        })
    }

    /// Sets who is told of what becomes of the ports. Once: whoever comes later is told nothing.
    #[must_use]
    pub fn with_observer(self, observer: impl ConsoleObserver + 'static) -> Self {
        let _ = self.shared.observer.set(Box::new(observer));
        self
    }

    /// A handle to change the console's size and its ports with.
    #[must_use]
    pub fn handle(&self) -> ConsoleHandle {
        ConsoleHandle {
            shared: self.shared.clone(),
        }
    }

    fn emergency_write(&self, character: u8) {
        let taken = self.shared.ports.first().is_some_and(|port| {
            let written = port.output.write(&[character]);
            matches!(written, Ok(1))
        });
        if !taken {
            self.shared.event(&ConsoleEvent::EmergencyLost);
        }
    }
}

impl<M, E> VirtioDevice<M> for Console<E>
where
    M: GuestAddressSpace + Send + 'static,
    E: Executor,
{
    fn device_type(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> Features {
        let features = Features::of(&[VIRTIO_CONSOLE_F_SIZE, VIRTIO_CONSOLE_F_EMERG_WRITE]);
        if self.multiport {
            features | Features::of(&[VIRTIO_CONSOLE_F_MULTIPORT])
        } else {
            features
        }
    }

    fn config_size(&self) -> u32 {
        CONFIG_SIZE
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let size = self.shared.size(0).to_bits();
        let ports = u32::try_from(self.shared.ports.len()).unwrap_or(u32::MAX);
        let fields = [size, ports, 0].map(u32::to_le_bytes);
        let fields = fields.as_flattened().iter().skip(offset as usize);
        data.iter_mut()
            .zip(fields)
            .for_each(|(to, from)| *to = *from);
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        let before = EMERGENCY.checked_sub(offset);
        if let Some(character) = before.and_then(|before| data.get(before as usize)) {
            self.emergency_write(*character);
        }
    }

    fn takes_early_write(&self, offset: u32) -> bool {
        offset == EMERGENCY
    }

    fn connect(&mut self, config: ConfigNotifier) {
        let _ = self.shared.config.set(config);
    }

    fn activate(&mut self, activation: Activation<M>) -> Result<(), DeviceFault> {
        let queue = |index| -> Option<&ActiveQueue> { activation.queue(index).ok() };
        let mut progress = self.shared.progress();
        for port in 0..self.shared.ports.len() {
            let queue = queue(transmit_queue(port));
            progress.bind(port, queue.map(|queue| &queue.lease));
        }
        drop(progress);
        let multiport = activation.features.has(VIRTIO_CONSOLE_F_MULTIPORT);
        let in_config = activation.features.has(VIRTIO_CONSOLE_F_SIZE) && !multiport;
        activation.serve(&mut self.executor, |memory| {
            Handler::new(memory, self.shared.clone(), multiport)
        })?;
        // Linux looks at the size when it is told of a change, and not before. With several ports it
        // is told by a control message.
        let known = self.shared.size(0) != Size::default();
        if let Some(config) = self.shared.config.get().filter(|_| in_config && known) {
            config.update(|| ());
        }
        Ok(())
    }

    fn save(&self) -> DeviceState {
        state::save(&self.shared)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceFault> {
        state::restore(&self.shared, state)
    }

    fn reset(&mut self) {
        self.shared.progress().reset();
    }
}

impl<E> fmt::Debug for Console<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("ports", &self.shared.ports)
            .finish_non_exhaustive()
    }
}

/// Changes a console's size and ports while the device is anywhere in its life; clones are the same.
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use virtio_console_device::{Console, Port, Size};
/// use virtio_device_core::WorkerThread;
///
/// let (ours, _theirs) = UnixStream::pair()?;
/// let port = Port::new(ours.try_clone()?, ours)?;
/// let console = Console::with_ports(vec![port], WorkerThread::named("console")?)?;
/// let handle = console.handle();
/// handle.resize(0, Size { cols: 132, rows: 50 });
/// handle.unplug(0); // the driver is told, now or when it starts
/// handle.plug(0);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct ConsoleHandle {
    shared: Arc<Shared>,
}

impl ConsoleHandle {
    /// Sets the size of port `port`, and tells the driver if that is a change: by the configuration
    /// space, for the first port, and by a control message, if there are several. May be called by
    /// any thread, but not by a signal handler.
    ///
    /// Restoring the device puts the saved size back, which the guest knows: set the present one
    /// afterwards. There is nothing to do for a port that does not exist.
    ///
    /// Linux before 6.15 takes the columns of a control message for rows and the other way round.
    pub fn resize(&self, port: u32, size: Size) {
        if let Ok(port) = usize::try_from(port) {
            self.shared.resize(port, size);
        }
    }

    /// Takes port `port` away from the guest, whose programs see it hang up. What they have written and
    /// the host has not taken yet is discarded, and nothing is read from the host any more. May be
    /// called by any thread, but not by a signal handler.
    ///
    /// It stays so over resets and in the saved state, until [`ConsoleHandle::plug`]. Only a driver that
    /// has agreed on `VIRTIO_CONSOLE_F_MULTIPORT` takes notice. There is nothing to do for a port that
    /// does not exist, or is not there already.
    pub fn unplug(&self, port: u32) {
        self.set_plugged(port, false);
    }

    /// Gives the guest port `port` again, with the same descriptors of the host. To it, that is a new
    /// port.
    pub fn plug(&self, port: u32) {
        self.set_plugged(port, true);
    }

    fn set_plugged(&self, port: u32, plugged: bool) {
        if let Ok(port) = usize::try_from(port) {
            self.shared.plug(port, plugged);
        }
    }
}

impl fmt::Debug for ConsoleHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleHandle").finish_non_exhaustive()
    }
}

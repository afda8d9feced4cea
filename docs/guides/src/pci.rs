// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The skeleton of a second transport: the common configuration structure of virtio-pci (VIRTIO 1.3,
//! section 4.1.4.3), a field a method, with one interrupt vector a queue. `docs/a-transport-of-your-own.md`
//! says what a whole one has beside it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::Duration;

use virtio_device_core::transport::{
    DEVICE_NEEDS_RESET, DeviceStatus, Interrupt, Negotiation, QueueLayout, QueueSetup, Session,
};
use virtio_device_core::vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use virtio_device_core::{
    ConfigNotifier, DeviceFault, Event, Features, InterruptLine, Observer, VIRTIO_F_RING_RESET,
    VirtioDevice, Virtqueue,
};
use vm_memory::GuestAddressSpace;

/// How long a reset waits for I/O in flight before it stays pending.
const RESET_BOUND: Duration = Duration::from_secs(2);
/// Causes in the ISR status (section 4.1.4.5).
const ISR_QUEUE: u32 = 1;
const ISR_CONFIG: u32 = 2;

/// The transport's notifications to the driver: a vector for each queue, the last for the configuration.
struct Vectors<L, O> {
    lines: Vec<L>,
    isr: AtomicU32,
    /// Odd while the configuration space changes.
    generation: AtomicU32,
    observer: O,
}

impl<L: InterruptLine, O: Observer> Vectors<L, O> {
    fn raise(&self, vector: Option<&L>, cause: u32) {
        // The cause first: a driver that is interrupted finds it.
        self.isr.fetch_or(cause, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        if let Some(Err(error)) = vector.map(InterruptLine::trigger) {
            self.observer.event(&Event::LineFailed(&error));
        }
    }
}

impl<L: InterruptLine, O: Observer> Interrupt for Vectors<L, O> {
    fn used_buffers(&self, queue: u16) {
        self.raise(self.lines.get(usize::from(queue)), ISR_QUEUE);
    }

    fn config_changing(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    fn config_settled(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    fn config_interrupt(&self) {
        self.raise(self.lines.last(), ISR_CONFIG);
    }

    fn observe(&self, event: &Event<'_>) {
        self.observer.event(event);
    }
}

/// What the driver has written about one queue.
#[derive(Debug)]
struct Queue {
    max_size: u16,
    /// `queue_enable`: from then on the layout is out of the driver's reach.
    enabled: Option<QueueLayout>,
    /// `queue_reset` was written, and the queue not enabled again.
    reset: bool,
}

/// Everything that a reset puts back.
#[derive(Debug)]
struct Registers {
    status: DeviceStatus,
    features: Negotiation,
    queues: Vec<Queue>,
}

/// A device behind the fields of the common configuration structure.
pub struct Pci<M: GuestAddressSpace, D, L, O> {
    device: D,
    memory: M,
    registers: Registers,
    kicks: Vec<Arc<EventFd>>,
    vectors: Arc<Vectors<L, O>>,
    config: ConfigNotifier,
    /// What the device holds between activation and reset.
    session: Option<Session>,
    /// What it held before a reset that is pending.
    resetting: Option<Session>,
}

fn fresh<M: GuestAddressSpace>(device: &impl VirtioDevice<M>) -> Registers {
    let queue = |&max_size| Queue {
        max_size,
        enabled: None,
        reset: false,
    };
    let offered = device.features() | Features::of(&[VIRTIO_F_RING_RESET]);
    Registers {
        status: DeviceStatus::RESET,
        features: Negotiation::new(device.device_type(), offered),
        queues: device.queue_max_sizes().iter().map(queue).collect(),
    }
}

impl<M, D, L, O> Pci<M, D, L, O>
where
    M: GuestAddressSpace,
    D: VirtioDevice<M>,
    L: InterruptLine + 'static,
    O: Observer + 'static,
{
    /// Puts `device` behind the structure; `line` makes the line of each vector.
    ///
    /// # Errors
    ///
    /// If the event fds for the device's queues cannot be made.
    pub fn new(
        mut device: D,
        memory: M,
        line: impl FnMut(usize) -> L,
        observer: O,
    ) -> io::Result<Self> {
        let queues = device.queue_max_sizes().len();
        let kick = |_| EventFd::new(EFD_NONBLOCK).map(Arc::new);
        let vectors = Arc::new(Vectors {
            lines: (0..=queues).map(line).collect(),
            isr: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            observer,
        });
        let config = ConfigNotifier::new(vectors.clone());
        device.connect(config.clone());
        Ok(Self {
            memory,
            registers: fresh(&device),
            kicks: (0..queues).map(kick).collect::<io::Result<_>>()?,
            vectors,
            config,
            session: None,
            resetting: None,
            device,
        })
    }

    /// The event fd of each queue, for ioeventfds at `queue_notify_off`.
    #[must_use]
    pub fn kicks(&self) -> &[Arc<EventFd>] {
        &self.kicks
    }

    /// Reads `device_status`.
    pub fn status(&mut self) -> u8 {
        if self.reset_is_pending() {
            return DEVICE_NEEDS_RESET;
        }
        let broken = if self.broken() { DEVICE_NEEDS_RESET } else { 0 };
        self.registers.status.bits() | broken
    }

    fn broken(&self) -> bool {
        self.session.as_ref().is_some_and(Session::is_broken)
    }

    fn reset_is_pending(&mut self) -> bool {
        if self.resetting.as_ref().is_some_and(Session::is_idle) {
            self.resetting = None;
        }
        self.resetting.is_some()
    }

    /// Writes `device_status`.
    pub fn set_status(&mut self, value: u32) {
        if self.reset_is_pending() {
            if value != 0 {
                let status = self.registers.status;
                self.event(&Event::StatusRefused { status, value });
            }
            return; // until the old life has ended there is no new one
        }
        let status = self.registers.status;
        match status.after_write(value, self.broken()) {
            None if value == u32::from(self.status()) => {}
            None => self.event(&Event::StatusRefused { status, value }),
            Some(DeviceStatus::RESET) => self.reset(),
            Some(next) if next.failed() => {
                self.registers.status = next;
                self.session.iter().for_each(Session::revoke);
                self.event(&Event::DriverFailed);
            }
            Some(next) if next.configuring_queues() => match self.registers.features.check() {
                Ok(_) => self.registers.status = next,
                Err(error) => self.event(&Event::FeaturesRefused(error)),
            },
            Some(next) if next.live() => {
                self.registers.status = next;
                if let Err(fault) = self.activate() {
                    let failed = |session: &Session| session.device_failed(&fault);
                    self.session.iter().for_each(failed);
                }
            }
            Some(next) => self.registers.status = next,
        }
    }

    /// Lends everything to the device.
    fn activate(&mut self) -> Result<(), DeviceFault> {
        let features = self.registers.features.accepted();
        let queues = (0..=u16::MAX).zip(&self.kicks).zip(&self.registers.queues);
        let queues = queues.filter_map(|((index, kick), queue)| {
            let layout = queue.enabled?;
            Some((index, kick.clone(), Some(Virtqueue::new(layout, features))))
        });
        let memory = self.memory.clone();
        let (session, activation) = Session::new(&self.config, memory, features, queues, false);
        let session = self.session.insert(session);
        self.device.activate(activation)?;
        session.activated();
        // The driver may have notified already, when there was nobody to hear.
        session.kick_all();
        Ok(())
    }

    /// Takes everything back, in this order.
    fn reset(&mut self) {
        // 1. Interrupts, then the queues and memory, then the workers are told to end.
        let session = self.session.take();
        session.iter().for_each(Session::revoke);
        // 2. The device forgets its driver, also one that did not get as far as to have it work, and
        //    cancels what it has in flight.
        self.device.reset();
        // 3. What is in flight straight into guest memory is waited for. Not for ever: a vCPU waits
        //    here. If that is not enough, the status says so.
        self.resetting = session.filter(|session| !session.wait_idle(Some(RESET_BOUND)));
        // 4. All registers are made anew, the interrupt's causes among them.
        self.vectors.isr.store(0, Ordering::Release);
        self.registers = fresh(&self.device);
        self.event(&Event::Reset);
    }

    /// Reads `device_feature`, with `device_feature_select`.
    #[must_use]
    pub fn offered(&self, select: u32) -> u32 {
        self.registers.features.offered().word(select)
    }

    /// Writes `driver_feature`, with `driver_feature_select`.
    pub fn accept(&mut self, select: u32, word: u32) {
        if self.registers.status.negotiating() {
            self.registers.features.accept_word(select, word);
        }
    }

    /// Reads `queue_size` of a queue before it is enabled; 0 if there is none.
    #[must_use]
    pub fn max_size(&self, queue: u32) -> u16 {
        self.queue(queue).map_or(0, |queue| queue.max_size)
    }

    fn queue(&self, queue: u32) -> Option<&Queue> {
        self.registers.queues.get(usize::try_from(queue).ok()?)
    }

    /// Whether `queue_enable` reads 1: also while a queue that was reset has I/O in flight.
    #[must_use]
    pub fn is_enabled(&self, queue: u32) -> bool {
        (self.queue(queue)).is_some_and(|queue| queue.enabled.is_some()) || self.is_resetting(queue)
    }

    /// Reads `queue_reset`: whether a queue that was reset has I/O in flight.
    #[must_use]
    pub fn is_resetting(&self, queue: u32) -> bool {
        let enabled = (self.queue(queue)).is_some_and(|queue| queue.enabled.is_some());
        let session = self.session.as_ref().zip(u16::try_from(queue).ok());
        !enabled
            && session.is_some_and(|(session, queue)| {
                !session.wait_queue_idle(queue, Some(Duration::ZERO))
            })
    }

    /// Writes 1 to `queue_enable`, with what was written to the fields before it.
    pub fn enable(&mut self, index: u32, setup: &QueueSetup) {
        let status = self.registers.status;
        if self.broken() || self.is_resetting(index) {
            return;
        }
        let memory = self.memory.memory();
        let number = usize::try_from(index).unwrap_or(usize::MAX);
        let Some(queue) = self.registers.queues.get_mut(number) else {
            return;
        };
        // A live device takes only queues that it had, and the driver has reset.
        let allowed = status.configuring_queues() || status.live() && queue.reset;
        if queue.enabled.is_some() || !allowed {
            return;
        }
        match QueueLayout::check(setup, queue.max_size, &*memory) {
            Ok(layout) => {
                queue.enabled = Some(layout);
                queue.reset = false;
                let ring = Virtqueue::new(layout, self.registers.features.accepted());
                if let (Some(session), Ok(index)) = (&mut self.session, u16::try_from(index)) {
                    session.restart_queue(index, ring);
                }
            }
            Err(error) => {
                let queue = index;
                self.event(&Event::QueueRefused { queue, error });
            }
        }
    }

    /// Writes 1 to `queue_reset`.
    pub fn reset_queue(&mut self, index: u32) {
        let registers = &mut self.registers;
        let agreed = registers.features.accepted().has(VIRTIO_F_RING_RESET)
            && registers.status.features_ok()
            && !registers.status.failed();
        let number = usize::try_from(index).unwrap_or(usize::MAX);
        let Some(queue) = registers.queues.get_mut(number).filter(|_| agreed) else {
            return;
        };
        let enabled = queue.enabled.take().is_some();
        queue.reset = true;
        let Ok(index) = u16::try_from(index) else {
            return;
        };
        if let Some(session) = self.session.as_ref().filter(|_| enabled) {
            session.revoke_queue(index);
            // If that is not enough, `queue_reset` says so.
            let _ = session.wait_queue_idle(index, Some(RESET_BOUND));
        }
        self.event(&Event::QueueReset(index));
    }

    /// A write to a queue's place in the notification structure that no ioeventfd has taken.
    pub fn notify(&self, queue: u32) {
        let number = usize::try_from(queue).unwrap_or(usize::MAX);
        match self.kicks.get(number) {
            // The fd does not wait; if it is full, the worker is on its way.
            Some(kick) => drop(kick.write(1)),
            None => self.event(&Event::NotificationIgnored { value: queue }),
        }
    }

    /// The ISR status. A read over the bus also clears it: `clear_isr(all)`.
    #[must_use]
    pub fn isr(&self) -> u32 {
        self.vectors.isr.load(Ordering::Acquire)
    }

    /// Clears causes of the ISR status.
    pub fn clear_isr(&self, causes: u32) {
        self.vectors.isr.fetch_and(!causes, Ordering::AcqRel);
    }

    /// Reads `config_generation`: never twice the same while the configuration space changes.
    #[must_use]
    pub fn generation(&self) -> u32 {
        let generation = self.vectors.generation.load(Ordering::Acquire);
        if generation % 2 == 0 {
            return generation;
        }
        self.vectors.generation.fetch_add(2, Ordering::AcqRel)
    }

    /// Reads the device-specific configuration, which is zeros behind its end.
    pub fn read_config(&self, offset: u32, data: &mut [u8]) {
        data.fill(0);
        let end = u64::from(offset) + data.len() as u64;
        if end <= self.device.config_size().into() {
            self.device.read_config(offset, data);
        }
    }

    fn event(&self, event: &Event<'_>) {
        self.vectors.observer.event(event);
    }
}

impl<M: GuestAddressSpace, D, L, O> std::fmt::Debug for Pci<M, D, L, O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pci")
            .field("registers", &self.registers)
            .finish_non_exhaustive()
    }
}

impl<M: GuestAddressSpace, D, L, O> Drop for Pci<M, D, L, O> {
    /// A worker must not go on with guest memory when its transport is gone.
    fn drop(&mut self) {
        self.session.iter().for_each(Session::revoke);
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a device reaches its driver.
//!
//! A VMM passes an [`InterruptLine`](crate::InterruptLine) to a transport, which implements
//! [`Interrupt`] on top of it. A device holds handles that the transport revokes at reset:
//! [`InterruptHandle`] for the device as a whole, one in each [`ActiveQueue`](crate::ActiveQueue), and [`ConfigNotifier`], which outlives resets.

use std::fmt;
use std::sync::{Arc, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::fault::{BadRequest, DeviceFault};
use crate::gate::{Gate, REVOKED};
use crate::negotiation::Features;
use crate::observer::Event;
use crate::sync::{AtomicBool, AtomicU32, AtomicUsize, Mutex, MutexGuard, Ordering, fence};

/// A transport's notifications to the driver (VIRTIO 1.3, section 2.3).
///
/// Implemented by transports. Called from many threads at once, without a lock that queues share.
///
/// ```
/// use virtio_device_core::transport::Interrupt;
///
/// /// A vector for each queue, as PCI has it: a function that signals one.
/// struct Vectors<F>(F);
///
/// impl<F: Fn(u16) + Send + Sync> Interrupt for Vectors<F> {
///     fn used_buffers(&self, queue: u16) {
///         (self.0)(queue + 1);
///     }
///
///     fn config_interrupt(&self) {
///         (self.0)(0);
///     }
/// }
/// ```
pub trait Interrupt: Send + Sync {
    /// Tells the driver that queue `queue` holds used buffers.
    fn used_buffers(&self, queue: u16);

    /// The event fd that raises the interrupt of queue `queue` by itself, if there is one. A
    /// transport that hands it out shows the cause of the interrupt to the driver from then on.
    fn event_fd(&self, queue: u16) -> Option<Arc<EventFd>> {
        let _ = queue;
        None
    }

    /// The configuration space is about to change; [`config_settled`] will follow.
    ///
    /// From here to there, no two looks of the driver at the generation may be equal.
    ///
    /// [`config_settled`]: Interrupt::config_settled
    fn config_changing(&self) {}

    /// The configuration space has changed.
    fn config_settled(&self) {}

    /// Raises the configuration interrupt: the configuration space or the status has changed.
    fn config_interrupt(&self);

    /// Passes on to the VMM what the device has to say.
    fn observe(&self, event: &Event<'_>) {
        let _ = event;
    }
}

/// Something that reaches the driver until it is cut off, which waits for calls that are on their way.
///
/// They hold no lock: an interrupt line or an observer may raise interrupts, and ask for whatever it
/// likes. Alone in its cache lines, so that the workers of two queues do not wait for each other's.
#[repr(align(128))]
struct Cuttable {
    gate: Gate,
    target: Option<Arc<dyn Interrupt>>,
}

impl Cuttable {
    fn new(target: Option<Arc<dyn Interrupt>>) -> Self {
        let gate = Gate::new(if target.is_some() { 0 } else { REVOKED });
        Self { gate, target }
    }

    #[inline]
    fn reach<R>(&self, notify: impl FnOnce(&dyn Interrupt) -> R) -> Option<R> {
        let target = self.target.as_deref()?;
        let _inside = Inside::of(&self.gate)?;
        Some(notify(target))
    }

    fn cut(&self) {
        self.gate.set(REVOKED);
        self.gate.wait_idle(None);
    }
}

/// Someone inside of a gate, also if the call panics that is made there.
struct Inside<'a>(&'a Gate);

impl<'a> Inside<'a> {
    #[inline]
    fn of(gate: &'a Gate) -> Option<Self> {
        gate.enter().ok().map(|()| Self(gate))
    }
}

impl Drop for Inside<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// The device's end of the interrupt as a whole, good for one activation.
///
/// After the transport has revoked it nothing reaches the driver any more, whoever still holds a
/// clone: a worker that is late cannot interrupt a driver that has reset the device.
#[derive(Clone)]
pub struct InterruptHandle {
    shared: Arc<Shared>,
}

struct Shared {
    /// Outside of the lock: transports read it on every status read.
    broken: AtomicBool,
    /// Outside of the lock: workers ask at every wake-up.
    revoked: AtomicBool,
    paused: AtomicBool,
    /// How often the device was paused.
    pauses: AtomicUsize,
    target: Cuttable,
    /// The loops in which this activation has workers, to be woken when its state changes.
    loops: Mutex<Vec<Arc<EventFd>>>,
    /// Workers, and the activation itself, that have not started yet.
    starting: AtomicUsize,
    /// The VMM's observer has heard that the device is live.
    announced: AtomicBool,
    features: Features,
}

impl InterruptHandle {
    pub(crate) fn new(interrupt: Arc<dyn Interrupt>, features: Features, paused: bool) -> Self {
        Self {
            shared: Arc::new(Shared {
                broken: AtomicBool::new(false),
                revoked: AtomicBool::new(false),
                paused: AtomicBool::new(paused),
                pauses: AtomicUsize::new(0),
                target: Cuttable::new(Some(interrupt)),
                loops: Mutex::new(Vec::new()),
                starting: AtomicUsize::new(1),
                announced: AtomicBool::new(false),
                features,
            }),
        }
    }

    /// Marks the device as broken: the driver sees `DEVICE_NEEDS_RESET` and gets one configuration
    /// interrupt, however often this is called (VIRTIO 1.3, section 2.1.2). The VMM's observer is
    /// told the first `cause`. All workers of this activation end.
    pub fn device_failed(&self, cause: &DeviceFault) {
        self.shared.target.reach(|target| {
            if !self.shared.broken.swap(true, Ordering::AcqRel) {
                target.observe(&Event::DeviceFailed(cause));
                target.config_interrupt();
            }
        });
        self.wake_loops();
    }

    /// Tells the VMM's observer that a request in queue `queue` was given back unserved.
    pub fn bad_request(&self, queue: u16, error: BadRequest) {
        let event = Event::BadRequest { queue, error };
        self.shared.target.reach(|target| target.observe(&event));
    }

    /// Whether the device has been marked as broken.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.shared.broken.load(Ordering::Acquire)
    }

    /// Whether the transport has revoked this handle, or is about to: the device was reset.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.shared.revoked.load(Ordering::Acquire)
    }

    /// Whether the device is paused, or about to be.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.shared.paused.load(Ordering::Acquire)
    }

    /// Whether a worker of this activation has nothing left to do.
    pub(crate) fn has_ended(&self) -> bool {
        self.is_revoked() || self.is_broken()
    }

    /// Marks the device as broken without telling anybody: it was told before it was saved.
    pub(crate) fn set_broken(&self) {
        self.shared.broken.store(true, Ordering::Release);
    }

    /// How often the device was paused: whoever finds it changed may have met a paused queue.
    pub(crate) fn pauses(&self) -> usize {
        self.shared.pauses.load(Ordering::Acquire)
    }

    /// To be called before the leases are paused, and after they are resumed.
    pub(crate) fn set_paused(&self, paused: bool) {
        self.shared.paused.store(paused, Ordering::SeqCst);
        // The count changes after the flag: a worker that reads the count first, then the flag, misses no
        // pause.
        if paused {
            self.shared.pauses.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Cuts all clones of this handle off; returns when no notification is on its way any more.
    pub(crate) fn revoke(&self) {
        self.shared.revoked.store(true, Ordering::Release);
        self.shared.target.cut();
    }

    /// Has `wake` written when workers of this activation are to end, or to go on after a pause.
    pub(crate) fn add_loop(&self, wake: &Arc<EventFd>) {
        let mut loops = self.loops();
        if !loops.iter().any(|known| Arc::ptr_eq(known, wake)) {
            loops.push(wake.clone());
        }
    }

    pub(crate) fn wake_loops(&self) {
        for wake in self.loops().iter() {
            // An error means that the counter is full, and then the fd is readable already.
            let _ = wake.write(1);
        }
    }

    fn loops(&self) -> MutexGuard<'_, Vec<Arc<EventFd>>> {
        let loops = self.shared.loops.lock();
        loops.unwrap_or_else(PoisonError::into_inner)
    }

    /// One more part of the activation is to start before the device counts as activated.
    pub(crate) fn expect_start(&self) -> Expected {
        self.shared.starting.fetch_add(1, Ordering::AcqRel);
        Expected(self.clone())
    }

    /// One part has started, or is not wanted any more. The last one tells the VMM's observer that the
    /// device is live; a worker that a live device starts later is no news.
    pub(crate) fn started(&self) {
        let last = self.shared.starting.fetch_sub(1, Ordering::AcqRel) == 1;
        if last && !self.is_broken() && !self.shared.announced.swap(true, Ordering::AcqRel) {
            let features = self.shared.features;
            let event = Event::Activated { features };
            self.shared.target.reach(|target| target.observe(&event));
        }
    }
}

/// A part of an activation that is to start: it has when this is dropped, or there will be none.
pub(crate) struct Expected(InterruptHandle);

impl Drop for Expected {
    fn drop(&mut self) {
        self.0.started();
    }
}

impl fmt::Debug for InterruptHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterruptHandle")
            .field("broken", &self.is_broken())
            .field("revoked", &self.is_revoked())
            .finish_non_exhaustive()
    }
}

/// The device's end of one queue's interrupt, good until the queue or the device is reset.
///
/// Each has a gate of its own, so that the workers of two queues do not meet.
#[derive(Clone)]
pub(crate) struct QueueInterrupt {
    queue: u16,
    target: Arc<Cuttable>,
}

impl QueueInterrupt {
    /// `None` makes one that is revoked from the start.
    pub(crate) fn new(queue: u16, interrupt: Option<Arc<dyn Interrupt>>) -> Self {
        Self {
            queue,
            target: Arc::new(Cuttable::new(interrupt)),
        }
    }

    #[inline]
    pub(crate) fn trigger(&self) {
        self.target.reach(|target| target.used_buffers(self.queue));
    }

    pub(crate) fn event_fd(&self) -> Option<Arc<EventFd>> {
        self.target.reach(|target| target.event_fd(self.queue))?
    }

    pub(crate) fn revoke(&self) {
        self.target.cut();
    }
}

impl fmt::Debug for QueueInterrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueInterrupt")
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

/// Announces changes of the configuration space that come from the host, at any time: before the
/// device is activated, while it is live, while it is paused. Outlives resets.
///
/// A device gets one through [`VirtioDevice::connect`](crate::VirtioDevice::connect), and hands
/// clones to whoever changes its configuration.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use virtio_device_core::ConfigNotifier;
///
/// /// What the host calls when a disk has grown, on any thread.
/// fn grown(config: &ConfigNotifier, capacity: &Arc<Mutex<u64>>, sectors: u64) {
///     config.update(|| *capacity.lock().unwrap() = sectors);
/// }
/// ```
#[derive(Clone)]
pub struct ConfigNotifier {
    interrupt: Arc<dyn Interrupt>,
    /// Held by the change that is being made.
    changing: Arc<Mutex<()>>,
    /// Open while there is a driver that wants to be interrupted.
    live: Arc<Gate>,
    /// What a driver on its way up may have missed: [`SETTLED`], [`BEGUN`] or [`UNTOLD`].
    news: Arc<AtomicU32>,
}

/// No driver is on its way up.
const SETTLED: u32 = 0;
/// A driver is, and nothing has changed since it began.
const BEGUN: u32 = 1;
/// Something has, and the driver could not be interrupted yet.
const UNTOLD: u32 = 2;

impl ConfigNotifier {
    /// Makes a notifier that reaches the driver through `interrupt`; for transports, once.
    #[must_use]
    pub fn new(interrupt: Arc<dyn Interrupt>) -> Self {
        Self {
            interrupt,
            changing: Arc::default(),
            live: Arc::new(Gate::new(REVOKED)),
            news: Arc::default(),
        }
    }

    /// A driver begins: it has read nothing of the configuration space so far. For transports, when the
    /// status leaves 0: what changes from here on is told as soon as the device lives.
    pub fn begin(&self) {
        self.news.store(BEGUN, Ordering::SeqCst);
    }

    /// Whether something has changed that the driver is still to be told of: since it
    /// [began](Self::begin), or just now. For transports, to be saved with what the driver has written:
    /// ask before the causes of the interrupt are looked at, and once more afterwards.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.news.load(Ordering::SeqCst) == UNTOLD || !self.live.is_idle()
    }

    /// Runs `change`, which changes the device's configuration space, and tells the driver, if the
    /// device is live.
    ///
    /// A driver that reads several fields while they change, with the configuration generation read
    /// before and after, finds the generations different and starts over (VIRTIO 1.3, section
    /// 2.5). One change runs at a time. `change` must not wait, and must not use a notifier of the
    /// same device.
    pub fn update<R>(&self, change: impl FnOnce() -> R) -> R {
        /// Ends the change even after a panic; otherwise the generation would change for ever.
        struct Change<'a> {
            notifier: &'a ConfigNotifier,
            live: Option<Inside<'a>>,
            changing: Option<MutexGuard<'a, ()>>,
        }

        impl Drop for Change<'_> {
            fn drop(&mut self) {
                let (interrupt, order) = (&self.notifier.interrupt, Ordering::SeqCst);
                // A driver that is starting may have read the old fields, so it is told as soon as the
                // device is live. The note is left before `live` is read again: either activation finds
                // the note, or this finds the device live. And it is left before the change looks settled,
                // so that a save which finds no change under way finds the note.
                if self.live.is_none() {
                    let news = &self.notifier.news;
                    let _ = news.compare_exchange(BEGUN, UNTOLD, order, order);
                }
                interrupt.config_settled();
                if self.live.is_none() {
                    fence(order);
                    self.live = Inside::of(&self.notifier.live);
                }
                // Released before the interrupt, whose handler may make the next change.
                self.changing = None;
                if self.live.is_some() {
                    interrupt.config_interrupt();
                }
            }
        }

        let changing = self.changing.lock();
        let changing = changing.unwrap_or_else(PoisonError::into_inner);
        let live = Inside::of(&self.live);
        self.interrupt.config_changing();
        let _change = Change {
            notifier: self,
            live,
            changing: Some(changing),
        };
        change()
    }

    /// Decides whether the driver is interrupted; waits for a change that is being made if it is not
    /// any more.
    pub(crate) fn set_live(&self, live: bool) {
        if live {
            self.live.clear(REVOKED);
            fence(Ordering::SeqCst);
            if self.news.swap(SETTLED, Ordering::SeqCst) == UNTOLD {
                self.interrupt.config_interrupt();
            }
        } else {
            self.live.set(REVOKED);
            self.live.wait_idle(None);
        }
    }

    pub(crate) fn interrupt(&self) -> &Arc<dyn Interrupt> {
        &self.interrupt
    }
}

impl fmt::Debug for ConfigNotifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigNotifier").finish_non_exhaustive()
    }
}

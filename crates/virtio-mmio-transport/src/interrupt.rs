// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the transport shares with its device's worker: the causes of the interrupt.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock, PoisonError};

use virtio_device_core::transport::{Interrupt, caught, discard};
use virtio_device_core::{Event, InterruptLine, Observer};
use vmm_sys_util::eventfd::EventFd;

use crate::register::{INT_CONFIG, INT_VRING};
use crate::sync::{AtomicU32, Mutex, MutexGuard, Ordering, ThreadId, fence, thread};

/// `InterruptStatus` and `ConfigGeneration`, and the line to the guest. Reading takes no locks:
/// vCPUs read these registers while a worker raises interrupts.
pub(crate) struct MmioInterrupt {
    /// The causes, and `EXTERNAL`.
    status: AtomicU32,
    /// Odd while the configuration space changes.
    generation: AtomicU32,
    line: Box<dyn InterruptLine>,
    trigger: Trigger,
    /// Regions of a bus that the registers are at, and `OWN_BUS` until they were at any.
    regions: AtomicU32,
    observer: OnceLock<Box<dyn Observer>>,
}

/// A foreign server interrupts by the line's event fd, and cannot say for what: the driver reads
/// `INT_VRING` whenever it looks.
const EXTERNAL: u32 = INT_VRING << 31;

/// A VMM that has a bus of its own says nothing of its regions: the registers can always be reached.
const OWN_BUS: u32 = 1 << 31;

/// How the line is driven.
enum Trigger {
    /// By the kernel, for any number of threads at once.
    EventFd,
    /// By one thread at a time: a line that is raised and lowered again makes no edge for a thread that
    /// raises it in between.
    Edge(Turns),
    /// By one thread at a time, to the level that the causes want.
    Level(Turns),
}

impl Trigger {
    fn of(line: &dyn InterruptLine) -> Self {
        if line.is_level() {
            Self::Level(Turns::default())
        } else if line.event_fd().is_some() {
            Self::EventFd
        } else {
            Self::Edge(Turns::default())
        }
    }
}

impl MmioInterrupt {
    pub(crate) fn new(line: Box<dyn InterruptLine>) -> Self {
        Self {
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            trigger: Trigger::of(&*line),
            regions: AtomicU32::new(OWN_BUS),
            line,
            observer: OnceLock::new(),
        }
    }

    /// Sets who is told of events; the first one stays.
    pub(crate) fn set_observer(&self, observer: Box<dyn Observer>) {
        let _ = self.observer.set(observer);
    }

    pub(crate) fn event(&self, event: &Event<'_>) {
        if let Some(observer) = self.observer.get() {
            // One that panics must not take a vCPU or a worker with it.
            let _ = caught(|| observer.event(event));
        }
    }

    /// `InterruptStatus`.
    pub(crate) fn status(&self) -> u32 {
        let status = self.status.load(Ordering::Acquire);
        (status | status >> 31) & (INT_VRING | INT_CONFIG)
    }

    fn causes(&self) -> u32 {
        self.status.load(Ordering::Acquire) & !EXTERNAL
    }

    /// Clears exactly the causes in `causes`; one that comes up again meanwhile stays.
    pub(crate) fn acknowledge(&self, causes: u32) {
        self.clear(causes & !EXTERNAL);
    }

    fn clear(&self, causes: u32) {
        self.status.fetch_and(!causes, Ordering::AcqRel);
        // Pairs with the fence in `raise`: what the driver reads next is at least as new as the cause.
        fence(Ordering::SeqCst);
        self.update_level();
    }

    /// Forgets all causes, and takes a level-triggered line down.
    pub(crate) fn reset(&self) {
        self.clear(u32::MAX);
    }

    /// What the driver reads from `ConfigGeneration`: never the same twice while the configuration
    /// space changes, so that the driver reads its fields again.
    pub(crate) fn generation(&self) -> u32 {
        // Fields that were read before this belong to an earlier generation, or to this one.
        fence(Ordering::Acquire);
        let generation = self.generation.load(Ordering::Acquire);
        if generation % 2 == 0 {
            return generation;
        }
        // Steps of two, so that the change that goes on stays visible.
        self.generation.fetch_add(2, Ordering::AcqRel)
    }

    /// The values to be saved: the causes, a generation at rest, and whether a change goes on that is yet
    /// to be told.
    pub(crate) fn saved(&self) -> (u32, u32, bool) {
        let generation = self.generation();
        let changing = generation % 2;
        (
            self.causes(),
            generation.wrapping_add(changing),
            changing != 0,
        )
    }

    /// Puts a saved generation back.
    pub(crate) fn restore_generation(&self, generation: u32) {
        // The lowest bit says that a change is under way. It is kept, and cleared when the change ends.
        let put = |now: u32| Some(generation & !1 | now & 1);
        let _ = (self.generation).fetch_update(Ordering::AcqRel, Ordering::Acquire, put);
    }

    pub(crate) fn raise(&self, causes: u32) {
        // The causes first, so that a driver that is interrupted finds them. A cause that is set already
        // is not written again, which spares the workers of several queues a contended cache line. The
        // fence orders what the device has written before the check: a driver that clears the cause
        // afterwards finds it.
        fence(Ordering::SeqCst);
        if self.causes() & causes != causes {
            self.status.fetch_or(causes, Ordering::AcqRel);
        }
        // An edge that fails leaves the cause visible to a driver that looks, and is tried again with
        // the next one.
        let edge = || self.drive(|line| line.trigger());
        match &self.trigger {
            Trigger::EventFd => _ = edge(),
            Trigger::Edge(turns) => turns.take(|_| edge()),
            Trigger::Level(_) => self.update_level(),
        }
    }

    /// Has a level-triggered line follow the causes, as long as the driver can reach the registers.
    /// Whoever changes either comes here afterwards, and the last to come sees the last change.
    fn update_level(&self) {
        let Trigger::Level(turns) = &self.trigger else {
            return;
        };
        turns.take(|high| {
            let wanted = self.causes() != 0 && self.regions.load(Ordering::Acquire) != 0;
            let change = |line: &dyn InterruptLine| {
                if wanted { line.trigger() } else { line.clear() }
            };
            let driven = wanted == *high || self.drive(change);
            if driven {
                *high = wanted;
            }
            driven
        });
    }

    /// The registers are about to be at one more region of a bus.
    pub(crate) fn inserted(&self) {
        let more = |regions: u32| Some((regions & !OWN_BUS) + 1);
        let _ = (self.regions).fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        self.update_level();
    }

    /// The registers are at one region less.
    pub(crate) fn removed(&self) {
        self.regions.fetch_sub(1, Ordering::AcqRel);
        self.update_level();
    }

    /// Returns whether the line took the change. A line that panics has not; it must not take the
    /// device with it.
    fn drive(&self, change: impl FnOnce(&dyn InterruptLine) -> io::Result<()>) -> bool {
        let driven = caught(|| change(&*self.line))
            .unwrap_or_else(|| Err(io::Error::other("the interrupt line panicked")));
        let Err(error) = driven else { return true };
        self.event(&Event::LineFailed(&error));
        discard(error);
        false
    }
}

/// Whose turn it is to drive the line.
#[derive(Default)]
struct Turns {
    /// Whether a level-triggered line is high. Held by the thread that drives it.
    high: Mutex<bool>,
    driver: Mutex<Driver>,
}

#[derive(Default)]
struct Driver {
    thread: Option<ThreadId>,
    /// It has come here again from inside of its turn.
    again: bool,
}

impl Turns {
    /// Calls `turn` when no other thread is inside of such a call; it returns whether the line took the
    /// change. A line or an observer that comes here from inside of a turn does not wait for itself: the
    /// turn is taken once more, unless the line has failed.
    fn take(&self, mut turn: impl FnMut(&mut bool) -> bool) {
        let this = thread::current().id();
        {
            let mut driver = lock(&self.driver);
            if driver.thread == Some(this) {
                driver.again = true;
                return;
            }
        }
        let mut high = lock(&self.high);
        let _driving = Driving(&self.driver);
        let mut again = true;
        while again {
            *lock(&self.driver) = Driver {
                thread: Some(this),
                again: false,
            };
            again = turn(&mut high) && lock(&self.driver).again;
        }
    }
}

/// The calling thread drives the line, until this is dropped: also by an observer that panics.
struct Driving<'a>(&'a Mutex<Driver>);

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        *lock(self.0) = Driver::default();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Interrupt for MmioInterrupt {
    fn used_buffers(&self, _queue: u16) {
        self.raise(INT_VRING);
    }

    fn config_changing(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        // The change is not seen before the generation that announces it.
        fence(Ordering::SeqCst);
    }

    fn config_settled(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    fn config_interrupt(&self) {
        self.raise(INT_CONFIG);
    }

    fn event_fd(&self, _queue: u16) -> Option<Arc<EventFd>> {
        let fd = self.line.event_fd()?.try_clone().ok()?;
        self.status.fetch_or(EXTERNAL, Ordering::AcqRel);
        Some(Arc::new(fd))
    }

    fn observe(&self, event: &Event<'_>) {
        self.event(event);
    }
}

impl fmt::Debug for MmioInterrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioInterrupt")
            .field("status", &self.status)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_device_core::edge_line;

    fn interrupt() -> MmioInterrupt {
        MmioInterrupt::new(Box::new(edge_line(|| Ok(()))))
    }

    #[test]
    fn two_looks_during_a_change_differ_and_no_look_equals_one_after_it() {
        let interrupt = interrupt();
        let before = interrupt.generation();
        assert_eq!(interrupt.generation(), before);
        interrupt.config_changing();
        let mut seen = vec![before];
        for _ in 0..3 {
            let during = interrupt.generation();
            assert!(!seen.contains(&during));
            seen.push(during);
        }
        interrupt.config_settled();
        let after = interrupt.generation();
        assert!(!seen.contains(&after));
        assert_eq!(interrupt.generation(), after);
    }

    #[test]
    fn a_change_alone_interrupts_nobody() {
        let interrupt = interrupt();
        let before = interrupt.generation();
        interrupt.config_changing();
        interrupt.config_settled();
        let after = interrupt.generation();
        assert_ne!(after, before);
        assert_eq!(interrupt.generation(), after);
        assert_eq!(interrupt.status(), 0);
        assert!(format!("{interrupt:?}").contains("generation: 2"));
    }

    #[test]
    fn a_saved_generation_is_at_rest_and_ahead() {
        let interrupt = interrupt();
        interrupt.config_changing();
        let seen = interrupt.generation();
        let (_, saved, changing) = interrupt.saved();
        assert!(changing);
        assert_eq!(saved % 2, 0);
        assert!(saved > seen);
        let other = self::interrupt();
        other.restore_generation(saved);
        assert_eq!(other.generation(), saved);
        assert_eq!(other.status(), 0);
    }

    #[test]
    fn the_last_generation_there_is_can_be_saved() {
        let interrupt = interrupt();
        interrupt.restore_generation(u32::MAX);
        interrupt.config_changing();
        assert_eq!(interrupt.saved().1 % 2, 0);
    }

    #[test]
    fn a_generation_comes_to_rest_that_is_restored_during_a_change() {
        let interrupt = interrupt();
        interrupt.config_changing();
        interrupt.restore_generation(6);
        assert_ne!(interrupt.generation(), interrupt.generation());
        interrupt.config_settled();
        assert_eq!(interrupt.generation(), interrupt.generation());
    }

    #[test]
    fn an_observer_that_panics_harms_nobody() {
        struct Panicking;
        impl Observer for Panicking {
            fn event(&self, _event: &Event<'_>) {
                panic!("an observer's own fault");
            }
        }
        let line = virtio_device_core::level_line(|_| Err(io::ErrorKind::BrokenPipe.into()));
        let interrupt = Arc::new(MmioInterrupt::new(Box::new(line)));
        interrupt.set_observer(Box::new(Panicking));
        interrupt.raise(INT_VRING);
        let other = interrupt.clone();
        let other = thread::spawn(move || other.raise(INT_VRING));
        other.join().unwrap();
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Lines and observers that use the device's handles themselves, and drivers that hear nothing more.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

mod support;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use support::Fixture;
use virtio_conformance::reg;
use virtio_device_core::{
    ActiveQueue, ConfigNotifier, DeviceFault, Event, Observer, edge_line, level_line,
};
use virtio_mmio_transport::{INT_CONFIG, INT_VRING};

type Handles = Arc<Mutex<Option<(ActiveQueue, ConfigNotifier)>>>;

/// Raises both causes, the first time that it is called from outside of itself.
fn raise(handles: &Handles) {
    let handles = handles.lock().unwrap().take();
    if let Some((queue, notifier)) = handles {
        queue.signal_used();
        notifier.update(|| ());
    }
}

fn live(mut fixture: Fixture, handles: &Handles) -> Fixture {
    fixture.negotiate();
    fixture.enable_queue(0, 0x1000, 16);
    fixture.set(reg::STATUS, 15);
    *handles.lock().unwrap() = Some((fixture.queue(0), fixture.notifier()));
    fixture
}

#[test]
fn a_line_may_raise_interrupts_while_it_is_driven() {
    for level in [true, false] {
        let (handles, calls) = (Handles::default(), Arc::new(Mutex::new(Vec::new())));
        let (theirs, log) = (handles.clone(), calls.clone());
        let drive = move |level: bool| -> io::Result<()> {
            log.lock().unwrap().push(level);
            raise(&theirs);
            Ok(())
        };
        let fixture = if level {
            Fixture::behind_line(level_line(drive))
        } else {
            Fixture::behind_line(edge_line(move || drive(true)))
        };
        let mut fixture = live(fixture, &handles);
        fixture.queue(0).signal_used();
        assert_eq!(fixture.get(reg::INTERRUPT_STATUS), INT_VRING | INT_CONFIG);
        // Both causes came up inside of one call, and one more edge tells of both.
        let expected: &[bool] = if level { &[true] } else { &[true; 2] };
        assert_eq!(*calls.lock().unwrap(), expected);
        fixture.set(reg::INTERRUPT_ACK, INT_VRING | INT_CONFIG);
        fixture.set(reg::STATUS, 0);
        assert_eq!(calls.lock().unwrap().last(), Some(&!level));
    }
}

#[test]
fn two_queues_raise_an_edge_one_after_the_other() {
    // A pulse, as KVM_IRQ_LINE makes it: whoever raises a line that is high makes no edge.
    let (high, edges) = (AtomicBool::new(false), Arc::new(AtomicU32::new(0)));
    let seen = edges.clone();
    let fixture = Fixture::behind_line(edge_line(move || {
        if !high.swap(true, Ordering::SeqCst) {
            seen.fetch_add(1, Ordering::SeqCst);
        }
        std::thread::yield_now();
        high.store(false, Ordering::SeqCst);
        Ok(())
    }));
    let fixture = live(fixture, &Handles::default());
    // On a busy machine each turn that is given away comes back after all others had theirs.
    let count = if cfg!(miri) { 20 } else { 500 };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let queue = fixture.queue(0);
            scope.spawn(move || (0..count).for_each(|_| queue.signal_used()));
        }
    });
    assert_eq!(edges.load(Ordering::SeqCst), 2 * count);
}

#[test]
fn an_observer_may_raise_interrupts_when_it_is_told_of_a_line_that_fails() {
    struct Raises(Handles, AtomicU32);
    impl Observer for Raises {
        fn event(&self, event: &Event<'_>) {
            if matches!(event, Event::LineFailed(_)) {
                self.1.fetch_add(1, Ordering::SeqCst);
                raise(&self.0);
            }
        }
    }
    let handles = Handles::default();
    let observer = Arc::new(Raises(handles.clone(), AtomicU32::new(0)));
    let failing = level_line(|_| Err(io::ErrorKind::WouldBlock.into()));
    let mut fixture = live(
        Fixture::behind_observed_line(failing, observer.clone()),
        &handles,
    );
    fixture.queue(0).signal_used();
    assert!(observer.1.load(Ordering::SeqCst) > 0);
    assert_eq!(fixture.get(reg::INTERRUPT_STATUS), INT_VRING | INT_CONFIG);
    fixture.set(reg::STATUS, 0);
    assert_eq!(fixture.status(), 0);
}

#[test]
fn a_driver_that_has_given_up_is_not_interrupted_after_restore_either() {
    let mut fixture = Fixture::live();
    fixture.interrupt().device_failed(&DeviceFault::Panicked);
    fixture.set(reg::INTERRUPT_ACK, INT_CONFIG);
    fixture.set(reg::STATUS, 15 | 64 | 128);
    fixture.transport.pause().unwrap();
    let state = fixture.transport.save().unwrap();
    assert_eq!((state.status, state.needs_reset), (15 | 128, true));
    let mut restored = Fixture::new();
    restored.transport.restore(&state).unwrap();
    assert_eq!(restored.status(), 15 | 64 | 128);
    for fixture in [&mut fixture, &mut restored] {
        let before = fixture.raised();
        fixture.notifier().update(|| ());
        assert_eq!(
            (fixture.raised(), fixture.get(reg::INTERRUPT_STATUS)),
            (before, 0)
        );
        fixture.set(reg::STATUS, 0);
        assert_eq!(fixture.status(), 0);
    }
}

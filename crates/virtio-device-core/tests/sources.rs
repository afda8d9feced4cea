// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Descriptors of the host that wake a handler.
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]
#![cfg(not(miri))] // Miri has no level-triggered epoll.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use support::{Input, SOON, Script, activated, wait_until};
use virtio_device_core::{
    Context, DeviceFault, Executor, Progress, Worker, WorkerLoop, WorkerThread,
    vmm_sys_util::epoll::EventSet,
};

const SOURCE: u32 = 7;

fn start(worker: Worker) -> WorkerThread {
    let mut thread = WorkerThread::named("test").unwrap();
    thread.start(worker).unwrap();
    thread
}

fn watch(cx: &mut Context<'_>, stream: &UnixStream, interest: EventSet) -> Result<(), DeviceFault> {
    let watched = cx.watch(SOURCE, stream, interest);
    watched.map_err(DeviceFault::Backend)
}

#[test]
fn host_input_wakes_the_worker() {
    let activated = activated(1);
    let (mut host, device) = UnixStream::pair().unwrap();
    let (sender, received) = channel();
    let watched = device.try_clone().unwrap();
    let handler = Input(
        move |cx: &mut Context<'_>| watch(cx, &watched, EventSet::IN),
        move |source, readiness: EventSet, _: &mut Context<'_>| {
            assert!(
                source == SOURCE
                    && readiness.contains(EventSet::IN)
                    && !readiness.contains(EventSet::OUT)
            );
            let mut byte = [0];
            (&device).read_exact(&mut byte).unwrap();
            sender.send(byte[0]).unwrap();
            Ok(Progress::Idle)
        },
    );
    let _thread = start(Worker::new(handler, vec![], activated.interrupt.clone()));
    // One call for each byte: what is left over is reported again.
    host.write_all(b"abc").unwrap();
    let bytes = [(); 3].map(|()| received.recv_timeout(SOON).unwrap());
    assert_eq!(&bytes, b"abc");
}

#[test]
fn a_source_without_interest_wakes_nobody_not_even_by_hanging_up() {
    let activated = activated(1);
    let (mut host, device) = UnixStream::pair().unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let seen = calls.clone();
    let mut device = Some(device);
    // The driver has no buffers until it kicks.
    struct Handler<R>(Option<UnixStream>, R);
    impl<R> virtio_device_core::QueueHandler for Handler<R>
    where
        R: FnMut(EventSet, &mut Context<'_>) -> Progress,
    {
        fn start(&mut self, cx: &mut Context<'_>) -> Result<(), DeviceFault> {
            watch(cx, self.0.as_ref().unwrap(), EventSet::empty())
        }
        fn process(&mut self, _: u16, cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
            cx.set_interest(SOURCE, EventSet::IN).unwrap();
            Ok(Progress::Idle)
        }
        fn ready(
            &mut self,
            _: u32,
            readiness: EventSet,
            cx: &mut Context<'_>,
        ) -> Result<Progress, DeviceFault> {
            Ok((self.1)(readiness, cx))
        }
    }
    let handler = Handler(device.take(), move |_: EventSet, cx: &mut Context<'_>| {
        seen.fetch_add(1, Ordering::SeqCst);
        cx.set_interest(SOURCE, EventSet::empty()).unwrap();
        Progress::Idle
    });
    let worker = Worker::new(
        handler,
        activated.queues.clone(),
        activated.interrupt.clone(),
    );
    let _thread = start(worker);
    host.write_all(b"x").unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    activated.kick(0);
    wait_until("a call", || calls.load(Ordering::SeqCst) == 1);
    drop(host);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(calls.load(Ordering::SeqCst), 1, "it spins");
    activated.kick(0);
    wait_until("a call", || calls.load(Ordering::SeqCst) == 2);
}

#[test]
fn host_output_waits_for_the_host_and_nobody_else_does() {
    let activated = activated(1);
    let (mut host, device) = UnixStream::pair().unwrap();
    device.set_nonblocking(true).unwrap();
    let watched = device.try_clone().unwrap();
    let mut left = 1 << 20;
    let handler = Input(
        move |cx: &mut Context<'_>| watch(cx, &watched, EventSet::OUT),
        move |_, readiness: EventSet, cx: &mut Context<'_>| {
            assert!(readiness.contains(EventSet::OUT));
            match (&device).write(&vec![7; left]) {
                Ok(count) => left -= count,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            if left == 0 {
                cx.unwatch(SOURCE);
            }
            Ok(Progress::Idle)
        },
    );
    let _thread = start(Worker::new(handler, vec![], activated.interrupt.clone()));
    let mut all = vec![0; 1 << 20];
    host.read_exact(&mut all).unwrap();
    assert!(all.iter().all(|&byte| byte == 7));
}

#[test]
fn a_pause_holds_host_input_back_and_loses_none() {
    let activated = activated(0);
    let (mut host, device) = UnixStream::pair().unwrap();
    let (sender, received) = channel();
    let calls = Arc::new(AtomicU32::new(0));
    let (seen, watched) = (calls.clone(), device.try_clone().unwrap());
    let handler = Input(
        move |cx: &mut Context<'_>| watch(cx, &watched, EventSet::IN),
        move |_, _, _: &mut Context<'_>| {
            seen.fetch_add(1, Ordering::SeqCst);
            let mut byte = [0];
            (&device).read_exact(&mut byte).unwrap();
            sender.send(byte[0]).unwrap();
            Ok(Progress::Idle)
        },
    );
    let _thread = start(Worker::new(handler, vec![], activated.interrupt.clone()));
    for byte in 0..20 {
        activated.session.pause();
        let before = calls.load(Ordering::SeqCst);
        host.write_all(&[byte]).unwrap();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(calls.load(Ordering::SeqCst), before);
        activated.session.resume();
        assert_eq!(received.recv_timeout(SOON), Ok(byte));
    }
}

#[test]
fn a_descriptor_that_cannot_be_waited_for_is_an_error() {
    let activated = activated(1);
    let (sender, kinds) = channel();
    let worker = activated.worker(move |_, cx| {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let error = cx.watch(SOURCE, &file, EventSet::IN).unwrap_err();
        let far = cx.watch(1 << 31, &file, EventSet::IN).unwrap_err();
        sender.send((error.kind(), far.kind())).unwrap();
        Ok(Progress::Idle)
    });
    let _thread = start(worker);
    activated.kick(0);
    let kinds = kinds.recv_timeout(SOON).unwrap();
    assert_eq!(
        kinds,
        (ErrorKind::PermissionDenied, ErrorKind::InvalidInput)
    );
}

#[test]
fn a_worker_that_ends_leaves_none_of_its_descriptors_open() {
    let mut thread = WorkerThread::named("test").unwrap();
    let (mut host, device) = UnixStream::pair().unwrap();
    let activated = activated(1);
    let handler = Input(
        move |cx: &mut Context<'_>| watch(cx, &device, EventSet::IN),
        |_, _, _: &mut Context<'_>| Ok(Progress::Idle),
    );
    let worker = Worker::new(handler, vec![], activated.interrupt.clone());
    thread.start(worker).unwrap();
    let idle = Script(|_, _: &mut Context<'_>| Ok(Progress::Idle));
    let worker = Worker::new(idle, activated.queues.clone(), activated.interrupt.clone());
    thread.start(worker).unwrap();
    activated.session.revoke();
    host.set_read_timeout(Some(SOON)).unwrap();
    // The end of the stream: both the handler's descriptor and its duplicate are closed.
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
}

#[test]
fn host_input_that_meets_a_paused_queue_is_told_again_on_resume() {
    let activated = activated(1);
    let (mut host, device) = UnixStream::pair().unwrap();
    let watched = device.try_clone().unwrap();
    let (entered, inside) = channel();
    let (release, released) = channel::<()>();
    let lease = activated.queues[0].lease.clone();
    let mut taken = false;
    let handler = Input(
        move |cx: &mut Context<'_>| watch(cx, &watched, EventSet::IN),
        move |_, _, _: &mut Context<'_>| {
            if !std::mem::replace(&mut taken, true) {
                // What woke it is taken in, so the descriptor is not ready any more.
                (&device).read_exact(&mut [0]).unwrap();
                entered.send(lease.is_paused()).unwrap();
                released.recv_timeout(SOON).unwrap();
            }
            entered.send(lease.with(|_| ()).is_err()).unwrap();
            Ok(Progress::Idle)
        },
    );
    let _thread = start(Worker::new(handler, vec![], activated.interrupt.clone()));
    host.write_all(b"x").unwrap();
    assert_eq!(inside.recv_timeout(SOON), Ok(false));
    activated.session.pause();
    release.send(()).unwrap();
    assert_eq!(inside.recv_timeout(SOON), Ok(true), "paused meanwhile");
    activated.session.resume();
    assert_eq!(inside.recv_timeout(SOON), Ok(false), "called again");
}

#[test]
fn a_panic_in_start_leaves_no_descriptor_in_the_loop() {
    let kicks = support::kicks(1);
    let bad = support::activated_with(&kicks);
    let handler = Input(
        |_: &mut Context<'_>| panic!("a bug in the device"),
        |_, _, _: &mut Context<'_>| Ok(Progress::Idle),
    );
    let worker = Worker::new(handler, bad.queues.clone(), bad.interrupt.clone());
    let mut thread = start(worker);
    wait_until("failure", || bad.session.is_broken());
    bad.session.revoke();
    let next = support::activated_with(&kicks);
    let (sender, calls) = channel();
    let worker = next.worker(move |_, _| {
        let _ = sender.send(());
        Ok(Progress::Idle)
    });
    thread.start(worker).unwrap();
    next.kick(0);
    assert_eq!(calls.recv_timeout(SOON), Ok(()));
    assert!(!next.session.is_broken());
}

#[test]
fn a_refused_interest_neither_ends_the_worker_at_the_next_pause_nor_reaches_the_others() {
    let activated = activated(1);
    let (mut host, device) = UnixStream::pair().unwrap();
    let (sender, received) = channel();
    let watched = device.try_clone().unwrap();
    let handler = Input(
        move |cx: &mut Context<'_>| {
            // A regular file, which is always ready and cannot be waited for.
            let file = std::fs::File::open("/proc/self/exe").unwrap();
            cx.watch(1, &file, EventSet::empty()).unwrap();
            let refused = cx.set_interest(1, EventSet::IN).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
            watch(cx, &watched, EventSet::IN)
        },
        move |source, _, _: &mut Context<'_>| {
            assert_eq!(source, SOURCE);
            let mut byte = [0];
            (&device).read_exact(&mut byte).unwrap();
            sender.send(byte[0]).unwrap();
            Ok(Progress::Idle)
        },
    );
    let _thread = start(Worker::new(handler, vec![], activated.interrupt.clone()));
    for byte in 0..10 {
        activated.session.pause();
        host.write_all(&[byte]).unwrap();
        std::thread::sleep(Duration::from_millis(2));
        activated.session.resume();
        assert_eq!(received.recv_timeout(SOON), Ok(byte));
    }
    assert!(!activated.session.is_broken());
}

#[test]
fn the_end_of_requests_in_flight_is_told_during_a_pause() {
    let activated = activated(1);
    let (mut host, device) = UnixStream::pair().unwrap();
    let in_flight = activated.queues[0].lease.hold().unwrap();
    let lease = activated.queues[0].lease.clone();
    let (sender, received) = channel();
    let mut in_flight = Some(in_flight);
    let watched = device.try_clone().unwrap();
    let handler = Input(
        move |cx: &mut Context<'_>| {
            let watched = cx.watch_in_flight(SOURCE, &watched);
            watched.map_err(DeviceFault::Backend)
        },
        move |_, _, _: &mut Context<'_>| {
            (&device).read_exact(&mut [0]).unwrap();
            let request = in_flight.take().unwrap();
            let complete = request.with(|_| ());
            sender.send((lease.is_paused(), complete)).unwrap();
            Ok(Progress::Idle)
        },
    );
    let _thread = start(Worker::new(handler, vec![], activated.interrupt.clone()));
    activated.session.pause();
    assert!(!activated.session.is_idle());
    host.write_all(b"x").unwrap();
    assert_eq!(received.recv_timeout(SOON), Ok((true, Ok(()))));
    wait_until("the pause", || activated.session.is_idle());
}

#[test]
fn what_ends_requests_in_flight_is_called_again_during_a_pause() {
    for again in [Progress::More, Progress::After(Duration::from_millis(1))] {
        let activated = activated(1);
        let (mut host, device) = UnixStream::pair().unwrap();
        let hold = || activated.queues[0].lease.hold().unwrap();
        let mut in_flight = vec![hold(), hold(), hold()];
        let watched = device.try_clone().unwrap();
        let handler = Input(
            move |cx: &mut Context<'_>| {
                let watched = cx.watch_in_flight(SOURCE, &watched);
                watched.map_err(DeviceFault::Backend)
            },
            move |_, readiness: EventSet, _: &mut Context<'_>| {
                if readiness.contains(EventSet::IN) {
                    (&device).read_exact(&mut [0]).unwrap();
                }
                in_flight.pop();
                Ok(if in_flight.is_empty() {
                    Progress::Idle
                } else {
                    again
                })
            },
        );
        let _thread = start(Worker::new(handler, vec![], activated.interrupt.clone()));
        activated.session.pause();
        host.write_all(b"x").unwrap();
        wait_until("the pause", || activated.session.is_idle());
    }
}

#[test]
fn a_source_that_is_not_watched_any_more_is_not_called_for() {
    let ways: [fn(&mut Context<'_>) -> Progress; 3] = [
        // It asks, and lets go in the same call; or waits, and lets go while another calls.
        |cx| {
            cx.unwatch(1);
            Progress::More
        },
        |cx| {
            cx.unwatch(1);
            Progress::After(Duration::ZERO)
        },
        |cx| {
            cx.set_interest(1, EventSet::empty()).unwrap();
            Progress::After(Duration::from_millis(20))
        },
    ];
    for way in ways {
        let activated = activated(0);
        let (mut near, far) = UnixStream::pair().unwrap();
        let (mut other_near, other_far) = UnixStream::pair().unwrap();
        let (sender, calls) = channel();
        let handler = Input(
            move |cx: &mut Context<'_>| {
                cx.watch(1, &far, EventSet::IN).unwrap();
                cx.watch(2, &other_far, EventSet::IN).unwrap();
                Ok(())
            },
            move |source, _, cx: &mut Context<'_>| {
                sender.send(source).unwrap();
                if source == 1 {
                    return Ok(way(cx));
                }
                cx.unwatch(1);
                cx.set_interest(2, EventSet::empty()).unwrap();
                Ok(Progress::After(Duration::from_millis(100)))
            },
        );
        let _thread = start(Worker::new(handler, vec![], activated.interrupt.clone()));
        near.write_all(b"x").unwrap();
        assert_eq!(calls.recv_timeout(SOON), Ok(1));
        other_near.write_all(b"x").unwrap();
        assert_eq!(calls.recv_timeout(SOON), Ok(2));
        // The wait of the other one is over long after that of the first would have been.
        assert_eq!(calls.recv_timeout(SOON), Ok(2));
    }
}

#[test]
fn an_event_of_what_was_watched_before_is_nothing_to_what_is_watched_now() {
    // Two descriptors are ready in one round. The first call watches others instead, or waits for
    // something else: whatever is called afterwards must not find itself waiting.
    let ways: [fn(&mut Context<'_>, u32, &UnixStream); 2] = [
        |cx, number, silent| cx.watch(number, silent, EventSet::IN).unwrap(),
        |cx, number, _| {
            cx.set_interest(number, EventSet::OUT).unwrap();
        },
    ];
    for way in ways {
        let activated = activated(0);
        let pairs = [(); 2].map(|()| UnixStream::pair().unwrap());
        let (silent, _other) = UnixStream::pair().unwrap();
        pairs
            .iter()
            .for_each(|(near, _)| (&*near).write_all(b"x").unwrap());
        let [(_one, one), (_two, two)] = pairs;
        let calls = Arc::new(std::sync::Mutex::new(Vec::new()));
        let seen = calls.clone();
        let handler = Input(
            move |cx: &mut Context<'_>| {
                cx.watch(1, &one, EventSet::IN).unwrap();
                cx.watch(2, &two, EventSet::IN).unwrap();
                Ok(())
            },
            move |source, readiness, cx: &mut Context<'_>| {
                let first = seen.lock().unwrap().is_empty();
                seen.lock().unwrap().push(readiness);
                if first {
                    way(cx, 3 - source, &silent);
                }
                cx.set_interest(source, EventSet::empty()).unwrap();
                Ok(Progress::Idle)
            },
        );
        let mut workers = WorkerLoop::new().unwrap();
        let worker = Worker::new(handler, vec![], activated.interrupt.clone());
        workers.handle().start(worker).unwrap();
        (0..4).for_each(|_| workers.dispatch().unwrap());
        let calls = calls.lock().unwrap();
        assert_eq!(calls[0], EventSet::IN);
        assert!(
            calls[1..].iter().all(|it| *it == EventSet::OUT),
            "{calls:?}"
        );
    }
}

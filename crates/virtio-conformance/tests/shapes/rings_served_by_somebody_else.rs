// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Shape 7: rings served by somebody else (vhost): gets addresses, kick and call fds; is paused; hands
//! back how far it came.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use virtio_device_core::{Activation, ActiveQueue, DeviceFault, Features, InFlight, VirtioDevice};
use virtio_queue::{Queue, QueueT};
use vm_memory::Bytes;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::support::{Guest, Memory, QUEUE_SIZE, Shape, exchange, ordeal, wait};

/// A server that knows nothing of this family: it is given addresses and file descriptors, stops when
/// it is told to, and says how far it came. In another process it would be vhost-user.
fn serve(memory: &Memory, queue: &mut Queue, kick: &EventFd, call: &EventFd, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        let _ = kick.read();
        while let Some(chain) = queue.pop_descriptor_chain(&**memory) {
            let head = chain.head_index();
            let buffer = chain.writable().next().unwrap();
            memory.write_slice(b"vv", buffer.addr()).unwrap();
            queue.add_used(&**memory, head, 2).unwrap();
            call.write(1).unwrap();
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// The device's own side: lends the queue to the server, and takes it back.
#[derive(Default)]
struct Vhost {
    live: Option<(Memory, ActiveQueue)>,
    stop: Arc<AtomicBool>,
}

impl Vhost {
    fn lend(&mut self) {
        let Some((memory, mut active)) = self.live.clone() else {
            return;
        };
        self.stop = Arc::new(AtomicBool::new(false));
        let stop = self.stop.clone();
        std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                // After the reset of this queue alone there is a new lease one day.
                active.refresh();
                if let Ok(in_flight) = active.lease.hold() {
                    lend_once(&memory, &active, &in_flight, &stop);
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        });
    }
}

/// Has the server work until the device wants the queue back. As long as `in_flight` lives, pause and
/// reset wait.
fn lend_once(memory: &Memory, active: &ActiveQueue, in_flight: &InFlight, stop: &AtomicBool) {
    let Ok((layout, progress)) = in_flight.with(|ring| (*ring.layout(), ring.progress())) else {
        return;
    };
    let mut queue = Queue::new(layout.size()).unwrap();
    queue.set_size(layout.size());
    let [desc, avail, used] =
        [layout.desc_table(), layout.avail_ring(), layout.used_ring()].map(|at| at.0 as u32);
    queue.set_desc_table_address(Some(desc), Some(0));
    queue.set_avail_ring_address(Some(avail), Some(0));
    queue.set_used_ring_address(Some(used), Some(0));
    queue.set_next_avail(progress.next_avail);
    queue.set_next_used(progress.next_used);
    queue.set_ready(true);
    // A line without an fd of its own is interrupted by hand.
    let call = active.interrupt_fd();
    let by_hand = EventFd::new(EFD_NONBLOCK).unwrap();
    let asked_back = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let call_fd = call.as_deref().unwrap_or(&by_hand);
        let server = scope.spawn(|| {
            serve(memory, &mut queue, &active.kick, call_fd, &asked_back);
        });
        while !server.is_finished() {
            if by_hand.read().is_ok() {
                active.signal_used();
            }
            if stop.load(Ordering::SeqCst) || in_flight.is_revoked() {
                asked_back.store(true, Ordering::SeqCst);
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    });
    if by_hand.read().is_ok() {
        active.signal_used();
    }
    let _ = in_flight.with(|ring| ring.handed_back(&**memory, queue.next_avail()));
}

impl VirtioDevice<Memory> for Vhost {
    fn device_type(&self) -> u32 {
        42
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    /// What the server can do.
    fn queue_features(&self) -> Features {
        Features::NONE
    }

    fn activate(&mut self, activation: Activation<Memory>) -> Result<(), DeviceFault> {
        let active = activation.queue(0)?.clone();
        self.live = Some((activation.memory, active));
        self.lend();
        Ok(())
    }

    fn pause(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    fn resume(&mut self) {
        self.lend();
    }

    fn reset(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.live = None;
    }
}

struct RingsServedBySomebodyElse;

impl Shape for RingsServedBySomebodyElse {
    type Device = Vhost;

    fn device(&mut self) -> Vhost {
        Vhost::default()
    }

    fn begin(&mut self, guest: &mut Guest<Vhost>) {
        (0..2).for_each(|head| guest.offer_writable(0, head, 2));
    }

    fn finish(&mut self, guest: &mut Guest<Vhost>) {
        assert_eq!(guest.used(0, 2), [(0, 2), (1, 2)]);
        assert_eq!(guest.bytes(0, 1, 2), b"vv");
    }

    fn looks_at(&self, _index: usize) -> bool {
        false // the server has an opinion of its own on broken rings
    }
}

#[test]
fn rings_served_by_somebody_else() {
    ordeal(RingsServedBySomebodyElse);
}

#[test]
fn what_the_server_hands_back_is_saved() {
    let mut shape = RingsServedBySomebodyElse;
    let mut guest = Guest::new(shape.device());
    guest.start();
    (0..3).for_each(|_| exchange(&mut shape, &mut guest));
    wait("the pause", || guest.transport.pause().is_ok());
    let state = guest.transport.save().unwrap();
    let progress = state.queues[0].progress.as_ref().unwrap();
    assert_eq!((progress.next_avail, progress.next_used), (6, 6));
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! vCPUs at the registers, a worker at the queue and the line to the guest, in every order that the
//! memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release --manifest-path loom/Cargo.toml`

#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

use std::sync::Arc;

use bus::BusDevice;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::thread;
use virtio_conformance::{DriverQueue, reg};
use virtio_device_core::{
    Activation, ActiveQueue, ConfigNotifier, DeviceFault, InterruptLine, VirtioDevice, edge_line,
    eventfd_edge, level_line,
};
use virtio_mmio_transport::MmioTransport;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

type Memory = Arc<GuestMemoryMmap<()>>;

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(f);
}

/// What the guest sees of its device. Accesses are relaxed as far as it goes: only transport, leases
/// and event fds make them visible, or keep them from happening.
#[derive(Default)]
struct Guest {
    /// Requests that the driver has made, as it tells of them in the available ring.
    made: AtomicU32,
    /// Those that the device has served.
    served: AtomicU32,
    /// Set when the device must not touch anything any more.
    at_rest: AtomicBool,
    raised: AtomicU32,
    /// Set when the guest must not be interrupted any more.
    quiet: AtomicBool,
}

impl Guest {
    fn rest(&self) -> u32 {
        self.at_rest.store(true, Ordering::Relaxed);
        self.served.load(Ordering::Relaxed)
    }
}

/// What a worker does when it is woken: serves every request that it sees in one look. Returns
/// whether it served any.
fn serve(queue: &mut ActiveQueue, guest: &Guest) -> bool {
    queue.refresh();
    let served = queue.lease.with(|_| {
        assert!(!guest.at_rest.load(Ordering::Relaxed), "too late");
        let made = guest.made.load(Ordering::Acquire);
        guest.served.swap(made, Ordering::Relaxed) != made
    });
    if served == Ok(true) {
        queue.signal_used();
    }
    served == Ok(true)
}

/// A device whose queue is served by the test.
struct Device {
    queue: Arc<Mutex<Option<ActiveQueue>>>,
    notifier: Option<ConfigNotifier>,
    config: Arc<Mutex<u32>>,
}

impl VirtioDevice<Memory> for Device {
    fn device_type(&self) -> u32 {
        42
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[4]
    }

    fn config_size(&self) -> u32 {
        4
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let config = self.config.lock().unwrap().to_le_bytes();
        let fields = config.iter().skip(offset as usize);
        data.iter_mut()
            .zip(fields)
            .for_each(|(to, from)| *to = *from);
    }

    fn connect(&mut self, config: ConfigNotifier) {
        self.notifier = Some(config);
    }

    fn activate(&mut self, mut activation: Activation<Memory>) -> Result<(), DeviceFault> {
        *self.queue.lock().unwrap() = Some(activation.queues.remove(0));
        Ok(())
    }
}

/// A live transport.
struct Machine {
    transport: MmioTransport<Memory, Device>,
    guest: Arc<Guest>,
    queue: Arc<Mutex<Option<ActiveQueue>>>,
    config: Arc<Mutex<u32>>,
    memory: Memory,
}

impl Machine {
    fn new() -> Self {
        let guest = Arc::new(Guest::default());
        let wire = guest.clone();
        let line = edge_line(move || {
            assert!(!wire.quiet.load(Ordering::Relaxed), "too late");
            wire.raised.fetch_add(1, Ordering::Release);
            Ok(())
        });
        Self::with(guest, line)
    }

    fn with(guest: Arc<Guest>, line: impl InterruptLine + 'static) -> Self {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap());
        let queue = Arc::new(Mutex::new(None));
        let config = Arc::new(Mutex::new(0));
        let device = Device {
            queue: queue.clone(),
            notifier: None,
            config: config.clone(),
        };
        let transport = MmioTransport::new(device, memory.clone(), line).unwrap();
        Self {
            transport,
            guest,
            queue,
            config,
            memory,
        }
    }

    fn live() -> Self {
        let mut machine = Self::new();
        machine.start();
        machine
    }

    fn set(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes()).unwrap();
    }

    fn get(&mut self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.transport.read(offset, &mut word).unwrap();
        u32::from_le_bytes(word)
    }

    fn set_up(&mut self) {
        let ring_reset = 1 << (40 - 32) | 1;
        for (offset, value) in [
            (reg::STATUS, 0),
            (reg::STATUS, 3),
            (reg::DRIVER_FEATURES_SEL, 1),
            (reg::DRIVER_FEATURES, ring_reset),
            (reg::STATUS, 11),
        ] {
            self.set(offset, value);
        }
        self.enable_queue();
    }

    fn enable_queue(&mut self) {
        let setup = *DriverQueue::new(&*self.memory, 0, 4).setup();
        for (offset, value) in [
            (reg::QUEUE_SIZE, 4),
            (reg::QUEUE_DESC_LOW, setup.desc_table),
            (reg::QUEUE_DRIVER_LOW, setup.avail_ring),
            (reg::QUEUE_DEVICE_LOW, setup.used_ring),
            (reg::QUEUE_READY, 1),
        ] {
            self.set(offset, u32::try_from(value).unwrap());
        }
        assert_eq!(self.get(reg::QUEUE_READY), 1);
    }

    fn start(&mut self) {
        self.set_up();
        self.set(reg::STATUS, 15);
        assert_eq!(self.get(reg::STATUS), 15);
    }

    /// What the device was given when it was activated last.
    fn queue(&self) -> ActiveQueue {
        self.queue.lock().unwrap().clone().unwrap()
    }

    fn notifier(&self) -> ConfigNotifier {
        self.transport.device().notifier.clone().unwrap()
    }

    /// The event fd that the kernel would write for a vCPU.
    fn kick(&self) -> EventFd {
        let (_, kick) = self.transport.kicks().next().unwrap();
        kick.try_clone().unwrap()
    }
}

/// As the kernel does it: the event fd is written past the transport.
fn ioeventfd(kick: &EventFd) {
    eventfd_edge();
    kick.write(1).unwrap();
}

/// As a loop waits for an event fd.
fn is_readable(kick: &EventFd) -> bool {
    let readable = kick.read().is_ok_and(|count| kick.write(count).is_ok());
    eventfd_edge();
    readable
}

/// A worker is at work, another vCPU notifies, and this one has `end` end it all.
fn ends(end: fn(&mut Machine), quiet: bool) {
    model(move || {
        let mut machine = Machine::live();
        let guest = machine.guest.clone();
        let (mut queue, requests) = (machine.queue(), guest.clone());
        let thread = thread::spawn(move || {
            // Whether it was notified or not.
            let _ = serve(&mut queue, &requests) && serve(&mut queue, &requests);
        });
        let (kick, driver) = (machine.kick(), guest.clone());
        let vcpu = thread::spawn(move || {
            driver.made.fetch_add(1, Ordering::Release);
            ioeventfd(&kick);
        });
        end(&mut machine);
        let served = guest.rest();
        let raised = guest.raised.load(Ordering::Relaxed);
        if quiet {
            guest.quiet.store(true, Ordering::Relaxed);
            assert_eq!(machine.get(reg::INTERRUPT_STATUS), 0);
        }
        thread.join().unwrap();
        vcpu.join().unwrap();
        assert_eq!(guest.served.load(Ordering::Relaxed), served);
        if quiet {
            assert_eq!(guest.raised.load(Ordering::Relaxed), raised);
            assert_eq!(machine.get(reg::INTERRUPT_STATUS), 0);
        }
    });
}

#[test]
fn nothing_is_written_after_the_status_reads_0() {
    ends(
        |machine| {
            machine.set(reg::STATUS, 0);
            assert_eq!(machine.get(reg::STATUS), 0);
        },
        true,
    );
}

#[test]
fn nothing_is_written_after_queue_ready_reads_0() {
    ends(
        |machine| {
            machine.set(reg::QUEUE_READY, 0);
            assert_eq!(machine.get(reg::QUEUE_READY), 0);
        },
        false,
    );
}

#[test]
fn nothing_is_written_after_queue_reset_reads_0() {
    ends(
        |machine| {
            machine.set(reg::QUEUE_RESET, 1);
            assert_eq!(
                (machine.get(reg::QUEUE_RESET), machine.get(reg::QUEUE_READY)),
                (0, 0)
            );
        },
        false,
    );
}

#[test]
fn nothing_is_written_after_the_driver_has_given_up() {
    ends(|machine| machine.set(reg::STATUS, 15 | 128), false);
}

#[test]
fn nothing_is_written_after_the_transport_is_gone() {
    ends(
        |machine| {
            let other = Machine::new();
            drop(std::mem::replace(machine, other));
        },
        true,
    );
}

#[test]
fn a_notification_before_activation_is_not_lost() {
    model(|| {
        let mut machine = Machine::new();
        machine.set_up();
        let (guest, kick) = (machine.guest.clone(), machine.kick());
        let vcpu = thread::spawn(move || {
            guest.made.fetch_add(1, Ordering::Release);
            ioeventfd(&kick);
        });
        machine.set(reg::STATUS, 15);
        let (guest, kick) = (machine.guest.clone(), machine.kick());
        let mut queue = machine.queue();
        let thread = thread::spawn(move || {
            while guest.served.load(Ordering::Relaxed) == 0 {
                if is_readable(&kick) {
                    kick.read().unwrap();
                    eventfd_edge();
                    serve(&mut queue, &guest);
                } else {
                    thread::yield_now();
                }
            }
        });
        vcpu.join().unwrap();
        thread.join().unwrap();
        assert_eq!(machine.get(reg::INTERRUPT_STATUS), 1);
        assert_eq!(machine.guest.raised.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn a_request_that_meets_a_pause_is_served_after_it() {
    model(|| {
        let mut machine = Machine::live();
        let (mut queue, guest) = (machine.queue(), machine.guest.clone());
        guest.made.fetch_add(1, Ordering::Release);
        machine.set(reg::QUEUE_NOTIFY, 0);
        let thread = thread::spawn(move || {
            serve(&mut queue, &guest);
            queue
        });
        // Those of the start, and of the request.
        machine.kick().read().unwrap();
        machine.transport.pause().unwrap();
        let served = machine.guest.rest();
        assert_eq!(machine.guest.served.load(Ordering::Relaxed), served);
        machine.guest.at_rest.store(false, Ordering::Relaxed);
        machine.transport.resume();
        let mut queue = thread.join().unwrap();
        assert!(is_readable(&machine.kick()));
        serve(&mut queue, &machine.guest);
        assert_eq!(machine.guest.served.load(Ordering::Relaxed), 1);
        assert_eq!(machine.get(reg::INTERRUPT_STATUS), 1);
    });
}

#[test]
fn a_queue_that_comes_back_is_served_by_whoever_served_it_before() {
    model(|| {
        let mut machine = Machine::live();
        let (mut queue, guest) = (machine.queue(), machine.guest.clone());
        let thread = thread::spawn(move || {
            serve(&mut queue, &guest);
            queue
        });
        machine.set(reg::QUEUE_RESET, 1);
        machine.guest.made.fetch_add(1, Ordering::Release);
        machine.enable_queue();
        let mut queue = thread.join().unwrap();
        assert!(is_readable(&machine.kick()));
        serve(&mut queue, &machine.guest);
        assert_eq!(machine.guest.served.load(Ordering::Relaxed), 1);
        assert_eq!(machine.get(reg::INTERRUPT_STATUS), 1);
    });
}

#[test]
fn a_cause_survives_the_acknowledgement_of_another() {
    model(|| {
        let mut machine = Machine::live();
        let (guest, queue) = (machine.guest.clone(), machine.queue());
        let notifier = machine.notifier();
        let worker = thread::spawn(move || {
            for _ in 0..2 {
                guest.served.fetch_add(1, Ordering::Relaxed);
                queue.signal_used();
            }
            notifier.update(|| ());
        });
        // A driver: it acknowledges what it has seen, then looks what there is to do.
        let causes = machine.get(reg::INTERRUPT_STATUS);
        machine.set(reg::INTERRUPT_ACK, causes & 1);
        let seen = machine.guest.served.load(Ordering::Relaxed);
        worker.join().unwrap();
        let left = machine.get(reg::INTERRUPT_STATUS);
        assert!(seen == 2 || left & 1 != 0, "{seen} of 2 and {left:#x}");
        assert_eq!(left & 2, 2);
        assert_eq!(machine.guest.raised.load(Ordering::Relaxed), 3);
    });
}

#[test]
fn a_cause_is_there_before_its_interrupt() {
    model(|| {
        let mut machine = Machine::live();
        let queue = machine.queue();
        let worker = thread::spawn(move || queue.signal_used());
        // Acquire, as it is on the way from an irqfd to a vCPU.
        if machine.guest.raised.load(Ordering::Acquire) != 0 {
            assert_eq!(machine.get(reg::INTERRUPT_STATUS), 1);
        }
        worker.join().unwrap();
        assert_eq!(machine.get(reg::INTERRUPT_STATUS), 1);
    });
}

#[test]
fn a_level_is_what_the_causes_say() {
    model(|| {
        let level = Arc::new(AtomicBool::new(false));
        let wire = level.clone();
        let line = level_line(move |up| {
            assert_ne!(wire.swap(up, Ordering::Relaxed), up, "twice the same");
            Ok(())
        });
        let mut machine = Machine::with(Arc::default(), line);
        machine.start();
        let queue = machine.queue();
        let worker = thread::spawn(move || (0..2).for_each(|_| queue.signal_used()));
        machine.set(reg::INTERRUPT_ACK, 1);
        worker.join().unwrap();
        let causes = machine.get(reg::INTERRUPT_STATUS);
        assert_eq!(level.load(Ordering::Relaxed), causes != 0);
    });
}

#[test]
fn the_last_cause_of_two_threads_makes_an_edge() {
    model(|| {
        let (guest, high) = (Arc::new(Guest::default()), AtomicBool::new(false));
        let wire = guest.clone();
        // Raised and lowered again: whoever raises it while it is high makes no edge.
        let line = edge_line(move || {
            if !high.swap(true, Ordering::Relaxed) {
                wire.raised.fetch_add(1, Ordering::Relaxed);
            }
            high.store(false, Ordering::Relaxed);
            Ok(())
        });
        let mut machine = Machine::with(guest, line);
        machine.start();
        let queue = machine.queue();
        let worker = thread::spawn(move || queue.signal_used());
        machine.queue().signal_used();
        worker.join().unwrap();
        assert_eq!(machine.guest.raised.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn fields_that_are_read_under_one_generation_belong_together() {
    model(|| {
        let mut machine = Machine::live();
        let (notifier, config) = (machine.notifier(), machine.config.clone());
        let device = thread::spawn(move || {
            // Two fields, changed one after the other.
            let change = |field: u32| *config.lock().unwrap() |= field;
            notifier.update(|| [1, 0x1_0000].map(change));
        });
        let before = machine.get(reg::CONFIG_GENERATION);
        let [mut first, mut second] = [[0; 2]; 2];
        machine.transport.read(reg::CONFIG, &mut first).unwrap();
        machine.transport.read(0x102, &mut second).unwrap();
        let same = machine.get(reg::CONFIG_GENERATION) == before;
        assert!(!same || first == second, "{first:?} {second:?}");
        device.join().unwrap();
        assert_eq!(machine.get(reg::INTERRUPT_STATUS), 2);
    });
}

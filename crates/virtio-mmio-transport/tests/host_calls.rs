// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! System calls: those that a worker's thread needs fail one by one, and a vCPU's thread makes none
//! but the write of an event fd.
#![cfg(all(target_os = "linux", not(miri)))]
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

mod support;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use support::{Memory, port};
use virtio_conformance::{DriverQueue, EventLog, MmioPort, Port, reg};
use virtio_device_core::{
    Activation, Context, DeviceFault, Features, Progress, QueueHandler, VirtioDevice, WorkerThread,
    edge_line, vmm_sys_util::epoll::EventSet,
};
use virtio_mmio_transport::MmioTransport;
use vm_memory::{GuestAddress, GuestMemoryMmap};

const SOON: Duration = Duration::from_secs(60);
const EVERY_STEP: Duration = Duration::from_millis(1);

/// Puts the calling thread under a filter: `listed` calls get one action, all others another.
fn filter(listed: &[i64], action: SeccompAction, others: SeccompAction) {
    let rules = listed.iter().map(|&call| (call, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, others, action, arch);
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

/// Refuses a call to the calling thread.
fn refuse(call: i64, error: i32) {
    let refused = SeccompAction::Errno(error.unsigned_abs());
    filter(&[call], refused, SeccompAction::Allow);
}

/// Serves its queue by a handler of the test's.
struct Device<H> {
    thread: WorkerThread,
    make: fn() -> H,
}

impl<H: QueueHandler + Send + 'static> VirtioDevice<Memory> for Device<H> {
    fn device_type(&self) -> u32 {
        42
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[16]
    }

    fn activate(&mut self, activation: Activation<Memory>) -> Result<(), DeviceFault> {
        activation.serve(&mut self.thread, |_| (self.make)())
    }
}

/// Waits for time to pass.
struct Busy;

impl QueueHandler for Busy {
    fn process(&mut self, _queue: u16, _cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        Ok(Progress::After(EVERY_STEP))
    }
}

/// Watches a descriptor of the host, and waits for time to pass until it is readable.
struct Watching {
    host: UnixStream,
    watched: UnixStream,
    fired: bool,
}

impl Watching {
    fn new() -> Self {
        let (host, watched) = UnixStream::pair().unwrap();
        Self {
            host,
            watched,
            fired: false,
        }
    }
}

impl QueueHandler for Watching {
    fn start(&mut self, cx: &mut Context<'_>) -> Result<(), DeviceFault> {
        let watched = cx.watch(0, &self.watched, EventSet::IN);
        watched.map_err(DeviceFault::Worker)
    }

    /// Makes it readable before the loop sets its timer.
    fn process(&mut self, _queue: u16, _cx: &mut Context<'_>) -> Result<Progress, DeviceFault> {
        if self.fired {
            return Ok(Progress::Idle);
        }
        self.host.write_all(&[1]).unwrap();
        Ok(Progress::After(EVERY_STEP))
    }

    /// From now on timers can neither be set nor cleared.
    fn ready(
        &mut self,
        source: u32,
        _readiness: EventSet,
        cx: &mut Context<'_>,
    ) -> Result<Progress, DeviceFault> {
        self.fired = true;
        cx.unwatch(source);
        refuse(libc::SYS_timerfd_settime, libc::EPERM);
        Ok(Progress::Idle)
    }
}

struct Machine<H: QueueHandler + Send + 'static> {
    port: MmioPort<MmioTransport<Memory, Device<H>>>,
    memory: Memory,
    events: Arc<EventLog>,
}

impl<H: QueueHandler + Send + 'static> Machine<H> {
    fn new(make: fn() -> H, hook: impl FnOnce() + Send + 'static) -> Self {
        let memory: Memory =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap());
        let hook = || {
            hook();
            Ok(())
        };
        let device = Device {
            thread: WorkerThread::with_hook("busy", hook).unwrap(),
            make,
        };
        let events = Arc::new(EventLog::default());
        let transport = MmioTransport::new(device, memory.clone(), edge_line(|| Ok(()))).unwrap();
        Self {
            port: port(transport.with_observer(events.clone())),
            memory,
            events,
        }
    }

    fn set_up(&mut self) {
        assert!(self.port.negotiate(Features::NONE));
        let setup = *DriverQueue::new(&*self.memory, 0x1000, 16).setup();
        assert!(self.port.enable(0, &setup));
    }

    fn wait(&mut self, condition: impl Fn(&mut Self) -> bool) {
        let deadline = Instant::now() + SOON;
        while !condition(self) {
            assert!(Instant::now() < deadline, "not in time");
        }
    }
}

/// Starts the device, and sees that the driver is told of a failure; the interrupt comes last.
fn fails<H: QueueHandler + Send + 'static>(machine: &mut Machine<H>, why: &str) {
    machine.set_up();
    machine.port.set(reg::STATUS, 15);
    machine.wait(|machine| machine.port.get(reg::STATUS) == 15 | 64);
    machine.wait(|machine| machine.port.get(reg::INTERRUPT_STATUS) == 2);
    let reason = machine.events.last_failure().unwrap();
    assert!(reason.starts_with(why), "{reason}");
}

fn fails_twice<H: QueueHandler + Send + 'static>(mut machine: Machine<H>, why: &str) {
    for round in 1..=2 {
        fails(&mut machine, why);
        assert_eq!(machine.events.counts().device_failed, round);
    }
}

#[test]
fn each_call_that_fails_in_a_workers_start_is_told_as_a_failed_activation() {
    let why = "worker could not be started";
    // The queue is watched, and nothing else; then the descriptor is kept.
    let hook = || refuse(libc::SYS_epoll_ctl, libc::EMFILE);
    let machine = Machine::new(|| Busy, hook);
    let events = machine.events.clone();
    fails_twice(machine, why);
    assert_eq!(events.counts().activated, 0);
    let hook = || refuse(libc::SYS_fcntl, libc::EMFILE);
    let machine = Machine::new(Watching::new, hook);
    let events = machine.events.clone();
    fails_twice(machine, why);
    assert_eq!(events.counts().activated, 0);
}

#[test]
fn each_call_that_fails_in_a_workers_loop_is_told_to_the_driver() {
    #[cfg(target_arch = "x86_64")]
    let wait = libc::SYS_epoll_wait;
    #[cfg(not(target_arch = "x86_64"))]
    let wait = libc::SYS_epoll_pwait;
    for call in [libc::SYS_timerfd_settime, wait] {
        let machine = Machine::new(|| Busy, move || refuse(call, libc::EPERM));
        fails_twice(machine, "");
    }
}

#[test]
fn a_timer_that_cannot_be_cleared_is_told_to_the_driver() {
    let mut machine = Machine::new(Watching::new, || ());
    fails(&mut machine, "worker's loop failed");
}

#[test]
fn a_vcpu_that_activates_a_device_makes_no_call_but_writes() {
    let mut machine = Machine::new(|| Busy, || ());
    machine.set_up();
    let vcpu = std::thread::spawn(move || {
        // Beside those of the allocator, and of locks that are contended.
        let allowed = [
            libc::SYS_write,
            libc::SYS_futex,
            libc::SYS_brk,
            libc::SYS_mmap,
            libc::SYS_munmap,
            libc::SYS_mprotect,
            libc::SYS_madvise,
            // The end of the thread.
            libc::SYS_rt_sigprocmask,
            libc::SYS_sigaltstack,
            libc::SYS_rseq,
            libc::SYS_exit,
        ];
        filter(&allowed, SeccompAction::Allow, SeccompAction::KillProcess);
        machine.port.set(reg::STATUS, 15);
        assert_eq!(machine.port.get(reg::STATUS), 15);
        machine.port.set(reg::QUEUE_NOTIFY, 0);
        machine.port.set(reg::STATUS, 0);
        assert_eq!(machine.port.get(reg::STATUS), 0);
        machine
    });
    let mut machine = vcpu.join().unwrap();
    machine.set_up();
    machine.port.set(reg::STATUS, 15);
    machine.wait(|machine| machine.events.counts().activated > 0);
}

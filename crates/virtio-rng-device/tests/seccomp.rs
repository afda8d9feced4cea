// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The worker at work under a filter that allows the system calls in this crate's documentation and
//! kills the process at any other.
//!
//! The tests run this program again, as children that may be killed.
#![cfg(all(target_arch = "x86_64", not(miri)))]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test stops at the unexpected"
)]

use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use virtio_conformance::DriverQueue;
use virtio_device_core::{
    Activation, ActiveQueue, Features, Interrupt, InterruptHandle, QueueLease, VirtioDevice,
    Virtqueue, WorkerThread,
};
use virtio_rng_device::{KernelEntropy, QUEUE_SIZE, RateLimit, Retry, Rng};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// What the worker's thread calls in its steady state, as this crate's documentation says.
const STEADY_STATE: [i64; 6] = [
    libc::SYS_epoll_wait,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_timerfd_settime,
    libc::SYS_getrandom,
    libc::SYS_futex,
];

const SIGSYS: i32 = 31;
const CHILD: &str = "RNG_SECCOMP_CHILD";

fn install(allowed: &[i64]) {
    let rules = allowed.iter().map(|&call| (call, Vec::new())).collect();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

/// A source that puts the thread that reads it under the filter first, and fails now and then.
struct Filtered<S> {
    source: S,
    allowed: Vec<i64>,
    reads: u32,
}

impl<S: Read> Read for Filtered<S> {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        if self.reads == 0 {
            install(&self.allowed);
        }
        self.reads += 1;
        if self.reads % 10 == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.source.read(data)
    }
}

/// An interrupt as a VMM sends it: by an irqfd.
struct Irq(Arc<EventFd>);

impl Interrupt for Irq {
    fn used_buffers(&self, _queue: u16) {
        self.0.write(1).unwrap();
    }

    fn config_changed(&self) {}

    fn status_changed(&self) {
        self.0.write(1).unwrap();
    }
}

/// Makes a device with limits, and requests of all kinds; ends the process when all is well.
fn child(source: impl Read + Send + 'static, allowed: &[i64]) {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x4_0000)]).unwrap();
    let memory = Arc::new(memory);
    let mut driver = DriverQueue::new(&*memory, 0, QUEUE_SIZE);
    let source = Filtered {
        source,
        allowed: allowed.to_vec(),
        reads: 0,
    };
    let mut device = Rng::new(source, WorkerThread::named("rng")).with_retry(Retry {
        first: Duration::from_millis(1),
        ..Retry::default()
    });
    device
        .limits()
        .set(RateLimit::new(1 << 30, 1 << 20), RateLimit::new(2000, 50));
    let lease = QueueLease::new(Virtqueue::new(driver.layout(), Features::NONE));
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let queues = vec![ActiveQueue::new(0, lease, kick.clone())];
    let irq = Arc::new(EventFd::new(0).unwrap());
    let interrupt = InterruptHandle::new(Arc::new(Irq(irq.clone())));
    let activation = Activation::new(memory.clone(), queues, Features::NONE, interrupt.clone());
    device.activate(activation).unwrap();

    let mut served = 0;
    for round in 0..60 {
        // From an empty request to the largest, and one outside of memory.
        let requests = [0, 1, 64, 4096, 0x1_0000, 0x10_0000];
        for (index, len) in (0..).zip(requests) {
            driver.offer_writable(index, 0x1_0000, len);
        }
        kick.write(1).unwrap();
        while served < (round + 1) * requests.len() {
            // Blocks until the device interrupts; were the worker killed, so were this.
            irq.read().unwrap();
            assert!(!interrupt.is_broken());
            served += driver.take_used().len();
        }
    }
    // Neither thread comes to its end: what ending takes is not part of the steady state.
    std::process::exit(0);
}

/// Runs the test `name` again, as a child.
fn run(name: &str) -> ExitStatus {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(program);
    command
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, name);
    end_of(command)
}

/// The end of a child, which is killed if it does not come.
fn end_of(mut command: Command) -> ExitStatus {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let _ = child.wait();
    panic!("the child waits for an interrupt that does not come");
}

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

#[test]
fn the_kernels_generator_needs_no_more() {
    if is_child() {
        return child(KernelEntropy, &STEADY_STATE);
    }
    let status = run("the_kernels_generator_needs_no_more");
    assert!(status.success(), "{status}");
}

#[test]
fn a_file_needs_no_more_and_no_getrandom() {
    if is_child() {
        let file = std::fs::File::open("/dev/urandom").unwrap();
        let allowed = STEADY_STATE
            .into_iter()
            .filter(|&call| call != libc::SYS_getrandom);
        return child(file, &allowed.collect::<Vec<_>>());
    }
    let status = run("a_file_needs_no_more_and_no_getrandom");
    assert!(status.success(), "{status}");
}

#[cfg(feature = "fast-entropy")]
#[test]
fn the_generator_in_this_process_needs_no_more() {
    if is_child() {
        return child(
            virtio_rng_device::FastEntropy::new().unwrap(),
            &STEADY_STATE,
        );
    }
    let status = run("the_generator_in_this_process_needs_no_more");
    assert!(status.success(), "{status}");
}

/// And the list is not longer than it must be; `futex` is only called when two threads meet.
#[test]
fn each_call_is_needed() {
    const WITHOUT: &str = "RNG_SECCOMP_WITHOUT";
    let needed = &STEADY_STATE[..5];
    if is_child() {
        let without = std::env::var(WITHOUT).unwrap().parse::<i64>().unwrap();
        let allowed = STEADY_STATE.into_iter().filter(|&call| call != without);
        return child(KernelEntropy, &allowed.collect::<Vec<_>>());
    }
    for call in needed {
        let program = std::env::current_exe().unwrap();
        let mut command = Command::new(program);
        command.args(["--exact", "each_call_is_needed", "--nocapture"]);
        command.env(CHILD, "1").env(WITHOUT, call.to_string());
        let status = end_of(command);
        assert_eq!(status.signal(), Some(SIGSYS), "without {call}: {status}");
    }
}

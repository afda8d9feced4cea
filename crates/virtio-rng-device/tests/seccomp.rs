// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The worker at work under a filter that allows the system calls in this crate's documentation and
//! kills the process at any other.
//!
//! The tests run this program again, as children that may be killed.
#![cfg(all(target_arch = "x86_64", not(miri)))]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the unexpected"
)]

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use virtio_conformance::DriverQueue;
use virtio_device_core::{
    Activation, ConfigNotifier, Features, VirtioDevice, Virtqueue, WorkerThread,
    transport::{Interrupt, Session},
};
use virtio_rng_device::{EntropyDevice, KernelEntropy, QUEUE_SIZE, RateLimit};
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

/// Puts the calling thread under a filter: `listed` calls get one action, all others another.
fn filter(listed: &[i64], action: SeccompAction, others: SeccompAction) {
    let rules = listed.iter().map(|&call| (call, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, others, action, arch);
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

fn install(allowed: &[i64]) {
    filter(allowed, SeccompAction::Allow, SeccompAction::KillProcess);
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

    fn config_interrupt(&self) {
        self.0.write(1).unwrap();
    }
}

type Memory = Arc<GuestMemoryMmap<()>>;

fn memory() -> Memory {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4_0000)]).unwrap())
}

/// A queue for a device, and an irqfd.
fn lend(
    memory: &Memory,
    driver: &DriverQueue<'_, GuestMemoryMmap<()>>,
) -> (Session, Activation<Memory>, Arc<EventFd>) {
    let irq = Arc::new(EventFd::new(0).unwrap());
    let config = ConfigNotifier::new(Arc::new(Irq(irq.clone())));
    let queue = (
        0,
        Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
        Some(Virtqueue::new(driver.layout(), Features::NONE)),
    );
    let (session, activation) =
        Session::new(&config, memory.clone(), Features::NONE, [queue], false);
    (session, activation, irq)
}

/// Makes a device with limits, and requests of all kinds; ends the process when all is well.
fn child(source: impl Read + Send + 'static, allowed: &[i64]) {
    serve(source, None, allowed);
}

fn serve(source: impl Read + Send + 'static, readiness: Option<OwnedFd>, allowed: &[i64]) {
    let memory = memory();
    let mut driver = DriverQueue::new(&*memory, 0, QUEUE_SIZE);
    let source = Filtered {
        source,
        allowed: allowed.to_vec(),
        reads: 0,
    };
    let mut device = EntropyDevice::new(source, WorkerThread::named("rng").unwrap());
    if let Some(fd) = readiness {
        device = device.with_readiness(fd).unwrap();
    }
    device
        .limits()
        .set(RateLimit::new(1 << 30, 1 << 20), RateLimit::new(2000, 50));
    let (session, activation, irq) = lend(&memory, &driver);
    let kick = activation.queues[0].kick.clone();
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
            assert!(!session.is_broken());
            served += driver.take_used().len();
        }
    }
    // Neither thread comes to its end: what ending takes is not part of the steady state.
    std::process::exit(0);
}

/// What a vCPU's thread has that no worker should have.
fn spoil_thread() {
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(0);
    rustix::thread::sched_setaffinity(None, &cpus).unwrap();
    // Of the calling thread alone, on Linux.
    rustix::process::setpriority_process(None, 7).unwrap();
    vmm_sys_util::signal::block_signal(libc::SIGUSR1).unwrap();
    sched_batch();
}

#[expect(unsafe_code, reason = "no crate of the tree sets a scheduling policy")]
fn sched_batch() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: `parameters` is valid for the call, which changes the calling thread alone.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &parameters) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// What the calling thread has of what threads inherit: affinity, signal mask, seccomp filters; nice
/// value and policy.
fn surroundings() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let inherited = ["Cpus_allowed:", "SigBlk:", "Seccomp:", "Seccomp_filters:"];
    let lines = status
        .lines()
        .filter(|line| inherited.iter().any(|name| line.starts_with(name)));
    let mut found: Vec<_> = lines.map(str::to_owned).collect();
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    // Behind the name, which may hold blanks: fields 19 and 41.
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    found.extend([fields[16].to_owned(), fields[38].to_owned()]);
    found
}

/// A source that tells what its reader's thread has.
struct Looks(std::sync::mpsc::Sender<Vec<String>>);

impl Read for Looks {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let _ = self.0.send(surroundings());
        Ok(data.len())
    }
}

/// Activates a device on a thread like a vCPU's, under a filter that allows nothing but writes, and
/// sees that it is served by a worker that has nothing of that thread.
fn activated_by_a_vcpu() {
    let memory = memory();
    let mut driver = DriverQueue::new(&*memory, 0, QUEUE_SIZE);
    let (sender, seen) = std::sync::mpsc::channel();
    let expected = surroundings();
    let mut device = EntropyDevice::new(Looks(sender), WorkerThread::named("rng").unwrap());
    let (_session, activation, irq) = lend(&memory, &driver);
    let kick = activation.queues[0].kick.clone();
    driver.offer_writable(0, 0x1_0000, 64);
    let (sender, spoilt) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        spoil_thread();
        sender.send(surroundings()).unwrap();
        // The allocator has what activation takes.
        drop(std::hint::black_box(Vec::<u8>::with_capacity(120_000)));
        install(&[libc::SYS_write]);
        let activated = device.activate(activation).is_ok();
        kick.write(1).unwrap();
        // It can neither wait nor end under this filter.
        while std::hint::black_box(activated) {
            std::hint::spin_loop();
        }
    });
    irq.read().unwrap();
    assert_eq!(driver.take_used(), [(0, 64)]);
    let spoilt = spoilt.recv().unwrap();
    assert!(
        spoilt
            .iter()
            .zip(&expected)
            .all(|(one, other)| one.starts_with("Seccomp") || one != other)
    );
    assert_eq!(seen.recv().unwrap(), expected);
    std::process::exit(0);
}

#[test]
fn a_worker_owes_nothing_to_the_vcpu_that_activates_which_only_writes_event_fds() {
    if is_child() {
        return activated_by_a_vcpu();
    }
    let output = child_output(
        "a_worker_owes_nothing_to_the_vcpu_that_activates_which_only_writes_event_fds",
    );
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_source_whose_descriptor_cannot_be_watched_ends_the_device() {
    let memory = memory();
    let driver = DriverQueue::new(&*memory, 0, QUEUE_SIZE);
    // A descriptor that is watched is duplicated.
    let hook = || {
        let refused = SeccompAction::Errno(libc::EMFILE.unsigned_abs());
        filter(&[libc::SYS_fcntl], refused, SeccompAction::Allow);
        Ok(())
    };
    let executor = WorkerThread::with_hook("rng", hook).unwrap();
    let (_host, source) = UnixStream::pair().unwrap();
    let readiness = source.try_clone().unwrap();
    let device = EntropyDevice::new(source, executor);
    let mut device = device.with_readiness(readiness).unwrap();
    let (session, activation, _irq) = lend(&memory, &driver);
    device.activate(activation).unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while !session.is_broken() {
        assert!(
            Instant::now() < deadline,
            "it waits for what never wakes it"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs the test `name` again, as a child.
fn run(name: &str) -> ExitStatus {
    child_output(name).status
}

fn child_output(name: &str) -> Output {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(program);
    command
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, name);
    output_of(command)
}

/// What a child says until its end; it is killed if that does not come.
fn output_of(mut command: Command) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while Instant::now() < deadline {
        if child.try_wait().unwrap().is_some() {
            return child.wait_with_output().unwrap();
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

#[test]
fn a_source_with_a_descriptor_needs_epoll_ctl_as_well() {
    if is_child() {
        let (mut host, device) = UnixStream::pair().unwrap();
        device.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            // A little at a time, so that the source is found empty.
            while host.write_all(&[7; 64]).is_ok() {
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        let fd = device.try_clone().unwrap().into();
        // A stream is read by recvfrom(2).
        let more = [libc::SYS_epoll_ctl, libc::SYS_recvfrom];
        let allowed = [&STEADY_STATE[..], &more].concat();
        return serve(device, Some(fd), &allowed);
    }
    let output = child_output("a_source_with_a_descriptor_needs_epoll_ctl_as_well");
    assert!(output.status.success(), "{output:?}");
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
        let status = output_of(command).status;
        assert_eq!(status.signal(), Some(SIGSYS), "without {call}: {status}");
    }
}

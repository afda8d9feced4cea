// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The run loop of a KVM virtual machine monitor: it enters the guest, carries out each exit, and
//! enters it again, while other threads kick, pause, resume and stop it.
//!
//! A loop around `KVM_RUN` is quickly written. This crate is for what comes after that: string port
//! I/O that reaches a device as single elements, kicks that are never lost, pauses that leave no access
//! half done, exits that each have an outcome of their own, and threads that always end and always
//! say how.
//!
//! ```console
//! cargo add vcpu-runner
//! # Which the first example uses as well:
//! cargo add vmm-bus kvm-ioctls kvm-bindings
//! cargo add vm-memory --features backend-mmap
//! ```
//!
#![doc = include_str!("../picture.svg")]
//!
//! # A first example
//!
//! A whole machine, on x86-64: memory with four instructions in it, a device, a vCPU on a thread of its
//! own, and the end. Where there is no `/dev/kvm`, it says so.
//!
//! ```
//! # #[cfg(not(all(feature = "bus", feature = "kvm-ioctls", target_arch = "x86_64")))]
//! # fn main() {}
//! # #[cfg(all(feature = "bus", feature = "kvm-ioctls", target_arch = "x86_64"))]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::{Arc, Mutex};
//! use std::time::Duration;
//!
//! use bus::{AccessError, BusDevice, MmioBus, PioBus};
//! use vcpu_runner::{BusIo, ExitCounters, ExitKind, KvmVcpu, Outcome, VcpuRunner};
//! use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
//!
//! /// Reads as 42, everywhere.
//! struct Answer;
//! impl BusDevice for Answer {
//!     fn read(&mut self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
//!         data.fill(42);
//!         Ok(())
//!     }
//! }
//!
//! // The guest's program, in real mode; its data segment begins at the device.
//! let code = [
//!     0xa0, 0x04, 0x00, // mov al, [4]
//!     0x2e, 0xa2, 0x00, 0x20, // mov cs:[0x2000], al
//!     0xf4, // hlt
//! ];
//!
//! // KVM, a virtual machine, and 64 KiB of memory.
//! let Ok(kvm) = kvm_ioctls::Kvm::new() else {
//!     println!("skipped: no usable /dev/kvm");
//!     return Ok(());
//! };
//! let vm = kvm.create_vm()?;
//! let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1_0000)])?;
//! memory.write_slice(&code, GuestAddress(0x1000))?;
//! let region = kvm_bindings::kvm_userspace_memory_region {
//!     memory_size: 0x1_0000,
//!     userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
//!     ..Default::default()
//! };
//! // SAFETY: the memory is mapped until the end of this function, and so beyond the machine.
//! unsafe { vm.set_user_memory_region(region)? };
//!
//! // A device on a bus. Nothing is on the bus of ports.
//! let (mmio, pio) = (MmioBus::new(), PioBus::new());
//! mmio.insert(Arc::new(Mutex::new(Answer)), 0x8_0000, 0x1000)?;
//!
//! // A vCPU, which begins with the program.
//! let vcpu = vm.create_vcpu(0)?;
//! let mut sregs = vcpu.get_sregs()?;
//! (sregs.cs.base, sregs.cs.selector) = (0, 0);
//! sregs.ds.base = 0x8_0000;
//! vcpu.set_sregs(&sregs)?;
//! let mut regs = vcpu.get_regs()?;
//! (regs.rip, regs.rflags) = (0x1000, 2);
//! vcpu.set_regs(&regs)?;
//!
//! // It runs on a thread of its own, until it halts.
//! let counters = Arc::new(ExitCounters::default());
//! let mut handle = VcpuRunner::new(KvmVcpu::new(vcpu)?, BusIo::new(mmio.view(), pio.view()))
//!     .with_observer(Arc::clone(&counters))
//!     .spawn("vcpu0")?;
//! assert_eq!(handle.join(Duration::from_secs(60))?, Outcome::Halted);
//! assert_eq!(memory.read_obj::<u8>(GuestAddress(0x2000))?, 42);
//! println!("the guest has read the device {} times", counters.get(ExitKind::MmioRead));
//! # Ok(())
//! # }
//! ```
//!
//! The handle can meanwhile [pause](VcpuHandle::pause), [look at](VcpuHandle::with_vcpu),
//! [resume](VcpuHandle::resume) and [stop](VcpuHandle::stop) the vCPU; a [`VcpuGroup`] does it with
//! several. The package has more examples: `minimal` (this machine in a file), `own_bus` (a bus with
//! actions and errors of its own, and a guest that reboots in place), `io_manager` (vm-device's
//! `IoManager`).
//!
//! # What an exit leads to
//!
//! | exit | by default |
//! | --- | --- |
//! | MMIO, port I/O | the device; a buffer arrives filled with ones; string instructions are split |
//! | `HLT` | `Outcome::Halted` |
//! | `SHUTDOWN` | `Outcome::TripleFault`, which is not orderly |
//! | `SYSTEM_EVENT` | `Outcome::Shutdown`, `Reset`, `Crash`, or `SystemEvent` with its number |
//! | `DEBUG` | `Outcome::Debug`; running again goes on |
//! | `HYPERCALL` | refused with `-KVM_ENOSYS` |
//! | `RDMSR`, `WRMSR` | general protection fault |
//! | `IOAPIC_EOI`, `IRQ_WINDOW_OPEN`, `SET_TPR`, `BUS_LOCK`, `NOTIFY` | go on |
//! | `MEMORY_FAULT`, `DIRTY_RING_FULL`, unknown numbers | error, unless the policy deals with it |
//! | `ARM_NISV` | the guest takes an abort; `enable_nisv_exits` has KVM report it |
//! | `FAIL_ENTRY`, `INTERNAL_ERROR`, `EXCEPTION`, lost context, false records | error, always |
//! | `EINTR`, `EAGAIN` | go on |
//! | any other `errno` | error |
//!
//! Every error carries the guest's program counter, and an emulation failure the bytes of its
//! instruction if KVM names them.
//!
//! # Features
//!
//! | feature | |
//! | --- | --- |
//! | `bus` (default) | `BusIo`, for devices on the buses of `vmm-bus` |
//! | `kvm` | `KvmVcpu`, from any vCPU's file descriptor; `CoalescedMmio` |
//! | `kvm-ioctls` (default) | `kvm`, with the types of kvm-ioctls; `IoEvent`, `IrqFd` |
//! | `test-utils` | `MockVcpu`, a scripted vCPU |
//!
//! `KvmVcpu` needs Linux 4.12 or later on x86-64 or arm64; without the feature `kvm` the crate builds
//! anywhere. `KvmVcpu` takes the signal `SIGRTMIN`, or one of your
//! choice with `KvmVcpu::with_kick_signal`; one that already has a handler is refused. The signal may
//! interrupt system calls of your devices: they see `EINTR` as they would by any other signal.
//!
//! Panics of devices are caught at the edge of the vCPU's thread if the program unwinds. With
//! `panic = "abort"` they end the program, as they say.
//!
//! # Limits
//!
//! * Hyper-V, Xen and confidential-guest exits have no types of their own: they are `Event::Other`.
//! * A bus lock that KVM reports in the flags of another exit is not seen.
//! * A device that blocks keeps its vCPU from being paused or stopped, and one that blocks in a
//!   coalesced write those that share the ring. Waiting is then an error, never
//!   a hang, and the thread is given up when its handle is dropped.
//!
//! # Versions
//!
//! | | version |
//! |---|---|
//! | Rust | 1.85 |
//! | kvm-ioctls | 0.17 to 0.25 |
//! | kvm-bindings | 0.8 to 0.14, as that kvm-ioctls wants it |
//! | vmm-sys-util | 0.12 to 0.15, as that kvm-ioctls wants it |
//! | vm-memory | not needed; 0.18 in this family, whose versions agree |
//!
//! If your VMM names an older kvm-ioctls, Cargo still takes the newest for this crate; have both use
//! yours:
//!
//! ```console
//! $ cargo update --package kvm-ioctls@0.25.1 --precise 0.22.1
//! $ cargo update --package kvm-bindings@0.14.2 --precise 0.12.1
//! ```
//!
//! # System calls
//!
//! For a seccomp filter, on the thread of a vCPU:
//!
//! | when | calls |
//! | --- | --- |
//! | before the first entry | `gettid`, `rt_sigaction`, `rt_sigprocmask`, `futex` |
//! | running | `ioctl(KVM_RUN)`, `rt_sigreturn` |
//! | an abort for the guest (arm64) | `ioctl(KVM_GET_VCPU_EVENTS)`, `ioctl(KVM_SET_VCPU_EVENTS)` |
//! | pause and resume | `ioctl(KVM_KVMCLOCK_CTRL)` (x86-64), `futex` |
//! | error | `ioctl(KVM_GET_REGS)` or `ioctl(KVM_GET_ONE_REG)` |
//! | end | `rt_sigprocmask`, `futex`; in a group `tgkill`, `gettid`, `getpid` for the others; `clock_nanosleep` if the user's signals are used up |
//! | end of the thread | `close`, `munmap`, `sigaltstack`, `madvise`, `rt_sigprocmask`, `exit` |
//! | a thread that controls | `tgkill`, `gettid`, `getpid`, `futex`; `clock_nanosleep` if the user's signals are used up |
//!
//! `VcpuGroup::with_hook` is the place to install the filter. On x86-64 the list is tested
//! under exactly such a filter. It does not contain what your devices and the allocator call, nor what a panic prints with.
//! Programs with debug assertions also call `fcntl` before each `close`.
//!
//! # Threat model
//!
//! The guest is the enemy. Whatever it executes, the loop does not panic, does not run away, and
//! allocates nothing: each exit costs one bounded piece of work, and a guest that exits
//! without end can be paused and stopped as quickly as any other. At most 1024 elements of a string
//! instruction come with one exit, and at most about a thousand exits before a pause takes effect.
//!
//! The kernel is trusted, but its record is read as if it were not: lengths and offsets are checked
//! before anything is made of them, and a false one ends the loop with an error.
//!
//! Devices, policy and observer are the embedder's and trusted, but may be wrong: a panic ends the
//! vCPU and, in a group, its siblings, and is reported; a device that hangs costs its vCPU, or
//! with coalesced writes those that share the ring, and nobody who controls them waits longer than they
//! said. A vCPU in its guest is reached by a signal: while the user's limit of pending signals
//! (`RLIMIT_SIGPENDING`) is used up, whoever controls it waits for room.
//!
//! All `unsafe` code is in the module `kvm`: the two mappings, `KVM_RUN`, and the signal. `KVM_RUN` makes guest code write to guest memory; that this memory is fit for it is
//! what the caller of `VmFd::set_user_memory_region` vouched for.
//!
//! | threat | answer | test |
//! | --- | --- | --- |
//! | string I/O taken for one long access | split by element | `kvm_exits::string_*` |
//! | stale bytes of an earlier exit in an unclaimed read | filled with ones first | `exits::stale_bytes_*` |
//! | a record with false lengths | typed error, no device called | `records::fuzzed_records` |
//! | an instruction that cannot be emulated, over and over | typed error at the first | `kvm_exits::an_instruction_*` |
//! | a lost kick | model-checked protocol | `loom`, `kvm_control::ten_thousand_pauses` |
//! | state saved with an access half done | completed before a pause is acknowledged | `kvm_control::a_pause_completes_*` |
//! | a panicking or hanging device | caught, reported; waiting is bounded | `control::a_panic_*`, `control::a_stuck_*` |
//!
//! # Siblings
//!
//! | crate | what it is |
//! |---|---|
//! | [vmm-bus](https://docs.rs/vmm-bus) | finds the device that owns an address, and calls it |
//! | [virtio-mmio-transport](https://docs.rs/virtio-mmio-transport) | the registers of VIRTIO 1.3, section 4.2 |
//! | [virtio-device-core](https://docs.rs/virtio-device-core) | life cycle, features, queues, chains and workers of any virtio device |
//! | [virtio-rng-device](https://docs.rs/virtio-rng-device) | a virtio entropy device |
//! | [mmio-rng-legacy](https://docs.rs/mmio-rng-legacy) | a random number generator with one register, to compare with |

#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(unsafe_code)]

mod exit;
#[cfg(feature = "kvm")]
#[expect(
    unsafe_code,
    reason = "KVM_RUN, the memory that is shared with the kernel, and signals have no safe interface"
)]
mod kvm;
#[cfg(feature = "test-utils")]
mod mock;
mod run;
mod sync;
mod threads;

pub use exit::{
    DebugInfo, Exit, ExitKind, Hypercall, Instruction, InternalError, RECORD_LEN, Record,
    SystemEvent, decode,
};
#[cfg(feature = "kvm")]
pub use kvm::{CoalescedMmio, KickSignal, KvmVcpu};
#[cfg(feature = "kvm-ioctls")]
pub use kvm::{Doorbell, EventFd, IoEvent, IrqFd, VcpuFd, VmFd, enable_nisv_exits, spi_line};
#[cfg(feature = "test-utils")]
pub use mock::{MockLog, MockStep, MockVcpu};
#[cfg(feature = "bus")]
pub use run::BusIo;
pub use run::{
    Action, CoalescedWrite, CoalescedWrites, Control, ControlError, DefaultPolicy, End, Error,
    Event, ExitCounters, ExitLatencies, ExitObserver, ExitPolicy, Fault, Flow, GuestIo, IoAccess,
    IoFn, Kick, LatencyObserver, MapAnswer, Outcome, RunError, State, Vcpu, VcpuRunner, dispatch,
};
pub use threads::{Ended, GroupError, JoinError, RunningGroup, VcpuGroup, VcpuHandle};

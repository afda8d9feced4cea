// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the tests share: a small machine on real KVM, and devices that write down what happens.

#![expect(
    unsafe_code,
    reason = "guest memory is given to KVM, which has no safe interface for it"
)]
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test file is a crate of its own and uses its own part"
)]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vcpu_runner::{GuestIo, KvmVcpu};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Longer than anything takes that is not stuck.
pub const SOON: Duration = Duration::from_secs(10);

/// KVM, or a visible line that the test did nothing; with `REQUIRE_KVM=1` that is a failure.
pub fn kvm() -> Option<Kvm> {
    match Kvm::new() {
        Ok(kvm) => Some(kvm),
        Err(error) if std::env::var("REQUIRE_KVM").as_deref() == Ok("1") => {
            panic!("no usable /dev/kvm: {error}")
        }
        Err(_) => {
            println!("skipped: no usable /dev/kvm");
            None
        }
    }
}

/// Where guest code starts.
pub const ENTRY: u64 = 0x1000;
/// Bytes of guest memory, from address 0.
pub const RAM: usize = 2 << 20;
/// An address without memory.
pub const MMIO: u32 = 0x8000_0000;

/// A machine with some memory, whose vCPUs run 32-bit code without paging.
pub struct Machine {
    pub vm: Arc<VmFd>,
    pub memory: GuestMemoryMmap,
}

impl Machine {
    /// A machine with `code` at [`ENTRY`] and without interrupt controller: `hlt` is an exit.
    pub fn new(kvm: &Kvm, code: &[u8]) -> Self {
        Self::build(kvm, code, false)
    }

    /// A machine with KVM's interrupt controller: `hlt` waits inside of KVM.
    pub fn with_irqchip(kvm: &Kvm, code: &[u8]) -> Self {
        Self::build(kvm, code, true)
    }

    fn build(kvm: &Kvm, code: &[u8], irqchip: bool) -> Self {
        let vm = kvm.create_vm().unwrap();
        if irqchip {
            vm.create_irq_chip().unwrap();
        }
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: RAM as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap() as u64,
        };
        // SAFETY: the memory is mapped, and lives as long as the machine; the tests end their
        // vCPUs before that.
        unsafe { vm.set_user_memory_region(region).unwrap() };
        memory.write_slice(code, GuestAddress(ENTRY)).unwrap();
        Self {
            vm: Arc::new(vm),
            memory,
        }
    }

    /// A vCPU that starts at [`ENTRY`].
    pub fn vcpu(&self, index: u64) -> KvmVcpu {
        self.vcpu_at(index, ENTRY)
    }

    /// A vCPU that starts at [`ENTRY`] in 64-bit mode.
    ///
    /// The first 2 MiB of memory and of the window at [`MMIO`] are mapped where they are.
    pub fn vcpu64(&self) -> KvmVcpu {
        const LARGE: u64 = 1 << 7 | 3;
        for (entry, value) in [
            (0x9000, 0xa000 | 3),              // level 4, first 512 GiB
            (0xa000, 0xb000 | 3),              // level 3, first 1 GiB
            (0xa010, 0xc000 | 3),              // level 3, third 1 GiB
            (0xb000, LARGE),                   // level 2, memory
            (0xc000, u64::from(MMIO) | LARGE), // level 2, window
        ] {
            self.memory.write_obj(value, GuestAddress(entry)).unwrap();
        }
        let vcpu = self.vcpu(0);
        let mut sregs = vcpu.fd().get_sregs().unwrap();
        (sregs.cs.l, sregs.cs.db) = (1, 0);
        sregs.cr3 = 0x9000;
        sregs.cr4 |= 1 << 5;
        sregs.efer |= 1 << 8 | 1 << 10;
        sregs.cr0 |= 1 << 31 | 1;
        vcpu.fd().set_sregs(&sregs).unwrap();
        vcpu
    }

    /// A vCPU that starts at `entry`, with its index in `ebp`.
    pub fn vcpu_at(&self, index: u64, entry: u64) -> KvmVcpu {
        KvmVcpu::new(self.fd_at(index, entry)).unwrap()
    }

    /// The same, as kvm-ioctls has it.
    pub fn fd_at(&self, index: u64, entry: u64) -> VcpuFd {
        let fd = self.vm.create_vcpu(index).unwrap();
        let mut sregs = fd.get_sregs().unwrap();
        let data = kvm_segment {
            base: 0,
            limit: 0xffff_ffff,
            selector: 16,
            type_: 3,
            present: 1,
            dpl: 0,
            db: 1,
            s: 1,
            l: 0,
            g: 1,
            ..Default::default()
        };
        sregs.cs = kvm_segment {
            selector: 8,
            type_: 11,
            ..data
        };
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.cr0 |= 1;
        fd.set_sregs(&sregs).unwrap();
        let mut regs = fd.get_regs().unwrap();
        regs.rip = entry;
        regs.rflags = 2;
        regs.rsp = 0x8000;
        regs.rbp = index;
        fd.set_regs(&regs).unwrap();
        // An application processor waits for its start-up message otherwise.
        let _ = fd.set_mp_state(kvm_bindings::kvm_mp_state { mp_state: 0 });
        fd
    }

    pub fn read<const N: usize>(&self, addr: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory
            .read_slice(&mut bytes, GuestAddress(addr))
            .unwrap();
        bytes
    }
}

/// One access as a device saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    MmioRead(u64, usize),
    MmioWrite(u64, Vec<u8>),
    PioRead(u16, usize),
    PioWrite(u16, Vec<u8>),
}

/// Devices that write every access down, check what they are given, and count upwards in what
/// they answer.
#[derive(Clone, Default)]
pub struct Recorder {
    pub seen: Arc<Mutex<Vec<Access>>>,
    next: u8,
}

impl Recorder {
    pub fn log(&self) -> Vec<Access> {
        self.seen.lock().unwrap().clone()
    }

    fn note(&self, access: Access) {
        self.seen.lock().unwrap().push(access);
    }

    fn answer(&mut self, data: &mut [u8]) {
        assert!(
            data.iter().all(|&byte| byte == 0xff),
            "a buffer arrives filled with ones"
        );
        for byte in data {
            self.next += 1;
            *byte = self.next;
        }
    }
}

impl GuestIo for Recorder {
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
        self.note(Access::MmioRead(addr, data.len()));
        self.answer(data);
    }

    fn mmio_write(&mut self, addr: u64, data: &[u8]) {
        self.note(Access::MmioWrite(addr, data.to_vec()));
    }

    fn pio_read(&mut self, port: u16, data: &mut [u8]) {
        self.note(Access::PioRead(port, data.len()));
        self.answer(data);
    }

    fn pio_write(&mut self, port: u16, data: &[u8]) {
        self.note(Access::PioWrite(port, data.to_vec()));
    }
}

/// Devices that answer nothing.
#[derive(Clone, Copy, Default)]
pub struct Nothing;

impl GuestIo for Nothing {
    fn mmio_read(&mut self, _: u64, _: &mut [u8]) {}
    fn mmio_write(&mut self, _: u64, _: &[u8]) {}
    fn pio_read(&mut self, _: u16, _: &mut [u8]) {}
    fn pio_write(&mut self, _: u16, _: &[u8]) {}
}

/// Waits for something that happens soon.
pub fn wait_until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "it did not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The calling thread's number.
pub fn thread_id() -> libc::pid_t {
    // SAFETY: the call has no preconditions.
    unsafe { libc::gettid() }
}

/// Sends a signal to a thread of this process.
pub fn send_signal(thread: libc::pid_t, signal: i32) {
    // SAFETY: the call takes numbers only.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal) };
}

/// Blocks a signal in the calling thread.
pub fn block_signal(signal: i32) {
    // SAFETY: the set is initialised before it is used, and only this thread's mask changes.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// Whether a signal is blocked in the calling thread.
pub fn is_blocked(signal: i32) -> bool {
    // SAFETY: the set is written by the first call before the second reads it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut set);
        libc::sigismember(&raw const set, signal) == 1
    }
}

/// Gives a signal a handler that is not the library's.
pub fn take_signal(signal: i32) {
    extern "C" fn other(_: i32) {}
    // SAFETY: the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = other as extern "C" fn(i32) as libc::sighandler_t;
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
    }
}

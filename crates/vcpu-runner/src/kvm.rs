// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vCPU of `kvm-ioctls`, for the run loop.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::VcpuFd;

use crate::arch;
use crate::decode::{decode, forget};
use crate::error::RunError;
use crate::exit::Exit;
use crate::sys::{self, ImmediateExit, RunRecord};
use crate::vcpu::{Kick, Vcpu};

/// The signal that interrupts a vCPU's thread.
///
/// The signal gets a handler that does nothing when the first vCPU runs. It must not be used for
/// anything else, which is why only real-time signals can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KickSignal(libc::c_int);

impl KickSignal {
    /// The real-time signal `SIGRTMIN + n`, if there is one.
    #[must_use]
    pub fn realtime(n: u8) -> Option<Self> {
        let signals = sys::realtime_signals();
        let signal = signals.start() + libc::c_int::from(n);
        signals.contains(&signal).then_some(Self(signal))
    }

    /// The signal's number.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }
}

impl Default for KickSignal {
    /// `SIGRTMIN`.
    fn default() -> Self {
        Self(*sys::realtime_signals().start())
    }
}

/// A vCPU of KVM: its file, the record of its exits and what kicks it, for good together.
///
/// It takes over a `VcpuFd` whose registers are set up; [`KvmVcpu::fd`] still gives access to
/// them, except while the vCPU is running. Linux 4.12 or later is needed, for `immediate_exit`.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
/// let vcpu = vcpu_runner::KvmVcpu::new(vm.create_vcpu(0)?)?;
/// # Ok(())
/// # }
/// ```
pub struct KvmVcpu {
    fd: VcpuFd,
    record: RunRecord,
    kick: Arc<KvmKick>,
    /// The thread's signal mask had the kick signal in it before.
    was_blocked: bool,
}

impl KvmVcpu {
    /// Takes over a vCPU.
    ///
    /// # Errors
    ///
    /// The run area cannot be mapped.
    pub fn new(fd: VcpuFd) -> io::Result<Self> {
        Self::with_kick_signal(fd, KickSignal::default())
    }

    /// Takes over a vCPU whose thread is interrupted by a signal other than `SIGRTMIN`.
    ///
    /// # Errors
    ///
    /// The run area cannot be mapped.
    pub fn with_kick_signal(fd: VcpuFd, signal: KickSignal) -> io::Result<Self> {
        let (record, immediate_exit) = sys::map_run_area(&fd)?;
        Ok(Self {
            fd,
            record,
            kick: Arc::new(KvmKick {
                immediate_exit,
                thread: Mutex::new(None),
                signal,
            }),
            was_blocked: false,
        })
    }

    /// The vCPU's file, to read and set registers.
    ///
    /// After a read exit the guest's registers are not up to date before the loop has entered
    /// the vCPU again; they are while the vCPU is paused.
    ///
    /// The reference is a shared one: whoever could exchange the file would part it from the
    /// record of its exits, which an [`Exit`] borrows.
    ///
    /// ```compile_fail,E0596
    /// # fn swap(one: &mut vcpu_runner::KvmVcpu, other: &mut vcpu_runner::KvmVcpu) {
    /// std::mem::swap(&mut *one.fd(), &mut *other.fd());
    /// # }
    /// ```
    #[must_use]
    pub const fn fd(&self) -> &VcpuFd {
        &self.fd
    }
}

impl fmt::Debug for KvmVcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmVcpu")
            .field("fd", &self.fd.as_raw_fd())
            .field("signal", &self.kick.signal)
            .finish_non_exhaustive()
    }
}

impl Vcpu for KvmVcpu {
    #[inline]
    fn run(&mut self) -> Result<Exit<'_>, RunError> {
        match sys::kvm_run(&mut self.fd) {
            Ok(()) => match decode(self.record.get()) {
                // The kernel's other way of saying EINTR.
                Exit::Other { number } if number == kvm_bindings::KVM_EXIT_INTR => {
                    Err(RunError::Interrupted)
                }
                exit => Ok(exit),
            },
            Err(errno) => self.failed(errno),
        }
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.kick) as Arc<dyn Kick>
    }

    fn bind_thread(&mut self) -> io::Result<()> {
        let signal = self.kick.signal.number();
        sys::install_kick_handler(signal)?;
        self.was_blocked = sys::block_signal(signal, false)?;
        *self.kick.lock() = Some(sys::thread_id());
        Ok(())
    }

    fn unbind_thread(&mut self) {
        *self.kick.lock() = None;
        if self.was_blocked {
            // The mask was changed before with the same arguments, so this cannot fail.
            let _ = sys::block_signal(self.kick.signal.number(), true);
        }
    }

    fn notify_paused(&mut self) {
        arch::notify_paused(&self.fd);
    }

    fn program_counter(&self) -> Option<u64> {
        arch::program_counter(&self.fd)
    }
}

impl KvmVcpu {
    /// `KVM_RUN` failed; a memory fault is the one exit that it reports in this way.
    #[cold]
    fn failed(&mut self, errno: i32) -> Result<Exit<'_>, RunError> {
        if matches!(errno, libc::EFAULT | libc::EHWPOISON) {
            if let Exit::MemoryFault { flags, gpa, size } = decode(self.record.get()) {
                // The kernel need not fill the record at the next failure: it must not be seen
                // twice.
                forget(self.record.get());
                return Ok(Exit::MemoryFault { flags, gpa, size });
            }
        }
        Err(RunError::from(errno))
    }
}

/// Kicks a vCPU by its `immediate_exit` flag and a signal to its thread.
///
/// The flag catches a thread that is about to enter the guest, the signal one that is in it.
struct KvmKick {
    immediate_exit: ImmediateExit,
    /// The thread that runs the vCPU. Locked while a signal is sent, so that it cannot end then.
    thread: Mutex<Option<libc::pid_t>>,
    signal: KickSignal,
}

impl KvmKick {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<libc::pid_t>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kick for KvmKick {
    fn kick(&self) {
        self.immediate_exit.set(true);
        let thread = self.lock();
        if let Some(id) = *thread {
            // A device that stops its own vCPU is not inside of the guest.
            if id != sys::thread_id() {
                sys::signal_thread(id, self.signal.number());
            }
        }
    }

    fn clear(&self) {
        self.immediate_exit.set(false);
    }
}

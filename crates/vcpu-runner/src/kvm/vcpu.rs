// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vCPU of KVM, for the run loop.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use super::arch;
use super::ioctl;
use super::kick::{KickSignal, KvmKick};
use super::run_area::{self, RunRecord};
use crate::exit::{Exit, decode, forget, number, reason};
use crate::run::{Kick, RunError, Vcpu};

/// A vCPU of KVM: its file, the record of its exits and what kicks it, for good together.
///
/// It takes over the file of a vCPU whose registers are set up; [`KvmVcpu::fd`] still gives access
/// to them. Linux 4.12 or later is needed, for `immediate_exit`.
///
/// `F` is the file: the `VcpuFd` of kvm-ioctls, with the feature `kvm-ioctls`, or whatever else
/// the VMM has, also the `VcpuFd` of another version; see [`KvmVcpu::from_fd`].
///
/// ```no_run
/// # #[cfg(feature = "kvm-ioctls")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let vm = kvm_ioctls::Kvm::new()?.create_vm()?;
/// let vcpu = vcpu_runner::KvmVcpu::new(vm.create_vcpu(0)?)?;
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "kvm-ioctls"))]
/// # fn main() {}
/// ```
pub struct KvmVcpu<
    #[cfg(feature = "kvm-ioctls")] F = kvm_ioctls::VcpuFd,
    #[cfg(not(feature = "kvm-ioctls"))] F,
> {
    file: F,
    /// The number of `file`, which does not change.
    raw: RawFd,
    record: RunRecord,
    kick: Arc<KvmKick>,
    /// The thread's signal mask had the kick signal in it before.
    was_blocked: bool,
}

#[cfg(feature = "kvm-ioctls")]
impl KvmVcpu<kvm_ioctls::VcpuFd> {
    /// Takes over a vCPU.
    ///
    /// # Errors
    ///
    /// The run area cannot be mapped.
    pub fn new(fd: kvm_ioctls::VcpuFd) -> io::Result<Self> {
        Self::with_kick_signal(fd, KickSignal::default())
    }

    /// Takes over a vCPU whose thread is interrupted by a signal other than `SIGRTMIN`.
    ///
    /// # Errors
    ///
    /// The run area cannot be mapped.
    pub fn with_kick_signal(fd: kvm_ioctls::VcpuFd, signal: KickSignal) -> io::Result<Self> {
        // SAFETY: this type's only value for a vCPU is the one that is moved in here. To run the
        // vCPU, or to look at its run area, takes an exclusive reference, which `fd` denies.
        unsafe { Self::from_fd(fd, signal) }
    }
}

impl<F: AsRawFd> KvmVcpu<F> {
    /// Takes over the file of a vCPU, whoever opened it.
    ///
    /// ```no_run
    /// # fn open() -> std::os::fd::OwnedFd { todo!() }
    /// use vcpu_runner::{KickSignal, KvmVcpu};
    ///
    /// let file = open(); // KVM_CREATE_VCPU
    /// // SAFETY: nobody else has this vCPU.
    /// let vcpu = unsafe { KvmVcpu::from_fd(file, KickSignal::default()) }?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The run area cannot be mapped.
    ///
    /// # Safety
    ///
    /// `fd` is the file of a vCPU, keeps its number and stays open until it is dropped, also if
    /// somebody has a shared reference to it. Nobody else runs the vCPU (`KVM_RUN`) while the
    /// result exists; other requests may be made.
    pub unsafe fn from_fd(fd: F, signal: KickSignal) -> io::Result<Self> {
        let raw = fd.as_raw_fd();
        let (record, immediate_exit) = run_area::map(raw)?;
        Ok(Self {
            file: fd,
            raw,
            record,
            kick: Arc::new(KvmKick::new(immediate_exit, signal)),
            was_blocked: false,
        })
    }
}

impl<F> KvmVcpu<F> {
    /// The vCPU's file, to read and set registers.
    ///
    /// After a read exit the guest's registers are not up to date before the loop has entered
    /// the vCPU again; they are while the vCPU is paused.
    ///
    /// The reference is a shared one: whoever could exchange the file would part it from the
    /// record of its exits, which an [`Exit`] borrows.
    ///
    /// ```compile_fail,E0596
    /// # fn swap<F>(one: &mut vcpu_runner::KvmVcpu<F>, other: &mut vcpu_runner::KvmVcpu<F>) {
    /// std::mem::swap(&mut *one.fd(), &mut *other.fd());
    /// # }
    /// ```
    #[must_use]
    pub const fn fd(&self) -> &F {
        &self.file
    }

    /// The number of the vCPU's file.
    pub(super) const fn raw(&self) -> RawFd {
        self.raw
    }
}

impl<F> fmt::Debug for KvmVcpu<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmVcpu")
            .field("fd", &self.raw)
            .field("signal", &self.kick.signal())
            .finish_non_exhaustive()
    }
}

impl<F> Vcpu for KvmVcpu<F> {
    type Error = Infallible;

    #[inline]
    fn run(&mut self) -> Result<Exit<'_>, RunError> {
        // SAFETY: the file is a vCPU's. The run area is looked at through `record` only, which is
        // borrowed by whoever does, and so is this object.
        match unsafe { ioctl::kvm_run(self.raw) } {
            // The kernel's other way of saying EINTR.
            Ok(()) if reason(self.record.get()) == number::KVM_EXIT_INTR => {
                Err(RunError::Interrupted)
            }
            Ok(()) => Ok(decode(self.record.get())),
            Err(errno) => self.failed(errno),
        }
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.kick) as Arc<dyn Kick>
    }

    fn bind_thread(&mut self) -> io::Result<()> {
        self.was_blocked = self.kick.bind()?;
        Ok(())
    }

    fn unbind_thread(&mut self) {
        self.kick.unbind(self.was_blocked);
    }

    fn notify_paused(&mut self) {
        // SAFETY: the file is a vCPU's.
        unsafe { arch::notify_paused(self.raw) };
    }

    fn inject_abort(&mut self) -> io::Result<()> {
        // SAFETY: the file is a vCPU's.
        unsafe { arch::inject_abort(self.raw) }
    }

    fn program_counter(&self) -> Option<u64> {
        // SAFETY: the file is a vCPU's.
        unsafe { arch::program_counter(self.raw) }
    }
}

impl<F> KvmVcpu<F> {
    /// `KVM_RUN` failed; a memory fault is the one exit that it reports in this way.
    #[cold]
    fn failed(&mut self, errno: i32) -> Result<Exit<'_>, RunError> {
        if matches!(errno, libc::EFAULT | libc::EHWPOISON) {
            if let Exit::MemoryFault { flags, gpa, size } = decode(self.record.get()) {
                // The next failure may leave the record as it is, and would be taken for this exit.
                forget(self.record.get());
                return Ok(Exit::MemoryFault { flags, gpa, size });
            }
        }
        Err(RunError::from(errno))
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Event file descriptors in place of interrupts, and faults in place of interrupts of the VM.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_bindings::kvm_enable_cap;
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::ioctl::{self, WRITE, request};

/// An event file descriptor that raises an interrupt of the guest (`KVM_IRQFD`).
///
/// Any thread signals it, without the vCPU leaving the guest. Dropping the object ends this.
///
/// The machine needs KVM's interrupt controller. On x86 it is made before the first of these. On
/// arm64 the order is: all vCPUs made and initialised, then the GIC made and initialised
/// (`KVM_DEV_ARM_VGIC_CTRL_INIT`), then these.
///
/// Each signal is an edge. On arm64 the trigger that the guest is told, in its device tree say,
/// must be edge as well: a line declared level loses interrupts.
///
/// ```no_run
/// use std::sync::Arc;
/// use vcpu_runner::IrqFd;
/// use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
///
/// let vm = Arc::new(kvm_ioctls::Kvm::new()?.create_vm()?);
/// # #[cfg(target_arch = "x86_64")]
/// vm.create_irq_chip()?; // x86
/// let irq = IrqFd::new(&vm, 5, EventFd::new(EFD_NONBLOCK)?)?;
/// irq.trigger()?; // or give a clone of its event fd to a device
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct IrqFd {
    vm: Arc<VmFd>,
    fd: EventFd,
    gsi: u32,
}

impl IrqFd {
    /// Connects `fd` with the interrupt line `gsi`, edge-triggered.
    ///
    /// On x86 that is the pin of the I/O APIC or the PIC. On arm64 it is the number of a shared
    /// peripheral interrupt counted from the first one, so that the guest sees `INTID` 32 + `gsi`;
    /// see [`IrqFd::spi`]. Both can be routed otherwise, with `KVM_SET_GSI_ROUTING`.
    ///
    /// # Errors
    ///
    /// What KVM says. Without an interrupt controller that is `EINVAL` on x86, and `EAGAIN` on
    /// arm64 as long as the GIC is not initialised.
    pub fn new(vm: &Arc<VmFd>, gsi: u32, fd: EventFd) -> io::Result<Self> {
        vm.register_irqfd(&fd, gsi)?;
        Ok(Self {
            vm: Arc::clone(vm),
            fd,
            gsi,
        })
    }

    /// Connects `fd` with a shared peripheral interrupt of arm64, edge-triggered.
    ///
    /// `intid` is the number as the guest's interrupt controller has it, 32 to 1019. (A device
    /// tree counts SPIs from 0, as KVM does: `intid - 32`.)
    ///
    /// # Errors
    ///
    /// `InvalidInput` for an `intid` that is no SPI's; otherwise as [`IrqFd::new`].
    pub fn spi(vm: &Arc<VmFd>, intid: u32, fd: EventFd) -> io::Result<Self> {
        if !is_spi(intid) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{intid} is not the INTID of a shared peripheral interrupt"),
            ));
        }
        Self::new(vm, intid - 32, fd)
    }

    /// The descriptor that raises the interrupt.
    #[must_use]
    pub const fn event(&self) -> &EventFd {
        &self.fd
    }

    /// The interrupt line.
    #[must_use]
    pub const fn gsi(&self) -> u32 {
        self.gsi
    }

    /// Raises the interrupt.
    ///
    /// # Errors
    ///
    /// The descriptor cannot be written; `WouldBlock` if it is full, and the interrupt is pending
    /// anyway.
    pub fn trigger(&self) -> io::Result<()> {
        self.fd.write(1)
    }
}

impl Drop for IrqFd {
    fn drop(&mut self) {
        // It was registered with these arguments, so KVM knows it.
        let _ = self.vm.unregister_irqfd(&self.fd, self.gsi);
    }
}

/// The number by which `KVM_IRQ_LINE` knows a shared peripheral interrupt of arm64, for
/// `VmFd::set_irq_line`.
///
/// `intid` is the number as the guest's interrupt controller has it; `None` if it is no SPI's,
/// which are 32 to 1019. On x86 the number is the pin's and needs no such help.
///
/// A guest that is told the interrupt is edge-triggered takes one for each change to active; one
/// that is told it is level-triggered takes interrupts for as long as the line is active.
///
/// ```
/// use vcpu_runner::spi_line;
///
/// assert_eq!(spi_line(37), Some(1 << 24 | 37));
/// assert_eq!(spi_line(31), None);
/// ```
#[must_use]
pub const fn spi_line(intid: u32) -> Option<u32> {
    /// `KVM_ARM_IRQ_TYPE_SPI`, in its place.
    const SPI: u32 = 1 << 24;
    if is_spi(intid) {
        Some(SPI | intid)
    } else {
        None
    }
}

/// Whether a number of the guest's interrupt controller is that of a shared peripheral interrupt.
const fn is_spi(intid: u32) -> bool {
    matches!(intid, 32..=1019)
}

const KVM_ENABLE_CAP: libc::Ioctl = request::<kvm_enable_cap>(WRITE, 0xa3);

/// Has accesses that arm64 processors do not describe come to the
/// [policy](crate::Event::ArmNisv) (`KVM_CAP_ARM_NISV_TO_USER`).
///
/// Loads of register pairs, with write-back or of vector registers are such accesses when they go
/// to an address without memory. Without this, `KVM_RUN` fails with `ENOSYS` at the first one, so
/// that a guest can end its machine; with it, the default policy gives the guest an abort. To be
/// called before the vCPUs run.
///
/// # Errors
///
/// What KVM says; `EINVAL` on other architectures and before Linux 5.5.
pub fn enable_nisv_exits(vm: &VmFd) -> io::Result<()> {
    let mut capability = kvm_enable_cap {
        cap: kvm_bindings::KVM_CAP_ARM_NISV_TO_USER,
        ..kvm_enable_cap::default()
    };
    // Not by kvm-ioctls: its older versions have the call on x86 only.
    // SAFETY: the file is a virtual machine's, and the request reads the structure.
    unsafe { ioctl::with(vm.as_raw_fd(), KVM_ENABLE_CAP, &mut capability) }
}

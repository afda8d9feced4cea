// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Event file descriptors in place of exits.

use std::io;
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

/// Which writes to a doorbell register count.
///
/// ```
/// use vcpu_runner::Doorbell;
///
/// // QueueNotify of virtio-mmio: queue 3, written as a word.
/// let doorbell = Doorbell::U32(3);
/// # let _ = doorbell;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Doorbell {
    /// Every write at this address, of any width and value.
    Any,
    /// Writes of one byte with this value.
    U8(u8),
    /// Writes of two bytes with this value.
    U16(u16),
    /// Writes of four bytes with this value.
    U32(u32),
    /// Writes of eight bytes with this value.
    U64(u64),
}

#[cfg(feature = "bus")]
impl Doorbell {
    /// Bytes that a matching write touches at least.
    #[cfg(feature = "bus")]
    const fn width(self) -> u64 {
        match self {
            Self::Any | Self::U8(_) => 1,
            Self::U16(_) => 2,
            Self::U32(_) => 4,
            Self::U64(_) => 8,
        }
    }
}

/// A register whose writes signal an event file descriptor instead of leaving the guest
/// (`KVM_IOEVENTFD`).
///
/// The device never sees a write that matches: whoever waits for the descriptor does. All other
/// writes still come to the device as exits. Dropping the object ends this.
///
/// ```no_run
/// # fn main() -> std::io::Result<()> {
/// use std::sync::Arc;
/// use vcpu_runner::{Doorbell, IoEvent};
/// use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
///
/// let vm = Arc::new(kvm_ioctls::Kvm::new()?.create_vm()?);
/// let queue_notify = EventFd::new(EFD_NONBLOCK)?;
/// // QueueNotify, offset 0x50 of a virtio-mmio device, with queue 0.
/// let doorbell = IoEvent::mmio(&vm, 0x8000_0000, 0x50, Doorbell::U32(0), queue_notify)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct IoEvent {
    vm: Arc<VmFd>,
    fd: EventFd,
    addr: u64,
    is_pio: bool,
    doorbell: Doorbell,
}

impl IoEvent {
    /// Watches a register of the device at `base` in guest physical memory.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if `base + offset` is beyond the end of the address space, otherwise what
    /// KVM says; `EEXIST` means that the register is watched already.
    pub fn mmio(
        vm: &Arc<VmFd>,
        base: u64,
        offset: u64,
        doorbell: Doorbell,
        fd: EventFd,
    ) -> io::Result<Self> {
        let addr = base.checked_add(offset).ok_or_else(outside)?;
        Self::register(vm, addr, false, doorbell, fd)
    }

    /// Watches an I/O port.
    ///
    /// # Errors
    ///
    /// What KVM says; `EEXIST` means that the port is watched already.
    pub fn pio(vm: &Arc<VmFd>, port: u16, doorbell: Doorbell, fd: EventFd) -> io::Result<Self> {
        Self::register(vm, port.into(), true, doorbell, fd)
    }

    /// Watches a register of a device on the bus.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the register does not lie inside of the region, otherwise as
    /// [`IoEvent::mmio`].
    #[cfg(feature = "bus")]
    pub fn in_region(
        vm: &Arc<VmFd>,
        region: &bus::RegionInfo<u64>,
        offset: u64,
        doorbell: Doorbell,
        fd: EventFd,
    ) -> io::Result<Self> {
        let range = region.range;
        let last = (range.first().checked_add(offset))
            .and_then(|first| first.checked_add(doorbell.width() - 1));
        if last.is_none_or(|last| last > range.last()) {
            return Err(outside());
        }
        Self::mmio(vm, range.first(), offset, doorbell, fd)
    }

    fn register(
        vm: &Arc<VmFd>,
        addr: u64,
        is_pio: bool,
        doorbell: Doorbell,
        fd: EventFd,
    ) -> io::Result<Self> {
        let at = address(addr, is_pio);
        match doorbell {
            Doorbell::Any => vm.register_ioevent(&fd, &at, NoDatamatch),
            Doorbell::U8(value) => vm.register_ioevent(&fd, &at, value),
            Doorbell::U16(value) => vm.register_ioevent(&fd, &at, value),
            Doorbell::U32(value) => vm.register_ioevent(&fd, &at, value),
            Doorbell::U64(value) => vm.register_ioevent(&fd, &at, value),
        }?;
        Ok(Self {
            vm: Arc::clone(vm),
            fd,
            addr,
            is_pio,
            doorbell,
        })
    }

    /// The descriptor that a matching write signals.
    #[must_use]
    pub const fn event(&self) -> &EventFd {
        &self.fd
    }
}

impl Drop for IoEvent {
    fn drop(&mut self) {
        let (fd, at) = (&self.fd, address(self.addr, self.is_pio));
        // It was registered with these arguments, so KVM knows it.
        let _ = match self.doorbell {
            Doorbell::Any => self.vm.unregister_ioevent(fd, &at, NoDatamatch),
            Doorbell::U8(value) => self.vm.unregister_ioevent(fd, &at, value),
            Doorbell::U16(value) => self.vm.unregister_ioevent(fd, &at, value),
            Doorbell::U32(value) => self.vm.unregister_ioevent(fd, &at, value),
            Doorbell::U64(value) => self.vm.unregister_ioevent(fd, &at, value),
        };
    }
}

const fn address(addr: u64, is_pio: bool) -> IoEventAddress {
    if is_pio {
        IoEventAddress::Pio(addr)
    } else {
        IoEventAddress::Mmio(addr)
    }
}

fn outside() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "register lies outside of the device's region",
    )
}

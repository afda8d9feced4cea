// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The requests to KVM's files that this crate makes itself.

use std::io;
use std::os::fd::RawFd;

/// The type of KVM's requests.
const KVM: u32 = 0xae;

/// The directions of a request's argument.
pub(super) const NONE: u32 = 0;
#[cfg(any(target_arch = "aarch64", feature = "kvm-ioctls"))]
pub(super) const WRITE: u32 = 1;
pub(super) const READ: u32 = 2;

/// A request number, as the kernel's `_IOC` puts it together.
pub(super) const fn request<T>(direction: u32, number: u32) -> libc::Ioctl {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "KVM's structures are small"
    )]
    let size = size_of::<T>() as u32;
    (direction << 30 | size << 16 | KVM << 8 | number) as libc::Ioctl
}

const KVM_RUN: libc::Ioctl = request::<()>(NONE, 0x80);

/// Enters the guest until its next exit.
///
/// `Err` is an `errno` value.
///
/// # Safety
///
/// `vcpu` is the file of a vCPU, and nobody looks at its run area meanwhile.
#[inline]
pub(super) unsafe fn kvm_run(vcpu: RawFd) -> Result<(), i32> {
    // SAFETY: the request is defined for this file and takes no argument. What the kernel writes is
    // the run area, and the guest memory that whoever registered it vouched for.
    let ret = unsafe { libc::ioctl(vcpu, KVM_RUN, 0) };
    if ret < 0 {
        return Err(io::Error::last_os_error().raw_os_error().unwrap_or(0));
    }
    Ok(())
}

/// Makes a request without argument.
///
/// # Safety
///
/// `vcpu` is the file of a vCPU, for which the request takes no argument.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn plain(vcpu: RawFd, request: libc::Ioctl) -> io::Result<()> {
    // SAFETY: as the caller says.
    match unsafe { libc::ioctl(vcpu, request, 0) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a request that reads or writes `argument`.
///
/// # Safety
///
/// `file` is one of KVM's, for which the request takes a `T` and any value is harmless.
pub(super) unsafe fn with<T>(
    file: RawFd,
    request: libc::Ioctl,
    argument: &mut T,
) -> io::Result<()> {
    // SAFETY: as the caller says; the argument lives longer than the call.
    match unsafe { libc::ioctl(file, request, std::ptr::from_mut(argument)) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

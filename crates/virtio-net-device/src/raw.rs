// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The system calls of a tap, which no safe crate has.
#![expect(unsafe_code, reason = "the kernel reads a structure by its address")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{Ioctl, c_int, c_short, c_ulong};

use crate::header::HEADER;

/// Sets the length of the header before each packet, and that its fields are little-endian.
pub(crate) fn tap_header(fd: BorrowedFd<'_>) -> io::Result<()> {
    // It is small.
    let len = c_int::try_from(HEADER).unwrap_or(0);
    for (request, value) in [(libc::TUNSETVNETHDRSZ, len), (libc::TUNSETVNETLE, 1)] {
        // SAFETY: these calls read an integer.
        checked(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw const value) })?;
    }
    Ok(())
}

/// Sets what packets from the tap may need of their reader.
pub(crate) fn tap_offloads(fd: BorrowedFd<'_>, offloads: u32) -> io::Result<()> {
    // SAFETY: this call takes a number, and no pointer.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, c_ulong::from(offloads)) })
}

/// Makes one of the requests that take a `struct ifreq` with a name and flags, and returns the flags.
pub(crate) fn interface(
    fd: BorrowedFd<'_>,
    request: Ioctl,
    name: &str,
    flags: c_int,
) -> io::Result<c_int> {
    // SAFETY: a structure of integers and a union of such, for which 0 is a value.
    let mut argument: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0.
    let room = argument.ifr_name.len() - 1;
    if name.is_empty() || name.len() > room || name.contains('\0') {
        let reason = "an interface has a name of 1 to 15 bytes";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    for (to, from) in argument.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let [low, high, ..] = flags.to_le_bytes();
    argument.ifr_ifru.ifru_flags = c_short::from_le_bytes([low, high]);
    // SAFETY: `argument` is what these requests read and write.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut argument) })?;
    // SAFETY: this field was written above, and of integers every value is one.
    let flags = unsafe { argument.ifr_ifru.ifru_flags };
    Ok(c_int::from(u16::from_ne_bytes(flags.to_ne_bytes())))
}

fn checked(result: c_int) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

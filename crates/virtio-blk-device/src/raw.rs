// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Structures of C: a lock that no safe crate has, and the configuration space.
#![expect(unsafe_code, reason = "the kernel reads a structure by its address")]

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, BorrowedFd};

use virtio_bindings::virtio_blk::virtio_blk_config;

use crate::config;

/// Locks a whole file, for as long as its open file description lives, or fails at once.
pub(crate) fn lock(fd: BorrowedFd<'_>, exclusive: bool) -> io::Result<()> {
    // SAFETY: a structure of integers, for which 0 is a value: all of the file, here.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    let kind = match exclusive {
        true => libc::F_WRLCK,
        false => libc::F_RDLCK,
    };
    lock.l_type = i16::try_from(kind).unwrap_or(0);
    // SAFETY: `lock` is what this command reads.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => {
            io::Error::new(ErrorKind::ResourceBusy, "somebody else is using it")
        }
        _ => error,
    })
}

/// The beginning of a configuration space.
pub(crate) fn config_bytes(config: virtio_blk_config) -> [u8; config::LEN] {
    // SAFETY: integers without a gap between them, because the structure is packed.
    let bytes: [u8; size_of::<virtio_blk_config>()] = unsafe { std::mem::transmute(config) };
    *bytes.first_chunk().unwrap_or(&[0; config::LEN])
}

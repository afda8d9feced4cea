// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel's generator.

use std::io::{self, Read};

/// The kernel's generator, through getrandom(2).
///
/// It never gives less than it was asked for.
///
/// # Security
///
/// * *Seeding and reseeding* are the kernel's. Before the kernel's generator is seeded, early in the
///   boot of the host, a read blocks.
/// * *Key erasure*: the kernel replaces its key with every call.
/// * *Fork, snapshot and restore of this process*: nothing is kept in this process, so there is
///   nothing that two copies of it could have in common.
///
/// # Speed
///
/// One system call for each request, and for each 256 bytes a check for signals. Where the C library
/// answers getrandom(2) through the kernel's vDSO (glibc 2.41 on Linux 6.11 and later) there is no
/// system call, with the same guarantees: that is the C library's choice, not one of this crate.
///
/// ```
/// use std::io::Read;
///
/// let mut bytes = [0; 32];
/// virtio_rng_device::KernelEntropy.read_exact(&mut bytes)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelEntropy;

impl Read for KernelEntropy {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        getrandom::fill(data)?;
        Ok(data.len())
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where randomness comes from.

use std::io::{self, Read};

/// The kernel's generator, through getrandom(2).
///
/// It is seeded, reseeded and protected by the kernel, and nothing of its state is kept in this
/// process. It never gives less than it was asked for.
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

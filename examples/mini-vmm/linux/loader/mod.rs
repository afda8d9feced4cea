// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Loads a kernel and an initial RAM disk into guest memory.
//!
//! These are functions of a file's bytes and of guest memory, and of nothing else in this program:
//! tests and fuzz targets include this folder as it is.

mod arch;
mod image;
mod initrd;

use vm_memory::GuestMemoryMmap;

pub(crate) use arch::{Entry, load_kernel};
pub(crate) use image::Image;
pub(crate) use initrd::{Initrd, load_initrd};

/// Guest memory.
type Memory = GuestMemoryMmap<()>;

/// A kernel in guest memory.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) entry: Entry,
    /// The first address behind all that the kernel takes while it starts.
    pub(crate) end: u64,
    /// The highest address that an initial RAM disk may have.
    pub(crate) initrd_max: u64,
    /// The most bytes of a command line, without its terminating zero.
    pub(crate) command_line_max: usize,
}

/// The RAM that kernels and RAM disks are loaded to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Where RAM begins.
    pub(crate) ram: u64,
    /// Its first address.
    pub(crate) start: u64,
    /// The first address behind it.
    pub(crate) end: u64,
    /// The highest `end` that more memory could give.
    pub(crate) limit: u64,
}

impl Room {
    /// Checks that something that ends at `end` fits.
    fn holds(self, end: u64) -> Result<(), String> {
        if end <= self.end {
            return Ok(());
        }
        if end > self.limit {
            let limit = self.limit >> 20;
            return Err(format!(
                "does not fit below {limit} MiB, where the devices begin"
            ));
        }
        let wanted = end.saturating_sub(self.ram).div_ceil(1 << 20);
        Err(format!("needs more memory: --memory {wanted} at least"))
    }
}

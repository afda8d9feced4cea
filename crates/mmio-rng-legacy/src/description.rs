// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Telling a guest where the device is.

use crate::REGION_SIZE;

/// The device as a device tree describes it to Linux' driver `timeriomem_rng`.
///
/// The driver is for any register that gives a new random word now and then, and is told how long
/// that takes. Rngboi1337 always has a new one, so the shortest time is right, and is the default.
///
/// # What the driver does
///
/// It becomes a source of `/dev/hwrng`, under the name that its device has in the guest: a node
/// `rng@80001000` makes `80001000.rng` in
/// `/sys/class/misc/hw_random/rng_available`. Distributions often leave the driver out of their
/// kernels (`CONFIG_HW_RANDOM_TIMERIOMEM`), and x86 kernels often know no device trees: there, a
/// few lines of a module of the guest's own that register a platform device of this name with a
/// `struct timeriomem_rng_data` do the same.
///
/// * It reads whole words, one after the other, and waits for `period` between two of them. What
///   it reads comes to the reader of `/dev/hwrng` in the order of the reads.
/// * The kernel offers a buffer of 64 bytes, of which the driver leaves the last word free: each
///   refill is 15 words, 60 bytes. A reader that takes multiples of 60 bytes leaves nothing
///   behind, and 256 reads of the register make a kibibyte. The kernel's own thread refills its
///   pool in the same pieces when it likes, so a reader may find gaps of 60 bytes.
/// * It claims the register: once it is bound, reads through `/dev/mem` are refused.
///
/// ```
/// use mmio_rng_legacy::Description;
/// use vm_fdt::FdtWriter;
///
/// let rng = Description::new(0x8000_1000).ok_or("no place for the device")?;
/// let mut fdt = FdtWriter::new()?;
/// let root = fdt.begin_node("")?;
/// fdt.property_u32("#address-cells", 2)?;
/// fdt.property_u32("#size-cells", 2)?;
/// rng.write_fdt(&mut fdt)?;
/// fdt.end_node(root)?;
/// let blob = fdt.finish()?;
/// # assert!(blob.windows(14).any(|bytes| bytes == b"timeriomem_rng"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    base: u64,
    period: u32,
    quality: u16,
}

impl Description {
    /// Most bits of entropy in 1024 bits.
    const BEST: u16 = 1024;

    /// A device with its register at `base`, with a period of 1 microsecond and the best quality.
    ///
    /// Returns `None` where the driver takes no device: if `base` is not a multiple of 4, or the
    /// register does not fit into the address space.
    #[must_use]
    pub const fn new(base: u64) -> Option<Self> {
        if base % 4 != 0 || base.checked_add(REGION_SIZE - 1).is_none() {
            return None;
        }
        Some(Self {
            base,
            period: 1,
            quality: Self::BEST,
        })
    }

    /// Has the driver wait for so many microseconds between two words.
    #[must_use]
    pub const fn with_period(self, period: u32) -> Self {
        Self { period, ..self }
    }

    /// Has the driver's kernel take 1024 bits for so many bits of entropy: 1 to 1024, which larger
    /// numbers mean, too. 0 leaves the judgement to the kernel.
    #[must_use]
    pub const fn with_quality(self, quality: u16) -> Self {
        let quality = if quality > Self::BEST {
            Self::BEST
        } else {
            quality
        };
        Self { quality, ..self }
    }

    /// Writes the device tree's node, for a parent with two address and two size cells.
    ///
    /// # Errors
    ///
    /// Whatever keeps `fdt` from taking the node.
    pub fn write_fdt(&self, fdt: &mut vm_fdt::FdtWriter) -> vm_fdt::FdtWriterResult<()> {
        let node = fdt.begin_node(&format!("rng@{:x}", self.base))?;
        fdt.property_string("compatible", "timeriomem_rng")?;
        fdt.property_array_u64("reg", &[self.base, REGION_SIZE])?;
        fdt.property_u32("period", self.period)?;
        fdt.property_u32("quality", self.quality.into())?;
        fdt.end_node(node)
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How many bytes devices are accessed by, and how accesses of other lengths are split.

use std::ops::Range;

/// How many bytes a device is accessed by at once.
///
/// ```
/// use bus::{Region, Width};
///
/// // Registers that are accessed as words or double words, and nothing else.
/// let region = Region::new(0xd000_0000_u64, 0x100).widths(&[Width::U32, Width::U64]);
/// # let _ = region;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Width {
    /// One byte.
    U8 = 1,
    /// Two bytes.
    U16 = 2,
    /// Four bytes.
    U32 = 4,
    /// Eight bytes.
    U64 = 8,
}

/// The naturally aligned pieces that a device gets of an access of `width` bytes at `offset`, in
/// order: one piece, aligned or not, if the width is 1, 2, 4 or 8.
#[inline(always)]
pub(crate) fn pieces(offset: u64, width: usize) -> impl Iterator<Item = Range<usize>> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let left = (width - from).checked_ilog2()?;
        let aligned = offset.wrapping_add(from as u64).trailing_zeros();
        let len = match width.is_power_of_two() {
            true => width,
            false => 1 << left.min(aligned),
        };
        from += len;
        Some(from - len..from)
    })
}

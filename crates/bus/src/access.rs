// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One access, as an observer sees it.

use crate::{AccessError, RegionInfo};

/// One finished access, as an observer sees it.
///
/// ```
/// use bus::{Access, AccessError, MmioBus};
///
/// // Prints what the guest gets wrong. A real observer has a limit to what it prints.
/// let observer = |access: &Access<'_, u64>| {
///     if let Err(error) = access.outcome {
///         let way = if access.is_write { "write to" } else { "read of" };
///         eprintln!("{way} {:#x}, {} bytes: {error}", access.addr, access.width);
///     }
/// };
/// let bus: MmioBus = MmioBus::builder().observer(observer).build();
/// assert_eq!(bus.view().read(0x1000, &mut [0; 4]), Err(AccessError::Unclaimed));
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Access<'a, K> {
    /// Where the access started.
    pub addr: K,
    /// How many bytes it was for: whatever the caller passed, also 0 or more than 8.
    pub width: usize,
    /// Whether the guest wrote; otherwise it read.
    pub is_write: bool,
    /// The region that it started in.
    pub region: Option<&'a RegionInfo<K>>,
    /// What came of it.
    pub outcome: Result<(), AccessError>,
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One access, as an observer sees it.

use crate::{AccessError, RegionInfo};

/// One finished access, as an observer sees it.
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

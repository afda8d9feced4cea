// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a bus and its views have in common.

use std::fmt;
use std::sync::Arc;

use crate::map::Map;
use crate::sync::{Mutex, barrier_in_all_threads, lock};
use crate::{Access, Address};

pub(crate) type Observer<K> = dyn Fn(&Access<'_, K>) + Send + Sync;

pub(crate) struct Shared<K, R> {
    /// What a remover calls to make all views execute a barrier; `false` if that failed. Without
    /// it, views execute a fence for each access.
    pub(crate) barrier: Option<fn() -> bool>,
    /// What a read gives without a device, in each byte.
    pub(crate) fill: u8,
    pub(crate) observer: Option<Box<Observer<K>>>,
    /// No device is called or dropped while this is locked. Locked before the registry.
    pub(crate) map: Mutex<Arc<Map<K, R>>>,
}

impl<K, R> Default for Shared<K, R> {
    fn default() -> Self {
        Self {
            barrier: Some(barrier_in_all_threads),
            fill: 0xff,
            observer: None,
            map: Mutex::new(Arc::default()),
        }
    }
}

impl<K: Address, R> fmt::Debug for Shared<K, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let map = Arc::clone(&lock(&self.map));
        let regions = map.0.iter().map(|entry| &entry.info);
        f.debug_set().entries(regions).finish()
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The sorted table of regions.

use std::sync::Arc;

use crate::region::{Entry, address_of};
use crate::{Address, BusDeviceSync, BusError, RegionId};

/// All regions in the order of their addresses. Published maps are never changed, only replaced.
pub(crate) struct Map<K> {
    /// The bases of `entries`, apart from them so that a search touches few cache lines.
    bases: Vec<u64>,
    entries: Vec<Arc<Entry<K>>>,
}

// Not derived: that would ask for a default and a clone of the key.
impl<K> Default for Map<K> {
    fn default() -> Self {
        Self {
            bases: Vec::new(),
            entries: Vec::new(),
        }
    }
}

impl<K> Clone for Map<K> {
    fn clone(&self) -> Self {
        Self {
            bases: self.bases.clone(),
            entries: self.entries.clone(),
        }
    }
}

impl<K: Address> Map<K> {
    pub(crate) fn entries(&self) -> &[Arc<Entry<K>>] {
        &self.entries
    }

    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&Arc<Entry<K>>> {
        self.entries.get(index)
    }

    /// The index of the region that `addr` is in.
    #[inline]
    pub(crate) fn find(&self, addr: K) -> Option<usize> {
        // This search compiles to conditional moves: guests' addresses are hard to predict.
        let behind = self.bases.partition_point(|base| *base <= addr.into());
        let index = behind.checked_sub(1)?;
        let range = self.entries.get(index)?.info.range();
        (addr <= range.last()).then_some(index)
    }

    /// Room for guesses where a region is, a power of two: enough for each region, within reason.
    pub(crate) fn hints(&self) -> Vec<u32> {
        match self.entries.len() {
            0 => Vec::new(),
            regions => vec![0; (2 * regions).next_power_of_two().min(4096)],
        }
    }

    pub(crate) fn position(&self, id: RegionId) -> Result<usize, BusError<K>> {
        let mut entries = self.entries.iter();
        entries
            .position(|entry| entry.info.id() == id)
            .ok_or(BusError::NoSuchRegion { id })
    }

    /// Where a new region belongs, if it overlaps no other one but `except`.
    pub(crate) fn place(
        &self,
        new: &Entry<K>,
        except: Option<RegionId>,
    ) -> Result<usize, BusError<K>> {
        let first: u64 = new.info.range().first().into();
        let place = self.bases.partition_point(|base| *base < first);
        // Of the regions before, only the nearest can reach this far; of those behind, only the
        // nearest can be reached first. One of either may be the one that does not count.
        let near = place.saturating_sub(2)..self.entries.len().min(place + 2);
        let mut near = self.entries.get(near).into_iter().flatten();
        let (range, name) = (new.info.range(), &new.info.meta.name);
        let conflict = near
            .find(|entry| Some(entry.info.id()) != except && entry.info.range().overlaps(&range));
        match conflict {
            None => Ok(place),
            Some(existing) => Err(BusError::Overlap {
                range,
                name: name.clone(),
                existing: existing.info.range(),
                existing_name: existing.info.meta.name.clone(),
            }),
        }
    }

    pub(crate) fn insert(&mut self, index: usize, entry: Entry<K>) {
        self.bases.insert(index, entry.info.range().first().into());
        self.entries.insert(index, Arc::new(entry));
    }

    pub(crate) fn remove(&mut self, index: usize) -> Arc<Entry<K>> {
        self.bases.remove(index);
        self.entries.remove(index)
    }

    /// Calls `stand_in` from now on wherever `device` was called.
    pub(crate) fn replace(&mut self, device: usize, stand_in: &Arc<dyn BusDeviceSync>) {
        for entry in &mut self.entries {
            if address_of(&*entry.device) == device {
                *entry = Arc::new(entry.with(entry.info.range(), stand_in));
            }
        }
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The sorted table of regions.

use crate::{Address, BusError, RegionId, RegionInfo};

/// All regions in the order of their addresses. Published maps are never changed, only replaced.
#[derive(Clone, Default)]
pub(crate) struct Map<K> {
    pub(crate) regions: Vec<RegionInfo<K>>,
}

impl<K: Address> Map<K> {
    /// The region that `addr` is in. `hint` is a guess at its index, and the truth afterwards.
    pub(crate) fn find(&self, addr: K, hint: &mut usize) -> Option<&RegionInfo<K>> {
        let guess = self.get(*hint, addr);
        guess.or_else(|| {
            // This search compiles to conditional moves: guests' addresses are hard to predict.
            let starts_before = |region: &RegionInfo<K>| region.range.first() <= addr;
            let behind = self.regions.partition_point(starts_before);
            *hint = behind.checked_sub(1)?;
            self.get(*hint, addr)
        })
    }

    /// The region with this index, if `addr` is in it.
    fn get(&self, index: usize, addr: K) -> Option<&RegionInfo<K>> {
        let region = self.regions.get(index)?;
        region.range.contains(addr).then_some(region)
    }

    pub(crate) fn insert(&mut self, new: RegionInfo<K>) -> Result<(), BusError<K>> {
        let (regions, range) = (&mut self.regions, new.range);
        if let Some(existing) = regions.iter().find(|old| old.range.overlaps(&range)) {
            return Err(BusError::Overlap {
                range,
                name: new.meta.asked.name.clone(),
                existing: existing.range,
                existing_name: existing.meta.asked.name.clone(),
            });
        }
        let place = regions.partition_point(|old| old.range.first() < range.first());
        regions.insert(place, new);
        Ok(())
    }

    pub(crate) fn remove(&mut self, id: RegionId) -> Result<RegionInfo<K>, BusError<K>> {
        let place = self.regions.iter().position(|region| region.id() == id);
        let place = place.ok_or(BusError::NoSuchRegion { id })?;
        Ok(self.regions.remove(place))
    }
}

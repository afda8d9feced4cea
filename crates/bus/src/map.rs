// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The sorted table of regions.

use crate::{Address, BusError, RegionId, RegionInfo};

/// All regions in the order of their addresses. Published maps are never changed, only replaced.
#[derive(Clone, Debug)]
pub(crate) struct Map<K>(pub(crate) Vec<RegionInfo<K>>);

impl<K: Address> Map<K> {
    /// The region that `addr` is in. `hint` is a guess at its index, and the truth afterwards.
    #[inline]
    pub(crate) fn find(&self, addr: K, hint: &mut usize) -> Option<&RegionInfo<K>> {
        let guess = self.get(*hint, addr);
        guess.or_else(|| {
            // This search compiles to conditional moves: guests' addresses are hard to predict.
            let behind = self
                .0
                .partition_point(|region| region.range.first() <= addr);
            *hint = behind.checked_sub(1)?;
            self.get(*hint, addr)
        })
    }

    /// The region with this index, if `addr` is in it.
    #[inline]
    fn get(&self, index: usize, addr: K) -> Option<&RegionInfo<K>> {
        let region = self.0.get(index)?;
        region.range.contains(addr).then_some(region)
    }

    pub(crate) fn insert(&mut self, new: RegionInfo<K>) -> Result<(), BusError<K>> {
        let range = new.range;
        if let Some(existing) = self.0.iter().find(|other| other.range.overlaps(&range)) {
            return Err(BusError::Overlap {
                range,
                name: new.meta.rules.name.clone(),
                existing: existing.range,
                existing_name: existing.meta.rules.name.clone(),
            });
        }
        let place = self
            .0
            .partition_point(|other| other.range.first() < range.first());
        self.0.insert(place, new);
        Ok(())
    }

    pub(crate) fn remove(&mut self, id: RegionId) -> Result<RegionInfo<K>, BusError<K>> {
        let place = self.0.iter().position(|region| region.id() == id);
        let place = place.ok_or(BusError::NoSuchRegion { id })?;
        Ok(self.0.remove(place))
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ring in which KVM collects writes, in memory that all vCPUs of a machine share.

use std::io;
use std::os::fd::RawFd;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use kvm_bindings::KVM_COALESCED_MMIO_PAGE_OFFSET;

use super::map::Mapping;

/// One write out of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Coalesced {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) is_pio: bool,
    pub(super) data: [u8; 8],
}

/// The ring of coalesced writes, as its only consumer sees it: `struct kvm_coalesced_mmio_ring`.
#[derive(Debug)]
pub(super) struct CoalescedRing(Mapping);

/// The oldest write of a ring; it leaves the ring when this is dropped.
pub(super) struct Oldest<'a> {
    pub(super) write: Coalesced,
    ring: &'a CoalescedRing,
    next: u32,
}

impl Drop for Oldest<'_> {
    fn drop(&mut self) {
        // Release: a thread that finds this write gone from the ring also sees what it did to the device.
        self.ring.index(0).store(self.next, Ordering::Release);
    }
}

impl CoalescedRing {
    /// Two indices of 32 bits.
    const HEADER: usize = 8;
    /// `struct kvm_coalesced_mmio`.
    const ENTRY: usize = 24;

    pub(super) fn map(vcpu: RawFd) -> io::Result<Self> {
        // SAFETY: the call has no preconditions.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let len = usize::try_from(page).map_err(|_| io::Error::last_os_error())?;
        let offset = page * libc::c_long::from(KVM_COALESCED_MMIO_PAGE_OFFSET);
        Self::map_at(vcpu, offset, len)
    }

    pub(super) fn map_at(file: RawFd, offset: libc::off_t, len: usize) -> io::Result<Self> {
        let mapping = Mapping::new(file, offset, len)?;
        if Self::owned(&mapping).swap(1, Ordering::Acquire) != 0 {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "the machine's coalesced writes are taken already",
            ));
        }
        Ok(Self(mapping))
    }

    /// Whether the ring has a consumer: 1 if it has, 0 if not.
    ///
    /// The mark is in the ring's own page, which all vCPUs of a machine have in common: in its
    /// last byte, which no entry reaches because a page is no multiple of their size.
    fn owned(mapping: &Mapping) -> &AtomicU8 {
        debug_assert!((mapping.len() - Self::HEADER) % Self::ENTRY != 0);
        // SAFETY: the byte lies inside of the mapping, which lives as long as the reference. It is
        // only ever accessed here, atomically; the kernel leaves it zero.
        unsafe { AtomicU8::from_ptr(mapping.base().add(mapping.len() - 1).as_ptr()) }
    }

    /// How many entries the kernel keeps.
    pub(super) fn capacity(&self) -> u32 {
        u32::try_from((self.0.len() - Self::HEADER) / Self::ENTRY).unwrap_or(u32::MAX)
    }

    /// Index 0 is the consumer's, index 1 the kernel's.
    fn index(&self, which: usize) -> &AtomicU32 {
        debug_assert!(which < 2);
        // SAFETY: the header lies inside of the mapping, which starts at a page and lives as long
        // as `self`. Both sides access the indices atomically only.
        unsafe { AtomicU32::from_ptr(self.0.base().as_ptr().cast::<u32>().add(which)) }
    }

    /// Whether every write of the ring has been carried out.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        are_equal(|which| self.index(which).load(Ordering::Acquire))
    }

    /// The oldest write. The guard stands for being the only one who takes writes.
    pub(super) fn oldest<'a>(&'a self, _taking: &'a mut MutexGuard<'_, ()>) -> Option<Oldest<'a>> {
        let first = self.index(0).load(Ordering::Relaxed);
        let last = self.index(1).load(Ordering::Acquire);
        let capacity = self.capacity();
        if first == last || first >= capacity || last >= capacity {
            return None;
        }
        let at = Self::HEADER + first as usize * Self::ENTRY;
        // SAFETY: `first` is below the capacity, so the entry lies inside of the mapping. The
        // kernel writes only entries outside of `first..last`, and nobody else moves `first`
        // meanwhile. Bytes have no invalid values.
        let entry = unsafe { self.0.base().add(at).cast::<[u8; Self::ENTRY]>().read() };

        let word = |n: usize| {
            let bytes = entry.get(4 * n..).and_then(|rest| rest.first_chunk());
            u32::from_ne_bytes(bytes.copied().unwrap_or_default())
        };
        let double = |n: usize| {
            let bytes = entry.get(8 * n..).and_then(|rest| rest.first_chunk());
            bytes.copied().unwrap_or_default()
        };
        Some(Oldest {
            write: Coalesced {
                addr: u64::from_ne_bytes(double(0)),
                len: word(2),
                is_pio: word(3) != 0,
                data: double(2),
            },
            ring: self,
            next: (first + 1) % capacity,
        })
    }
}

/// Whether the consumer has reached the index that the kernel had when this was called.
///
/// The kernel's index is read first: the consumer's is never beyond it nor a whole ring behind it, so
/// that being equal to it later means having reached it. The other way round the kernel's index could
/// meanwhile go once around and end where the consumer's was.
#[inline(always)]
fn are_equal(mut read: impl FnMut(usize) -> u32) -> bool {
    let last = read(1);
    read(0) == last
}

impl Drop for CoalescedRing {
    fn drop(&mut self) {
        Self::owned(&self.0).store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_ring_is_taken_for_empty_while_it_has_a_write_made_before_the_look() {
        const CAPACITY: u32 = 3;
        let possible = |first: u32, last: u32| first <= last && last - first < CAPACITY;
        let positions = || (0..8).flat_map(|first| (0..8).map(move |last| (first, last)));
        let mut empty = 0;
        for (first, last) in positions().filter(|&(first, last)| possible(first, last)) {
            // Other vCPUs add to the ring and take from it between the two reads.
            let later = |&(f, l): &(u32, u32)| possible(f, l) && f >= first && l >= last;
            for after in positions().filter(later) {
                let mut at = (first, last);
                let is_empty = are_equal(|which| {
                    let (first, last) = std::mem::replace(&mut at, after);
                    [first, last][which] % CAPACITY
                });
                if is_empty {
                    empty += 1;
                    assert!(after.0 >= last, "{:?} to {after:?}", (first, last));
                }
            }
        }
        assert!(empty > 0);
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory that can be watched.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_memory::guest_memory::{GuestMemorySliceIterator, Result};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

/// What is done at an access: told its address, its length and its direction, it may change memory
/// before the access happens.
type Watcher = Box<dyn FnMut(&GuestMemoryMmap<()>, Access) + Send>;

/// An access of a device to guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Guest address.
    pub addr: u64,
    /// Length in bytes.
    pub len: usize,
    /// Whether the device writes.
    pub write: bool,
}

/// Guest memory in which a test can see, or disturb, each access of a device.
///
/// While nobody watches, it is plain memory, and a device may look its regions up once. While
/// somebody does, it is like the memory behind an IOMMU: every access comes through here.
///
/// ```
/// use virtio_conformance::WatchedMemory;
/// use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
///
/// let plain = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
/// let memory = WatchedMemory::new(plain);
/// // A guest that changes what is read, just before.
/// memory.watch(|plain, access| {
///     let _ = plain.write_obj(7_u8, GuestAddress(access.addr));
/// });
/// assert_eq!(memory.read_obj::<u8>(GuestAddress(0x10)).unwrap(), 7);
/// ```
pub struct WatchedMemory {
    plain: GuestMemoryMmap<()>,
    watcher: Mutex<Option<Watcher>>,
}

impl WatchedMemory {
    /// Makes `plain` watchable.
    #[must_use]
    pub const fn new(plain: GuestMemoryMmap<()>) -> Self {
        Self {
            plain,
            watcher: Mutex::new(None),
        }
    }

    /// The memory itself, for the driver: accesses through it are not watched.
    #[must_use]
    pub const fn plain(&self) -> &GuestMemoryMmap<()> {
        &self.plain
    }

    /// Calls `watcher` before each access from now on. No worker may be running meanwhile.
    pub fn watch(&self, watcher: impl FnMut(&GuestMemoryMmap<()>, Access) + Send + 'static) {
        *self.watcher() = Some(Box::new(watcher));
    }

    /// Ends the watch. No worker may be running meanwhile.
    pub fn unwatch(&self) {
        *self.watcher() = None;
    }

    fn watcher(&self) -> MutexGuard<'_, Option<Watcher>> {
        self.watcher.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GuestMemory for WatchedMemory {
    type PhysicalMemory = GuestMemoryMmap<()>;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        GuestMemory::check_range(&self.plain, addr, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>> {
        if let Some(watcher) = &mut *self.watcher() {
            let write = access != Permissions::Read;
            let access = Access {
                addr: addr.0,
                len: count,
                write,
            };
            watcher(&self.plain, access);
        }
        GuestMemory::get_slices(&self.plain, addr, count, access)
    }

    fn physical_memory(&self) -> Option<&GuestMemoryMmap<()>> {
        self.watcher().is_none().then_some(&self.plain)
    }
}

impl fmt::Debug for WatchedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchedMemory")
            .field("watched", &self.watcher().is_some())
            .finish_non_exhaustive()
    }
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What may become of an access.

use thiserror::Error;

/// Why an access did not reach a device, or was refused by it.
///
/// An access that fails is never fatal: a read leaves the fill value of the bus in the buffer, a
/// write is dropped, and the guest goes on.
///
/// ```
/// use bus::{AccessError, MmioBus};
///
/// // The guest reads all ones and continues; the error is for the VMM's log or counters.
/// let mut data = [0; 4];
/// let error = MmioBus::new().view().read(0x1000, &mut data).unwrap_err();
/// assert_eq!(error, AccessError::Unclaimed);
/// assert_eq!(error.to_string(), "no device at this address");
/// assert_eq!(data, [0xff; 4]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum AccessError {
    /// No device claims the address.
    #[error("no device at this address")]
    Unclaimed,
    /// The access starts inside a region and ends outside of it, or beyond the address space.
    #[error("access crosses the end of the region")]
    CrossesEnd,
    /// The bus, the region or the device does not take accesses of this width.
    #[error("access width not supported")]
    Width,
    /// The region or the device does not take accesses at this alignment.
    #[error("access not aligned")]
    Misaligned,
    /// The device has nothing at this offset.
    #[error("no register at this offset")]
    Offset,
    /// The device's register at this offset cannot be written.
    #[error("register is read-only")]
    ReadOnly,
    /// The device's register at this offset cannot be read.
    #[error("register is write-only")]
    WriteOnly,
    /// The device takes no such access at all.
    #[error("device refuses the access")]
    Refused,
    /// The device could not answer, for a reason of its own.
    #[error("device failed")]
    Failed,
    /// The device's handler panicked, now or earlier; it is not called any more.
    #[error("device panicked")]
    Panicked,
    /// The device was called again from inside its own handler, or accesses nest too deep.
    #[error("device called from inside its own handler")]
    Reentrant,
    /// The handler that made this access holds its device's lock, and whoever holds the lock of the
    /// accessed device waits for that, or for this handler to end: both would wait for ever.
    #[error("device is locked by who waits for the caller")]
    Deadlock,
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device implements to be put on a bus.

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::sync::address;
use crate::thread::Listed;

/// Why an access did not reach a device, or was refused by it.
///
/// An access that fails is never fatal: a read leaves the fill value of the bus in the buffer, a
/// write is dropped, and the guest goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AccessError {
    /// No device claims the address.
    Unclaimed,
    /// The access starts inside a region and ends outside of it, or beyond the address space.
    CrossesEnd,
    /// The region or the device does not take accesses of this width.
    Width,
    /// The region or the device does not take accesses at this alignment.
    Misaligned,
    /// The device has nothing at this offset.
    Offset,
    /// The device's register at this offset cannot be written.
    ReadOnly,
    /// The device's register at this offset cannot be read.
    WriteOnly,
    /// The device takes no such access at all.
    Refused,
    /// The device could not answer, for a reason of its own.
    Failed,
    /// The device's handler panicked, now or earlier; it is not called any more.
    Panicked,
    /// The device was called again from inside its own handler.
    Reentrant,
}

impl fmt::Display for AccessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unclaimed => "no device at this address",
            Self::CrossesEnd => "access crosses the end of the region",
            Self::Width => "access width not supported",
            Self::Misaligned => "access not aligned",
            Self::Offset => "no register at this offset",
            Self::ReadOnly => "register is read-only",
            Self::WriteOnly => "register is write-only",
            Self::Refused => "device refuses the access",
            Self::Failed => "device failed",
            Self::Panicked => "device panicked",
            Self::Reentrant => "device called from inside its own handler",
        })
    }
}

impl std::error::Error for AccessError {}

/// A device that is accessed through `&mut self`: what most authors write.
///
/// `offset` counts from the base of the region the device was inserted at, so a device does not
/// know where it lives. `data` has the width of the access, 1 to 8 bytes, in guest (little-endian)
/// order. The defaults refuse.
#[expect(unused_variables, reason = "the defaults refuse, whatever it is")]
pub trait BusDevice<R = ()>: Send {
    /// Answers a guest's read by filling `data`, which arrives filled with the bus's fill value.
    ///
    /// # Errors
    ///
    /// The reason why the device did not answer; the bus then hands out its fill value.
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<R, AccessError> {
        Err(AccessError::Refused)
    }

    /// Takes a guest's write of `data`.
    ///
    /// # Errors
    ///
    /// The reason why the device ignored the write.
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<R, AccessError> {
        Err(AccessError::Refused)
    }
}

/// A device that is accessed through `&self` from several vCPUs at once and does its own locking.
///
/// The same contract as [`BusDevice`]. A `Mutex<T>` around any [`BusDevice`] is one of these.
#[expect(unused_variables, reason = "the defaults refuse, whatever it is")]
pub trait BusDeviceSync<R = ()>: Send + Sync {
    /// Answers a guest's read; see [`BusDevice::read`].
    ///
    /// # Errors
    ///
    /// As [`BusDevice::read`].
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<R, AccessError> {
        Err(AccessError::Refused)
    }

    /// Takes a guest's write; see [`BusDevice::write`].
    ///
    /// # Errors
    ///
    /// As [`BusDevice::write`].
    fn write(&self, offset: u64, data: &[u8]) -> Result<R, AccessError> {
        Err(AccessError::Refused)
    }
}

/// A device as the bus holds it.
pub(crate) type Device<R> = Arc<dyn BusDeviceSync<R>>;

/// Says no more than that there is a device.
impl<R> fmt::Debug for dyn BusDeviceSync<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("dyn BusDeviceSync")
    }
}

/// Passes accesses on to what a pointer points to.
macro_rules! pass_on {
    ($trait:ident for $pointer:ident, $self:ident: $receiver:ty) => {
        impl<R, T: $trait<R> + ?Sized> $trait<R> for $pointer<T> {
            fn read($self: $receiver, offset: u64, data: &mut [u8]) -> Result<R, AccessError> {
                (**$self).read(offset, data)
            }

            fn write($self: $receiver, offset: u64, data: &[u8]) -> Result<R, AccessError> {
                (**$self).write(offset, data)
            }
        }
    };
}

pass_on!(BusDevice for Box, self: &mut Self);
pass_on!(BusDeviceSync for Box, self: &Self);
pass_on!(BusDeviceSync for Arc, self: &Self);

/// Locks the device during each access.
///
/// A poisoned lock means that the device panicked: it is not called any more. A handler that comes
/// back to its own device, through whatever bus, gets [`AccessError::Reentrant`].
impl<R, T: BusDevice<R> + ?Sized> BusDeviceSync<R> for Mutex<T> {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<R, AccessError> {
        locked(self, |device| device.read(offset, data))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<R, AccessError> {
        locked(self, |device| device.write(offset, data))
    }
}

/// Calls a device under its lock, unless this thread holds that already.
#[inline(always)]
fn locked<T: ?Sized, R>(
    mutex: &Mutex<T>,
    call: impl FnOnce(&mut T) -> Result<R, AccessError>,
) -> Result<R, AccessError> {
    let _listed = Listed::new(address(mutex))?;
    let mut device = mutex.lock().map_err(|_| AccessError::Panicked)?;
    call(&mut device)
}

/// A device that answers nothing, on a bus whose devices [answer](crate#answers-to-the-vmm).
///
/// What the device takes is answered by `R::default()`.
///
/// ```
/// use bus::{BusDevice, DefaultAnswer, MmioBus};
/// use std::sync::{Arc, Mutex};
///
/// /// What devices want of this VMM.
/// #[derive(Debug, Default, PartialEq)]
/// enum Action {
///     #[default]
///     Nothing,
///     Reset,
/// }
///
/// struct Uart;
/// impl BusDevice for Uart {
///     fn write(&mut self, _offset: u64, _data: &[u8]) -> Result<(), bus::AccessError> {
///         Ok(())
///     }
/// }
///
/// let bus = MmioBus::<Action>::default();
/// bus.insert(Arc::new(Mutex::new(DefaultAnswer(Uart))), 0x1000, 8)?;
/// assert_eq!(bus.view().write(0x1000, b"a"), Ok(Action::Nothing));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct DefaultAnswer<D>(pub D);

/// Answers for a device that does not.
macro_rules! answer {
    ($trait:ident, $self:ident: $receiver:ty) => {
        impl<R: Default, D: $trait> $trait<R> for DefaultAnswer<D> {
            fn read($self: $receiver, offset: u64, data: &mut [u8]) -> Result<R, AccessError> {
                $self.0.read(offset, data).map(|()| R::default())
            }

            fn write($self: $receiver, offset: u64, data: &[u8]) -> Result<R, AccessError> {
                $self.0.write(offset, data).map(|()| R::default())
            }
        }
    };
}

answer!(BusDevice, self: &mut Self);
answer!(BusDeviceSync, self: &Self);

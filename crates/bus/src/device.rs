// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device implements to be put on a bus.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError, Weak};

use crate::AccessError;
use crate::registry::{Awaited, Waiting, registry};
use crate::sync::address;
use crate::thread::Listed;

/// A device that is accessed through `&mut self`: what most authors write.
///
/// `offset` counts from the base of the region the device was inserted at, so a device does not
/// know where it lives. `data` has 1, 2, 4 or 8 bytes in the guest's order; see also
/// [longer and odd accesses](crate#lengths). The defaults refuse.
///
/// `R` is what the device [answers](crate#answers-to-the-vmm) the VMM.
///
/// ```
/// use bus::{AccessError, BusDevice};
///
/// /// One byte that can be read and written.
/// struct Scratch(u8);
///
/// impl BusDevice for Scratch {
///     fn read(&mut self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
///         data.fill(self.0);
///         Ok(())
///     }
///
///     fn write(&mut self, _offset: u64, data: &[u8]) -> Result<(), AccessError> {
///         // A guest may write any width; this register has one byte.
///         let [byte] = data else { return Err(AccessError::Width) };
///         self.0 = *byte;
///         Ok(())
///     }
/// }
/// ```
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

    /// What the bus calls for a read; for devices that want to know whose it is, such as an
    /// interrupt controller with registers for each vCPU.
    ///
    /// `initiator` is what the view [says](crate::BusView::initiated_by).
    ///
    /// # Errors
    ///
    /// As [`Self::read`], which this calls unless implemented.
    #[inline]
    fn read_by(
        &mut self,
        initiator: Option<u32>,
        offset: u64,
        data: &mut [u8],
    ) -> Result<R, AccessError> {
        self.read(offset, data)
    }

    /// What the bus calls for a write; see [`Self::read_by`].
    ///
    /// # Errors
    ///
    /// As [`Self::write`], which this calls unless implemented.
    #[inline]
    fn write_by(
        &mut self,
        initiator: Option<u32>,
        offset: u64,
        data: &[u8],
    ) -> Result<R, AccessError> {
        self.write(offset, data)
    }

    /// Asked for when the device is put on a bus: what is to be called, once, when that region has left
    /// the bus and no access is left in it. It takes down what the guest can take down no more, such as
    /// a level-triggered interrupt line.
    ///
    /// It is called without the device's lock, so that a removal does not wait for accesses of the
    /// same device elsewhere; also if the device has panicked, or the insertion has failed.
    ///
    /// # Errors
    ///
    /// [`AccessError::Reentrant`] or [`AccessError::Deadlock`] if the caller is inside of one of the
    /// device's own accesses, and would wait for itself. The device is not inserted then.
    fn on_removal(&mut self) -> Result<Option<OnRemoval>, AccessError> {
        Ok(None)
    }
}

/// What is called when a region has left the bus; see [`BusDevice::on_removal`].
pub type OnRemoval = Box<dyn FnOnce() + Send>;

/// A device that is accessed through `&self` from several vCPUs at once and does its own locking.
///
/// The same contract as [`BusDevice`]. A `Mutex<T>` around any [`BusDevice`] is one of these.
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU32, Ordering};
/// use bus::{AccessError, BusDeviceSync, MmioBus};
///
/// /// Counts how often it is read, by all vCPUs together and without a lock.
/// #[derive(Default)]
/// struct Reads(AtomicU32);
///
/// impl BusDeviceSync for Reads {
///     fn read(&self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
///         let count = self.0.fetch_add(1, Ordering::Relaxed);
///         let word = data.first_chunk_mut().ok_or(AccessError::Width)?;
///         *word = count.to_le_bytes();
///         Ok(())
///     }
/// }
///
/// let bus = MmioBus::new();
/// bus.insert(Arc::new(Reads::default()), 0x1000, 4)?;
/// let mut data = [0; 4];
/// bus.view().read(0x1000, &mut data)?;
/// assert_eq!(data, [0; 4]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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

    /// Answers a read of the vCPU `initiator`; see [`BusDevice::read_by`].
    ///
    /// # Errors
    ///
    /// As [`BusDevice::read_by`].
    #[inline]
    fn read_by(
        &self,
        initiator: Option<u32>,
        offset: u64,
        data: &mut [u8],
    ) -> Result<R, AccessError> {
        self.read(offset, data)
    }

    /// Takes a write of the vCPU `initiator`; see [`BusDevice::write_by`].
    ///
    /// # Errors
    ///
    /// As [`BusDevice::write_by`].
    #[inline]
    fn write_by(&self, initiator: Option<u32>, offset: u64, data: &[u8]) -> Result<R, AccessError> {
        self.write(offset, data)
    }

    /// What is to be called when a region has left the bus; see [`BusDevice::on_removal`].
    ///
    /// # Errors
    ///
    /// As [`BusDevice::on_removal`].
    fn on_removal(&self) -> Result<Option<OnRemoval>, AccessError> {
        Ok(None)
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

/// Implements a trait by passing accesses on, through a function that gets at the device.
macro_rules! pass_on {
    ($(#[$doc:meta])* impl[$($generics:tt)*] $trait:ident for $type:ty,
     $self:ident: $receiver:ty, $through:path $(, $Answer:ident)?) => {
        $(#[$doc])*
        impl<R $(: $Answer)?, $($generics)*> $trait<R> for $type {
            #[inline]
            fn read($self: $receiver, offset: u64, data: &mut [u8]) -> Result<R, AccessError> {
                $through($self, |device| device.read(offset, data))
                    $(.map(|()| $Answer::default()))?
            }

            #[inline]
            fn write($self: $receiver, offset: u64, data: &[u8]) -> Result<R, AccessError> {
                $through($self, |device| device.write(offset, data))
                    $(.map(|()| $Answer::default()))?
            }

            #[inline]
            fn read_by(
                $self: $receiver,
                initiator: Option<u32>,
                offset: u64,
                data: &mut [u8],
            ) -> Result<R, AccessError> {
                $through($self, |device| device.read_by(initiator, offset, data))
                    $(.map(|()| $Answer::default()))?
            }

            #[inline]
            fn write_by(
                $self: $receiver,
                initiator: Option<u32>,
                offset: u64,
                data: &[u8],
            ) -> Result<R, AccessError> {
                $through($self, |device| device.write_by(initiator, offset, data))
                    $(.map(|()| $Answer::default()))?
            }

            fn on_removal($self: $receiver) -> Result<Option<OnRemoval>, AccessError> {
                $through($self, |device| device.on_removal())
            }
        }
    };
}

pass_on!(impl[T: BusDevice<R> + ?Sized] BusDevice for Box<T>, self: &mut Self, unique);
pass_on!(impl[T: BusDeviceSync<R> + ?Sized] BusDeviceSync for Box<T>, self: &Self, shared);
pass_on!(impl[T: BusDeviceSync<R> + ?Sized] BusDeviceSync for Arc<T>, self: &Self, shared);
pass_on!(
    /// Locks the device during each access.
    ///
    /// A poisoned lock means that the device panicked: it is not called any more. A handler that
    /// comes back to its own device, through whatever bus, gets [`AccessError::Reentrant`].
    impl[T: BusDevice<R> + ?Sized] BusDeviceSync for Mutex<T>, self: &Self, locked
);
pass_on!(impl[] BusDeviceSync for WeakDevice<R>, self: &Self, upgraded);

#[inline(always)]
fn unique<T: ?Sized, A>(pointer: &mut Box<T>, call: impl FnOnce(&mut T) -> A) -> A {
    call(pointer)
}

#[inline(always)]
fn shared<P: Deref, A>(pointer: &P, call: impl FnOnce(&P::Target) -> A) -> A {
    call(pointer)
}

/// Calls a device under its lock, unless this thread holds that already.
#[inline(always)]
fn locked<T: ?Sized, R>(
    mutex: &Mutex<T>,
    call: impl FnOnce(&mut T) -> Result<R, AccessError>,
) -> Result<R, AccessError> {
    let _listed = Listed::new(address(mutex))?;
    let mut device = match mutex.try_lock() {
        Ok(device) => device,
        Err(failure) => contended(mutex, failure)?,
    };
    call(&mut device)
}

/// Waits for a lock, unless whoever holds it waits for this thread.
#[cold]
#[inline(never)]
fn contended<'a, T: ?Sized>(
    mutex: &'a Mutex<T>,
    mut failure: TryLockError<MutexGuard<'a, T>>,
) -> Result<MutexGuard<'a, T>, AccessError> {
    // Most handlers are short: the lock is often free before this thread would be asleep.
    for _ in 0..100 {
        if let TryLockError::Poisoned(_) = failure {
            return Err(AccessError::Panicked);
        }
        std::hint::spin_loop();
        match mutex.try_lock() {
            Ok(device) => return Ok(device),
            Err(again) => failure = again,
        }
    }
    let lock = Awaited::Lock(address(mutex));
    let _waiting = Waiting::new(&mut registry(), lock).ok_or(AccessError::Deadlock)?;
    mutex.lock().map_err(|_| AccessError::Panicked)
}

/// A device that its bus does not keep alive.
pub(crate) struct WeakDevice<R>(pub(crate) Weak<dyn BusDeviceSync<R>>);

fn upgraded<R, A>(
    device: &WeakDevice<R>,
    call: impl FnOnce(&dyn BusDeviceSync<R>) -> Result<A, AccessError>,
) -> Result<A, AccessError> {
    call(&*device.0.upgrade().ok_or(AccessError::Unclaimed)?)
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

pass_on!(impl[D: BusDevice] BusDevice for DefaultAnswer<D>, self: &mut Self, answer_mut, Default);
pass_on!(impl[D: BusDeviceSync] BusDeviceSync for DefaultAnswer<D>, self: &Self, answer, Default);

fn answer_mut<D, A>(device: &mut DefaultAnswer<D>, call: impl FnOnce(&mut D) -> A) -> A {
    call(&mut device.0)
}

fn answer<D, A>(device: &DefaultAnswer<D>, call: impl FnOnce(&D) -> A) -> A {
    call(&device.0)
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A function as the devices of a VMM.

use super::guest_io::GuestIo;

/// One access of the guest, as an [`IoFn`] gets it: with lengths and order as [`GuestIo`] has them.
///
/// ```
/// use vcpu_runner::{GuestIo, IoAccess, IoFn};
///
/// // A machine with one device: a port that prints.
/// let mut io = IoFn(|access: IoAccess<'_>| match access {
///     IoAccess::PioWrite { port: 0x3f8, data } => print!("{}", data.escape_ascii()),
///     _ => {} // reads give all ones
/// });
/// io.pio_write(0x3f8, b"!");
/// ```
#[derive(Debug, PartialEq, Eq)]
pub enum IoAccess<'a> {
    /// A read of memory-mapped I/O; `data` arrives filled with ones.
    MmioRead {
        /// Guest physical address.
        addr: u64,
        /// What the guest is going to read.
        data: &'a mut [u8],
    },
    /// A write to memory-mapped I/O.
    MmioWrite {
        /// Guest physical address.
        addr: u64,
        /// What the guest writes.
        data: &'a [u8],
    },
    /// A read from an I/O port; `data` arrives filled with ones.
    PioRead {
        /// The port.
        port: u16,
        /// What the guest is going to read.
        data: &'a mut [u8],
    },
    /// A write to an I/O port.
    PioWrite {
        /// The port.
        port: u16,
        /// What the guest writes.
        data: &'a [u8],
    },
}

/// Devices that a function is: for a VMM with a bus of its own, the whole of the adapter.
///
/// ```
/// use vcpu_runner::{GuestIo, IoAccess, IoFn};
///
/// # struct OwnBus;
/// # struct Error;
/// # impl OwnBus {
/// #     fn read(&mut self, _: u64, data: &mut [u8]) -> Result<(), Error> { Ok(data.fill(7)) }
/// #     fn write(&mut self, _: u64, _: &[u8]) -> Result<(), Error> { Ok(()) }
/// # }
/// let mut bus = OwnBus;
/// let mut io = IoFn(move |access: IoAccess<'_>| match access {
///     IoAccess::MmioRead { addr, data } => bus.read(addr, data),
///     IoAccess::MmioWrite { addr, data } => bus.write(addr, data),
///     _ => Ok(()),
/// });
///
/// let mut data = [0xff; 4];
/// assert!(io.mmio_read(0x1000, &mut data).is_ok());
/// assert_eq!(data, [7; 4]);
/// ```
#[derive(Clone, Copy)]
pub struct IoFn<F>(pub F);

impl<A, F: FnMut(IoAccess<'_>) -> A> GuestIo for IoFn<F> {
    type Answer = A;

    #[inline]
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) -> A {
        (self.0)(IoAccess::MmioRead { addr, data })
    }

    #[inline]
    fn mmio_write(&mut self, addr: u64, data: &[u8]) -> A {
        (self.0)(IoAccess::MmioWrite { addr, data })
    }

    #[inline]
    fn pio_read(&mut self, port: u16, data: &mut [u8]) -> A {
        (self.0)(IoAccess::PioRead { port, data })
    }

    #[inline]
    fn pio_write(&mut self, port: u16, data: &[u8]) -> A {
        (self.0)(IoAccess::PioWrite { port, data })
    }
}

impl<F> std::fmt::Debug for IoFn<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IoFn").finish_non_exhaustive()
    }
}

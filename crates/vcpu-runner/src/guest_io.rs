// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where a guest's I/O goes.

/// The device side of a VMM, as the run loop sees it.
///
/// The methods return nothing on purpose: a guest's access always completes, and what an access
/// that no device claims does is the implementor's policy. A buffer to be read into arrives filled
/// with ones, which is what an empty bus answers, so doing nothing is a correct answer.
///
/// With the default feature `bus`, [`BusIo`](crate::BusIo) implements this trait for the buses of
/// the `vmm-bus` crate. A VMM with a bus of its own implements it in a few lines:
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use vcpu_runner::GuestIo;
///
/// # #[derive(Default)] struct OwnBus;
/// # impl OwnBus {
/// #     fn read(&mut self, _: u64, _: &mut [u8]) -> bool { false }
/// #     fn write(&mut self, _: u64, _: &[u8]) -> bool { false }
/// # }
/// struct Devices {
///     mmio: Arc<Mutex<OwnBus>>,
/// }
///
/// impl GuestIo for Devices {
///     fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
///         self.mmio.lock().unwrap().read(addr, data);
///     }
///     fn mmio_write(&mut self, addr: u64, data: &[u8]) {
///         self.mmio.lock().unwrap().write(addr, data);
///     }
///     fn pio_read(&mut self, _port: u16, _data: &mut [u8]) {}
///     fn pio_write(&mut self, _port: u16, _data: &[u8]) {}
/// }
/// ```
pub trait GuestIo {
    /// Answers a read of `data.len()` bytes, 1 to 8, at guest physical address `addr`.
    ///
    /// Any length from 1 to 8 and any alignment can occur: KVM splits an access that crosses a
    /// page, or that begins in RAM, into parts of odd lengths.
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]);

    /// Takes a write of `data.len()` bytes, 1 to 8, to guest physical address `addr`.
    fn mmio_write(&mut self, addr: u64, data: &[u8]);

    /// Answers a read of 1, 2 or 4 bytes from an I/O port.
    ///
    /// A string instruction arrives as one call for each of its elements, all to the same port.
    fn pio_read(&mut self, port: u16, data: &mut [u8]);

    /// Takes a write of 1, 2 or 4 bytes to an I/O port.
    fn pio_write(&mut self, port: u16, data: &[u8]);
}

impl<T: GuestIo + ?Sized> GuestIo for &mut T {
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
        (**self).mmio_read(addr, data);
    }

    fn mmio_write(&mut self, addr: u64, data: &[u8]) {
        (**self).mmio_write(addr, data);
    }

    fn pio_read(&mut self, port: u16, data: &mut [u8]) {
        (**self).pio_read(port, data);
    }

    fn pio_write(&mut self, port: u16, data: &[u8]) {
        (**self).pio_write(port, data);
    }
}

impl<T: GuestIo + ?Sized> GuestIo for Box<T> {
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
        (**self).mmio_read(addr, data);
    }

    fn mmio_write(&mut self, addr: u64, data: &[u8]) {
        (**self).mmio_write(addr, data);
    }

    fn pio_read(&mut self, port: u16, data: &mut [u8]) {
        (**self).pio_read(port, data);
    }

    fn pio_write(&mut self, port: u16, data: &[u8]) {
        (**self).pio_write(port, data);
    }
}

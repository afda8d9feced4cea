// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest I/O to the buses of `vmm-bus`.

use bus::{MmioView, PioView};

use super::guest_io::GuestIo;

/// One vCPU's devices: a view of the MMIO bus and, where there are ports, one of the port bus.
///
/// An access that fails is not fatal to the guest: a read then sees what the bus fills its
/// buffers with, a write is dropped. The bus tells its observer about both.
///
/// ```
/// use bus::{BusDevice, MmioBus, PioBus};
/// use vcpu_runner::{BusIo, GuestIo};
///
/// let (mmio, pio) = (MmioBus::new(), PioBus::new());
/// let mut io = BusIo::new(mmio.view(), pio.view());
///
/// let mut data = [0; 4];
/// io.mmio_read(0x8000_1000, &mut data);
/// assert_eq!(data, [0xff; 4]);
/// ```
///
/// What a device on the bus answers the VMM, an `R`, is handed on: as it is if it is a
/// [`Flow`](crate::Flow), or by [`GuestIo::map_answer`]. It is `None` if no device answered.
///
/// ```
/// use std::ops::ControlFlow::{self, Break, Continue};
/// use std::sync::{Arc, Mutex};
/// use bus::{AccessError, BusDevice, MmioBus};
/// use vcpu_runner::{BusIo, Flow, GuestIo};
///
/// #[derive(Debug, PartialEq)]
/// struct Reset;
///
/// struct ResetRegister;
/// impl BusDevice<ControlFlow<Reset>> for ResetRegister {
///     fn write(&mut self, _: u64, data: &[u8]) -> Result<ControlFlow<Reset>, AccessError> {
///         Ok(if data == [1] { Break(Reset) } else { Continue(()) })
///     }
/// }
///
/// let mmio = MmioBus::<ControlFlow<Reset>>::default();
/// mmio.insert(Arc::new(Mutex::new(ResetRegister)), 0x1000, 1)?;
/// let mut io = BusIo::without_ports(mmio.view());
/// assert_eq!(io.mmio_write(0x1000, &[1]).flow(), Break(Reset));
/// assert_eq!(io.mmio_write(0x2000, &[1]).flow(), Continue(()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct BusIo<R = ()> {
    mmio: MmioView<R>,
    pio: Option<PioView<R>>,
}

impl<R> BusIo<R> {
    /// Devices on these buses. Each vCPU has views of its own.
    #[must_use]
    pub const fn new(mmio: MmioView<R>, pio: PioView<R>) -> Self {
        Self {
            mmio,
            pio: Some(pio),
        }
    }

    /// Devices of a machine that has no I/O ports: on arm64, say.
    #[must_use]
    pub const fn without_ports(mmio: MmioView<R>) -> Self {
        Self { mmio, pio: None }
    }
}

impl<R: 'static> GuestIo for BusIo<R> {
    type Answer = Option<R>;

    #[inline]
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) -> Option<R> {
        self.mmio.read(addr, data).ok()
    }

    #[inline]
    fn mmio_write(&mut self, addr: u64, data: &[u8]) -> Option<R> {
        self.mmio.write(addr, data).ok()
    }

    #[inline]
    fn pio_read(&mut self, port: u16, data: &mut [u8]) -> Option<R> {
        let Some(pio) = &mut self.pio else {
            data.fill(0xff);
            return None;
        };
        pio.read(port, data).ok()
    }

    #[inline]
    fn pio_write(&mut self, port: u16, data: &[u8]) -> Option<R> {
        self.pio.as_mut()?.write(port, data).ok()
    }

    /// The bus fills them with its own value.
    #[inline]
    fn fills_reads(&self) -> bool {
        true
    }
}

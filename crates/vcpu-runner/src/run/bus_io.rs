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
#[derive(Debug)]
pub struct BusIo {
    mmio: MmioView,
    pio: Option<PioView>,
}

impl BusIo {
    /// Devices on these buses. Each vCPU has views of its own.
    #[must_use]
    pub const fn new(mmio: MmioView, pio: PioView) -> Self {
        Self {
            mmio,
            pio: Some(pio),
        }
    }

    /// Devices of a machine that has no I/O ports: on arm64, say.
    #[must_use]
    pub const fn without_ports(mmio: MmioView) -> Self {
        Self { mmio, pio: None }
    }
}

impl GuestIo for BusIo {
    type Answer = ();

    #[inline]
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
        let _ = self.mmio.read(addr, data);
    }

    #[inline]
    fn mmio_write(&mut self, addr: u64, data: &[u8]) {
        let _ = self.mmio.write(addr, data);
    }

    #[inline]
    fn pio_read(&mut self, port: u16, data: &mut [u8]) {
        if let Some(pio) = &mut self.pio {
            let _ = pio.read(port, data);
        }
    }

    #[inline]
    fn pio_write(&mut self, port: u16, data: &[u8]) {
        if let Some(pio) = &mut self.pio {
            let _ = pio.write(port, data);
        }
    }
}

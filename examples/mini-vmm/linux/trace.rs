// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The way of a vCPU's accesses to the buses, with a line for each if wanted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bus::{Address, Bus, MmioBus, PioBus};
use vcpu_runner::{BusIo, ExitKind, ExitObserver, GuestIo};

use super::output::Output;

/// What is still to be traced, for all vCPUs together.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    left: Arc<AtomicU32>,
    output: Output,
    mmio: MmioBus,
    pio: PioBus,
}

impl Trace {
    /// Writes at most so many lines to `output`.
    pub(crate) fn new(lines: u32, output: Output, mmio: &MmioBus, pio: &PioBus) -> Self {
        Self {
            left: Arc::new(AtomicU32::new(lines)),
            output,
            mmio: mmio.clone(),
            pio: pio.clone(),
        }
    }

    /// Writes a line for an access.
    fn access<K: Address>(&self, vcpu: usize, exit: ExitKind, bus: &Bus<K>, addr: K, data: &[u8]) {
        self.line(vcpu, exit, || {
            let place = match bus.find(addr) {
                Some(region) => {
                    let offset = addr.into() - region.range.first().into();
                    format!("{}+{offset:#x}", region.name())
                }
                None => "nothing".to_owned(),
            };
            let mut value = [0; 8];
            for (place, byte) in value.iter_mut().zip(data) {
                *place = *byte;
            }
            let (value, digits) = (u64::from_le_bytes(value), 2 * data.len());
            format!(" {addr:#x} {place} = 0x{value:0digits$x}")
        });
    }

    /// Writes a line, as long as there are lines left: a guest could fill a disk with them.
    fn line(&self, vcpu: usize, exit: ExitKind, details: impl FnOnce() -> String) {
        let left = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            });
        let Ok(left) = left else {
            return;
        };
        let mut lines = format!("trace: vcpu{vcpu} {}{}\n", exit.name(), details());
        if left == 1 {
            lines += "trace: this was the last line; the guest goes on\n";
        }
        self.output.push(lines.as_bytes());
        self.output.wait_for_room();
    }
}

/// Traces the exits of a vCPU that are no accesses.
pub(crate) struct OtherExits {
    vcpu: usize,
    trace: Option<Trace>,
}

impl OtherExits {
    pub(crate) const fn new(vcpu: usize, trace: Option<Trace>) -> Self {
        Self { vcpu, trace }
    }
}

impl ExitObserver for OtherExits {
    fn exit(&mut self, kind: ExitKind) {
        use ExitKind::{Interrupted, IoIn, IoOut, MmioRead, MmioWrite};

        let access = matches!(kind, MmioRead | MmioWrite | IoIn | IoOut);
        if access || kind == Interrupted {
            return;
        }
        if let Some(trace) = &self.trace {
            trace.line(self.vcpu, kind, String::new);
        }
    }
}

/// A vCPU's way to the buses.
pub(crate) struct Io {
    vcpu: usize,
    buses: BusIo,
    trace: Option<Trace>,
}

impl Io {
    pub(crate) const fn new(vcpu: usize, buses: BusIo, trace: Option<Trace>) -> Self {
        Self { vcpu, buses, trace }
    }
}

impl GuestIo for Io {
    type Answer = ();
    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) {
        self.buses.mmio_read(addr, data);
        if let Some(trace) = &self.trace {
            trace.access(self.vcpu, ExitKind::MmioRead, &trace.mmio, addr, data);
        }
    }

    fn mmio_write(&mut self, addr: u64, data: &[u8]) {
        if let Some(trace) = &self.trace {
            trace.access(self.vcpu, ExitKind::MmioWrite, &trace.mmio, addr, data);
        }
        self.buses.mmio_write(addr, data);
    }

    fn pio_read(&mut self, port: u16, data: &mut [u8]) {
        self.buses.pio_read(port, data);
        if let Some(trace) = &self.trace {
            trace.access(self.vcpu, ExitKind::IoIn, &trace.pio, port, data);
        }
    }

    fn pio_write(&mut self, port: u16, data: &[u8]) {
        if let Some(trace) = &self.trace {
            trace.access(self.vcpu, ExitKind::IoOut, &trace.pio, port, data);
        }
        self.buses.pio_write(port, data);
    }
}

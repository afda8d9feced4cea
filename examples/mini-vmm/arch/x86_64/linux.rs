// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Linux' machine, as far as it is this architecture's: a serial port and what switches the machine
//! off on ports, and ACPI or the command line to tell of devices.

use std::sync::{Arc, Mutex};

use bus::{BusDeviceSync, BusError, MmioBus, PioBus, Region, Width};
use linux_loader::loader::Cmdline;
use virtio_mmio_transport::Location;
use vm_superio::I8042Device;

pub(crate) use super::cpu::{create as create_vcpus, enter};
pub(crate) use super::layout::COMMAND_LINE_SIZE;
use super::layout::{I8042, I8042_SIZE, IO_APIC, LOCAL_APIC, SERIAL, SLEEP, SLEEP_SIZE};
use super::power::{KeyboardController, Reset, SleepRegisters};
pub(crate) use super::reset::FirstState;
use super::{acpi, boot_params, mode};
use crate::layout::SERIAL_SIZE;
use crate::linux::bell::Bell;
use crate::linux::command_line::names;
use crate::linux::loader::{Initrd, Kernel};
use crate::linux::{Options, serial::SerialPort};
use crate::memory::Memory;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Whether the machine can be described by ACPI or not.
pub(crate) const HAS_ACPI: bool = true;
/// Whether a machine can be put back into the state that it starts in.
pub(crate) const REBOOTS_IN_PLACE: bool = true;

/// What a command line is given if it does not name the parameter itself.
///
/// This keeps a kernel from looking for PCI, which is not there: in vain, and with a message that
/// not even `quiet` suppresses, unless the initcall is left out that prints it.
pub(crate) const OPTIONAL: &[(&str, &str)] = &[("pci", "pci=off initcall_blacklist=pci_arch_init")];

/// Devices inside KVM, by first address, last address, and name.
pub(crate) const KVM_MMIO: &[(u64, u64, &str)] = &[
    (IO_APIC as u64, IO_APIC as u64 + 0xff, "ioapic (KVM)"),
    (
        LOCAL_APIC as u64,
        LOCAL_APIC as u64 + 0xfff,
        "local apic (KVM)",
    ),
];
/// The same on ports.
pub(crate) const KVM_PIO: &[(u64, u64, &str)] = &[
    (0x20, 0x21, "pic (KVM)"),
    (0x40, 0x43, "pit (KVM)"),
    (0x61, 0x61, "pit (KVM)"),
    (0xa0, 0xa1, "pic (KVM)"),
    (0x4d0, 0x4d1, "pic (KVM)"),
];

/// What a command line has to say of these devices: nothing if there is ACPI.
pub(crate) fn needed(command_line: &str, virtio: &[Location], acpi: bool) -> Vec<String> {
    let mut needed = Vec::new();
    if !acpi {
        // A kernel that looks for tables in vain may wait for interrupts it cannot get.
        if !names(command_line, "acpi") {
            needed.push("acpi=off".to_owned());
        }
        needed.extend(virtio.iter().map(Location::kernel_argument));
    }
    needed
}

/// Writes all that the kernel finds in memory beside itself and its initial RAM disk.
pub(crate) fn write(
    memory: &Memory,
    options: &Options,
    kernel: &Kernel,
    initrd: Option<Initrd>,
    command_line: &Cmdline,
    virtio: &[Location],
) -> Result<()> {
    let (size, acpi) = (options.memory, options.acpi);
    mode::write_tables(memory)?;
    boot_params::write(memory, size, kernel, initrd, command_line, acpi)?;
    if acpi {
        acpi::write(memory, options.cpus, virtio)?;
    }
    Ok(())
}

/// Puts the serial port, and the devices that switch the machine off, on their bus.
pub(crate) fn insert_devices(
    _mmio: &MmioBus,
    pio: &PioBus,
    serial: SerialPort,
    bell: &Bell,
    options: &Options,
) -> Result<()> {
    put(pio, serial, SERIAL, SERIAL_SIZE, "serial")?;
    let keyboard = KeyboardController(I8042Device::new(Reset(bell.clone())));
    put(pio, Mutex::new(keyboard), I8042, I8042_SIZE, "i8042")?;
    if options.acpi {
        let sleep = Mutex::new(SleepRegisters(bell.clone()));
        put(pio, sleep, SLEEP, SLEEP_SIZE, "acpi-sleep")?;
    }
    Ok(())
}

/// Puts a device on the port bus whose registers are bytes.
fn put(
    pio: &PioBus,
    device: impl BusDeviceSync + 'static,
    base: u16,
    len: u64,
    name: &'static str,
) -> std::result::Result<(), BusError<u16>> {
    let region = Region::new(base, len).named(name).widths(&[Width::U8]);
    pio.insert_region(Arc::new(device), region.counted())?;
    Ok(())
}

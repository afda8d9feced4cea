// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Linux' machine, as far as it is this architecture's: a serial port, and a device tree that tells
//! of all devices.

use std::sync::Arc;

use bus::{MmioBus, PioBus, Region, Width};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use linux_loader::loader::Cmdline;
use virtio_mmio_transport::Location;
use vm_memory::{Bytes, GuestAddress};

use super::layout::{
    FDT, GIC_DISTRIBUTOR, GIC_DISTRIBUTOR_SIZE, GIC_REDISTRIBUTOR_SIZE, GIC_REDISTRIBUTORS, KERNEL,
    SERIAL,
};
pub(crate) use super::reset::FirstState;
use super::{cpu, fdt};
use crate::layout::SERIAL_SIZE;
use crate::linux::bell::Bell;
use crate::linux::loader::{Initrd, Kernel};
use crate::linux::{Options, serial::SerialPort};
use crate::memory::Memory;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Whether the machine can be described by ACPI or not: it never is.
pub(crate) const HAS_ACPI: bool = false;
/// Whether a machine can be put back into the state that it starts in.
pub(crate) const REBOOTS_IN_PLACE: bool = false;

/// Most bytes of a command line, with its terminating zero: what Linux takes.
pub(crate) const COMMAND_LINE_SIZE: usize = 2048;

/// What a command line is given if it does not name the parameter itself.
pub(crate) const OPTIONAL: &[(&str, &str)] = &[];

/// Devices inside KVM, by first address, last address, and name.
pub(crate) const KVM_MMIO: &[(u64, u64, &str)] = &[
    (
        GIC_DISTRIBUTOR,
        GIC_DISTRIBUTOR + GIC_DISTRIBUTOR_SIZE - 1,
        "gic distributor (KVM)",
    ),
    (
        GIC_REDISTRIBUTORS,
        // One for each processor that there can be.
        GIC_REDISTRIBUTORS + 8 * GIC_REDISTRIBUTOR_SIZE - 1,
        "gic redistributors (KVM)",
    ),
];
/// The same on ports, of which there are none.
pub(crate) const KVM_PIO: &[(u64, u64, &str)] = &[];

/// What a command line has to say of these devices: the device tree says it all.
pub(crate) const fn needed(_command_line: &str, _virtio: &[Location], _acpi: bool) -> Vec<String> {
    Vec::new()
}

/// Writes all that the kernel finds in memory beside itself and its initial RAM disk.
pub(crate) fn write(
    memory: &Memory,
    options: &Options,
    _kernel: &Kernel,
    initrd: Option<Initrd>,
    command_line: &Cmdline,
    virtio: &[Location],
) -> Result<()> {
    let tree = fdt::tree(options, initrd, command_line, virtio)?;
    if FDT + tree.len() as u64 > KERNEL {
        return Err("the device tree does not fit".into());
    }
    memory.write_slice(&tree, GuestAddress(FDT))?;
    Ok(())
}

/// Puts the serial port on its bus. What switches the machine off is PSCI, in KVM.
pub(crate) fn insert_devices(
    mmio: &MmioBus,
    _pio: &PioBus,
    serial: SerialPort,
    _bell: &Bell,
    _options: &Options,
) -> Result<()> {
    let region = Region::new(SERIAL, SERIAL_SIZE).named("serial");
    mmio.insert_region(Arc::new(serial), region.widths(&[Width::U8]).counted())?;
    Ok(())
}

/// Makes the vCPUs; the first one begins at the kernel's entry point, the others wait for it.
pub(crate) fn create_vcpus(
    _kvm: &Kvm,
    vm: &VmFd,
    cpus: u8,
    kernel: &Kernel,
) -> Result<Vec<VcpuFd>> {
    cpu::create(vm, cpus, kernel.entry.0, FDT)
}

/// Has the first vCPU begin at the kernel's entry point.
pub(crate) fn enter(vcpu: &VcpuFd, kernel: &Kernel) -> Result<()> {
    cpu::enter(vcpu, kernel.entry.0, FDT)
}

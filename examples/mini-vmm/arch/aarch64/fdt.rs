// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device tree: it tells a kernel its memory, its processors, its interrupt controller, its
//! devices, and how to switch the machine off.

use linux_loader::loader::Cmdline;
use mmio_rng_legacy::Description;
use virtio_mmio_transport::{Location, Trigger};
use vm_fdt::{FdtWriter, FdtWriterResult};

use super::layout::{
    GIC_DISTRIBUTOR, GIC_DISTRIBUTOR_SIZE, GIC_REDISTRIBUTOR_SIZE, GIC_REDISTRIBUTORS, SERIAL,
};
use crate::layout::{RNG0, SERIAL_GSI, SERIAL_SIZE, ram};
use crate::linux::Options;
use crate::linux::loader::Initrd;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The interrupt controller, where others name it.
const GIC: u32 = 1;

/// Kinds of interrupts: for devices, and of a processor's own.
const SPI: u32 = 0;
const PPI: u32 = 1;
/// How interrupts are triggered.
const EDGE: u32 = 1;
const LEVEL: u32 = 4;

/// The processor's own interrupts of its timers: secure, not secure, virtual, and the hypervisor's.
const TIMERS: [u32; 4] = [13, 14, 11, 10];

/// What the serial port divides, in Hz.
const SERIAL_CLOCK: u32 = 1_843_200;

/// The whole tree.
pub(super) fn tree(
    options: &Options,
    initrd: Option<Initrd>,
    command_line: &Cmdline,
    virtio: &[Location],
) -> Result<Vec<u8>> {
    let command_line = command_line.as_cstring()?.into_string()?;
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC)?;
    write_chosen(&mut fdt, &command_line, initrd)?;
    write_memory(&mut fdt, options.memory)?;
    write_processors(&mut fdt, options.cpus)?;
    write_gic(&mut fdt, options.cpus)?;
    write_serial(&mut fdt)?;
    if options.legacy_rng {
        let rng = Description::new(RNG0).ok_or("the register has no place in a device tree")?;
        rng.write_fdt(&mut fdt)?;
    }
    for location in virtio {
        location.write_fdt(&mut fdt, Trigger::Edge)?;
    }
    fdt.end_node(root)?;
    Ok(fdt.finish()?)
}

fn write_chosen(
    fdt: &mut FdtWriter,
    command_line: &str,
    initrd: Option<Initrd>,
) -> FdtWriterResult<()> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", command_line)?;
    fdt.property_string("stdout-path", &format!("/serial@{SERIAL:x}"))?;
    if let Some(Initrd { address, size }) = initrd {
        fdt.property_u64("linux,initrd-start", address)?;
        fdt.property_u64("linux,initrd-end", address + size)?;
    }
    fdt.end_node(node)
}

fn write_memory(fdt: &mut FdtWriter, size: u64) -> FdtWriterResult<()> {
    for (start, len) in ram(size) {
        let node = fdt.begin_node(&format!("memory@{start:x}"))?;
        fdt.property_string("device_type", "memory")?;
        fdt.property_array_u64("reg", &[start, len])?;
        fdt.end_node(node)?;
    }
    Ok(())
}

/// The processors, their timers, and what switches them on and the machine off.
fn write_processors(fdt: &mut FdtWriter, cpus: u8) -> FdtWriterResult<()> {
    let node = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    for id in 0..u32::from(cpus) {
        // The affinity that KVM gives to the first sixteen.
        let cpu = fdt.begin_node(&format!("cpu@{id:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u32("reg", id)?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(node)?;

    let node = fdt.begin_node("psci")?;
    let versions = ["arm,psci-1.0", "arm,psci-0.2"].map(str::to_owned);
    fdt.property_string_list("compatible", versions.into())?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(node)?;

    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    let interrupts = TIMERS.map(|timer| [PPI, timer, LEVEL]);
    fdt.property_array_u32("interrupts", interrupts.as_flattened())?;
    fdt.property_null("always-on")?;
    fdt.end_node(node)
}

fn write_gic(fdt: &mut FdtWriter, cpus: u8) -> FdtWriterResult<()> {
    let node = fdt.begin_node(&format!("interrupt-controller@{GIC_DISTRIBUTOR:x}"))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    let registers = [
        GIC_DISTRIBUTOR,
        GIC_DISTRIBUTOR_SIZE,
        GIC_REDISTRIBUTORS,
        GIC_REDISTRIBUTOR_SIZE * u64::from(cpus),
    ];
    fdt.property_array_u64("reg", &registers)?;
    fdt.property_phandle(GIC)?;
    fdt.end_node(node)
}

fn write_serial(fdt: &mut FdtWriter) -> FdtWriterResult<()> {
    let node = fdt.begin_node(&format!("serial@{SERIAL:x}"))?;
    fdt.property_string("compatible", "ns16550a")?;
    fdt.property_array_u64("reg", &[SERIAL, SERIAL_SIZE])?;
    fdt.property_u32("clock-frequency", SERIAL_CLOCK)?;
    fdt.property_array_u32("interrupts", &[SPI, SERIAL_GSI, EDGE])?;
    fdt.end_node(node)
}

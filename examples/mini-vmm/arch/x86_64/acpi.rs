// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ACPI tables: they tell a kernel its processors, its interrupt controllers, its devices, and
//! how to switch the machine off. The hardware is of the reduced kind (ACPI 6.5, section 3.11.1),
//! which has two registers instead of a power management block.

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use virtio_mmio_transport::Location;
use vm_memory::{Bytes, GuestAddress};

use super::layout::{
    ACPI, I8042_COMMAND, I8042_RESET, IO_APIC, LOCAL_APIC, RESET_VECTOR, SERIAL, SLEEP,
    SLEEP_TYPE_OFF,
};
use crate::layout::{SERIAL_GSI, SERIAL_SIZE};
use crate::memory::Memory;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const OEM: [u8; 6] = *b"VMMDEV";
const TABLE: [u8; 8] = *b"MINI-VMM";
const REVISION: u32 = 1;

/// Flags of `IAPC_BOOT_ARCH`: no VGA to probe for, and no clock in CMOS memory.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;

/// Writes all tables, the root pointer first.
pub(crate) fn write(memory: &Memory, cpus: u8, virtio: &[Location]) -> Result<()> {
    let mut next = ACPI + (Rsdp::len() as u64).next_multiple_of(16);
    let mut put = |table: &dyn Aml| -> Result<u64> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let address = next;
        next = (address + bytes.len() as u64).next_multiple_of(16);
        if next > RESET_VECTOR {
            return Err("the ACPI tables do not fit".into());
        }
        memory.write_slice(&bytes, GuestAddress(address))?;
        Ok(address)
    };
    let dsdt = put(&dsdt(virtio)?)?;
    let fadt = put(&fadt(dsdt))?;
    let madt = put(&madt(cpus))?;
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = put(&xsdt)?;
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    memory.write_slice(&rsdp, GuestAddress(ACPI))?;
    Ok(())
}

/// The description of the devices, and of what switches the machine off.
fn dsdt(virtio: &[Location]) -> Result<Sdt> {
    let serial_ports = aml::IO::new(SERIAL, SERIAL, 1, u8::try_from(SERIAL_SIZE)?);
    let serial_interrupt = aml::Interrupt::new(true, true, false, false, SERIAL_GSI);
    let serial_id = aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501"));
    let serial_number = aml::Name::new("_UID".into(), &aml::ZERO);
    let serial_resources = aml::ResourceTemplate::new(vec![&serial_ports, &serial_interrupt]);
    let serial_resources = aml::Name::new("_CRS".into(), &serial_resources);
    let serial = aml::Device::new(
        "COM1".into(),
        vec![&serial_id, &serial_number, &serial_resources],
    );
    let mut slots = Vec::new();
    for (number, location) in (0..).zip(virtio) {
        let device = location.acpi_device(number, false);
        slots.push(device.ok_or("a virtio device has no place in ACPI")?);
    }
    let mut devices: Vec<&dyn Aml> = vec![&serial];
    devices.extend(slots.iter().map(|slot| -> &dyn Aml { slot }));
    let mut code = Vec::new();
    aml::Scope::new("_SB_".into(), devices).to_aml_bytes(&mut code);
    aml::Name::new("_S5_".into(), &aml::Package::new(vec![&SLEEP_TYPE_OFF]))
        .to_aml_bytes(&mut code);

    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    table.append_slice(&code);
    Ok(table)
}

/// What the machine is like in general.
fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let register = |port| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            u64::from(port),
        )
    };
    let mut table = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::HwReducedAcpi);
    table.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    table.reset_reg = register(I8042_COMMAND);
    table.reset_value = I8042_RESET;
    table.sleep_control_reg = register(SLEEP);
    table.sleep_status_reg = register(SLEEP + 1);
    table.finalize()
}

/// The processors and the I/O APIC.
fn madt(cpus: u8) -> MADT {
    let mut table = MADT::new(
        OEM,
        TABLE,
        REVISION,
        LocalInterruptController::Address(LOCAL_APIC),
    );
    for id in 0..cpus {
        table.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    table.add_structure(IoApic::new(0, IO_APIC, 0));
    table
}

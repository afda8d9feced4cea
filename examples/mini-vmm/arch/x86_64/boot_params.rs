// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a kernel is told when it is entered: its command line, its initial RAM disk, and where RAM
//! is.

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::{Cmdline, load_cmdline};
use vm_memory::{Bytes, GuestAddress};

use super::layout::{
    ACPI, COMMAND_LINE, KERNEL, LOW_RAM_END, MEMORY_MAP, MODULES, RESET_VECTOR, START_INFO,
    ZERO_PAGE,
};
use super::power::RESET_CODE;
use crate::layout::ram;
use crate::linux::loader::{Entry, Initrd, Kernel};
use crate::memory::Memory;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Memory that the kernel may use, and memory that it must leave alone.
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
const START_INFO_MAGIC: u32 = 0x336e_c578;

/// Writes all that the kernel is told of `size` bytes of memory and of what is in them.
pub(super) fn write(
    memory: &Memory,
    size: u64,
    kernel: &Kernel,
    initrd: Option<Initrd>,
    command_line: &Cmdline,
    acpi: bool,
) -> Result<()> {
    load_cmdline(memory, GuestAddress(COMMAND_LINE), command_line)?;
    memory.write_slice(&RESET_CODE, GuestAddress(RESET_VECTOR))?;
    let rsdp = if acpi { ACPI } else { 0 };
    match &kernel.entry {
        Entry::Long { header, .. } => {
            let parameters = zero_page(header, size, initrd, rsdp)?;
            let parameters = BootParams::new(&parameters, GuestAddress(ZERO_PAGE));
            LinuxBootConfigurator::write_bootparams(&parameters, memory)?;
        }
        Entry::Pvh { .. } => {
            let parameters = start_info(size, initrd, rsdp);
            PvhBootConfigurator::write_bootparams(&parameters, memory)?;
        }
    }
    Ok(())
}

/// The map of memory: address, length, kind.
fn memory_map(size: u64) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, LOW_RAM_END, E820_RAM),
        (ACPI, KERNEL - ACPI, E820_RESERVED),
    ];
    for (start, len) in ram(size) {
        let start_of_rest = start.max(KERNEL);
        map.push((start_of_rest, start + len - start_of_rest, E820_RAM));
    }
    map
}

/// The boot parameters of the 64-bit boot protocol.
fn zero_page(
    header: &setup_header,
    size: u64,
    initrd: Option<Initrd>,
    rsdp: u64,
) -> Result<boot_params> {
    let mut parameters = boot_params {
        hdr: *header,
        acpi_rsdp_addr: rsdp,
        ..boot_params::default()
    };
    parameters.hdr.type_of_loader = LOADER_UNDEFINED;
    parameters.hdr.cmd_line_ptr = u32::try_from(COMMAND_LINE)?;
    if let Some(initrd) = initrd {
        parameters.hdr.ramdisk_image = u32::try_from(initrd.address)?;
        parameters.hdr.ramdisk_size = u32::try_from(initrd.size)?;
    }
    let map = memory_map(size);
    let mut table = parameters.e820_table;
    for (entry, (addr, size, kind)) in table.iter_mut().zip(&map) {
        *entry = boot_e820_entry {
            addr: *addr,
            size: *size,
            r#type: *kind,
        };
    }
    parameters.e820_table = table;
    parameters.e820_entries = u8::try_from(map.len())?;
    Ok(parameters)
}

/// The start information of the PVH boot protocol.
fn start_info(size: u64, initrd: Option<Initrd>, rsdp: u64) -> BootParams {
    let map: Vec<_> = memory_map(size)
        .into_iter()
        .map(|(addr, size, type_)| hvm_memmap_table_entry {
            addr,
            size,
            type_,
            reserved: 0,
        })
        .collect();
    let modules: Vec<_> = initrd
        .map(|initrd| hvm_modlist_entry {
            paddr: initrd.address,
            size: initrd.size,
            ..hvm_modlist_entry::default()
        })
        .into_iter()
        .collect();
    let info = hvm_start_info {
        magic: START_INFO_MAGIC,
        version: 1,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() { MODULES } else { 0 },
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: rsdp,
        memmap_paddr: MEMORY_MAP,
        // Four at most.
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..hvm_start_info::default()
    };
    let mut parameters = BootParams::new(&info, GuestAddress(START_INFO));
    parameters.set_sections(&map, GuestAddress(MEMORY_MAP));
    parameters.set_modules(&modules, GuestAddress(MODULES));
    parameters
}

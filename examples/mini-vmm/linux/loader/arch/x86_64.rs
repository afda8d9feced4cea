// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Loads an x86-64 kernel into guest memory, and says how it is entered.
//!
//! The files are the user's, so they are looked at closely before the loader gets them: a loader
//! can only say that something does not fit, and a kernel that was cut off would start anyway.

use std::io::{Read, Seek};

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{Address, GuestAddress, ReadVolatile};

use super::super::image::Image;
use super::super::{Kernel, Memory, Room};

/// The loader does not know the end of the extended header's fields, but the boot protocol does.
const BOOT_PROTOCOL_2_12: u16 = 0x020c;
/// `xloadflags`: the kernel has a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;
/// `loadflags`: the kernel is a bzImage.
const LOADED_HIGH: u8 = 1;
/// Where the 64-bit entry point is, in a bzImage that has one.
const ENTRY_64: u64 = 0x200;
/// What the setup header of a bzImage begins with, and where.
const BZIMAGE_MAGIC: (u64, &[u8]) = (0x202, b"HdrS");
/// What an ELF file begins with.
const ELF_MAGIC: &[u8] = b"\x7fELF";

/// How a kernel is entered.
#[derive(Debug)]
pub(crate) enum Entry {
    /// By the 64-bit boot protocol, with boot parameters that contain this header.
    Long {
        address: u64,
        header: Box<setup_header>,
    },
    /// By the PVH boot protocol, in 32-bit mode.
    Pvh { address: u64 },
}

/// Loads a kernel into `room`.
///
/// # Errors
///
/// What is wrong with the file, or with the size of memory.
pub(crate) fn load_kernel<F: Read + ReadVolatile + Seek>(
    image: &mut Image<F>,
    memory: &Memory,
    room: Room,
) -> Result<Kernel, String> {
    let magic = image.at(0, ELF_MAGIC.len())?;
    if magic == ELF_MAGIC {
        load_elf(image, memory, room)
    } else {
        load_bzimage(image, memory, room)
    }
}

fn load_bzimage<F: Read + ReadVolatile + Seek>(
    image: &mut Image<F>,
    memory: &Memory,
    room: Room,
) -> Result<Kernel, String> {
    let (offset, magic) = BZIMAGE_MAGIC;
    if image.at(offset, magic.len())? != magic {
        return Err("is neither a bzImage nor an ELF kernel".to_owned());
    }
    let header = read_header(image)?;
    let (version, flags) = (header.version, header.xloadflags);
    if version < BOOT_PROTOCOL_2_12 || flags & XLF_KERNEL_64 == 0 {
        return Err("has no 64-bit entry point".to_owned());
    }
    if header.loadflags & LOADED_HIGH == 0 {
        return Err("is a zImage, which is loaded below 1 MiB".to_owned());
    }
    let sectors = match header.setup_sects {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let (setup, code) = ((sectors + 1) * 512, u64::from(header.syssize) * 16);
    // The last paragraph need not be whole.
    if image.len() + 15 < setup + code {
        return Err("is truncated".to_owned());
    }
    let loaded = image.len().saturating_sub(setup);
    if code.min(loaded) <= ENTRY_64 || !is_code(image, setup + ENTRY_64)? {
        return Err("has no code at its entry point".to_owned());
    }
    let start = u64::from(header.code32_start);
    if start < room.start {
        return Err(format!("wants to be loaded at {start:#x}, below 1 MiB"));
    }
    // It unpacks itself to the address that it prefers, or to where it is if that is higher.
    let preferred = header.pref_address;
    let unpacked = start
        .max(preferred)
        .saturating_add(u64::from(header.init_size));
    let end = unpacked.max(start.saturating_add(loaded));
    room.holds(end)?;

    let lowest = Some(GuestAddress(room.start));
    let loaded =
        BzImage::load(memory, None, image.source(), lowest).map_err(|error| error.to_string())?;
    let header = loaded.setup_header.ok_or("has no setup header")?;
    Ok(Kernel {
        entry: Entry::Long {
            address: loaded.kernel_load.raw_value() + ENTRY_64,
            header: Box::new(header),
        },
        end,
        initrd_max: header.initrd_addr_max.into(),
        command_line_max: usize::try_from(header.cmdline_size).unwrap_or(usize::MAX),
    })
}

/// The setup header, whose fields the loader checks too late.
fn read_header<F: Read + Seek>(image: &mut Image<F>) -> Result<setup_header, String> {
    let mut header = setup_header::default();
    let bytes = image.at(0x1f1, size_of::<setup_header>())?;
    vm_memory::ByteValued::as_mut_slice(&mut header).copy_from_slice(&bytes);
    Ok(header)
}

fn load_elf<F: Read + ReadVolatile + Seek>(
    image: &mut Image<F>,
    memory: &Memory,
    room: Room,
) -> Result<Kernel, String> {
    let segments = segments(image)?;
    for segment in &segments {
        let Some(file_end) = segment.offset.checked_add(segment.file_size) else {
            return Err("has a segment that does not fit into a file".to_owned());
        };
        if file_end > image.len() {
            return Err("is truncated".to_owned());
        }
    }
    let loaded = || segments.iter().filter(|segment| segment.is_loaded());
    for segment in loaded() {
        let address = segment.address;
        let Some(end) = address.checked_add(segment.memory_size) else {
            return Err("has a segment that does not fit into an address space".to_owned());
        };
        if address < room.start || segment.file_size > segment.memory_size {
            return Err(format!("has an impossible segment at {address:#x}"));
        }
        room.holds(end)?;
    }
    if loaded().next().is_none() {
        return Err("has no code".to_owned());
    }
    let lowest = Some(GuestAddress(room.start));
    let result =
        Elf::load(memory, None, image.source(), lowest).map_err(|error| error.to_string())?;
    let entry = match result.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(address) => Entry::Pvh {
            address: address.raw_value(),
        },
        // Any program is an ELF file, but only kernels run in the upper half.
        _ if !loaded().any(|segment| segment.linked_at >> 63 == 1) => {
            return Err("is an ELF file, but no kernel".to_owned());
        }
        _ => Entry::Long {
            address: result.kernel_load.raw_value(),
            header: Box::new(setup_header {
                boot_flag: 0xaa55,
                header: u32::from_le_bytes(*b"HdrS"),
                kernel_alignment: 0x100_0000,
                ..setup_header::default()
            }),
        },
    };
    let (Entry::Pvh { address } | Entry::Long { address, .. }) = entry;
    let offset = loaded().find_map(|segment| segment.file_offset(address));
    if !offset.is_some_and(|offset| matches!(is_code(image, offset), Ok(true))) {
        return Err(format!(
            "has no code at its entry point, which is {address:#x}"
        ));
    }
    Ok(Kernel {
        entry,
        end: result.kernel_end,
        initrd_max: u64::from(u32::MAX),
        command_line_max: DEFAULT_COMMAND_LINE_MAX,
    })
}

/// What x86 kernels take if they do not say it, which an ELF file cannot.
const DEFAULT_COMMAND_LINE_MAX: usize = 2047;

/// The most program headers; Linux has five, and each can take as long as the whole file to load.
const MOST_HEADERS: u16 = 64;

/// Types of program headers.
const LOAD: u32 = 1;
const NOTE: u32 = 4;

/// What a program header says.
struct Segment {
    kind: u32,
    offset: u64,
    linked_at: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
}

impl Segment {
    /// Whether the loader loads it.
    const fn is_loaded(&self) -> bool {
        self.kind == LOAD && self.file_size > 0
    }

    /// Where in the file the byte is that is loaded to `address`, if it comes from there.
    fn file_offset(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(self.address)?;
        let within = offset < self.file_size;
        within.then(|| self.offset.saturating_add(offset))
    }
}

/// The segments that the loader will look at.
fn segments<F: Read + Seek>(image: &mut Image<F>) -> Result<Vec<Segment>, String> {
    const HEADER: usize = 64;
    const PROGRAM_HEADER: usize = 56;
    const X86_64: u16 = 62;

    let header = image.at(0, HEADER)?;
    // 64 bits, little-endian, for this processor.
    if header.get(4..6) != Some(&[2, 1]) || half(&header, 18) != X86_64 {
        return Err("is no x86-64 kernel".to_owned());
    }
    let (table, size, count) = (word(&header, 32), half(&header, 54), half(&header, 56));
    if usize::from(size) != PROGRAM_HEADER || count == 0 {
        return Err("has no program headers".to_owned());
    }
    if count > MOST_HEADERS {
        return Err(format!(
            "has {count} program headers, too many for a kernel"
        ));
    }
    let table = image.at(table, PROGRAM_HEADER * usize::from(count))?;
    Ok(table
        .chunks_exact(PROGRAM_HEADER)
        .map(|header| Segment {
            kind: first_word(header),
            offset: word(header, 8),
            linked_at: word(header, 16),
            address: word(header, 24),
            file_size: word(header, 32),
            memory_size: word(header, 40),
        })
        .filter(|segment| matches!(segment.kind, LOAD | NOTE))
        .collect())
}

/// Whether there can be code at an offset: zeros are none that a processor gets through.
fn is_code<F: Read + Seek>(image: &mut Image<F>, offset: u64) -> Result<bool, String> {
    let len = image.len().saturating_sub(offset).min(16);
    let bytes = image.at(offset, usize::try_from(len).unwrap_or(0))?;
    Ok(bytes.iter().any(|byte| *byte != 0))
}

fn first_word(bytes: &[u8]) -> u32 {
    bytes
        .first_chunk()
        .map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn half(bytes: &[u8], at: usize) -> u16 {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

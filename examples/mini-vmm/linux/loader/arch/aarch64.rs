// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Loads an arm64 kernel into guest memory, and says how it is entered.
//!
//! The files are the user's, so they are looked at closely before the loader gets them: a loader
//! can only say that something does not fit, and a kernel that was cut off would start anyway.

use std::io::{Read, Seek};

use linux_loader::loader::KernelLoader;
use linux_loader::loader::pe::{PE, arm64_image_header};
use vm_memory::{Address, ByteValued, GuestAddress, ReadVolatile};

use super::super::image::Image;
use super::super::{Kernel, Memory, Room};

/// What the last but one word of an Image's header is.
const MAGIC: u32 = u32::from_le_bytes(*b"ARM\x64");
/// What a compressed kernel begins with.
const GZIP_MAGIC: &[u8] = b"\x1f\x8b";
/// What the header of an Image that is a program for UEFI as well leads to.
const PE_MAGIC: &[u8] = b"PE\0\0";
/// The flag of a kernel that takes its numbers the other way round.
const BIG_ENDIAN: u64 = 1;
/// What arm64 kernels take if they do not say it, which an Image cannot.
const COMMAND_LINE_MAX: usize = 2047;

/// Where a kernel is entered, with the address of the device tree as its argument.
#[derive(Debug)]
pub(crate) struct Entry(pub(crate) u64);

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
    if image.at(0, GZIP_MAGIC.len())? == GZIP_MAGIC {
        return Err("is compressed; gunzip unpacks it".to_owned());
    }
    let mut header = arm64_image_header::default();
    let bytes = image.at(0, size_of::<arm64_image_header>())?;
    header.as_mut_slice().copy_from_slice(&bytes);
    if u32::from_le(header.magic) != MAGIC {
        return Err("is no Image".to_owned());
    }
    if u64::from_le(header.flags) & BIG_ENDIAN != 0 {
        return Err("is a kernel for big-endian processors".to_owned());
    }
    if header.code0 == 0 && header.code1 == 0 {
        return Err("has no code at its entry point".to_owned());
    }
    let size = u64::from_le(header.image_size);
    if size == 0 {
        return Err(
            "does not say how much memory it takes, as kernels do since Linux 3.17".to_owned(),
        );
    }
    if image.len() < stored(image, u32::from_le(header.res5))? {
        return Err("is truncated".to_owned());
    }
    let start = room.start.checked_add(u64::from_le(header.text_offset));
    let taken = size.max(image.len());
    let end = start.and_then(|start| start.checked_add(taken));
    let end = end.ok_or("does not fit into an address space")?;
    room.holds(end)?;

    let loaded = PE::load(memory, Some(GuestAddress(room.start)), image.source(), None)
        .map_err(|error| error.to_string())?;
    Ok(Kernel {
        entry: Entry(loaded.kernel_load.raw_value()),
        end,
        initrd_max: u64::MAX,
        command_line_max: COMMAND_LINE_MAX,
    })
}

/// Where the bytes end that a file must hold: its header's size counts what is zero at first, too,
/// but the tables for UEFI tell what is stored. They begin at `table`; 0 if there are none.
fn stored<F: Read + Seek>(image: &mut Image<F>, table: u32) -> Result<u64, String> {
    const HEADER: usize = 24;
    const SECTION: usize = 40;

    let table = u64::from(table);
    if table == 0 {
        return Ok(0);
    }
    let header = image.at(table, HEADER)?;
    if !header.starts_with(PE_MAGIC) {
        return Ok(0);
    }
    let (sections, optional) = (half(&header, 6), half(&header, 20));
    let at = table + HEADER as u64 + u64::from(optional);
    let sections = image.at(at, SECTION * usize::from(sections))?;
    let ends = sections.chunks_exact(SECTION).map(|section| {
        let (size, start) = (word(section, 16), word(section, 20));
        u64::from(start) + u64::from(size)
    });
    Ok(ends.max().unwrap_or(0))
}

fn half(bytes: &[u8], at: usize) -> u16 {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

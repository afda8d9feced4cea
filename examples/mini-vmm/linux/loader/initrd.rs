// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Loads an initial RAM disk into guest memory.

use std::io::{Read, Seek, SeekFrom};

use vm_memory::{Bytes, GuestAddress, ReadVolatile};

use super::image::Image;
use super::{Kernel, Memory, Room};

const PAGE: u64 = 4096;

/// What the archives and compressed archives begin with that Linux can unpack.
const COMPRESSED: [&[u8]; 8] = [
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ\0",
    b"\x5d\0\0",
    b"\x89LZO\0\r\n\x1a\n",
    b"\x02\x21\x4c\x18",
    b"\x28\xb5\x2f\xfd",
    b"\x1f\x9e",
];

/// An initial RAM disk in guest memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Initrd {
    pub(crate) address: u64,
    pub(crate) size: u64,
}

/// Loads an initial RAM disk as high in `room` as the kernel allows.
///
/// # Errors
///
/// What is wrong with the file, or with the size of memory.
pub(crate) fn load_initrd<F: Read + ReadVolatile + Seek>(
    image: &mut Image<F>,
    kernel: &Kernel,
    memory: &Memory,
    room: Room,
) -> Result<Initrd, String> {
    check(image)?;
    let initrd = place(image.len(), kernel, room.end)?;
    copy(image, initrd, memory)?;
    Ok(initrd)
}

/// The highest room for `size` bytes.
fn place(size: u64, kernel: &Kernel, low_end: u64) -> Result<Initrd, String> {
    let end = low_end.min(kernel.initrd_max.saturating_add(1));
    let address = end.checked_sub(size).map(|start| start / PAGE * PAGE);
    match address {
        Some(address) if address >= kernel.end => Ok(Initrd { address, size }),
        _ => {
            let room = end.saturating_sub(kernel.end);
            Err(format!(
                "is too large: {size} bytes where {room} are left; --memory gives more"
            ))
        }
    }
}

fn copy<F: ReadVolatile + Read + Seek>(
    image: &mut Image<F>,
    initrd: Initrd,
    memory: &Memory,
) -> Result<(), String> {
    let size = usize::try_from(initrd.size).map_err(|error| error.to_string())?;
    let source = image.source();
    source
        .seek(SeekFrom::Start(0))
        .map_err(|error| error.to_string())?;
    memory
        .read_exact_volatile_from(GuestAddress(initrd.address), source, size)
        .map_err(|error| error.to_string())
}

/// Looks whether Linux would find an archive, and find it whole as far as that shows: a chain of
/// plain archives is walked through, and what is compressed is only looked at where it begins.
fn check<F: Read + Seek>(image: &mut Image<F>) -> Result<(), String> {
    let mut at = 0;
    let mut first = true;
    while at < image.len() {
        let len = image.len() - at;
        let magic = image.at(at, usize::try_from(len.min(16)).unwrap_or(16))?;
        if compressed(&magic) {
            return Ok(());
        }
        if magic.starts_with(b"0707") && at % 4 == 0 {
            at = skip_archive(image, at)?;
        } else if magic.first() == Some(&0) && !first {
            // Archives may be followed by zeros.
            let some = image.at(at, usize::try_from(len.min(PAGE)).unwrap_or(1))?;
            at += some.iter().take_while(|&&byte| byte == 0).count() as u64;
        } else if first {
            return Err("is no initramfs: neither a cpio archive nor a compressed one".to_owned());
        } else {
            return Err("has something behind its archive that is none".to_owned());
        }
        first = false;
    }
    Ok(())
}

fn compressed(magic: &[u8]) -> bool {
    COMPRESSED.iter().any(|known| magic.starts_with(known))
}

/// Walks through a cpio archive in the format newc, and returns where it ends.
fn skip_archive<F: Read + Seek>(image: &mut Image<F>, start: u64) -> Result<u64, String> {
    const HEADER: u64 = 110;
    let mut at = start;
    loop {
        let header = image.at(at, 110)?;
        if !header.starts_with(b"070701") && !header.starts_with(b"070702") {
            return Err(format!("has no valid archive header at byte {at}"));
        }
        let field = |index: usize| {
            let digits = header.get(6 + 8 * index..14 + 8 * index);
            digits
                .and_then(|digits| std::str::from_utf8(digits).ok())
                .and_then(|digits| u64::from_str_radix(digits, 16).ok())
                .ok_or_else(|| format!("has no valid archive header at byte {at}"))
        };
        let (size, name_size) = (field(6)?, field(11)?);
        if name_size > PAGE {
            return Err(format!("has no valid archive header at byte {at}"));
        }
        let name = image.at(at + HEADER, usize::try_from(name_size).unwrap_or(0))?;
        // Both the name and the data end at a multiple of four bytes.
        let data = (at + HEADER + name_size).next_multiple_of(4);
        at = (data + size).next_multiple_of(4);
        if name == b"TRAILER!!!\0" {
            return Ok(at.min(image.len()));
        }
        if at > image.len() {
            return Err("is truncated".to_owned());
        }
    }
}

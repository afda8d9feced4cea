// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Loads an initial RAM file system into guest memory.

use std::io::{Seek, SeekFrom};
use std::path::Path;

use vm_memory::{Bytes, GuestAddress};

use super::files::Input;
use super::kernel::Kernel;
use crate::boot::Memory;

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

/// An initial RAM file system in guest memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Initrd {
    pub(crate) address: u64,
    pub(crate) size: u64,
}

/// Loads the file at `path` as high as the kernel allows into RAM that ends at `low_end`.
///
/// # Errors
///
/// One line that says what is wrong with the file, or with the size of memory.
pub(crate) fn load(
    path: &Path,
    kernel: &Kernel,
    memory: &Memory,
    low_end: u64,
) -> Result<Initrd, String> {
    let mut input = Input::open("--initrd", path)?;
    let loaded = check(&mut input)
        .and_then(|()| place(input.len(), kernel, low_end))
        .and_then(|initrd| copy(&mut input, initrd, memory));
    loaded.map_err(|error| input.wrong(&error))
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

fn copy(input: &mut Input, initrd: Initrd, memory: &Memory) -> Result<Initrd, String> {
    let size = usize::try_from(initrd.size).map_err(|error| error.to_string())?;
    let file = input.file();
    file.seek(SeekFrom::Start(0))
        .map_err(|error| error.to_string())?;
    memory
        .read_exact_volatile_from(GuestAddress(initrd.address), file, size)
        .map_err(|error| error.to_string())?;
    Ok(initrd)
}

/// Looks whether Linux would find an archive, and find it whole as far as that shows: a chain of
/// plain archives is walked through, and what is compressed is only looked at where it begins.
fn check(input: &mut Input) -> Result<(), String> {
    let mut at = 0;
    let mut first = true;
    while at < input.len() {
        let len = input.len() - at;
        let magic = input.at(at, usize::try_from(len.min(16)).unwrap_or(16))?;
        if compressed(&magic) {
            return Ok(());
        }
        if magic.starts_with(b"0707") {
            at = skip_archive(input, at)?;
        } else if magic.first() == Some(&0) && !first {
            // Archives may be followed by zeros, four at a time.
            let some = input.at(at, usize::try_from(len.min(PAGE)).unwrap_or(1))?;
            let zeros = some.iter().take_while(|&&byte| byte == 0).count() as u64;
            at += (zeros / 4 * 4).max(4).min(len);
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
fn skip_archive(input: &mut Input, start: u64) -> Result<u64, String> {
    const HEADER: u64 = 110;
    let mut at = start;
    loop {
        let header = input.at(at, 110)?;
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
        let name = input.at(at + HEADER, usize::try_from(name_size).unwrap_or(0))?;
        // Both the name and the data end at a multiple of four bytes.
        let data = (at + HEADER + name_size).next_multiple_of(4);
        at = (data + size).next_multiple_of(4);
        if name == b"TRAILER!!!\0" {
            return Ok(at.min(input.len()));
        }
        if at > input.len() {
            return Err("is truncated".to_owned());
        }
    }
}

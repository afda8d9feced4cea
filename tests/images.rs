// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! mini-vmm's loader of arm64 kernels as a function of bytes and memory: whatever a file holds, it is
//! loaded within bounds, or refused in one line.
#![cfg(target_arch = "aarch64")]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at the unexpected"
)]

#[path = "../examples/mini-vmm/linux/loader/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the program uses more of it")]
mod loader;

use std::io::Cursor;

use loader::{Image, Kernel, Room, load_kernel};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const RAM: u64 = 0x4000_0000;
const ROOM: Room = Room {
    ram: RAM,
    start: RAM + 0x20_0000,
    end: RAM + 0x200_0000,
    limit: RAM << 1,
};
const PE: usize = 0x40;

/// An Image that takes `size` bytes of memory and holds `code` behind its tables for UEFI.
fn image(size: u64, code: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 4096];
    image[..4].copy_from_slice(b"MZ\x40\xfa");
    image[16..24].copy_from_slice(&size.to_le_bytes());
    image[24..32].copy_from_slice(&0xau64.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    image[60..64].copy_from_slice(&(PE as u32).to_le_bytes());
    image[PE..PE + 4].copy_from_slice(b"PE\0\0");
    // One section behind an optional header of 32 bytes.
    image[PE + 6] = 1;
    image[PE + 20] = 32;
    let section = PE + 24 + 32;
    let len = u32::try_from(code.len()).unwrap();
    image[section + 16..section + 20].copy_from_slice(&len.to_le_bytes());
    image[section + 20..section + 24].copy_from_slice(&4096u32.to_le_bytes());
    image.extend(code);
    image
}

fn load(bytes: &[u8]) -> (Result<Kernel, String>, GuestMemoryMmap) {
    let len = usize::try_from(ROOM.end - RAM).unwrap();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), len)]).unwrap();
    let mut image = Image::new(Cursor::new(bytes)).unwrap();
    (load_kernel(&mut image, &memory, ROOM), memory)
}

fn refusal(bytes: &[u8]) -> String {
    load(bytes).0.unwrap_err()
}

#[test]
fn an_image_is_loaded_where_it_wants_to_be() {
    for offset in [0u64, 0x8_0000] {
        let mut bytes = image(0x10_0000, &[0xd5; 100]);
        bytes[8..16].copy_from_slice(&offset.to_le_bytes());
        let (kernel, memory) = load(&bytes);
        let kernel = kernel.unwrap();
        assert_eq!(kernel.entry.0, ROOM.start + offset);
        assert_eq!(kernel.end, ROOM.start + offset + 0x10_0000);
        let mut loaded = vec![0; bytes.len()];
        memory
            .read_slice(&mut loaded, GuestAddress(kernel.entry.0))
            .unwrap();
        assert_eq!(loaded, bytes);
    }
}

#[test]
fn what_is_no_image_for_this_machine_is_refused() {
    let whole = image(0x10_0000, &[0xd5; 100]);
    assert_eq!(refusal(b"MZ"), "is truncated");
    assert_eq!(refusal(&[0x7f; 4096]), "is no Image");
    assert_eq!(refusal(b"\x1f\x8b\x08"), "is compressed; gunzip unpacks it");
    // Cut off anywhere behind the header: the tables for UEFI tell.
    for len in [64, 100, 4095, whole.len() - 1] {
        assert_eq!(refusal(&whole[..len]), "is truncated", "{len}");
    }
    let spoiled = |at: usize, value: &[u8]| {
        let mut bytes = whole.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        refusal(&bytes)
    };
    assert_eq!(spoiled(24, &[0xb]), "is a kernel for big-endian processors");
    assert_eq!(spoiled(0, &[0; 8]), "has no code at its entry point");
    assert!(spoiled(16, &[0; 8]).contains("since Linux 3.17"));
    assert_eq!(spoiled(8, &[0xff; 8]), "does not fit into an address space");
    assert_eq!(
        spoiled(16, &0x200_0000u64.to_le_bytes()),
        "needs more memory: --memory 34 at least"
    );
}

#[test]
fn whatever_an_image_holds_is_loaded_within_bounds_or_refused_in_one_line() {
    let whole = image(0x10_0000, &[0xd5; 100]);
    // Numbers without a pattern, the same ones every time.
    let mut state = 1u64;
    let mut below = |bound: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % bound
    };
    let mut loaded = 0;
    for _ in 0..2000 {
        let mut bytes = whole.clone();
        for _ in 0..=below(4) {
            let value = [0u64, 1, 7, 0x7fff_ffff, u64::MAX, 1 << 31, 1 << 63, !0xfff][below(8)];
            let at = below(160);
            let width = [1, 2, 4, 8][below(4)];
            bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        if below(4) == 0 {
            bytes.truncate(below(whole.len()));
        }
        if bytes.is_empty() {
            continue;
        }
        match load(&bytes).0 {
            Ok(kernel) => {
                loaded += 1;
                assert!(kernel.entry.0 >= ROOM.start && kernel.end <= ROOM.end);
                assert!(kernel.entry.0 + bytes.len() as u64 <= kernel.end);
            }
            Err(line) => assert!(!line.is_empty() && !line.contains('\n'), "{line}"),
        }
    }
    assert!(loaded > 100, "{loaded} of 2000");
}

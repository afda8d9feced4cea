// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel loader as a function of bytes and memory: whatever a file holds, it is loaded within
//! bounds, or refused in one line.

#[path = "../../examples/mini-vmm/linux/loader/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the program uses more of it")]
mod program_loader;

use std::io::Cursor;

use program_loader::{Entry, Image, Room, load_initrd, load_kernel};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::empty_archive;
use crate::kernels::{Code, bzimage, elf, elf_pvh};

const ROOM: Room = Room {
    ram: 0,
    start: 1 << 20,
    end: 32 << 20,
    limit: 2 << 30,
};

/// Numbers without a pattern, the same ones every time.
struct Noise(u64);

impl Noise {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }

    /// Some bytes that are not random, at a random place, and now and then a cut.
    fn spoil(&mut self, image: &mut Vec<u8>) {
        const EXTREMES: [u64; 8] = [0, 1, 7, 0x7fff_ffff, u64::MAX, 1 << 31, 1 << 63, !0xfff];
        for _ in 0..=self.below(4) {
            // Most of what matters is in the headers.
            let end = [image.len(), 0x270, 0xb0][self.below(3)].min(image.len());
            let at = self.below(end.max(1));
            let bytes = EXTREMES[self.below(8)].to_le_bytes();
            let len = [1, 2, 4, 8][self.below(4)].min(image.len() - at);
            image[at..at + len].copy_from_slice(&bytes[..len]);
        }
        if self.below(8) == 0 {
            let len = self.below(image.len());
            image.truncate(len.max(1));
        }
    }
}

fn one_line(complaint: &str) {
    assert!(
        !complaint.is_empty() && !complaint.contains('\n'),
        "{complaint}"
    );
}

#[test]
fn whatever_a_kernel_holds_is_loaded_within_bounds_or_refused_in_one_line() {
    let code = Code::new().power_off();
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap();
    let mut noise = Noise(1);
    let mut loaded = 0;
    for round in 0..30_000 {
        let mut image = match round % 3 {
            0 => bzimage(&code),
            1 => elf(&code),
            _ => elf_pvh(&code),
        };
        noise.spoil(&mut image);
        let mut image = Image::new(Cursor::new(image)).unwrap();
        let kernel = match load_kernel(&mut image, &memory, ROOM) {
            Ok(kernel) => kernel,
            Err(complaint) => {
                one_line(&complaint);
                continue;
            }
        };
        loaded += 1;
        let (Entry::Long { address, .. } | Entry::Pvh { address }) = kernel.entry;
        assert!(address >= ROOM.start && address < kernel.end && kernel.end <= ROOM.end);
        let low = memory.read_obj::<[u8; 32]>(GuestAddress(ROOM.start - 32));
        assert_eq!(low.unwrap(), [0; 32], "something was loaded below the room");
    }
    assert!(loaded > 1000, "{loaded}: nearly all are refused");
}

#[test]
fn whatever_an_initramfs_holds_is_loaded_within_bounds_or_refused_in_one_line() {
    let code = Code::new().power_off();
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap();
    let mut kernel = Image::new(Cursor::new(elf(&code))).unwrap();
    let kernel = load_kernel(&mut kernel, &memory, ROOM).unwrap();
    let archives = [empty_archive(), vec![0; 512], empty_archive()].concat();
    let mut noise = Noise(2);
    let mut loaded = 0;
    for _ in 0..30_000 {
        let mut image = archives.clone();
        noise.spoil(&mut image);
        let len = image.len() as u64;
        let mut image = Image::new(Cursor::new(image)).unwrap();
        match load_initrd(&mut image, &kernel, &memory, ROOM) {
            Ok(initrd) => {
                loaded += 1;
                assert_eq!(initrd.size, len);
                assert!(initrd.address >= kernel.end && initrd.address + len <= ROOM.end);
            }
            Err(complaint) => one_line(&complaint),
        }
    }
    assert!(loaded > 1000, "{loaded}: nearly all are refused");
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Any bytes as kernel and as initial RAM disk, for the loader of mini-vmm.

#[path = "../../examples/mini-vmm/linux/loader/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the program uses more of it")]
mod loader;

use std::io::Cursor;

use arbitrary::Arbitrary;
use loader::{Entry, Image, Room, load_initrd, load_kernel};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const START: u64 = 1 << 20;
const END: u64 = 8 << 20;

/// Two files, and what makes a mere mutation of the first pass the first checks.
#[derive(Arbitrary, Debug)]
pub struct Files {
    kind: Kind,
    kernel: Vec<u8>,
    initrd: Vec<u8>,
}

/// What the kernel's first bytes pretend to be.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    AsItIs,
    Elf,
    BzImage,
}

impl Files {
    fn kernel(&self) -> Vec<u8> {
        let mut kernel = self.kernel.clone();
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(place) = kernel.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        match self.kind {
            Kind::AsItIs => {}
            Kind::Elf => {
                put(0, b"\x7fELF\x02\x01");
                put(18, &[62, 0]);
                put(54, &[56, 0]);
            }
            Kind::BzImage => {
                put(0x1f1, &[1]);
                put(0x202, b"HdrS\x0f\x02");
                put(0x211, &[1]);
                put(0x236, &[1, 0]);
            }
        }
        kernel
    }
}

/// Loads both.
///
/// # Panics
///
/// If anything but an error of one line, or a kernel and a RAM disk within bounds, comes of it.
pub fn run(files: &Files) {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), END as usize)]).unwrap();
    let room = Room {
        ram: 0,
        start: START,
        end: END,
        limit: 2 << 30,
    };
    let image = |bytes: &[u8]| Image::new(Cursor::new(bytes.to_vec())).unwrap();
    let kernel = match load_kernel(&mut image(&files.kernel()), &memory, room) {
        Ok(kernel) => kernel,
        Err(complaint) => return check(&complaint),
    };
    let (Entry::Long { address, .. } | Entry::Pvh { address }) = kernel.entry;
    assert!((START..kernel.end).contains(&address) && kernel.end <= END);
    if !files.initrd.is_empty() {
        match load_initrd(&mut image(&files.initrd), &kernel, &memory, room) {
            Ok(initrd) => {
                assert_eq!(initrd.size, files.initrd.len() as u64);
                assert!(kernel.end <= initrd.address && initrd.address + initrd.size <= END);
                let mut loaded = vec![0; files.initrd.len()];
                memory
                    .read_slice(&mut loaded, GuestAddress(initrd.address))
                    .unwrap();
                assert!(loaded == files.initrd);
            }
            Err(complaint) => check(&complaint),
        }
    }
    let mut low = vec![0; START as usize];
    memory.read_slice(&mut low, GuestAddress(0)).unwrap();
    assert!(low.iter().all(|byte| *byte == 0), "loaded below the room");
}

fn check(complaint: &str) {
    assert!(!complaint.is_empty() && !complaint.contains('\n'));
}

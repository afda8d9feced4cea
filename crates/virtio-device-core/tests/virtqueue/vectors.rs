// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A chain's buffers as the kernel takes them.

use std::io::{ErrorKind, Seek as _};
use std::os::unix::net::UnixStream;

use virtio_device_core::vmm_sys_util::tempfile::TempFile;
use virtio_device_core::{Buffers, Vectors};

use super::buffers::chain_of;
use super::*;

/// A chain whose readable bytes are "abcdefgh", in three pieces of two regions, and whose writable
/// ones are as many.
fn chain(memory: &Memory) -> Chain {
    memory.write_slice(b"abc", GuestAddress(BUFFER)).unwrap();
    memory.write_slice(b"defgh", GuestAddress(RAM - 2)).unwrap();
    let readable = [(BUFFER, 3, false), (RAM - 2, 5, false)];
    let writable = [(BUFFER + 0x10, 2, true), (BUFFER + 0x20, 6, true)];
    chain_of(memory, &[readable, writable].concat())
}

/// What is in the writable buffers.
fn written(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    let (first, second) = bytes.split_at_mut(2);
    let read = |bytes, at| memory.read_slice(bytes, GuestAddress(at)).unwrap();
    read(first, BUFFER + 0x10);
    read(second, BUFFER + 0x20);
    bytes
}

#[test]
#[cfg_attr(miri, ignore = "reads and writes files")]
fn files_are_read_and_written_as_a_whole_or_it_is_an_error() {
    let memory = memory();
    let chain = chain(&memory);
    let (file, mut vectors) = (TempFile::new().unwrap(), Vectors::default());
    let mut out = vectors.begin();
    out.add(chain.reader(&memory), u64::MAX).unwrap();
    assert_eq!((out.bytes(), out.slices().count()), (8, 3));
    out.write_all_at(file.as_file(), 1).unwrap();
    let mut into = vectors.begin();
    into.add(chain.writer(&memory), 7).unwrap();
    into.read_exact_at(file.as_file(), 2).unwrap();
    assert_eq!(written(&memory), b"bcdefgh\0");
    let mut into = vectors.begin();
    into.add(chain.writer(&memory), u64::MAX).unwrap();
    let short = into.read_exact_at(file.as_file(), 2).unwrap_err();
    assert_eq!(short.kind(), ErrorKind::UnexpectedEof);
    for far in [1 << 63, u64::MAX] {
        let error = into.read_exact_at(file.as_file(), far).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{far:#x}");
    }
    assert_eq!(file.as_file().stream_position().unwrap(), 0);
}

#[test]
fn one_call_moves_memory_of_the_drivers_and_of_the_devices_own() {
    let memory = memory();
    let chain = chain(&memory);
    let ((a, b), mut vectors) = (UnixStream::pair().unwrap(), Vectors::default());
    let mut head = *b"12";
    let mut out = vectors.begin();
    out.add_own(&mut head);
    let mut rest = chain.reader(&memory);
    rest.skip(2);
    out.add(rest, u64::MAX).unwrap();
    assert_eq!(out.write_to(&a).unwrap(), 8);
    let mut tail = [0; 4];
    let mut into = vectors.begin();
    into.add(chain.writer(&memory), u64::MAX).unwrap();
    into.add_own(&mut tail);
    assert_eq!((into.bytes(), into.read_from(&b).unwrap()), (12, 8));
    assert_eq!(written(&memory), b"12cdefgh");
    assert_eq!(tail, [0; 4]);
}

#[test]
fn copies_begin_and_end_anywhere() {
    let memory = memory();
    let chain = chain(&memory);
    let mut vectors = Vectors::default();
    let mut all = vectors.begin();
    all.add(chain.reader(&memory), u64::MAX).unwrap();
    for offset in 0..10 {
        for len in 0..10 {
            let mut bytes = vec![b'.'; len];
            let count = all.copy_to(offset, &mut bytes);
            let expected = &b"abcdefgh"[offset.min(8)..(offset + len).min(8).max(offset.min(8))];
            assert_eq!(&bytes[..count], expected, "{len} bytes from {offset}");
            assert!(bytes[count..].iter().all(|byte| *byte == b'.'));
        }
    }
    let mut into = vectors.begin();
    into.add(chain.writer(&memory), u64::MAX).unwrap();
    assert_eq!(into.copy_from(1, b"uvw"), 3);
    assert_eq!(into.copy_from(6, b"xyz"), 2);
    assert_eq!(written(&memory), b"\0uvw\0\0xy");
}

#[test]
fn there_are_no_more_pieces_than_are_asked_for() {
    let memory = memory();
    let chain = chain(&memory);
    let mut vectors = Vectors::default();
    let mut all = vectors.begin();
    all.add(chain.reader(&memory), u64::MAX).unwrap();
    for (most, bytes) in [(Buffers::MAX_PIECES, 8), (3, 8), (2, 5), (0, 0)] {
        all.truncate(most);
        assert_eq!(all.bytes(), bytes);
        assert_eq!(all.vectors().len(), most.min(3));
    }
}

#[test]
#[cfg_attr(miri, ignore = "reads and writes files")]
fn files_take_more_pieces_than_one_call_does() {
    let (file, mut vectors) = (TempFile::new().unwrap(), Vectors::default());
    let pieces = Buffers::MAX_PIECES + 100;
    let mut bytes: Vec<u8> = (0..=250).cycle().take(3 * pieces).collect();
    let mut out = vectors.begin();
    bytes.chunks_mut(3).for_each(|piece| out.add_own(piece));
    out.write_all_at(file.as_file(), 5).unwrap();
    let mut read = vec![0; 3 * pieces];
    let mut into = vectors.begin();
    read.chunks_mut(3).for_each(|piece| into.add_own(piece));
    into.read_exact_at(file.as_file(), 5).unwrap();
    assert!(read == bytes);
}

#[test]
fn empty_pieces_are_left_out() {
    let memory = memory();
    let readable = [(BUFFER, 0, false), (BUFFER, 3, false), (RAM, 0, false)];
    let chain = chain_of(&memory, &readable);
    memory.write_slice(b"abc", GuestAddress(BUFFER)).unwrap();
    let ((a, b), mut vectors) = (UnixStream::pair().unwrap(), Vectors::default());
    let mut all = vectors.begin();
    for _ in 0..Buffers::MAX_PIECES {
        all.add_own(&mut []);
    }
    all.add(chain.reader(&memory), u64::MAX).unwrap();
    assert_eq!((all.bytes(), all.vectors().len()), (3, 1));
    // As many empty ones as the kernel takes at once would be nothing to write.
    assert_eq!(all.write_to(&a).unwrap(), 3);
    let (mut bytes, mut vectors) = ([0; 3], Vectors::default());
    let mut into = vectors.begin();
    into.add_own(&mut bytes);
    assert_eq!(into.read_from(&b).unwrap(), 3);
    assert_eq!(&bytes, b"abc");
}

#[test]
fn buffers_outside_of_memory_are_bad_requests() {
    let memory = memory();
    let chain = chain_of(&memory, &[(BUFFER, 4, true), (RAM_END - 4, 5, true)]);
    let error = Vectors::default()
        .begin()
        .add(chain.writer(&memory), u64::MAX);
    let (addr, len) = (RAM_END - 4, 5);
    assert_eq!(error, Err(BadRequest::BufferMemory { addr, len }));
}

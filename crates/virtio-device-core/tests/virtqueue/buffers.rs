// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A chain's buffers as slices and as streams.

use super::*;
use vm_memory::bitmap::{AtomicBitmap, Bitmap as _};
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};

/// A chain of (address, length, writable) buffers.
pub(super) fn chain_of(memory: &Memory, buffers: &[(u64, u32, bool)]) -> Chain {
    let mut pair = Pair::new(memory, Features::NONE);
    for (index, &(addr, len, writable)) in (0u16..).zip(buffers) {
        let last = usize::from(index) + 1 == buffers.len();
        let flags = if last { 0 } else { VIRTQ_DESC_F_NEXT };
        let flags = flags | if writable { VIRTQ_DESC_F_WRITE } else { 0 };
        pair.driver.descriptor(index, addr, len, flags, index + 1);
    }
    pair.driver.offer(0);
    let _head = pair.take().unwrap().unwrap();
    pair.chain
}

#[test]
fn slices_cover_what_streams_cover() {
    let memory = memory();
    // Side by side in two regions, so this buffer gives two slices; empty ones give none.
    let chain = chain_of(
        &memory,
        &[
            (BUFFER, 3, false),
            (BUFFER + 8, 0, false),
            (RAM - 2, 5, false),
            (BUFFER + 0x10, 4, true),
            (RAM - 1, 2, true),
        ],
    );
    memory.write_slice(b"abc", GuestAddress(BUFFER)).unwrap();
    memory.write_slice(b"defgh", GuestAddress(RAM - 2)).unwrap();
    let slices = chain.readable_slices(&memory);
    let slices: Vec<_> = slices.collect::<Result<_, _>>().unwrap();
    let parts: Vec<Vec<u8>> = slices
        .iter()
        .map(|slice| {
            let mut bytes = vec![0; slice.len()];
            slice.copy_to(&mut bytes[..]);
            bytes
        })
        .collect();
    assert_eq!(parts, [&b"abc"[..], b"de", b"fgh"]);
    let (mut pieces, mut stream) = (Vec::new(), chain.reader(&memory));
    stream.skip(1);
    stream
        .pieces(6, |base, len| pieces.push((base.cast_const(), len)))
        .unwrap();
    let place = |slice: usize, at: usize| slices[slice].ptr_guard().as_ptr().wrapping_add(at);
    assert_eq!(
        pieces,
        [(place(0, 1), 2), (place(1, 0), 2), (place(2, 0), 2)]
    );
    assert_eq!(stream.remaining(), 1);
    let slices = chain.writable_slices(&memory);
    let slices: Vec<_> = slices.collect::<Result<_, _>>().unwrap();
    let lens: Vec<usize> = slices.iter().map(|slice| slice.len()).collect();
    assert_eq!(lens, [4, 1, 1]);
    for (slice, bytes) in slices.iter().zip([&b"wxyz"[..], b"1", b"2"]) {
        slice.copy_from(bytes);
    }
    let mut bytes = [0; 4];
    memory
        .read_slice(&mut bytes, GuestAddress(BUFFER + 0x10))
        .unwrap();
    assert_eq!(&bytes, b"wxyz");
    memory
        .read_slice(&mut bytes[..2], GuestAddress(RAM - 1))
        .unwrap();
    assert_eq!(&bytes[..2], b"12");
}

/// What the kernel writes by address is dirty once the device has said so, and nothing else is.
#[test]
fn bytes_are_noted_as_written() {
    let ranges = [(GuestAddress(0), 0x1_0000), (GuestAddress(RAM), 0x1_0000)];
    let memory = GuestMemoryMmap::<AtomicBitmap>::from_ranges(&ranges).unwrap();
    let plain = super::memory();
    let chain = chain_of(
        &plain,
        &[
            (BUFFER, 8, false),
            (RAM - 4, 8, true),
            (RAM + 0x3000, 8, true),
        ],
    );
    let dirty = |at: u64| {
        let region = memory.find_region(GuestAddress(at)).unwrap();
        region
            .bitmap()
            .dirty_at(usize::try_from(at - region.start_addr().0).unwrap())
    };
    for (len, pages) in [
        (0, [false; 4]),
        (5, [false, true, true, false]),
        (9, [false, true, true, true]),
    ] {
        chain.mark_written(&memory, len);
        let places = [BUFFER, RAM - 4, RAM, RAM + 0x3000];
        assert_eq!(places.map(dirty), pages, "{len} bytes");
    }
}

#[test]
fn slices_outside_of_memory_are_bad_requests() {
    let memory = memory();
    for (addr, len) in [
        (RAM_END, 1),
        (RAM_END - 4, 5),
        (0, u32::MAX),
        (u64::MAX - 3, 4),
        (u64::MAX - 3, 16),
        (u64::MAX, u32::MAX),
    ] {
        for writable in [false, true] {
            let chain = chain_of(&memory, &[(BUFFER, 4, writable), (addr, len, writable)]);
            let bad = BadRequest::BufferMemory { addr, len };
            let slices = if writable {
                chain
                    .writable_slices(&memory)
                    .collect::<Result<Vec<_>, _>>()
            } else {
                chain
                    .readable_slices(&memory)
                    .collect::<Result<Vec<_>, _>>()
            };
            assert_eq!(slices.err(), Some(bad));
            let pieces = if writable {
                chain.writer(&memory).pieces(u64::MAX, |_, _| {})
            } else {
                chain.reader(&memory).pieces(u64::MAX, |_, _| {})
            };
            assert_eq!(pieces, Err(bad));
        }
    }
}

#[test]
fn readers_and_writers_do_not_see_the_seams() {
    let memory = memory();
    memory.write_slice(b"abcdef", GuestAddress(BUFFER)).unwrap();
    let chain = chain_of(
        &memory,
        &[
            (BUFFER, 2, false),
            (BUFFER + 2, 0, false),
            (BUFFER + 0x100, 3, true),
            (BUFFER + 2, 4, false),
            (BUFFER + 0x200, 5, true),
        ],
    );
    assert_eq!((chain.readable_len(), chain.writable_len()), (6, 8));
    let mut reader = chain.reader(&memory);
    assert_eq!(reader.remaining(), 6);
    assert_eq!(reader.read_array(), Ok(*b"abc"));
    assert_eq!(reader.remaining(), 3);
    let mut rest = [0; 8];
    assert_eq!(reader.read(&mut rest).unwrap(), 3);
    assert_eq!(&rest, b"def\0\0\0\0\0");
    assert_eq!(reader.read(&mut rest).unwrap(), 0);
    assert_eq!(reader.read_array::<1>(), Err(BadRequest::Layout));

    let mut writer = chain.writer(&memory);
    writer.write_all(b"12").unwrap();
    assert_eq!((writer.written(), writer.remaining()), (2, 6));
    writer.write_all(b"3456").unwrap();
    assert_eq!(writer.write(b"789").unwrap(), 2);
    assert_eq!((writer.written(), writer.remaining()), (8, 0));
    writer.write_all(b"x").unwrap_err();
    let bytes = |addr, len: usize| {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    };
    assert_eq!(bytes(BUFFER + 0x100, 4), b"123\0");
    assert_eq!(bytes(BUFFER + 0x200, 6), b"45678\0");

    let mut writer = chain.writer(&memory);
    writer.skip(2);
    assert_eq!(writer.remaining(), 6);
    writer.skip(3);
    writer.write_all(b"!").unwrap();
    assert_eq!((writer.written(), writer.remaining()), (1, 2));
    writer.skip(100);
    assert_eq!(writer.remaining(), 0);
    assert_eq!(bytes(BUFFER + 0x100, 3), b"123");
    assert_eq!(bytes(BUFFER + 0x200, 5), b"45!78");
}

#[test]
fn the_last_writable_byte_is_found_behind_empty_buffers_and_only_in_memory() {
    let memory = memory();
    let [first, last] = [(BUFFER, 4, true), (BUFFER + 0x100, 3, true)];
    let chain = chain_of(&memory, &[first, last, (BUFFER + 0x200, 0, true)]);
    chain.write_last(&memory, 7).unwrap();
    let mut bytes = [0; 4];
    memory
        .read_slice(&mut bytes, GuestAddress(BUFFER + 0x100))
        .unwrap();
    assert_eq!(bytes, [0, 0, 7, 0]);
    for none in [&[(BUFFER, 4, false)][..], &[(BUFFER, 0, true)]] {
        let chain = chain_of(&memory, none);
        assert_eq!(chain.write_last(&memory, 7), Err(BadRequest::Layout));
    }
    for (addr, len) in [(RAM_END - 1, 2), (u64::MAX, 1), (u64::MAX, 2)] {
        let chain = chain_of(&memory, &[first, (addr, len, true)]);
        let error = BadRequest::BufferMemory { addr, len };
        assert_eq!(chain.write_last(&memory, 7), Err(error));
    }
}

#[test]
fn readers_and_writers_stop_at_what_is_not_memory() {
    let memory = memory();
    for (addr, len) in [(RAM_END - 1, 2), (RAM_END, 4), (u64::MAX, 4)] {
        let chain = chain_of(&memory, &[(addr, len, false), (addr, len, true)]);
        let error = BadRequest::BufferMemory { addr, len };
        let mut reader = chain.reader(&memory);
        assert_eq!(reader.read_array::<2>(), Err(error));
        reader.read(&mut [0; 2]).unwrap_err();
        let mut writer = chain.writer(&memory);
        writer.write_all(&[0; 2]).unwrap_err();
        assert_eq!(writer.written(), 0);
    }
    // An address that would wrap does not come out at the other end.
    let chain = chain_of(&memory, &[(u64::MAX, 4, true)]);
    let mut writer = chain.writer(&memory);
    writer.skip(1);
    writer.write_all(&[0; 2]).unwrap_err();
}

// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Drivers that mean harm. Every test ends with a reset, after which the device works.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use virtio_conformance::{VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use virtio_device_core::{Features, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC};
use virtio_rng_device::{QUEUE_SIZE, RngCounters};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::support::{
    BUFFER, Counter, Fixture, HOLE, ISLAND, ISLAND_END, Memory, RAM, SEAM, counter, memory,
};

type Watched<'m> = Fixture<'m, Counter, Arc<RngCounters>>;

fn watched(memory: &Memory, features: Features) -> (Watched<'_>, Arc<RngCounters>, Arc<AtomicU32>) {
    watched_as(memory, features, false)
}

fn watched_as(
    memory: &Memory,
    features: Features,
    prompt: bool,
) -> (Watched<'_>, Arc<RngCounters>, Arc<AtomicU32>) {
    let counters = Arc::new(RngCounters::default());
    let source = counter(usize::MAX);
    let reads = source.reads.clone();
    let fixture = Fixture::made(memory, features, prompt, source, counters.clone());
    (fixture, counters, reads)
}

const WRITE: u16 = VIRTQ_DESC_F_WRITE;
const NEXT: u16 = VIRTQ_DESC_F_NEXT;
const INDIRECT: u16 = VIRTQ_DESC_F_INDIRECT;

#[test]
fn broken_rings_ask_for_a_reset_once_and_nothing_is_written() {
    type Break = fn(&mut Watched<'_>);
    let breaks: [(&str, Break); 17] = [
        ("head is the size", |f| f.driver.offer(QUEUE_SIZE)),
        ("head is the largest", |f| f.driver.offer(u16::MAX)),
        ("next is the size", |f| {
            f.driver.descriptor(0, BUFFER, 4, WRITE | NEXT, QUEUE_SIZE);
            f.driver.offer(0);
        }),
        ("loop of one", |f| {
            f.driver.descriptor(0, BUFFER, 4, WRITE | NEXT, 0);
            f.driver.offer(0);
        }),
        ("loop of two behind a good start", |f| {
            f.driver.descriptor(0, BUFFER, 4, WRITE | NEXT, 1);
            f.driver.descriptor(1, BUFFER, 4, WRITE | NEXT, 2);
            f.driver.descriptor(2, BUFFER, 4, WRITE | NEXT, 1);
            f.driver.offer(0);
        }),
        ("index one too far", |f| {
            f.driver.set_avail_index(QUEUE_SIZE + 1)
        }),
        ("index half way round", |f| f.driver.set_avail_index(0x8000)),
        ("index went back", |f| f.driver.set_avail_index(u16::MAX)),
        ("table of no length", |f| indirect(f, BUFFER, 0, INDIRECT)),
        ("table of an odd length", |f| {
            indirect(f, BUFFER, 17, INDIRECT)
        }),
        ("table of 4 GiB", |f| {
            indirect(f, BUFFER, 0xffff_fff0, INDIRECT)
        }),
        ("table with a next one", |f| {
            indirect(f, BUFFER, 16, INDIRECT | NEXT)
        }),
        ("table at the end", |f| {
            indirect(f, ISLAND_END - 16, 32, INDIRECT)
        }),
        ("table in the hole", |f| indirect(f, HOLE, 16, INDIRECT)),
        ("table around the end of the world", |f| {
            indirect(f, u64::MAX - 15, 32, INDIRECT);
        }),
        ("table in a table", |f| {
            let table = BUFFER + 0x1000;
            f.driver.descriptor_at(table, 0, BUFFER, 16, INDIRECT, 0);
            indirect(f, table, 16, INDIRECT);
        }),
        ("loop in a table", |f| {
            let table = BUFFER + 0x1000;
            f.driver.descriptor_at(table, 0, BUFFER, 4, WRITE | NEXT, 0);
            indirect(f, table, 16, INDIRECT);
        }),
    ];
    let memory = memory();
    for (what, break_ring) in breaks {
        let (mut fixture, counters, reads) =
            watched(&memory, Features::of(&[VIRTIO_F_INDIRECT_DESC]));
        break_ring(&mut fixture);
        let before = fixture.picture();
        assert!(!fixture.notify(), "{what}");
        // A loop of its own may go on to call the worker.
        assert!(!fixture.notify(), "{what}");
        assert!(fixture.is_broken(), "{what}");
        assert_eq!(fixture.config_interrupts(), 1, "{what}");
        assert_eq!(fixture.used_interrupts(), 0, "{what}");
        assert!(counters.broken_rings() >= 1, "{what}");
        assert_eq!(fixture.driver.used_index(), 0, "{what}");
        assert_eq!(reads.load(Ordering::SeqCst), 0, "{what}");
        fixture.check_memory(&before, &[]);
        fixture.reset_and_serve();
    }
}

fn indirect(fixture: &mut Watched<'_>, table: u64, len: u32, flags: u16) {
    fixture.driver.descriptor(0, table, len, flags, 1);
    fixture.driver.offer(0);
}

#[test]
fn an_indirect_table_needs_the_feature() {
    let memory = memory();
    let (mut fixture, ..) = watched(&memory, Features::NONE);
    fixture
        .driver
        .descriptor_at(BUFFER, 0, BUFFER + 0x100, 4, WRITE, 0);
    indirect(&mut fixture, BUFFER, 16, INDIRECT);
    assert!(!fixture.notify());
    fixture.reset_and_serve();
}

#[test]
fn good_indirect_tables_are_served() {
    let memory = memory();
    let (mut fixture, _, reads) = watched(&memory, Features::of(&[VIRTIO_F_INDIRECT_DESC]));
    // Not aligned, marked as writable, behind a direct descriptor.
    let table = BUFFER + 0x1001;
    let driver = &mut fixture.driver;
    driver.descriptor(0, BUFFER, 3, WRITE | NEXT, 1);
    driver.descriptor(1, table, 32, INDIRECT | WRITE, 0);
    driver.descriptor_at(table, 0, BUFFER + 0x100, 4, WRITE | NEXT, 1);
    driver.descriptor_at(table, 1, BUFFER + 0x200, 5, WRITE, 0);
    driver.offer(0);
    let before = fixture.picture();
    assert!(fixture.notify());
    assert_eq!(fixture.driver.take_used(), [(0, 12)]);
    assert_eq!(reads.load(Ordering::SeqCst), 1);
    let written = [(BUFFER, 3), (BUFFER + 0x100, 4), (BUFFER + 0x200, 5)];
    fixture.check_memory(&before, &written);
}

#[test]
fn a_chain_may_be_as_long_as_the_queue_and_no_longer() {
    let memory = memory();
    let (mut fixture, _, reads) = watched(&memory, Features::of(&[VIRTIO_F_INDIRECT_DESC]));
    for index in 0..QUEUE_SIZE {
        let flags = if index + 1 < QUEUE_SIZE {
            WRITE | NEXT
        } else {
            WRITE
        };
        let addr = BUFFER + 2 * u64::from(index);
        fixture.driver.descriptor(index, addr, 1, flags, index + 1);
    }
    fixture.driver.offer(0);
    assert!(fixture.notify());
    assert_eq!(fixture.driver.take_used(), [(0, 256)]);
    assert_eq!(reads.load(Ordering::SeqCst), 1);
    assert_eq!(fixture.bytes(BUFFER, 2)[1], 0xc5);

    let table = 0x1_0000;
    for index in 0..=QUEUE_SIZE {
        let flags = if index < QUEUE_SIZE {
            WRITE | NEXT
        } else {
            WRITE
        };
        fixture
            .driver
            .descriptor_at(table, index, BUFFER, 1, flags, index + 1);
    }
    indirect(&mut fixture, table, 16 * 257, INDIRECT);
    assert!(!fixture.notify());
    fixture.reset_and_serve();
}

#[test]
fn requests_of_every_size_in_one_program_leave_the_device_usable() {
    let memory = memory();
    let (mut fixture, counters, _) = watched(&memory, Features::of(&[VIRTIO_F_INDIRECT_DESC]));
    // 0 B, 1 B, 1 MiB, 4 GiB, to the end of the world.
    for (index, (addr, len)) in [
        (BUFFER, 0),
        (BUFFER, 1),
        (BUFFER, 1 << 20),
        (BUFFER, u32::MAX),
        (u64::MAX - 7, 8),
    ]
    .into_iter()
    .enumerate()
    {
        fixture.driver.offer_writable(index as u16, addr, len);
    }
    let before = fixture.picture();
    assert!(fixture.notify());
    let used = fixture.driver.take_used();
    assert_eq!(used, [(0, 0), (1, 1), (2, 0), (3, 0), (4, 0)]);
    fixture.check_memory(&before, &[(BUFFER, 1)]);
    assert_eq!((counters.served(), counters.malformed()), (1, 4));

    // 255 overlapping buffers of 64 KiB, nearly 16 MiB, and then over the seam of two regions.
    for index in 0..255 {
        let flags = if index < 254 { WRITE | NEXT } else { WRITE };
        let addr = BUFFER + u64::from(index);
        fixture
            .driver
            .descriptor(index, addr, 0x1_0000, flags, index + 1);
    }
    fixture.driver.offer(0);
    fixture.driver.offer_writable(255, SEAM - 4, 8);
    let before = fixture.picture();
    assert!(fixture.notify());
    assert_eq!(fixture.driver.take_used(), [(0, 65_536), (255, 8)]);
    fixture.check_memory(&before, &[(BUFFER, 65_536), (SEAM - 4, 8)]);

    // And a loop, which breaks the ring.
    fixture.driver.descriptor(0, BUFFER, 4, WRITE | NEXT, 0);
    fixture.driver.offer(0);
    let before = fixture.picture();
    assert!(!fixture.notify());
    fixture.check_memory(&before, &[]);
    fixture.reset_and_serve();
}

#[test]
#[cfg_attr(miri, ignore = "takes more memory than there is")]
fn lengths_may_add_up_to_more_than_32_bits() {
    const LARGE: u32 = 0x110_0000;
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x120_0000)]).unwrap();
    let memory = Arc::new(memory);
    let (mut fixture, _, reads) = watched(&memory, Features::NONE);
    // 256 times the same 17 MiB: 4.25 GiB.
    for index in 0..QUEUE_SIZE {
        let flags = if index < 255 { WRITE | NEXT } else { WRITE };
        fixture
            .driver
            .descriptor(index, BUFFER, LARGE, flags, index + 1);
    }
    fixture.driver.offer(0);
    assert!(fixture.notify());
    assert_eq!(fixture.driver.take_used(), [(0, 65_536)]);
    assert_eq!(reads.load(Ordering::SeqCst), 1);
    assert_eq!(fixture.bytes(BUFFER + 65_536, 64), [0; 64]);
}

#[test]
fn buffers_at_the_edges_of_memory() {
    let memory = memory();
    let cases = [
        // To the last byte; in the second region; over the seam.
        (RAM - 8, 8, 8),
        (ISLAND_END - 1, 1, 1),
        (SEAM - 100, 200, 200),
        // Into the hole, across it, in it, and behind everything.
        (RAM - 8, 9, 0),
        (RAM - 8, 0x1_0010, 0),
        (HOLE, 1, 0),
        (ISLAND_END, 1, 0),
        (ISLAND - 1, 2, 0),
        (u64::MAX, 1, 0),
        (u64::MAX, 2, 0),
    ];
    for (addr, len, served) in cases {
        let (mut fixture, _, reads) = watched(&memory, Features::NONE);
        for (base, len) in [(BUFFER, RAM - BUFFER), (ISLAND, ISLAND_END - ISLAND)] {
            fixture.fill(base, len as usize);
        }
        // A good buffer in front gets nothing if the one behind it is bad.
        fixture.driver.descriptor(0, BUFFER, 4, WRITE | NEXT, 1);
        fixture.driver.descriptor(1, addr, len, WRITE, 0);
        fixture.driver.offer(0);
        let before = fixture.picture();
        assert!(fixture.notify());
        let total = if served == 0 { 0 } else { 4 + served };
        assert_eq!(fixture.driver.take_used(), [(0, total)], "{addr:#x} {len}");
        assert_eq!(reads.load(Ordering::SeqCst), u32::from(served != 0));
        if served == 0 {
            fixture.check_memory(&before, &[]);
        } else {
            fixture.check_memory(&before, &[(BUFFER, 4), (addr, served.into())]);
        }
    }
}

#[test]
fn readable_buffers_are_left_alone_wherever_they_stand() {
    let memory = memory();
    for order in 0..8_u16 {
        let (mut fixture, ..) = watched(&memory, Features::NONE);
        fixture.fill(BUFFER, 0x300);
        let mut written = Vec::new();
        for index in 0..3_u16 {
            let addr = BUFFER + 0x100 * u64::from(index);
            let writable = order & 1 << index != 0;
            let flags = if writable { WRITE } else { 0 } | if index < 2 { NEXT } else { 0 };
            fixture.driver.descriptor(index, addr, 5, flags, index + 1);
            if writable {
                written.push((addr, 5));
            }
        }
        fixture.driver.offer(0);
        let before = fixture.picture();
        assert!(fixture.notify());
        let len = 5 * written.len() as u32;
        assert_eq!(fixture.driver.take_used(), [(0, len)]);
        fixture.check_memory(&before, &written);
    }
}

#[test]
fn the_same_head_twice_is_answered_twice() {
    let memory = memory();
    let (mut fixture, ..) = watched(&memory, Features::NONE);
    fixture.driver.offer_writable(7, BUFFER, 4);
    fixture.driver.offer(7);
    assert!(fixture.notify());
    assert_eq!(fixture.driver.take_used(), [(7, 4), (7, 4)]);
}

#[test]
fn a_buffer_over_the_rings_harms_the_driver_alone() {
    let memory = memory();
    let (mut fixture, ..) = watched(&memory, Features::of(&[VIRTIO_F_EVENT_IDX]));
    let setup = *fixture.driver.setup();
    for addr in [setup.desc_table, setup.avail_ring, setup.used_ring] {
        fixture.driver.offer_writable(0, addr, 4096);
        // What the ring says now is the source's business; the worker lives or asks for a reset.
        fixture.notify();
        fixture.reset_and_serve();
    }
}

#[test]
fn a_driver_that_rewrites_the_used_ring_changes_nothing() {
    let memory = memory();
    let (mut fixture, ..) = watched(&memory, Features::NONE);
    for index in 0..4 {
        let addr = GuestAddress(fixture.driver.setup().used_ring);
        memory.write_obj(0xffff_ffff_u32, addr).unwrap();
        fixture.driver.offer_writable(index, BUFFER, 4);
        assert!(fixture.notify());
        assert_eq!(fixture.driver.used_index(), index + 1);
    }
}

#[test]
fn the_available_index_may_wrap_without_loss() {
    let memory = memory();
    let rounds = if cfg!(miri) { 600 } else { 70_000_u32 };
    for features in [Features::NONE, Features::of(&[VIRTIO_F_EVENT_IDX])] {
        let (mut fixture, counters, _) = watched(&memory, features);
        for round in 0..rounds {
            let head = (round % u32::from(QUEUE_SIZE)) as u16;
            fixture.driver.offer_writable(head, BUFFER, 4);
            assert!(fixture.notify());
            assert_eq!(fixture.driver.take_used(), [(head.into(), 4)]);
        }
        assert_eq!(counters.served(), u64::from(rounds));
    }
}

#[test]
fn a_million_malformed_requests_are_nothing_special() {
    let memory = memory();
    let (mut fixture, counters, reads) = watched(&memory, Features::NONE);
    // In the hole, around the end of the world, empty, and for the device to read.
    let kinds = [
        (HOLE, 64, WRITE),
        (u64::MAX - 7, 64, WRITE),
        (BUFFER, 0, WRITE),
        (BUFFER, 64, 0),
    ];
    for (index, (addr, len, flags)) in (0..QUEUE_SIZE).zip(kinds.into_iter().cycle()) {
        fixture.driver.descriptor(index, addr, len, flags, 0);
    }
    let before = fixture.picture();
    let rounds = if cfg!(miri) { 2 } else { 3907 };
    for _ in 0..rounds {
        (0..QUEUE_SIZE).for_each(|index| fixture.driver.offer(index));
        assert!(fixture.notify());
        let used = fixture.driver.take_used();
        assert!(used.iter().all(|&(_, len)| len == 0));
        assert_eq!(used.len(), 256);
    }
    assert_eq!(counters.malformed(), 256 * rounds);
    assert_eq!(reads.load(Ordering::SeqCst), 0);
    let rings = 0..fixture.driver.setup().used_ring + 6 + 8 * u64::from(QUEUE_SIZE);
    fixture.only_changed(&before, |addr| rings.contains(&addr));
    fixture.reset_and_serve();
}

#[test]
fn a_driver_that_keeps_filling_the_ring_does_not_hold_the_worker() {
    let memory = memory();
    let (mut fixture, counters, _) = watched(&memory, Features::NONE);
    for index in 0..QUEUE_SIZE {
        fixture.driver.offer_writable(index, BUFFER, 0);
    }
    for round in 1..=if cfg!(miri) { 2 } else { 100 } {
        assert!(fixture.kick());
        // Before the next round, the driver has put all of them back.
        (0..QUEUE_SIZE).for_each(|index| fixture.driver.offer(index));
        assert_eq!(counters.malformed(), 256 * round);
    }
}

/// One descriptor, as a driver without any sense may write it.
fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let addr = prop_oneof![
        4 => BUFFER..BUFFER + 0x1000,
        1 => 0..0x3000_u64,
        1 => RAM - 0x100..RAM + 0x100,
        1 => ISLAND - 0x10..ISLAND_END + 0x10,
        1 => any::<u64>(),
    ];
    let len = prop_oneof![4 => 0..0x100_u32, 1 => 0..0x2_0000_u32, 1 => any::<u32>()];
    let next = prop_oneof![4 => 0..16_u16, 1 => any::<u16>()];
    (addr, len, 0..8_u16, next)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 256 }))]

    /// Anything at all in the rings: the device answers each head at most once, keeps to the used
    /// ring and to writable buffers, and works after a reset.
    #[test]
    fn nothing_a_driver_writes_does_harm(
        table in proptest::collection::vec(descriptor(), 16),
        heads in proptest::collection::vec(prop_oneof![8 => 0..16_u16, 1 => any::<u16>()], 1..40),
        jump in prop_oneof![8 => Just(0_u16), 1 => any::<u16>()],
        features in (0..4_u64).prop_map(|bits| Features::from(bits << 28)),
        prompt in any::<bool>(),
    ) {
        let memory = memory();
        let (mut fixture, counters, reads) = watched_as(&memory, features, prompt);
        for (index, &(addr, len, flags, next)) in (0..).zip(&table) {
            fixture.driver.descriptor(index, addr, len, flags, next);
        }
        for &head in &heads {
            fixture.driver.offer(head);
        }
        if jump != 0 {
            fixture.driver.set_avail_index(jump);
        }
        let before = fixture.picture();
        let alive = fixture.notify();
        prop_assert_eq!(!alive, fixture.is_broken());
        prop_assert!(fixture.config_interrupts() <= 1);
        let rings = fixture.driver.setup().used_ring + 6 + 8 * u64::from(QUEUE_SIZE);
        let touches_rings = table.iter().any(|&(addr, len, flags, _)| {
            addr < rings && len != 0 && flags & WRITE != 0
        });
        if !touches_rings && jump == 0 {
            let answered = usize::from(fixture.driver.used_index());
            prop_assert!(answered <= heads.len());
            prop_assert!(!alive || answered == heads.len());
            prop_assert_eq!(counters.served() + counters.malformed(), answered as u64);
            let used = fixture.driver.take_used();
            prop_assert!(used.iter().all(|&(_, len)| len <= 65_536));
            prop_assert!(u64::from(reads.load(Ordering::SeqCst)) == counters.served());
        }
        // Only what some descriptor calls writable may have changed. Indirect tables are read from
        // memory that holds canaries, which describe nothing that is in memory.
        let writable: Vec<_> = table
            .iter()
            .filter(|(_, _, flags, _)| flags & WRITE != 0)
            .map(|&(addr, len, ..)| addr..addr.saturating_add(len.into()))
            .collect();
        let used_ring = fixture.driver.setup().used_ring..rings;
        fixture.only_changed(&before, |addr| {
            used_ring.contains(&addr) || writable.iter().any(|range| range.contains(&addr))
        });
        fixture.reset_and_serve();
    }
}

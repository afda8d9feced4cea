// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest cannot make the bus allocate.

#![cfg(not(any(loom, miri)))]

mod support;

use bus::{AccessError, Bus, MmioBus, Region, Width};
use support::Tag;

#[test]
fn a_million_accesses_allocate_nothing() {
    let buses: [MmioBus; 2] = [Bus::new(), Bus::builder().observer(|_| {}).build()];
    for bus in buses {
        bus.insert(Tag::new(1), 0x1000, 0x10).unwrap();
        let region = Region::new(0x2000, 0x10)
            .named("strict")
            .widths(&[Width::U32])
            .counted();
        bus.insert_region(Tag::new(2), region).unwrap();
        let mut view = bus.view();
        let allocated = allocation_counter::measure(|| {
            let mut data = [0; 8];
            for i in 0..250_000 {
                assert_eq!(
                    view.read(0x9000 + i, &mut data),
                    Err(AccessError::Unclaimed)
                );
                assert_eq!(view.write(0x9000 + i, &data), Err(AccessError::Unclaimed));
                assert_eq!(view.write(0x100c, &data), Err(AccessError::CrossesEnd));
                assert_eq!(view.read(0x2000, &mut data), Err(AccessError::Width));
                assert_eq!(view.read(0x1000 + i % 2 * 0x1000, &mut data[..4]), Ok(()));
            }
        });
        assert_eq!(allocated.count_total, 0);
    }
}

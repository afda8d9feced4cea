// Copyright 2026 The vmm-devices authors
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The node that Linux' driver reads.
#![cfg(feature = "fdt")]
#![expect(clippy::unwrap_used, reason = "a test stops at the unexpected")]

use mmio_rng_legacy::Description;
use vm_fdt::FdtWriter;

/// A device tree with this device in it, whose root has two address and two size cells.
fn tree(device: Description) -> Vec<u8> {
    let mut fdt = FdtWriter::new().unwrap();
    let root = fdt.begin_node("").unwrap();
    device.write_fdt(&mut fdt).unwrap();
    fdt.end_node(root).unwrap();
    fdt.finish().unwrap()
}

/// The tree of which the device's node, written by hand, is all there is.
fn expected(name: &str, reg: [u32; 4], period: u32, quality: u32) -> Vec<u8> {
    let mut fdt = FdtWriter::new().unwrap();
    let root = fdt.begin_node("").unwrap();
    let node = fdt.begin_node(name).unwrap();
    fdt.property("compatible", b"timeriomem_rng\0").unwrap();
    let reg: Vec<u8> = reg.into_iter().flat_map(u32::to_be_bytes).collect();
    fdt.property("reg", &reg).unwrap();
    fdt.property("period", &period.to_be_bytes()).unwrap();
    fdt.property("quality", &quality.to_be_bytes()).unwrap();
    fdt.end_node(node).unwrap();
    fdt.end_node(root).unwrap();
    fdt.finish().unwrap()
}

#[test]
fn the_node_names_the_register_to_timeriomem_rng() {
    let rng = Description::new(0x8000_1000).unwrap();
    let reg = [0, 0x8000_1000, 0, 4];
    assert_eq!(tree(rng), expected("rng@80001000", reg, 1, 1024));
    assert_eq!(
        tree(rng.with_period(20).with_quality(500)),
        expected("rng@80001000", reg, 20, 500)
    );
    assert_eq!(
        tree(rng.with_quality(u16::MAX).with_period(0)),
        expected("rng@80001000", reg, 0, 1024)
    );
    let high = Description::new(0x12_3456_7890).unwrap().with_quality(0);
    let reg = [0x12, 0x3456_7890, 0, 4];
    assert_eq!(tree(high), expected("rng@1234567890", reg, 1, 0));
}

#[test]
fn there_is_no_device_where_the_driver_takes_none() {
    for base in [1, 2, 3, 0x8000_1002, u64::MAX] {
        assert_eq!(Description::new(base), None, "{base:#x}");
    }
    assert!(Description::new(0).is_some());
    assert!(Description::new(u64::MAX - 3).is_some());
}
